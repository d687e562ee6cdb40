"""Look at what may have waited too long: one coarse timer for all."""

import time
from typing import Any, Final, Protocol

from gevent.hub import get_hub

_TICK: Final = 0.25


class Watched(Protocol):
    """Something that has to be looked at from time to time."""

    def look(self, now: float) -> bool:
        """Do what is due at ``now`` (monotonic seconds); return whether to look again."""


class Patience:
    """Looks at what may have waited too long, four times a second.

    One coarse timer for all: a timeout object for each wait costs nine frames.
    """

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._timer: Any = None

    def watch(self, watched: Watched) -> None:
        """Look at this with every tick until it says that it is enough."""
        self._watched.add(watched)
        if self._timer is None:
            self._timer = get_hub().loop.timer(_TICK, _TICK, ref=False)
            self._timer.start(self._tick)

    def forget(self, watched: Watched) -> None:
        """Stop looking at it; forgetting an unknown one is harmless."""
        self._watched.discard(watched)

    def _tick(self) -> None:
        now = time.monotonic()
        for watched in tuple(self._watched):
            if not watched.look(now):
                self._watched.discard(watched)
        if not self._watched:
            self._timer.close()
            self._timer = None
