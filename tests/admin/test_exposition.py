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
