"""Ticks: who is looked at, how often, and what counts as lost."""

import time

import gevent
import pytest

from tests.sockets import eventually
from veillink.net.ticker import Ticker

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
    looked = Looked(3)
    ticker.watch(looked)
    eventually(lambda: ticker._timer is None)
    assert len(looked.looks) == 3
    assert looked.looks == sorted(looked.looks)


def test_who_is_forgotten_is_not_looked_at(ticker: Ticker) -> None:
    gone, other = Looked(100), Looked(2)
    ticker.watch(gone)
    ticker.watch(other)
    ticker.forget(gone)
    ticker.forget(gone)
    eventually(lambda: len(other.looks) == 2)
    assert gone.looks == []


def test_time_in_which_nothing_ran_is_lost(ticker: Ticker) -> None:
    looked = Looked(1000)
    ticker.watch(looked)
    gevent.sleep(0.05)
    time.sleep(0.3)
    gevent.sleep(0.05)
    ticker.forget(looked)
    assert 0.2 < ticker.lost < 0.35


def test_who_is_watched_closely_is_looked_at_every_10_ms(ticker: Ticker) -> None:
    looked = Looked(3)
    ticker.watch_closely(looked)
    eventually(lambda: ticker._close_timer is None)
    assert looked.looks[2] - looked.looks[0] < 1.0
