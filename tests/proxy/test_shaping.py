"""Tests of bandwidth: many connections on a clock that is ours."""

import heapq
from collections.abc import Callable

import pytest

from veillink.limits import ByteRate, Per
from veillink.proxy.shaping import ShapedFlow, Shaping

START = 1e6
MIB = 1 << 20


class Run:
    """Connections that move as much as they may; each waits as long as it is told, and a little longer.

    Args:
        shaping: their limit.
        late: by so many seconds each is woken too late.
    """

    def __init__(self, shaping: Shaping, late: float = 0.0005) -> None:
        self.shaping = shaping
        self.late = late
        self.moved: list[tuple[float, int, int]] = []  # when, who, how many bytes
        self.wakes = 0
        self._due: list[tuple[float, int]] = []
        self._flows: dict[int, ShapedFlow] = {}

    def add(self, number: int, at: float, client: str = "a") -> None:
        self._flows[number] = self.shaping.join(client, START + at)
        heapq.heappush(self._due, (START + at, number))

    def leave(self, number: int, at: float) -> None:
        self._flows.pop(number).leave(START + at)

    def until(self, end: float, wanted: int = 64 * 1024) -> None:
        while self._due and self._due[0][0] < START + end:
            now, number = heapq.heappop(self._due)
            if number not in self._flows:
                continue
            self.wakes += 1
            count, wait = self._flows[number].take(now, wanted)
            assert wait > 0
            assert count <= wanted
            if count:
                self.moved.append((now - START, number, count))
            heapq.heappush(self._due, (now + (20e-6 if count else wait + self.late), number))

    def bytes(self, first: float, last: float, number: int | None = None) -> int:
        return sum(count for at, who, count in self.moved if first <= at < last and number in (None, who))


def run(
    rate: ByteRate, connections: int, seconds: float, late: float = 0.0005, client: Callable[[int], str] = str
) -> Run:
    running = Run(Shaping(rate), late)
    for number in range(connections):
        running.add(number, 0, client(number))
    running.until(seconds)
    return running


@pytest.mark.parametrize("rate", [10 << 10, 100 << 10, MIB, 20 * MIB])
@pytest.mark.parametrize("connections", [1, 2, 50])
@pytest.mark.parametrize("late", [0.0, 0.001, 0.03])
def test_all_together_have_the_rate(rate: int, connections: int, late: float) -> None:
    running = run(ByteRate(rate), connections, 4.2, late)
    assert running.bytes(0, 1) <= 1.1 * rate
    for first in (0, 1, 2, 2.2):
        assert running.bytes(first, first + 2) == pytest.approx(2 * rate, rel=0.05)


@pytest.mark.parametrize("connections", [2, 10, 50])
def test_each_has_its_share(connections: int) -> None:
    running = run(ByteRate(MIB), connections, 4)
    for number in range(connections):
        assert running.bytes(1, 4, number) == pytest.approx(3 * MIB / connections, rel=0.1)


@pytest.mark.parametrize("per", [Per.CONNECTION, Per.CLIENT])
def test_each_connection_or_client_has_the_rate(per: Per) -> None:
    running = run(ByteRate(MIB, per), 3, 2)
    for number in range(3):
        assert running.bytes(0, 2, number) == pytest.approx(2 * MIB, rel=0.05)


def test_the_connections_of_one_client_share_its_rate() -> None:
    running = run(ByteRate(MIB, Per.CLIENT), 4, 2, client=lambda number: str(number % 2))
    assert running.bytes(0, 2) == pytest.approx(4 * MIB, rel=0.05)
    assert running.bytes(0, 2, 0) == pytest.approx(MIB, rel=0.15)


@pytest.mark.parametrize("connections", [1, 4, 50, 200])
def test_a_newcomer_has_its_share_within_a_second(connections: int) -> None:
    running = run(ByteRate(MIB), connections, 3)
    running.add(999, 3, "new")
    running.until(6)
    share = MIB / (connections + 1)
    assert running.bytes(3, 4, 999) > 0.6 * share
    assert running.bytes(4, 6, 999) == pytest.approx(2 * share, rel=0.15)
    assert running.bytes(3, 5) == pytest.approx(2 * MIB, rel=0.05)


def test_who_leaves_leaves_its_share_to_the_others() -> None:
    running = run(ByteRate(MIB), 50, 2)
    for number in range(1, 50):
        running.leave(number, 2)
    running.until(4)
    assert running.bytes(2, 4, 0) == pytest.approx(2 * MIB, rel=0.05)
    assert len(running.shaping) == 1


