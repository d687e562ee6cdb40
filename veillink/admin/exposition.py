"""Show the state in Prometheus' text format.

Rule: labels come from the rules' file alone; what clients send never becomes one. Series live as long as their rule.
"""

from collections.abc import Iterator
from copy import copy
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from veillink.model import End

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


_PROCESS: Final = ProcessCollector(registry=None)
_OF_SYSTEM: Final = tuple(_PROCESS.collect())  # for their names and texts


def of_process() -> dict[str, float]:
    """Return what the system counts of this process, by the names of the metrics: time, memory, descriptors."""
    return {sample.name: sample.value for family in _PROCESS.collect() for sample in family.samples}


def text(status: dict[str, Any]) -> bytes:
    """Return everything that is measured as text.

    Args:
        status: the state, as ``/api/status`` shows it.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from _of_fleet(self._status)
        yield from _of_system(self._status["process"])
        yield from _of_rules(self._status["rules"])


def _of_system(values: dict[str, float]) -> Iterator[Metric]:
    for known in _OF_SYSTEM:
        family = copy(known)
        family.samples = [each._replace(value=values[each.name]) for each in known.samples if each.name in values]
        yield family


def _of_fleet(status: dict[str, Any]) -> Iterator[Metric]:
    build = GaugeMetricFamily("veillink_build_info", "The version that runs.", labels=["version"])
    build.add_metric([status["version"]], 1)
    yield build
    reload = status["last_reload"]
    yield GaugeMetricFamily(
        "veillink_config_last_reload_success", "Whether the rules' file was applied when it was last read.",
        value=reload["result"] != "refused",
    )  # fmt: skip
    yield GaugeMetricFamily(
        "veillink_config_problems", "Problems of the rules' file when it was last read.", value=len(reload["problems"])
    )
    reloads = CounterMetricFamily("veillink_config_reloads", "Times the rules' file was read.", labels=["result"])
    for result, count in status["reloads"].items():
        reloads.add_metric([result], count)
    yield reloads
    yield CounterMetricFamily(
        "veillink_log_lines_dropped", "Log lines lost because nobody took them in time.",
        value=status["log_lines_dropped"],
    )  # fmt: skip
    yield GaugeMetricFamily(
        "veillink_loop_lag_seconds", "How late the event loop was at worst in the last ten seconds.",
        value=status["loop_lag_seconds"],
    )  # fmt: skip
    yield GaugeMetricFamily(
        "veillink_connections_limit", "The most connections at a time.", value=status["limits"]["connections"]
    )


def _of_rules(rules: list[dict[str, Any]]) -> Iterator[Metric]:
    connections = CounterMetricFamily("veillink_connections", "Connections accepted.", labels=["rule"])
    active = GaugeMetricFamily("veillink_connections_active", "Connections at the moment.", labels=["rule"])
    moved = CounterMetricFamily(
        "veillink_bytes", "Bytes forwarded; in: from clients, out: to them.", labels=["rule", "direction"]
    )
    ends = CounterMetricFamily("veillink_connection_ends", "Connections that ended, by why.", labels=["rule", "end"])
    connect = HistogramMetricFamily("veillink_connect_seconds", "From accept to a connected target.", labels=["rule"])
    lasted = HistogramMetricFamily("veillink_connection_duration_seconds", "From accept to the end.", labels=["rule"])
    up = GaugeMetricFamily("veillink_target_up", "Whether it may be chosen.", labels=["rule", "target"])
    at_target = GaugeMetricFamily(
        "veillink_target_connections_active", "Connections at the moment.", labels=["rule", "target"]
    )
    listens = GaugeMetricFamily("veillink_listener_up", "Whether the rule has all its ports.", labels=["rule"])
    for rule in rules:
        name = rule["name"]
        connections.add_metric([name], rule["total"])
        active.add_metric([name], rule["active"])
        moved.add_metric([name, "in"], rule["bytes_in"])
        moved.add_metric([name, "out"], rule["bytes_out"])
        for end in End:  # also those that have not been yet: increase() would miss the first of each
            ends.add_metric([name, end], rule["ends"].get(end, 0))
        _add(connect, name, rule["connect_seconds"])
        _add(lasted, name, rule["duration_seconds"])
        listens.add_metric([name], rule["listener_up"])
        for target in rule["targets"]:
            up.add_metric([name, target["target"]], target["up"])
            at_target.add_metric([name, target["target"]], target["active"])
    yield from (connections, active, moved, ends, connect, lasted, up, at_target, listens)


def _add(family: HistogramMetricFamily, rule: str, times: dict[str, Any]) -> None:
    bounds = [*(str(bound) for bound in times["le"]), "+Inf"]
    family.add_metric([rule], list(zip(bounds, times["counts"], strict=True)), times["sum"])
