"""Show the state in Prometheus' text format.

Rule: what is shown is in the table of ``stats.metrics``, or what the system counts. Series live as long as their rule.
"""

from collections.abc import Iterator
from copy import copy
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from veillink.stats.metrics import Found, Series, of_process, of_rules
from veillink.stats.snapshot import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


_PROCESS: Final = ProcessCollector(registry=None)
_OF_SYSTEM: Final = tuple(_PROCESS.collect())  # for their names and texts
_FAMILIES: Final = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


def system_counts() -> dict[str, float]:
    """Return what the system counts of this process, by the names of the metrics: time, memory, descriptors."""
    return {sample.name: sample.value for family in _PROCESS.collect() for sample in family.samples}


def text(state: Status) -> bytes:
    """Return everything that is measured as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(state))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, state: Status) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        yield from _families(of_process(self._state))
        yield from _of_system(self._state["process"])
        yield from _families(of_rules(self._state["rules"]))


def _families(found: Found) -> Iterator[Metric]:
    for metric, labels, values in found:
        if metric.kind == "histogram":
            yield _histogram(metric.name, metric.help, labels, values)
            continue
        family = _FAMILIES[metric.kind](metric.name, metric.help, labels=labels)
        for of, value in values:
            family.add_metric(of, value)
        yield family


def _histogram(name: str, documentation: str, labels: tuple[str, ...], values: Series) -> Metric:
    family = HistogramMetricFamily(name, documentation, labels=labels)
    for of, times in values:
        assert not isinstance(times, int | float)  # noqa: S101 - the kind says so
        bounds = [*(str(bound) for bound in times["le"]), "+Inf"]
        family.add_metric(of, list(zip(bounds, times["counts"], strict=True)), times["sum"])
    return family


def _of_system(values: dict[str, float]) -> Iterator[Metric]:
    for known in _OF_SYSTEM:
        family = copy(known)
        family.samples = [each._replace(value=values[each.name]) for each in known.samples if each.name in values]
        yield family
