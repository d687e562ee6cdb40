"""Add up what several processes show, as if they were one, as the table of metrics says.

Rule: counters never go down, also when a process ends; what is down in one of them is down.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, cast

from veillink.stats.metrics import OF_CERTIFICATE, OF_LISTENER, OF_PROCESS, OF_RULE, OF_TARGET, Metric, add, merge
from veillink.stats.snapshot import Account, Remains, RuleState, Status, Totals

_OLDEST: Final = "process_start_time_seconds"
_TARGET: Final = itemgetter("target", "sni")
_CERTIFICATE: Final = itemgetter("file")
_COUNTED: Final = ("reloads", "log_lines_dropped")  # what does not go with a process


def merge_states(live: Sequence[Status], gone: Remains | None) -> Status:
    """Return the state of several processes as if they were one.

    A target counts as up, and a rule as listening, where all say so.

    Args:
        live: the state of each, at least one.
        gone: what those who have ended leave, as ``archive`` returns it.
    """
    everybody: list[Status | Remains] = [*live, *([gone] if gone else [])]
    merged = merge(OF_PROCESS, live) | _counted(everybody)
    merged |= {
        "phase": live[0]["phase"],
        "uptime": max(each["uptime"] for each in live),
        "process": _merge_process(everybody),
        "rates": _sums(each["rates"] for each in live),
        "totals": _sums(_numbers(each["totals"]) for each in everybody),
        "rules": _merge_rules(live, gone),
    }
    return cast(Status, merged)


def archive(state: Status, gone: Remains | None, live: Sequence[Status] = ()) -> Remains:
    """Return what remains of a process that has ended, added to what remains of those before it.

    Args:
        state: its last one.
        gone: what remains of those before it, if there were any.
        live: the states of the others. A rule that none of them has any more counts in the totals alone.
    """
    kept = _by_name([state, *live])  # nothing where all of them are still to read the rules
    remains: Remains = {
        "process": {key: value for key, value in state["process"].items() if key.endswith("_total")},
        "totals": {**state["totals"], "active": 0},
        "reloads": state["reloads"],
        "log_lines_dropped": state["log_lines_dropped"],
        "rules": [{**rule, "active": 0} for rule in state["rules"]],
    }
    parts = [gone, remains] if gone else [remains]
    rules = [
        cast(RuleState, {"name": name} | _merge_accounts(same))
        for name, same in _by_name(parts).items()
        if name in kept or not kept
    ]
    counted = _counted(parts)
    return {
        "process": _sums(part["process"] for part in parts),
        "totals": cast(Totals, _sums(_numbers(part["totals"]) for part in parts)),
        "reloads": counted["reloads"],
        "log_lines_dropped": counted["log_lines_dropped"],
        "rules": rules,
    }


def _counted(parts: Sequence[Status | Remains]) -> dict[str, Any]:
    table = {key: how for metric in OF_PROCESS for key, how in metric.fields.items() if key in _COUNTED}
    return {key: how([part[key] for part in parts]) for key, how in table.items()}  # type: ignore[literal-required]


def _numbers(totals: Totals) -> Mapping[str, float]:
    return cast(Mapping[str, float], totals)


def _sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for part in parts:
        for key, value in part.items():
            values.setdefault(key, []).append(value)
    return {key: add(found) for key, found in values.items()}


def _merge_process(everybody: Sequence[Status | Remains]) -> dict[str, float]:
    began = [each["process"][_OLDEST] for each in everybody if _OLDEST in each["process"]]
    return _sums(each["process"] for each in everybody) | ({_OLDEST: min(began)} if began else {})


def _merge_accounts(same: Sequence[Account]) -> dict[str, Any]:
    return merge(OF_RULE, cast(Sequence[Mapping[str, Any]], same))


def _merge_rules(live: Sequence[Status], gone: Remains | None) -> list[RuleState]:
    ended = {rule["name"]: rule for rule in gone["rules"]} if gone else {}
    return [
        cast(
            RuleState,
            same[0]
            | _merge_accounts([*same, *([ended[name]] if name in ended else [])])
            | merge(OF_LISTENER, same)
            | {
                "targets": _merge_parts(OF_TARGET, _TARGET, [target for rule in same for target in rule["targets"]]),
                "certificates": _merge_parts(
                    OF_CERTIFICATE, _CERTIFICATE, [certificate for rule in same for certificate in rule["certificates"]]
                ),
            },
        )
        for name, same in _by_name(live).items()
    ]


def _by_name(parts: Iterable[Status | Remains]) -> dict[str, list[RuleState]]:
    found: dict[str, list[RuleState]] = {}
    for part in parts:
        for rule in part["rules"]:
            found.setdefault(rule["name"], []).append(rule)
    return found


def _merge_parts(metrics: Iterable[Metric], key: Callable[[Any], Any], parts: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the parts of a rule, each once by its key, as if one process had told of it."""
    found: dict[Any, list[Any]] = {}
    for part in parts:
        found.setdefault(key(part), []).append(part)
    return [each[0] | merge(metrics, each) for each in found.values()]
