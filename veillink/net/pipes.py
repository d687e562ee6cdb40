"""Lend pipes to bulk streams: splice(2) moves their bytes from socket to socket without entering Python.

Rule: a pipe in the pool is empty. One that comes back with bytes in it is closed.
"""

import contextlib
import errno
import fcntl
import os
import socket
from typing import Final

# With 1 MiB a splice moves what a receive buffer holds. An unprivileged user gets 64 MiB of pipes in all
# (pipe-user-pages-soft in proc(5)); after that they stay at 64 KiB.
PIPE_SIZE: Final = 1 << 20
# How splice(2) says that it cannot be had at all, or not for these sockets: a sandbox, seccomp, an odd kernel.
_REFUSALS: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP})


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

    def drain(self) -> bytes:
        """Take out what it holds."""
        data = os.read(self.exit, self.held)
        self.held = 0
        return data

    def close(self) -> None:
        """Close it, with what it holds."""
        os.close(self.entry)
        os.close(self.exit)


class Pipes:
    """A bounded pool of pipes, made when they are first wanted.

    Args:
        most: how many there may be at a time; where the system has no splice, or refuses it, there are none.
    """

    def __init__(self, most: int) -> None:
        self.most = most if _splice_works() else 0
        self._made = 0
        self._used = False
        self._free: list[Pipe] = []

    def take(self) -> Pipe | None:
        """Return an empty pipe, or ``None`` when there is none to be had."""
        if not self.most:
            return None
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

    def refused(self, error: OSError) -> bool:
        """Return whether this is how splice is refused; then no pipe is lent any more."""
        if error.errno not in _REFUSALS:
            return False
        self.most = 0
        return True

    def on_tick(self, now: float) -> bool:
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


def _splice_works() -> bool:
    if not hasattr(os, "splice"):
        return False
    try:
        pipe = Pipe()
    except OSError:  # no descriptor is left, which says nothing of splice
        return True
    near, far = socket.socketpair()
    try:
        near.send(b"x")
        os.splice(far.fileno(), pipe.entry, 1)
    except OSError:
        return False
    finally:
        near.close()
        far.close()
        pipe.close()
    return True
