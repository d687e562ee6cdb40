"""Tests of choosing a target."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from veillink.model import Address, Balance, Health, Rule, RuleOptions, Target
from veillink.proxy.pool import Member, Pool

CLIENT = "10.9.9.9"


def targets(*weights: int, backup: bool = False) -> list[Target]:
    return [Target(Address(f"10.0.{int(backup)}.{n}", 80), weight, backup) for n, weight in enumerate(weights)]


def a_rule(*targets: Target, ports: int = 1, **options: Any) -> Rule:
    return Rule("web", Address("", 80), ports, targets, RuleOptions(**options))


def a_pool(*targets: Target, draw: Callable[[], float] = random.random, **options: Any) -> Pool:
    return Pool(a_rule(*targets, **options), draw)


def chosen(pool: Pool, tried: Sequence[Member] = (), now: float = 0.0, client: str = CLIENT) -> Member:
    """Return who is chosen; somebody has to be."""
    member = pool.choose(0, client, now, tried)
    assert member is not None
    return member


def split(pool: Pool, connections: int) -> list[int]:
    """Return how many of so many connections each target gets."""
    got = Counter(chosen(pool).address for _ in range(connections))
    return [got[address] for address in pool.members]


policies = st.sampled_from(Balance)
many_weights = st.lists(st.integers(0, 10), max_size=4)


@st.composite
def some_targets(draw: st.DrawFn) -> list[Target]:
    return draw(st.permutations(targets(*draw(many_weights)) + targets(*draw(many_weights), backup=True)))


# --- in turn ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "connections", "shares"),
    [
        ((1,), 7, [7]),
        ((1, 1), 1000, [500, 500]),
        ((3, 1), 400, [300, 100]),
        ((3, 1), 4, [3, 1]),
        ((5, 0, 1), 600, [500, 0, 100]),
        ((1000, 1), 1001, [1000, 1]),
    ],
)
def test_connections_are_split_exactly_by_weight(weights: tuple[int, ...], connections: int, shares: list[int]) -> None:
    assert split(a_pool(*targets(*weights)), connections) == shares


@given(st.lists(st.integers(1, 10), min_size=1, max_size=5), st.integers(1, 5))
def test_any_whole_number_of_rounds_is_split_exactly(weights: list[int], rounds: int) -> None:
    assert split(a_pool(*targets(*weights)), rounds * sum(weights)) == [rounds * weight for weight in weights]


def test_a_heavy_target_does_not_get_all_its_connections_in_a_row() -> None:
    pool = a_pool(*targets(3, 1))
    a, b = pool.members.values()
    assert [chosen(pool) for _ in range(8)] == [a, a, b, a] * 2


@given(st.lists(st.integers(1, 10), min_size=2, max_size=5), st.data())
def test_a_target_that_was_out_for_a_while_is_not_flooded(weights: list[int], data: st.DataObject) -> None:
    pool = a_pool(*targets(*weights))
    out = data.draw(st.sampled_from(list(pool.members.values())))
    for _ in range(data.draw(st.integers(0, 50))):
        chosen(pool, [out])
    turns = [chosen(pool) for _ in range(sum(weights))]
    weight = weights[list(pool.members.values()).index(out)]
    assert abs(turns.count(out) - weight) <= 1


# --- the other policies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "connections", "shares"), [((1, 1), 10, [5, 5]), ((3, 1), 400, [300, 100])])
def test_least_connections_fills_up_by_weight(weights: tuple[int, ...], connections: int, shares: list[int]) -> None:
    assert split(a_pool(*targets(*weights), balance=Balance.LEAST_CONNECTIONS), connections) == shares


def test_least_connections_goes_where_connections_have_ended() -> None:
    pool = a_pool(*targets(1, 1, 1), balance=Balance.LEAST_CONNECTIONS)
    held = [chosen(pool) for _ in range(30)]
    _, b, _ = pool.members.values()
    for member in held:
        if member is b:
            member.leave()
    assert [chosen(pool) for _ in range(10)] == [b] * 10


def test_least_connections_takes_turns_among_equals() -> None:
    pool = a_pool(*targets(1, 1, 1), balance=Balance.LEAST_CONNECTIONS)
    turns = []
    for _ in range(9):
        turns.append(chosen(pool))
        turns[-1].leave()
    assert Counter(turns) == dict.fromkeys(pool.members.values(), 3)


def test_random_takes_the_less_loaded_of_two() -> None:
    draws = iter([0.1, 0.1])
    pool = a_pool(*targets(1, 1, 1), balance=Balance.RANDOM, draw=lambda: next(draws))
    a, b, _ = pool.members.values()
    a.active = 1
    assert chosen(pool) is b


def test_random_comes_near_the_weights() -> None:
    pool = a_pool(*targets(3, 1), balance=Balance.RANDOM, draw=random.Random(1).random)
    heavy, light = split(pool, 4000)
    assert heavy + light == 4000
    assert 2900 < heavy < 3100


def test_source_keeps_a_client_at_its_target_whoever_comes_or_goes() -> None:
    clients = [f"192.0.2.{n}" for n in range(250)] + [f"2001:db8::{n:x}" for n in range(250)]
    before, without = (a_pool(*targets(*[1] * n), balance=Balance.SOURCE) for n in (5, 4))
    was = {client: chosen(before, client=client).address for client in clients}
    now = {client: chosen(without, client=client).address for client in clients}
    moved = {client for client in clients if was[client] != now[client]}
    assert {was[client] for client in moved} == {Address("10.0.0.4", 80)}
    assert 60 < len(moved) < 140  # a fifth of 500
    assert set(Counter(was.values()).values()) & set(range(60, 140))


def test_source_shares_the_clients_by_weight() -> None:
    pool = a_pool(*targets(3, 1), balance=Balance.SOURCE)
    got = Counter(chosen(pool, client=f"198.51.{n // 250}.{n % 250}").address.host for n in range(4000))
    assert 2850 < got["10.0.0.0"] < 3150


def test_source_moves_a_client_only_while_its_target_is_out() -> None:
    pool = a_pool(*targets(1, 1, 1), balance=Balance.SOURCE)
    mine = chosen(pool)
    mine.down = True
    other = chosen(pool)
    assert other is not mine
    assert chosen(pool) is other
    mine.down = False
    assert chosen(pool) is mine


# --- who may be chosen -----------------------------------------------------------------------------------------------


@given(some_targets(), policies)
def test_a_connection_tries_every_usable_target_once_and_backups_last(
    candidates: list[Target], balance: Balance
) -> None:
    pool = a_pool(*candidates, balance=balance)
    backups = {target.address for target in candidates if target.backup}
    tried: list[Member] = []
    while member := pool.choose(0, CLIENT, 0.0, tried):
        assert member not in tried
        assert pool.untried(tried) >= 1
        tried.append(member)
    assert pool.untried(tried) == 0
    assert {member.address for member in tried} == {target.address for target in candidates if target.weight}
    assert [member.address in backups for member in tried] == sorted(member.address in backups for member in tried)


@given(some_targets(), policies, st.data())
def test_nobody_who_is_out_is_chosen_while_another_is_in(
    candidates: list[Target], balance: Balance, data: st.DataObject
) -> None:
    pool = a_pool(*candidates, balance=balance)
    weight = {target.address: target.weight for target in candidates}
    members = list(pool.members.values())
    choosable = [member for member in members if weight[member.address]]
    for _ in range(5):
        tried = data.draw(st.sets(st.sampled_from(choosable))) if choosable else set()
        for member in members:
            member.down = data.draw(st.booleans())
            member.active = data.draw(st.integers(0, 3))
        usable = [member for member in members if weight[member.address] and member not in tried]
        who = pool.choose(0, CLIENT, 0.0, tried)
        if usable:
            assert who in ([m for m in usable if not m.down] or usable)
        else:
            assert who is None


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (1, 2), (2, 3), (5, 3)])
def test_retries_limit_how_many_targets_are_tried(retries: int, tries: int) -> None:
    pool = a_pool(*targets(1, 1, 1), retries=retries)
    tried: list[Member] = []
    while member := pool.choose(0, CLIENT, 0.0, tried):
        assert pool.untried(tried) == tries - len(tried)
        tried.append(member)
    assert len(tried) == tries


def test_a_range_has_members_of_its_own_for_each_port() -> None:
    ranged, fixed = Target(Address("10.0.0.1", 8000)), Target(Address("10.0.0.2", 80), fixed=True)
    pool = Pool(a_rule(ranged, fixed, ports=3), random.random)
    assert [str(address) for address in pool.members] == [
        "10.0.0.1:8000",
        "10.0.0.2:80",
        "10.0.0.1:8001",
        "10.0.0.1:8002",
    ]
    pool.members[Address("10.0.0.1", 8001)].down = True
    assert {chosen(pool).address.port for _ in range(4)} == {8000, 80}
    assert {m.address.port for _ in range(4) if (m := pool.choose(1, CLIENT, 0.0, ()))} == {80}


# --- passive health --------------------------------------------------------------------------------------------------


def failing(pool: Pool, member: Member, *times: float) -> list[bool]:
    """Let connects fail at these times; return after each whether the target is out."""
    out = []
    for now in times:
        pool.count_failure(member, now)
        out.append(not member.up)
    return out


def test_so_many_failures_take_a_target_out_for_a_while() -> None:
    pool = a_pool(*targets(1, 1), max_fails=3, fail_timeout=10)
    a, b = pool.members.values()
    assert failing(pool, a, 1, 5, 9) == [False, False, True]
    assert not a.up
    assert {chosen(pool, now=now) for now in (9, 12, 18.9)} == {b}


@pytest.mark.parametrize(
    ("times", "out"), [((0, 9, 10.1), False), ((0, 5, 10), True), ((0, 11, 12, 13), True), ((0, 11, 22, 33), False)]
)
def test_only_failures_within_the_window_count(times: tuple[float, ...], out: bool) -> None:
    pool = a_pool(*targets(1, 1), max_fails=3, fail_timeout=10)
    a, _ = pool.members.values()
    assert any(failing(pool, a, *times)) is out


def test_a_target_that_was_out_gets_one_connection_to_prove_itself() -> None:
    pool = a_pool(*targets(1, 1), max_fails=1, fail_timeout=10)
    a, b = pool.members.values()
    failing(pool, a, 0)
    assert [chosen(pool, now=11) for _ in range(6)].count(a) == 1
    failing(pool, a, 11.5)
    assert {chosen(pool, now=now) for now in (12, 21)} == {b}
    assert [chosen(pool, now=22) for _ in range(6)].count(a) == 1
    a.count_success()
    assert a.up
    assert [chosen(pool, now=22) for _ in range(6)].count(a) == 3


def test_failures_from_before_a_target_was_out_count_no_more_once_it_has_served() -> None:
    pool = a_pool(*targets(1, 1), max_fails=3, fail_timeout=10)
    a, _ = pool.members.values()
    assert failing(pool, a, 1, 2, 3) == [False, False, True]
    a.count_success()
    assert failing(pool, a, 4, 5, 6) == [False, False, True]


def test_a_lone_target_is_never_taken_out() -> None:
    pool = a_pool(*targets(1, 0), max_fails=1)
    (a, _) = pool.members.values()
    assert failing(pool, a, *range(5)) == [False] * 5
    assert chosen(pool, now=5) is a


def test_no_failure_counts_when_that_is_switched_off() -> None:
    pool = a_pool(*targets(1, 1), max_fails=0)
    a, _ = pool.members.values()
    assert failing(pool, a, *range(5)) == [False] * 5


def test_when_all_are_out_all_are_tried() -> None:
    pool = a_pool(*targets(1, 1), max_fails=1, fail_timeout=10)
    for member in pool.members.values():
        failing(pool, member, 0)
    assert {chosen(pool, now=1) for _ in range(4)} == set(pool.members.values())


def test_a_success_in_between_says_nothing_about_the_failures() -> None:
    member = Member(Address("10.0.0.1", 80))
    for now in (0, 1):
        assert member.up
        member.count_failure(now, 2, 10)
        if member.up:
            member.count_success()
    assert not member.up


# --- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probes", "states"),
    [
        ("bbb", "uud"),
        ("bbgbbb", "uuuuud"),
        ("bbbgg", "uuddu"),
        ("bbbgbgg", "uuddddu"),
        ("bbbggbb", "uudduuu"),
        ("gggg", "uuuu"),
    ],
)
def test_so_many_probes_in_a_row_change_the_state(probes: str, states: str) -> None:
    member = Member(Address("10.0.0.1", 80))
    seen = ""
    for probe in probes:
        member.count_probe(good=probe == "g", rise=2, fall=3)
        seen += "u" if member.up else "d"
    assert seen == states


def test_probes_that_bring_a_target_back_speak_for_its_connects_too() -> None:
    member = Member(Address("10.0.0.1", 80))
    member.count_failure(0, 1, 3600)
    for good in (False, True):
        for _ in range(3):
            member.count_probe(good=good, rise=2, fall=3)
        assert member.up is good
    assert not member.is_out(1, 3600)


# --- reload ----------------------------------------------------------------------------------------------------------


def test_members_that_stay_keep_their_state_and_others_begin_anew() -> None:
    old = a_pool(*targets(1, 1), health=Health.TCP)
    a, _ = old.members.values()
    a.down, a.active = True, 3
    stays, comes = targets(5)[0], Target(Address("10.0.7.7", 80))
    new = Pool(a_rule(comes, replace(stays, backup=True), health=Health.TCP), random.random, old.members)
    assert new.members[stays.address] is a
    assert list(new.members) == [comes.address, stays.address]
    assert new.members[comes.address].up


@pytest.mark.parametrize("options", [{"max_fails": 0, "health": Health.TCP}, {"max_fails": 1}])
def test_what_a_new_form_of_the_rule_does_not_look_at_is_forgotten(options: dict[str, Any]) -> None:
    old = a_pool(*targets(1, 1), health=Health.TCP)
    failed, down = old.members.values()
    failed.failing, down.down = True, True
    Pool(a_rule(*targets(1, 1), **options), random.random, old.members)
    assert (failed.up, down.up) == ("health" in options, "health" not in options)


@pytest.mark.parametrize(("new", "max_fails"), [(targets(1, 1), 0), (targets(1), 1), (targets(0, 0, 1, 1)[2:], 1)])
def test_connections_from_before_a_reload_take_nobody_out_whose_failures_do_not_count_now(
    new: list[Target], max_fails: int
) -> None:
    old = a_pool(*targets(1, 1), max_fails=1)
    Pool(a_rule(*new, max_fails=max_fails), random.random, old.members)
    for member in old.members.values():
        old.count_failure(member, 0)
        assert member.up


def test_a_shorter_time_out_counts_at_once() -> None:
    old = a_pool(*targets(1, 1), max_fails=1, fail_timeout=3600)
    a, _ = old.members.values()
    old.count_failure(a, 0)
    new = Pool(a_rule(*targets(1, 1), max_fails=1, fail_timeout=1), random.random, old.members)
    assert a in {chosen(new, now=2) for _ in range(2)}


class Traffic(RuleBasedStateMachine):
    """Connections that come and go under any policy: no count is ever wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = a_pool(*targets(2, 1), *targets(1, backup=True), balance=Balance.LEAST_CONNECTIONS, max_fails=2)
        self.held: list[Member] = []
        self.now = 0.0

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(fails=st.integers(0, 3))
    def connect(self, fails: int) -> None:
        tried: list[Member] = []
        while member := self.pool.choose(0, CLIENT, self.now, tried):
            if len(tried) == fails:
                member.count_success()
                self.held.append(member)
                return
            member.leave()
            self.pool.count_failure(member, self.now)
            tried.append(member)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.held:
            self.held.pop(data.draw(st.integers(0, len(self.held) - 1))).leave()

    @rule(balance=policies)
    def reload(self, balance: Balance) -> None:
        self.pool = Pool(a_rule(*targets(1, 3), balance=balance), random.random, self.pool.members)

    @invariant()
    def counts_are_right(self) -> None:
        assert all(member.active == self.held.count(member) for member in self.pool.members.values())


TestTraffic = Traffic.TestCase
