"""Tests of what several processes show as if they were one."""

from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink.fleet.merge import archive, merge_states
from veillink.model import Address, End
from veillink.stats.ledger import Ledger
from veillink.stats.snapshot import Remains

CLIENT, LISTEN = Address("192.0.2.1", 1), Address("", 80)


def account(ended: int, live: int, moved: int) -> Any:
    """Return a rule's account as a ledger has it."""
    ledger = Ledger()
    for number in range(ended + live):
        connection = ledger.open("web", CLIENT, LISTEN, 0.0, Mock())
        connection.inbound.bytes, connection.outbound.bytes, connection.connected = moved, 2 * moved, 0.002
        if number < ended:
            ledger.close(connection, End.CLOSED, 3.0)
    return ledger.snapshot(["web"])["web"]


def target(live: int = 0) -> Any:
    """Return the state of a target."""
    return {"target": "db:1", "sni": "", "send_proxy": "v2", "up": True, "active": live}


def state(ended: int = 0, live: int = 0, moved: int = 0, **different: Any) -> Any:
    """Return what a process shows."""
    rule = {"name": "web", "listen": "80", "listener_up": True, "options": {"deny": "::1"}, "certificates": []}
    rule |= account(ended, live, moved) | {"targets": [target(live)]} | different.pop("rule", {})
    return {
        "version": "1",
        "phase": "running",
        "uptime": 5.0,
        "process": {"process_cpu_seconds_total": 2.0, "process_open_fds": 7.0, "process_start_time_seconds": 1000.0},
        "rates": {"connections_per_second": 1.5},
        "limits": {"connections": 10, "descriptors": 64},
        "totals": {"active": live, "connections": ended + live, "bytes_in": moved, "bytes_out": moved},
        "last_reload": {"time": "2026-01-01", "result": "applied", "problems": []},
        "reloads": {"applied": 1, "refused": 0},
        "log_lines_dropped": 1,
        "loop_lag_seconds": 0.1,
        "rules": [rule],
    } | different


def test_one_alone_is_shown_as_it_is() -> None:
    alone = state(2, 1, 10)
    assert merge_states([alone], None) == alone


def test_two_add_up() -> None:
    both = merge_states([state(2, 1, 10), state(1, 3, 5)], None)
    (rule,) = both["rules"]
    assert (rule["active"], rule["total"], rule["bytes_in"], rule["bytes_out"]) == (4, 7, 50, 100)
    assert rule["ends"] == {"closed": 3}
    assert rule["duration_seconds"]["counts"][-1] == 3
    assert rule["duration_seconds"]["sum"] == 9.0
    assert rule["targets"] == [target(4)]
    assert rule["options"] == {"deny": "::1"}
    assert both["totals"]["connections"] == 7
    assert both["limits"] == {"connections": 20, "descriptors": 64}
    assert both["rates"] == {"connections_per_second": 3.0}
    assert both["reloads"] == {"applied": 2, "refused": 0}
    assert both["log_lines_dropped"] == 2
    assert both["process"] == {
        "process_cpu_seconds_total": 4.0,
        "process_open_fds": 14.0,
        "process_start_time_seconds": 1000.0,
    }


@pytest.mark.parametrize("bad_one", [0, 1])
def test_what_is_down_for_one_is_down(bad_one: int) -> None:
    bad = state(rule={"listener_up": False, "targets": [target() | {"up": False}]})
    both = [state(), state()]
    both[bad_one] = bad
    (rule,) = merge_states(both, None)["rules"]
    assert (rule["listener_up"], rule["targets"][0]["up"]) == (False, False)


@pytest.mark.parametrize("first", [True, False])
def test_a_reload_that_one_has_refused_is_shown(first: bool) -> None:
    refused = {"time": "2025-12-31", "result": "refused", "problems": ["config.csv:1:1: no"]}
    both = [state(), state(last_reload=refused)]
    assert merge_states(both if first else both[::-1], None)["last_reload"] == refused


