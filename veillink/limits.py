"""What the process may hold: the arithmetic of its descriptors and memory, and the limiters that clients wait at.

Rule: who finds no place waits in the kernel's queue; nobody is accepted and dropped.
"""

import math
from collections import deque
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Protocol

# Descriptors for stdio, the loop, and files being read.
_RESERVE: Final = 22
# What a connection adds to a cgroup in a relay (sockets, greenlet, entry), and what a process has without any: measured
# 20 KiB, and 15 MiB that grow to 24 with the admin side and threads for look-ups.
_CONNECTION_BYTES: Final = 20 << 10
_PROCESS_BYTES: Final = 24 << 20
# A process that runs at all can hold so many.
_FEWEST: Final = 64


@dataclass(frozen=True, slots=True)
class FdBudget:
    """How the process's file descriptors are divided.

    Args:
        limit: how many it may have.
        splice: whether bulk streams go through pipes.
        watched: whether somebody may look in from outside, over HTTP.
        inherited: listening sockets that were handed over; each stays open beside the copy that is listened on.
    """

    limit: int
    splice: bool = True
    watched: bool = False
    inherited: int = 0

    @property
    def lookups(self) -> int:
        """Name look-ups at a time; each has a socket, and may read a file."""
        return min(128, max(4, self.limit // 32))

    @property
    def pipes(self) -> int:
        """Pipes of two descriptors for bulk streams; 32 of 1 MiB are half of what an unprivileged user may have."""
        return min(32, self.limit // 64) if self.splice else 0

    @property
    def parallel_attempts(self) -> int:
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
        single = self.parallel_attempts + self.probes + self.admin + self.inherited
        aside = _RESERVE + 2 * self.lookups + 2 * self.pipes + single
        return (self.limit - aside - listeners) // 2

    def shares(self, listeners: int) -> dict[str, int]:
        """Return what gets how many."""
        return {
            "listeners": listeners + self.inherited,
            "lookups": 2 * self.lookups,
            "pipes": 2 * self.pipes,
            "side_by_side": self.parallel_attempts,
            "probes": self.probes,
            "admin": self.admin,
            "reserve": _RESERVE,
            "connections": 2 * self.connections(listeners),
        }

    def needed(self, listeners: int) -> int:
        """Return the least limit with which one connection would fit."""
        return next(limit for limit in count(listeners) if replace(self, limit=limit).connections(listeners) > 0)


def fitting(memory: int, processes: int, workers: int) -> float:
    """Return how many connections one of several workers can hold.

    Args:
        memory: bytes that all processes may have together; 0 is no limit.
        processes: that there are, with the one that looks after the workers.
        workers: those of them that hold connections.
    """
    if not memory:
        return math.inf
    return max(_FEWEST, (memory - processes * _PROCESS_BYTES) // workers // _CONNECTION_BYTES)


class Division:
    """Among how many processes limits are divided; one for all limiters, so that none has an old part."""

    __slots__ = ("among",)

    def __init__(self) -> None:
        self.among = 1


class Waiting(Protocol):
    """A listener that a limiter can hold back."""

    @property
    def started(self) -> bool:
        """Whether it is still to accept anybody."""

    def start_accepting(self) -> None:
        """Go on."""

    def has_client(self) -> bool:
        """Return whether somebody waits to be accepted."""


class ConnectionLimiter:
    """How many connections may be held, and the listeners that wait for a place.

    Args:
        division: among whom ``most`` is divided. Everyone may hold one connection.
        parent: the process's limiter, for one of a rule: a connection takes a place in both.
    """

    def __init__(self, division: Division, parent: "ConnectionLimiter | None" = None) -> None:
        self.most = math.inf
        """What all processes may hold together."""
        self.room = math.inf
        """What this process may hold, whatever the others do."""
        self.in_use = 0
        self._division = division
        self._parent = parent
        self._waiting: deque[Waiting] = deque()

    @property
    def limit(self) -> float:
        """What this process may hold."""
        part = self.most if self.most == math.inf else max(1, self.most // self._division.among)
        return min(self.room, part)

    def _has_place(self) -> bool:
        """Return whether less than ``limit`` is taken; asked for each client, so without a division."""
        taken = self.in_use
        return taken < self.room and (not taken or (taken + 1) * self._division.among <= self.most)

    def blocks(self, listener: Waiting) -> bool:
        """Return whether there is no place; then the listener is told when there is one."""
        if self._has_place():
            return self._parent is not None and self._parent.blocks(listener)
        self._waiting.append(listener)
        if self._parent is not None:
            self._parent.wake()  # a place there that was meant for this listener is somebody else's now
        return True

    def acquire(self) -> None:
        """Take a place."""
        self.in_use += 1
        if self._parent is not None:
            self._parent.in_use += 1

    def release(self) -> None:
        """Give a place back."""
        self.in_use -= 1
        if self._parent is not None:
            self._parent.in_use -= 1
        self.wake()

    def wake(self) -> None:
        """Let listeners accept again, those that have waited longest first, until one has a client for the place."""
        while self._waiting and self._has_place():
            listener = self._waiting.popleft()
            if listener.started:
                listener.start_accepting()
                if listener.has_client():
                    break
        if self._parent is not None:
            self._parent.wake()
