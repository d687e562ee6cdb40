"""Ticks: who is looked at, how often, and what counts as lost."""

import time

import gevent
import pytest

from tests.sockets import eventually
from veillink.net import ticker as ticker_module
from veillink.net.ticker import Ticker, lived

pytestmark = pytest.mark.usefixtures("hub")


class Looked:
    """Counts looks, and has enough of them after some."""

    def __init__(self, enough: int) -> None:
        self.looks: list[float] = []
        self._enough = enough

    def on_tick(self, now: float) -> bool:
        self.looks.append(now)
        return len(self.looks) < self._enough


@pytest.fixture
def ticker() -> Ticker:
    return Ticker(period=0.02)


def test_it_is_looked_at_until_it_has_enough_and_then_the_timer_rests(ticker: Ticker) -> None:
    for enough in ((1, 3), (2, 1)):
        looked = [Looked(looks) for looks in enough]
        for each in looked:
            ticker.watch(each)
        eventually(lambda: ticker._timer is None)
        assert [len(each.looks) for each in looked] == [*enough]
        assert all(each.looks == sorted(each.looks) for each in looked)


def test_who_is_forgotten_is_not_looked_at(ticker: Ticker) -> None:
    gone, other = Looked(100), Looked(2)
    ticker.watch(gone)
    ticker.watch(other)
    ticker.forget(gone)
    ticker.forget(gone)
    eventually(lambda: len(other.looks) == 2)
    assert gone.looks == []


def test_time_in_which_nothing_ran_is_lost() -> None:
    now = 100.0
    ticker = Ticker(period=0.02, clock=lambda: now)
    looked = Looked(1000)
    ticker.watch(looked)
    eventually(lambda: looked.looks)
    assert ticker.lost == 0
    now += 7.0
    eventually(lambda: looked.looks[-1] == now)
    assert ticker.lost == pytest.approx(6.98)
    ticker.forget(looked)


def test_a_pause_is_hardly_lived_through() -> None:
    now = [100.0]
    lasted = []
    for _ in lived(0.3, clock=lambda: now[0]):  # the time for which cut connections are waited for
        now[0] += 7.0 if now[0] == 100.0 else 0.02
        lasted.append(now[0])
    assert lasted == pytest.approx([107.0, 107.02, 107.04, 107.06])


def test_who_is_watched_closely_is_looked_at_every_10_ms(ticker: Ticker) -> None:
    looked = Looked(3)
    ticker.watch_closely(looked)
    eventually(lambda: ticker._close_timer is None)
    assert looked.looks[2] - looked.looks[0] < 1.0


class Slow:
    """Something whose every look takes a while."""

    def __init__(self, looked: list[int], number: int) -> None:
        self.looked = looked
        self.number = number
        self.looks = 2

    def on_tick(self, now: float) -> bool:
        time.sleep(ticker_module._CLOSE_SHARE)
        self.looked.append(self.number)
        self.looks -= 1
        return self.looks > 0


def test_many_that_are_watched_closely_take_turns_and_leave_others_theirs(ticker: Ticker) -> None:
    looked = list[int]()
    for number in range(30):
        ticker.watch_closely(Slow(looked, number))
    most_at_once = 0
    while ticker._close_timer is not None:
        before = len(looked)
        gevent.sleep(0)
        most_at_once = max(most_at_once, len(looked) - before)
    assert looked == [*range(30), *range(30)]
    assert most_at_once == 1
