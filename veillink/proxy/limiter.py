"""What the process may hold: the arithmetic of its descriptors and memory, and the limiters that clients wait at.

Rule: who finds no place waits in the kernel's queue; nobody is accepted and dropped.
"""

import math
from collections import deque
from typing import Protocol


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
    def among(self) -> int:
        """Among how many processes limits are divided."""
        return self._division.among

    def of_rule(self) -> "ConnectionLimiter":
        """Return a limiter of one of the rules that have this one in common."""
        return ConnectionLimiter(self._division, self)

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
