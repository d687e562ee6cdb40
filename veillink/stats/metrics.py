"""The metrics, in one table: from it follow how workers add up, what is exposed, and the list in the documents.

Rule: labels come from the rules' file alone; what clients send never becomes one. A counter that is not counted in a
row of the table is not added up, and a row that is not there is not shown.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from veillink.model import End
from veillink.stats.snapshot import CertificateState, RuleState, Status, TargetState, Times

# Of seconds that are added up: without rounding the sum would depend on the order, and a counter could fall by a trace.
PLACES: Final = 6

Kind = Literal["counter", "gauge", "histogram"]
Value = float | Times
Merge = Callable[[Sequence[Any]], Any]


# --- how what several processes have counted becomes one value -------------------------------------------------------


def add(parts: Iterable[float]) -> float:
    """Return the sum of numbers of six places, exact to the last one: the same in whatever order they come."""
    return round(sum(parts), PLACES)


def add_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums by name."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def add_times(parts: Sequence[Times]) -> Times:
    """Return one histogram of all; their bounds are the same."""
    counts = [sum(column) for column in zip(*(each["counts"] for each in parts), strict=True)]
    return {"le": parts[0]["le"], "counts": counts, "sum": add(each["sum"] for each in parts)}


def gravest(reloads: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the last reading of the rules' file; what one process could not use is not to be missed."""
    return max(reloads, key=lambda each: (each["result"] == "refused", bool(each["problems"]), each["time"] or ""))


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metric:
    """One row.

    Args:
        name: without the suffix that counters have.
        kind: as Prometheus has it.
        help: one line.
        labels: beside ``rule``, ``target`` and ``file``, which follow from the state that has it.
        read: yields the values of those labels, and the value, from the state that has it.
        fields: the keys of the state that it is read from, and how those of several processes become one.
    """

    name: str
    kind: Kind
    help: str
    read: Callable[[Any], Iterable[tuple[tuple[str, ...], Value]]]
    fields: Mapping[str, Merge]
    labels: tuple[str, ...] = ()


def _field(key: str) -> Callable[[Any], Iterable[tuple[tuple[str, ...], Value]]]:
    return lambda state: [((), state[key])]


def _ends(rule: RuleState) -> Iterator[tuple[tuple[str, ...], Value]]:
    for end in End:  # also those that have not been yet: increase() would miss the first of each
        yield (end,), rule["ends"].get(end, 0)


def _expiry(certificate: CertificateState) -> Iterator[tuple[tuple[str, ...], Value]]:
    if certificate["not_after"]:  # else nobody knows
        yield (), certificate["not_after"]


OF_PROCESS: Final = (
    Metric(
        "veillink_build_info",
        "gauge",
        "The version that runs.",
        lambda state: [((state["version"],), 1)],
        {"version": lambda versions: versions[0]},
        ("version",),
    ),
    Metric(
        "veillink_config_last_reload_success",
        "gauge",
        "Whether the rules' file was applied when it was last read.",
        lambda state: [((), state["last_reload"]["result"] != "refused")],
        {"last_reload": gravest},
    ),
    Metric(
        "veillink_config_problems",
        "gauge",
        "Problems of the rules' file when it was last read.",
        lambda state: [((), len(state["last_reload"]["problems"]))],
        {"last_reload": gravest},
    ),
    Metric(
        "veillink_config_reloads",
        "counter",
        "Times the rules' file was read.",
        lambda state: [((result,), count) for result, count in state["reloads"].items()],
        {"reloads": add_counts},
        ("result",),
    ),
    Metric(
        "veillink_log_lines_dropped",
        "counter",
        "Log lines lost because nobody took them in time.",
        _field("log_lines_dropped"),
        {"log_lines_dropped": sum},
    ),
    Metric(
        "veillink_loop_lag_seconds",
        "gauge",
        "How late the event loop was at worst in the last ten seconds.",
        _field("loop_lag_seconds"),
        {"loop_lag_seconds": max},
    ),
    Metric(
        "veillink_connections_limit",
        "gauge",
        "The most connections at a time.",
        lambda state: [((), state["limits"]["connections"])],
        {
            "limits": lambda limits: {
                "connections": sum(each["connections"] for each in limits),
                "descriptors": min(each["descriptors"] for each in limits),
            }
        },
    ),
)
"""Read from ``Status``."""

