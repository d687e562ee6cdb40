"""Listen where the workers of this master listen, and nobody else's.

Rule: SO_REUSEPORT gives every process of a user its part of the clients, also one of another VeilLink; so whoever comes
to an address first looks whether it is free.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from hashlib import blake2b
from typing import Final

from .model import Address, RuleOptions
from .net import is_shared, listen

_VARIABLE: Final = "_VEILLINK_CLAIMS"
# How long another worker may look at an address, in seconds; it takes 50 µs unless it is stopped.
_LOOK: Final = 0.5


class Claims:
    """The addresses that the workers of one master listen at, each as the lock of a byte of a file that they share.

    The lock is exclusive while its first owner looks whether the address is free, and shared from then on: who gets a
    shared one knows that it is a sibling that listens there. The kernel gives locks back when a process ends
    (fcntl_locking(2)). Ports of one host that follow each other are one lock to it: 8,000 take 0.03 s. Scattered ones
    are a list that it goes through.

    Args:
        fd: opened before the fork.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> "Claims | None":
        """Return those of the program whose place this one takes, or new ones; ``None`` when that one has none.

        Raises:
            OSError: no descriptor is left.
        """
        given = environ.pop(_VARIABLE, "")
        if "GUNICORN_PID" not in environ:
            return cls(os.memfd_create("veillink-claims"))
        with contextlib.suppress(OSError, ValueError):
            os.set_inheritable(int(given), False)
            return cls(int(given))
        return None

    def hand_over(self) -> Mapping[str, str]:
        """Leave them to the program that this process is about to become; return its variables."""
        os.set_inheritable(self._fd, True)
        return {_VARIABLE: str(self._fd)}

    def listen(self, address: Address, options: RuleOptions) -> socket.socket:
        """Return a listening socket that is shared with the siblings of this process, as ``net.listen`` does.

        Raises:
            OSError: the address cannot be had, or is another VeilLink's.
        """
        if address.is_unix:
            return listen(address, options)
        host = blake2b(address.host.encode(), digest_size=5).digest()
        byte = int.from_bytes(host) << 16 | address.port
        first = self._claim(byte)
        try:
            if first and is_shared(address):
                raise OSError(errno.EADDRINUSE, "another VeilLink would have to share its clients")
            sock = listen(address, options, shared=True)
        except BaseException:
            self._release(byte)
            raise
        fcntl.lockf(self._fd, fcntl.LOCK_SH, 1, byte)
        return _Claimed(sock, partial(self._release, byte))

    def _claim(self, byte: int) -> bool:
        """Return whether no sibling has it.

        Raises:
            OSError: a sibling looks at it just now, for too long.
        """
        until = time.monotonic() + _LOOK
        while True:
            for kind, first in ((fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False)):
                with contextlib.suppress(BlockingIOError, PermissionError):
                    fcntl.lockf(self._fd, kind | fcntl.LOCK_NB, 1, byte)
                    return first
            if time.monotonic() > until:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            os.sched_yield()

    def _release(self, byte: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)


class _Claimed(socket.socket):
    """Gives its claim back once it is closed."""

    def __init__(self, sock: socket.socket, release: Callable[[], None]) -> None:
        super().__init__(fileno=sock.detach())
        self.setblocking(False)
        self._give_back: Callable[[], None] | None = release

    def close(self) -> None:
        super().close()
        if self._give_back is not None:
            self._give_back()
            self._give_back = None
