"""Lend pipes to bulk streams: splice(2) moves their bytes from socket to socket without entering Python.

Rule: a pipe in the pool is empty. One that comes back with bytes in it is closed.
"""

import contextlib
import fcntl
import os
from typing import Final

# With 1 MiB a splice moves what a receive buffer holds. An unprivileged user gets 64 MiB of pipes in all
# (pipe-user-pages-soft in proc(5)); after that they stay at 64 KiB.
PIPE_SIZE: Final = 1 << 20


class Pipe:
    """A pipe.

    ``entry``, ``exit``: its descriptors. ``held``: the bytes in it.
    """

    __slots__ = ("entry", "exit", "held")

    def __init__(self) -> None:
        self.exit, self.entry = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.entry, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def close(self) -> None:
        """Close it, with what it holds."""
        os.close(self.entry)
        os.close(self.exit)


class Pipes:
    """A bounded pool of pipes, made when they are first wanted.

    Args:
        most: how many there may be at a time; where the system has no splice there are none.
    """

    def __init__(self, most: int) -> None:
        self.most = most if hasattr(os, "splice") else 0
        self._made = 0
        self._used = False
        self._free: list[Pipe] = []

    def take(self) -> Pipe | None:
        """Return an empty pipe, or ``None`` when there is none to be had."""
        self._used = True
        if self._free:
            return self._free.pop()
        if self._made >= self.most:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self._made += 1
        return pipe

    def look(self, now: float) -> bool:
        """Close what nobody has wanted since the last look; return whether there are any pipes."""
        if not self._used:
            self._made -= len(self._free)
            while self._free:
                self._free.pop().close()
        self._used = False
        return self._made > 0

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back."""
        if pipe.held:
            self._made -= 1
            pipe.close()
        else:
            self._free.append(pipe)
