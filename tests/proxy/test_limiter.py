"""How many connections a process and a rule may hold, and whose turn it is when a place is free."""

import math

import pytest

from veillink.proxy.limiter import ConnectionLimiter, Division


class Waiter:
    """Stands for a listener: notes when it may accept again."""

    def __init__(self, *, has_client: bool = True, started: bool = True) -> None:
        self.started = started
        self.woken = 0
        self._has_client = has_client

    def start_accepting(self) -> None:
        self.woken += 1

    def has_client(self) -> bool:
        return self._has_client


@pytest.mark.parametrize(
    ("most", "room", "among", "limit"),
    [
        (math.inf, math.inf, 1, math.inf),
        (math.inf, 7, 1, 7),
        (10, 7, 1, 7),
        (10, math.inf, 4, 2),
        (3, math.inf, 4, 1),  # everyone may hold one
        (10, 0, 1, 0),
    ],
)
def test_the_limit_is_the_part_of_what_all_may_hold_or_the_room(
    most: float, room: float, among: int, limit: float
) -> None:
    division = Division()
    division.among = among
    limiter = ConnectionLimiter(division)
    limiter.most, limiter.room = most, room
    assert limiter.limit == limit
    taken = 0
    while taken < 20 and not limiter.blocks(Waiter()):
        limiter.acquire()
        taken += 1
    assert taken == min(limit, 20)


def test_a_connection_takes_a_place_of_its_rule_and_of_the_process() -> None:
    process = ConnectionLimiter(Division())
    rule, other = process.of_rule(), process.of_rule()
    rule.acquire()
    assert (process.in_use, rule.in_use, other.in_use) == (1, 1, 0)
    rule.release()
    assert (process.in_use, rule.in_use) == (0, 0)


def test_a_free_place_goes_to_who_has_waited_longest_and_has_a_client() -> None:
    process = ConnectionLimiter(Division())
    process.most = 1
    rule = process.of_rule()
    rule.acquire()
    gone, empty, first, second = Waiter(started=False), Waiter(has_client=False), Waiter(), Waiter()
    assert all(rule.blocks(waiter) for waiter in (gone, empty, first, second))
    rule.release()
    assert [waiter.woken for waiter in (gone, empty, first, second)] == [0, 1, 1, 0]


def test_who_waits_at_its_rule_leaves_the_place_of_the_process_to_others() -> None:
    process = ConnectionLimiter(Division())
    process.most = 2
    narrow, wide = process.of_rule(), process.of_rule()
    narrow.most = 1
    narrow.acquire()
    wide.acquire()
    at_narrow, at_wide = Waiter(), Waiter()
    assert wide.blocks(at_wide)
    wide.release()
    assert at_wide.woken == 1
    assert narrow.blocks(at_narrow)
    narrow.release()
    assert at_narrow.woken == 1
