"""What the process may hold: the arithmetic of its descriptors, and the gates that clients wait at.

Rule: who finds a gate full waits in the kernel's queue; nobody is accepted and dropped.
"""

import math
from collections import deque
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Protocol

# Descriptors for stdio, the loop, and files being read.
_RESERVE: Final = 22


@dataclass(frozen=True, slots=True)
class Descriptors:
    """How the process's file descriptors are divided.

    Args:
        limit: how many it may have.
        splice: whether bulk streams go through pipes.
        watched: whether somebody may look in from outside, over HTTP.
    """

    limit: int
    splice: bool = True
    watched: bool = False

    @property
    def lookups(self) -> int:
        """Name look-ups at a time; each has a socket, and may read a file."""
        return min(128, max(4, self.limit // 32))

    @property
    def pipes(self) -> int:
        """Pipes of two descriptors for bulk streams; 32 of 1 MiB are half of what an unprivileged user may have."""
        return min(32, self.limit // 64) if self.splice else 0

    @property
    def beside(self) -> int:
        """Addresses tried beside the first one of each connection."""
        return min(16, self.limit // 16)

    @property
    def probes(self) -> int:
        """Targets probed at a time; each takes 50 ms and a little, so that 256 are 5,000 a second."""
        return min(256, max(1, self.limit // 64))

    @property
    def admin(self) -> int:
        """Connections at a time of those who look in."""
        return min(64, max(4, self.limit // 64)) if self.watched else 0

    def connections(self, listeners: int) -> int:
        """Return how many connections of two descriptors fit."""
        aside = _RESERVE + 2 * self.lookups + 2 * self.pipes + self.beside + self.probes + self.admin
        return (self.limit - aside - listeners) // 2

    def shares(self, listeners: int) -> dict[str, int]:
        """Return what gets how many."""
        return {
            "listeners": listeners,
            "lookups": 2 * self.lookups,
            "pipes": 2 * self.pipes,
            "side_by_side": self.beside,
            "probes": self.probes,
            "admin": self.admin,
            "reserve": _RESERVE,
            "connections": 2 * self.connections(listeners),
        }

    def needed(self, listeners: int) -> int:
        """Return the least limit with which one connection would fit."""
        return next(limit for limit in count(listeners) if replace(self, limit=limit).connections(listeners) > 0)


class Waiting(Protocol):
    """A listener that a gate can hold back."""

    @property
    def started(self) -> bool:
        """Whether it is still to accept anybody."""

    def start_accepting(self) -> None:
        """Go on."""

    def has_client(self) -> bool:
        """Return whether somebody waits to be accepted."""


class Gate:
    """How many connections may be held, and the listeners that wait for a place.

    Args:
        within: the process's gate, for one of a rule: a connection takes a place in both.
    """

    def __init__(self, within: "Gate | None" = None) -> None:
        self.limit = math.inf
        self.taken = 0
        self._within = within
        self._waiting: deque[Waiting] = deque()

    def full_for(self, listener: Waiting) -> bool:
        """Return whether there is no place; then the listener is told when there is one."""
        if self.taken < self.limit:
            return self._within is not None and self._within.full_for(listener)
        self._waiting.append(listener)
        if self._within is not None:
            self._within.wake()  # a place there that was meant for this listener is somebody else's now
        return True

    def enter(self) -> None:
        """Take a place."""
        self.taken += 1
        if self._within is not None:
            self._within.taken += 1

    def leave(self) -> None:
        """Give a place back."""
        self.taken -= 1
        if self._within is not None:
            self._within.taken -= 1
        self.wake()

    def wake(self) -> None:
        """Let listeners accept again, those that have waited longest first, until one has a client for the place."""
        while self._waiting and self.taken < self.limit:
            listener = self._waiting.popleft()
            if listener.started:
                listener.start_accepting()
                if listener.has_client():
                    break
        if self._within is not None:
            self._within.wake()