@pytest.mark.parametrize("connections", [1, 50])
def test_silence_saves_next_to_nothing(connections: int) -> None:
    shaping = Shaping(ByteRate(MIB))
    running = Run(shaping)
    running.add(0, 0)
    running.until(1)
    running.leave(0, 1)
    for number in range(connections):
        running.add(number, 100)
    running.until(102)
    assert running.bytes(100, 100.001) <= 0.1 * MIB
    assert running.bytes(100, 101) <= 1.1 * MIB
    assert running.bytes(100, 102) == pytest.approx(2 * MIB, rel=0.05)


def test_a_loop_that_was_held_up_is_made_up_for() -> None:
    running = run(ByteRate(MIB), 5, 1)
    running._due = [(due + 0.3, number) for due, number in running._due]
    running.until(2)
    assert running.bytes(0, 2) == pytest.approx(2 * MIB, rel=0.05)


@pytest.mark.parametrize("connections", [1, 50, 1000])
@pytest.mark.parametrize("pause", [2.5, 60])
def test_a_pause_of_the_whole_process_is_not(pause: float, connections: int) -> None:
    running = run(ByteRate(MIB), connections, 5)
    end = 5 + pause
    running._due = sorted((max(due, START + end), number) for due, number in running._due)
    running.until(end + 3)
    assert running.bytes(end, end + 0.1) <= (0.1 + 0.6) * MIB
    assert running.bytes(end, end + 1) <= (1 + 0.6) * MIB
    assert running.bytes(end + 1, end + 3) == pytest.approx(2 * MIB, rel=0.05)


@pytest.mark.parametrize("connections", [1, 50])
@pytest.mark.parametrize(("before", "after"), [(MIB, 10 << 10), (10 << 10, MIB), (100 * MIB, MIB)])
def test_a_change_of_the_rate_is_heeded_at_once(before: int, after: int, connections: int) -> None:
    running = run(ByteRate(before), connections, 2)
    running.shaping.change(ByteRate(after))
    running.until(6)
    assert running.bytes(2, 4) == pytest.approx(2 * after, rel=0.15)
    assert running.bytes(4, 6) == pytest.approx(2 * after, rel=0.05)


def test_a_scope_can_be_changed() -> None:
    running = run(ByteRate(MIB), 3, 1)
    running.shaping.change(ByteRate(MIB, Per.CLIENT))
    running.until(3)
    assert running.bytes(1, 3) == pytest.approx(6 * MIB, rel=0.05)
    running.shaping.change(ByteRate(MIB, Per.CONNECTION))
    running.until(5)
    assert running.bytes(3, 5) == pytest.approx(6 * MIB, rel=0.05)
    running.shaping.change(ByteRate(MIB))
    running.until(7)
    assert running.bytes(5, 7) == pytest.approx(2 * MIB, rel=0.05)


def test_what_is_given_back_can_be_had_again() -> None:
    flow = Shaping(ByteRate(MIB)).join("a", START)
    moved = 0
    for _ in range(1000):
        count, _ = flow.take(START, 64 * 1024)
        if not count:
            break
        flow.give_back(count - 100)
        moved += 100
    assert moved == pytest.approx((0.02 + 0.001) * MIB, rel=0.05)


def test_a_client_that_comes_again_for_each_file_is_held_to_its_rate() -> None:
    running = Run(Shaping(ByteRate(MIB, Per.CLIENT)))
    for number in range(2000):
        running.add(number, number / 1000)
        running.until((number + 1) / 1000)
        running.leave(number, (number + 1) / 1000)
    assert running.bytes(0, 2) <= 2.1 * MIB


def test_clients_are_forgotten() -> None:
    shaping = Shaping(ByteRate(MIB, Per.CLIENT))
    for number in range(1000):
        flow = shaping.join(f"{number}", START + number)
        flow.take(START + number, 1000)
        flow.leave(START + number + 0.001)
    assert (len(shaping), shaping.remembered) == (0, 0)
    flows = [shaping.join(f"{number % 10}", START) for number in range(100)]
    assert shaping.remembered == 10
    for flow in flows:
        flow.leave(START)
    shaping.join("x", START + 1).leave(START + 1)
    assert shaping.remembered == 0


@pytest.mark.parametrize(("connections", "most"), [(1, 60), (50, 1100), (2000, 2200)])
def test_nobody_is_woken_in_vain(connections: int, most: int) -> None:
    running = run(ByteRate(MIB), connections, 2)
    before = running.wakes
    running.until(3)
    assert running.wakes - before <= most
