"""Add up what several processes show, as if they were one.

Rule: counters never go down, also when a process ends; what is down in one of them is down.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from veillink.stats.ledger import add_accounts, add_seconds

_OLDEST: Final = "process_start_time_seconds"


def merge(live: Sequence[dict[str, Any]], gone: dict[str, Any] | None) -> dict[str, Any]:
    """Return the state of several processes as if they were one.

    A target counts as up, and a rule as listening, where all say so.

    Args:
        live: the state of each, at least one, as ``ProcessStatus.status`` returns it.
        gone: what those who have ended leave, as ``archive`` returns it: counters never go down.
    """
    first, everybody = live[0], [*live, *([gone] if gone else [])]
    return {
        "version": first["version"],
        "phase": first["phase"],
        "uptime": max(each["uptime"] for each in live),
        "process": _merge_process(everybody),
        "rates": _sums(each["rates"] for each in live),
        "limits": {
            "connections": sum(each["limits"]["connections"] for each in live),
            "descriptors": min(each["limits"]["descriptors"] for each in live),
        },
        "totals": _sums(each["totals"] for each in everybody),
        "last_reload": max((each["last_reload"] for each in live), key=_gravity),
        "reloads": _sums(each["reloads"] for each in everybody),
        "log_lines_dropped": sum(each["log_lines_dropped"] for each in everybody),
        "loop_lag_seconds": max(each["loop_lag_seconds"] for each in live),
        "rules": _merge_rules(live, gone),
    }


def _gravity(reload: dict[str, Any]) -> tuple[bool, bool, str]:
    """Return what one reading of the rules' file is compared by: what one process could not use is not to be missed."""
    return reload["result"] == "refused", bool(reload["problems"]), reload["time"] or ""


def archive(status: dict[str, Any], gone: dict[str, Any] | None, live: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return what remains of a process that has ended, added to what remains of those before it.

    Args:
        status: its last state.
        gone: what remains of those before it, if there were any.
        live: the states of the others. A rule that none of them has any more counts in the totals alone.
    """
    kept = _by_name([status, *live])  # nothing where all of them are still to read the rules
    nothing_live = {"active": 0}
    remains = {
        "process": {key: value for key, value in status["process"].items() if key.endswith("_total")},
        "totals": status["totals"] | nothing_live,
        "reloads": status["reloads"],
        "log_lines_dropped": status["log_lines_dropped"],
        "rules": [rule | nothing_live for rule in status["rules"]],
    }
    parts = [gone, remains] if gone else [remains]
    sums = {key: _sums(part[key] for part in parts) for key in ("process", "totals", "reloads")}
    lines = {"log_lines_dropped": sum(part["log_lines_dropped"] for part in parts)}
    rules = [{"name": name} | add_accounts(same) for name, same in _by_name(parts).items() if name in kept or not kept]
    return sums | lines | {"rules": rules}


def _sums(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for part in parts:
        for key, value in part.items():
            values.setdefault(key, []).append(value)
    return {key: add_seconds(found) for key, found in values.items()}


def _merge_process(everybody: Sequence[dict[str, Any]]) -> dict[str, float]:
    began = [each["process"][_OLDEST] for each in everybody if _OLDEST in each["process"]]
    return _sums(each["process"] for each in everybody) | ({_OLDEST: min(began)} if began else {})


def _merge_rules(live: Sequence[dict[str, Any]], gone: dict[str, Any] | None) -> list[dict[str, Any]]:
    ended = {rule["name"]: rule for rule in gone["rules"]} if gone else {}
    return [
        same[0]
        | add_accounts([*same, *([ended[name]] if name in ended else [])])
        | {"listener_up": all(rule["listener_up"] for rule in same), "targets": _merge_targets(same)}
        for name, same in _by_name(live).items()
    ]


def _by_name(parts: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for rule in part["rules"]:
            found.setdefault(rule["name"], []).append(rule)
    return found


def _merge_targets(same: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    targets: dict[str, dict[str, Any]] = {}
    for rule in same:
        for target in rule["targets"]:
            seen = targets.setdefault(target["target"], {"target": target["target"], "up": True, "active": 0})
            seen["up"] = seen["up"] and target["up"]
            seen["active"] += target["active"]
    return list(targets.values())