OF_RULE: Final = (
    Metric("veillink_connections", "counter", "Connections accepted.", _field("total"), {"total": sum}),
    Metric("veillink_connections_active", "gauge", "Connections at the moment.", _field("active"), {"active": sum}),
    Metric(
        "veillink_bytes",
        "counter",
        "Bytes forwarded; in: from clients, out: to them.",
        lambda rule: [(("in",), rule["bytes_in"]), (("out",), rule["bytes_out"])],
        {"bytes_in": sum, "bytes_out": sum},
        ("direction",),
    ),
    Metric(
        "veillink_connection_ends",
        "counter",
        "Connections that ended, by why.",
        _ends,
        {"ends": add_counts},
        ("end",),
    ),
    Metric(
        "veillink_connect_seconds",
        "histogram",
        "From accept to a connected target.",
        _field("connect_seconds"),
        {"connect_seconds": add_times},
    ),
    Metric(
        "veillink_connection_duration_seconds",
        "histogram",
        "From accept to the end.",
        _field("duration_seconds"),
        {"duration_seconds": add_times},
    ),
    Metric(
        "veillink_tls_handshakes",
        "counter",
        "Handshakes with clients, by what became of them.",
        lambda rule: [((result,), count) for result, count in rule["handshakes"].items()],
        {"handshakes": add_counts},
        ("result",),
    ),
    Metric(
        "veillink_tls_handshake_seconds",
        "histogram",
        "How long handshakes with clients took.",
        lambda rule: [((), rule["handshake_seconds"])] if rule["handshakes"] else [],
        {"handshake_seconds": add_times},
    ),
)
"""Read from the ``Account`` of each rule, that of workers which have ended too."""

OF_TARGET: Final = (
    Metric("veillink_target_up", "gauge", "Whether it may be chosen.", _field("up"), {"up": all}),
    Metric(
        "veillink_target_connections_active", "gauge", "Connections at the moment.", _field("active"), {"active": sum}
    ),
)
"""Read from ``TargetState``."""

OF_LISTENER: Final = (
    Metric(
        "veillink_listener_up",
        "gauge",
        "Whether the rule has all its ports.",
        _field("listener_up"),
        {"listener_up": all},
    ),
)
"""Read from ``RuleState``."""

OF_CERTIFICATE: Final = (
    Metric(
        "veillink_certificate_expiry_timestamp_seconds",
        "gauge",
        "When a certificate that the rule shows ends, in Unix seconds.",
        _expiry,
        {"not_after": min},
    ),
)
"""Read from ``CertificateState``."""


def merge(metrics: Iterable[Metric], states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields that these metrics are read from, of several processes as if they were one."""
    fields = {key: how for metric in metrics for key, how in metric.fields.items()}
    return {key: how([state[key] for state in states]) for key, how in fields.items()}


Series = Iterator[tuple[tuple[str, ...], Value]]


Found = Iterator[tuple[Metric, tuple[str, ...], Series]]
"""Metrics, the names of all their labels, and their values with the values of these."""


def of_process(state: Status) -> Found:
    """Yield what is measured of the process."""
    for metric in OF_PROCESS:
        yield metric, metric.labels, iter(metric.read(state))


def of_rules(rules: Sequence[RuleState]) -> Found:
    """Yield what is measured of rules, targets, listeners and certificates."""
    for metric in OF_RULE:
        yield metric, ("rule", *metric.labels), _of_rules(metric, rules)
    for metric in OF_TARGET:
        yield metric, ("rule", "target", *metric.labels), _of_targets(metric, rules)
    for metric in OF_LISTENER:
        yield metric, ("rule", *metric.labels), _of_rules(metric, rules)
    for metric in OF_CERTIFICATE:
        yield metric, ("rule", "file", *metric.labels), _of_certificates(metric, rules)


def _of_rules(metric: Metric, rules: Iterable[RuleState]) -> Series:
    for rule in rules:
        for labels, value in metric.read(rule):
            yield (rule["name"], *labels), value


def _of_targets(metric: Metric, rules: Iterable[RuleState]) -> Series:
    for rule in rules:
        for address, targets in _by_address(rule["targets"]).items():
            for labels, value in metric.read(targets[0] if len(targets) == 1 else merge(OF_TARGET, targets)):
                yield (rule["name"], address, *labels), value


def _by_address(targets: Iterable[TargetState]) -> dict[str, list[TargetState]]:
    """Return targets by their address: one may be there for several names."""
    found: dict[str, list[TargetState]] = {}
    for target in targets:
        found.setdefault(target["target"], []).append(target)
    return found


def _of_certificates(metric: Metric, rules: Iterable[RuleState]) -> Series:
    for rule in rules:
        for certificate in rule["certificates"]:
            for labels, value in metric.read(certificate):
                yield (rule["name"], certificate["file"], *labels), value
