"""Tick for what may have waited too long: one coarse timer for all."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from gevent.hub import get_hub

_TICK: Final = 0.25
# What is watched closely is looked at so often, and may take so much of the loop each time.
_CLOSE_TICK: Final = 0.01
_CLOSE_SHARE: Final = 0.001


def lived(seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Yield again and again until this process has lived for so many seconds: a pause counts as a tick at most."""
    last = clock()
    while seconds > 0:
        yield
        now = clock()
        seconds -= min(now - last, _TICK)
        last = now


class Watched(Protocol):
    """Something that has to be looked at from time to time."""

    def on_tick(self, now: float) -> bool:
        """Do what is due at ``now`` (monotonic seconds); return whether to look again."""


class Ticker:
    """Looks at what may have waited too long, four times a second.

    One coarse timer for all: a timeout object for each wait costs nine frames.

    ``lost``: how many seconds, in all, this process did not run although a tick was due (SIGSTOP, a frozen container, a
    loop that was held up). Nobody could do anything in them: they count for no deadline.

    Args:
        period: seconds from tick to tick.
        clock: tells the time, in monotonic seconds.
    """

    def __init__(self, period: float = _TICK, clock: Callable[[], float] = time.monotonic) -> None:
        self.period = period
        self.lost = 0.0
        self._clock = clock
        self._due = 0.0
        self._watched: set[Watched] = set()
        self._timer: Any = None
        self._closely: deque[Watched] = deque()
        self._close_timer: Any = None

    def watch(self, watched: Watched) -> None:
        """Look at this with every tick until it says that it is enough."""
        self._watched.add(watched)
        if self._timer is None:
            self._due = self._clock() + self.period
            self._timer = get_hub().loop.timer(self.period, self.period, ref=False)
            self._timer.start(self._tick)

    def watch_closely(self, watched: Watched) -> None:
        """Look at this every 10 ms until it says that it is enough, or more seldom when there are many.

        Thousands that each had a timer of their own took the whole loop, and held everybody else up by 100 ms.
        """
        self._closely.append(watched)
        if self._close_timer is None:
            self._close_timer = get_hub().loop.timer(_CLOSE_TICK, _CLOSE_TICK, ref=False)
            self._close_timer.start(self._tick_closely)

    def forget(self, watched: Watched) -> None:
        """Stop looking at it; forgetting an unknown one is harmless."""
        self._watched.discard(watched)

    def _tick(self) -> None:
        self._account()
        # Timers come before what has arrived: whoever is to read that now does it first, and is judged after it.
        get_hub().loop.run_callback(self._tick_all)

    def _account(self) -> float:
        now = self._clock()
        if now - self._due > self.period:
            self.lost += now - self._due
        self._due = now + self.period
        return now

    def _tick_all(self) -> None:
        now = self._account()
        for watched in tuple(self._watched):
            if not watched.on_tick(now):
                self._watched.discard(watched)
        if not self._watched and self._timer is not None:
            self._timer.close()
            self._timer = None

    def _tick_closely(self) -> None:
        now = self._clock()
        until = now + _CLOSE_SHARE
        for _ in range(len(self._closely)):
            watched = self._closely.popleft()
            if watched.on_tick(now):
                self._closely.append(watched)
            now = self._clock()
            if now >= until:
                break
        if not self._closely:
            self._close_timer.close()
            self._close_timer = None
