"""The table of metrics: what it says of values that several processes have."""

import pytest

from veillink.stats.metrics import (
    OF_CERTIFICATE,
    OF_LISTENER,
    OF_PROCESS,
    OF_RULE,
    OF_TARGET,
    Metric,
    add,
    add_counts,
    add_times,
    gravest,
    merge,
)

ALL = (*OF_PROCESS, *OF_RULE, *OF_TARGET, *OF_LISTENER, *OF_CERTIFICATE)


def test_no_metric_is_in_the_table_twice() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_row_is_as_prometheus_wants_it(metric: Metric) -> None:
    assert metric.name.startswith("veillink_")
    assert not metric.name.endswith("_total")  # the library adds it to counters
    assert metric.help.endswith(".")
    assert metric.fields


def test_a_sum_of_seconds_does_not_depend_on_the_order() -> None:
    parts = [0.1, 0.2, 0.3, 1e6]
    assert add(parts) == add(reversed(parts)) == 1000000.6


def test_counts_are_added_by_name() -> None:
    assert add_counts([{"closed": 1}, {"closed": 2, "loop": 3}, {}]) == {"closed": 3, "loop": 3}


def test_histograms_are_added_bound_by_bound() -> None:
    one, other = {"le": [1.0], "counts": [1, 2], "sum": 0.1}, {"le": [1.0], "counts": [0, 5], "sum": 0.2}
    assert add_times([one, other]) == {"le": [1.0], "counts": [1, 7], "sum": 0.3}  # type: ignore[list-item]


def test_a_refused_file_is_not_to_be_missed() -> None:
    good, bad = (
        {"time": "2026", "result": "applied", "problems": []},
        {"time": "2025", "result": "refused", "problems": ["x"]},
    )
    assert gravest([good, bad]) == bad
    assert gravest([good, {**good, "time": "2027"}])["time"] == "2027"


def test_several_become_one_as_the_table_says() -> None:
    one = {"up": True, "active": 2}
    assert merge(OF_TARGET, [one, {"up": False, "active": 3}]) == {"up": False, "active": 5}
    assert merge(OF_LISTENER, [{"listener_up": True}, {"listener_up": True}]) == {"listener_up": True}
