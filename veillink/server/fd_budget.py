"""Divide what the process may have of descriptors and memory.

Rule: what connections get is what is left, so that nothing else ever lacks one.
"""

import math
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

# Descriptors for stdio, the loop, and files being read.
_RESERVE: Final = 22


# What a connection adds to a cgroup in a relay (sockets, greenlet, account), and what a process has without any:
# measured 20 KiB, and 15 MiB that grow to 24 with the admin side and threads for look-ups.
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

    def breakdown(self, listeners: int) -> dict[str, int]:
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
