"""A rule's forms at work: what is carried over to the next one."""

import time
from collections.abc import Iterator

import gevent
import pytest

from tests.proxy.making import make_shared
from tests.sockets import Journal, Sockets, address_of, eventually
from veillink.limits import Rate
from veillink.model import Address, End, Ended, Health, OnDown, Rule, RuleOptions, Target
from veillink.proxy.service import Service
from veillink.proxy.shared import Shared

LISTEN = Address("127.0.0.1", 80)
A, B = Address("192.0.2.1", 80), Address("192.0.2.2", 80)


@pytest.fixture
def shared(journal: Journal, sockets: Sockets) -> Iterator[Shared]:
    shared = make_shared(journal.log, sockets.peer_watch)
    yield shared
    shared.resolver.keep({})


def rule(*targets: Address, **options: object) -> Rule:
    return Rule("web", LISTEN, 1, tuple(map(Target, targets)), RuleOptions(**options))  # type: ignore[arg-type]


def test_the_next_form_keeps_the_state_of_targets_that_stay_and_goes_on_counting(shared: Shared) -> None:
    before = Service.build(rule(A, B, max_fails=1), shared)
    before.limiter.acquire()
    before.upstream.count_failure(before.upstream.pool.members[B], "ECONNREFUSED")
    after = Service.build(rule(B, max_connections=5), shared, before)
    assert after.limiter is before.limiter
    assert after.limiter.most == 5
    assert after.upstream.pool.members[B] is before.upstream.pool.members[B]
    assert before.rule.options.max_connections == 0


def test_targets_that_go_out_and_come_back_are_logged(shared: Shared, journal: Journal) -> None:
    service = Service.build(rule(A, B, max_fails=1), shared)
    member = service.upstream.pool.members[A]
    service.upstream.count_failure(member, "ECONNREFUSED")
    service.upstream.count_failure(member, "ECONNREFUSED")
    service.upstream.count_success(member)
    told = [line for line in journal.finish() if "target" in line.get("message", "")]
    assert [(line["message"], line["target"], line.get("reason")) for line in told] == [
        ("target down", str(A), "ECONNREFUSED"),
        ("target up", str(A), None),
    ]


@pytest.mark.parametrize("health", Health)
def test_targets_are_probed_only_where_the_rule_asks_for_it(health: Health, shared: Shared) -> None:
    service = Service.build(rule(A, health=health), shared)
    assert bool(service.probes) is (health is not Health.OFF)
    service.stop_probes()


@pytest.mark.parametrize(("among", "at_once"), [(1, 4), (2, 2), (8, 1)])
def test_processes_share_the_rate_at_which_a_rule_accepts_and_its_burst(
    among: int, at_once: int, shared: Shared
) -> None:
    service = Service.build(rule(A, connection_rate=Rate(60, 3600, 4)), shared)
    shared.limiter._division.among = among
    accepted = 0
    while not service.pause(1e6):
        service.take(1e6)
        accepted += 1
    assert accepted == at_once
    assert service.pause(1e6) == pytest.approx(60 * among)


class Scope:
    """Notes how a connection is ended."""

    def __init__(self) -> None:
        self.ends: list[End] = []

    def cancel(self, ended: Exception) -> None:
        assert isinstance(ended, Ended)
        self.ends.append(ended.end)


@pytest.mark.parametrize("on_down", OnDown)
def test_connections_of_a_target_that_probes_take_out_are_reset_where_the_rule_says_so(
    on_down: OnDown, shared: Shared, sockets: Sockets
) -> None:
    gone = sockets.listener()
    target = address_of(gone)
    gone.close()
    options = {"health": Health.TCP, "health_interval": 0.1, "health_fall": 1, "on_down": on_down}
    service = Service.build(rule(target, **options), shared)
    scope = Scope()
    connection = shared.ledger.open("web", A, LISTEN, time.monotonic(), scope)
    connection.member = service.upstream.pool.members[target]
    eventually(lambda: connection.member is not None and service.upstream.pool.members[target].down)
    gevent.sleep(0)
    service.stop_probes()
    assert scope.ends == ([End.TARGET_RESET] if on_down is OnDown.RESET else [])