@pytest.mark.parametrize("first", [True, False])
def test_rows_that_one_does_not_run_are_shown(first: bool) -> None:
    skipped = {"time": "2025-12-31", "result": "applied", "problems": ["config.csv:1:1: no"]}
    both = [state(), state(last_reload=skipped)]
    assert merge_states(both if first else both[::-1], None)["last_reload"] == skipped
    refused = {"time": "2025-12-30", "result": "refused", "problems": []}
    assert merge_states([*both, state(last_reload=refused)], None)["last_reload"] == refused


def test_rules_and_targets_that_only_one_has_are_shown() -> None:
    other = state(rule={"name": "db", "targets": []})
    more = state(rule={"targets": [target() | {"target": "db:2"}]})
    web, db = merge_states([state(), other, more], None)["rules"]
    assert [web["name"], db["name"]] == ["web", "db"]
    assert [target["target"] for target in web["targets"]] == ["db:1", "db:2"]


def test_each_certificate_is_shown_once_and_as_it_ends_first() -> None:
    old, new = ({"file": "web.pem", "names": [], "issuer": "", "not_after": end, "doubts": []} for end in (1.0, 2.0))
    other = old | {"file": "db.pem"}
    both = [state(rule={"certificates": each}) for each in ([new], [old, other])]
    (rule,) = merge_states(both, archive(state(), None))["rules"]
    assert rule["certificates"] == [new | {"not_after": 1.0}, other]


def test_the_dead_leave_what_they_have_counted_and_nothing_live() -> None:
    gone = archive(state(2, 3, 10), archive(state(1, 1, 10), None))
    whole = merge_states([state(1, 1, 10)], gone)
    (rule,) = whole["rules"]
    assert (rule["active"], rule["total"], rule["bytes_in"]) == (1, 9, 90)
    assert rule["ends"] == {"closed": 4}
    assert (whole["totals"]["active"], whole["totals"]["connections"]) == (1, 9)
    assert whole["process"]["process_cpu_seconds_total"] == 6.0
    assert whole["process"]["process_open_fds"] == 7.0
    assert rule["targets"] == [target(1)]


def test_a_rule_that_only_the_dead_had_is_not_shown() -> None:
    gone = archive(state(rule={"name": "old"}), None)
    assert [rule["name"] for rule in merge_states([state()], gone)["rules"]] == ["web"]


def test_sums_of_seconds_do_not_depend_on_the_order() -> None:
    """Otherwise a counter would fall by a trace when a worker dies, and Prometheus would see a restart."""
    cpu = [state(process={"process_cpu_seconds_total": seconds}) for seconds in (0.1, 0.7, 0.3)]
    assert 0.1 + 0.7 + 0.3 != 0.3 + 0.7 + 0.1
    forth, back = merge_states(cpu, None), merge_states(cpu[::-1], None)
    assert (
        forth["process"] == back["process"] == merge_states(cpu[:1], archive(cpu[1], archive(cpu[2], None)))["process"]
    )


counts = st.integers(0, 5)
lives = st.lists(st.tuples(st.integers(0, 3), counts, counts), min_size=1, max_size=20)


@given(lives)
def test_whoever_dies_when_no_counter_ever_falls(steps: list[tuple[int, int, int]]) -> None:
    """Four workers count; at each step one of them counts on, or dies and a new one takes its place."""
    workers = [[0, 0] for _ in range(4)]
    gone: Remains | None = None
    last = 0
    for which, ended, live in steps:
        if ended == live == 0:
            gone = archive(state(workers[which][0], workers[which][1], 1), gone)
            workers[which] = [0, 0]
        else:
            workers[which] = [workers[which][0] + workers[which][1] + ended, live]
        (rule,) = merge_states([state(ended, live, 1) for ended, live in workers], gone)["rules"]
        assert rule["total"] >= last
        assert rule["active"] == sum(live for _, live in workers)
        last = rule["total"]
