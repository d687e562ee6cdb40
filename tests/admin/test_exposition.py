"""What is measured, as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from tests.fleet.test_merge import state
from veillink.admin import exposition as metrics
from veillink.model import End


def test_every_end_is_counted_from_zero() -> None:
    """A series that begins with its first failure has not increased, for Prometheus."""
    text = metrics.text(state(ended=2)).decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    ends = {each.labels["end"]: each.value for each in samples if each.name == "veillink_connection_ends_total"}
    assert ends == {end.value: 2.0 if end is End.CLOSED else 0.0 for end in End}


def test_when_certificates_end_is_told_where_that_is_known() -> None:
    known = {"file": "web.pem", "names": [], "issuer": "", "not_after": 1_800_000_000.0, "doubts": []}
    rule = {"certificates": [known, known | {"file": "odd.pem", "not_after": 0.0}]}
    lines = [line for line in metrics.text(state(rule=rule)).decode().splitlines() if "expiry" in line]
    assert lines[2:] == ['veillink_certificate_expiry_timestamp_seconds{file="web.pem",rule="web"} 1.8e+09']
