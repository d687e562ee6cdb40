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
from itertools import count
from typing import Final

from veillink.model import Address, RuleOptions
from veillink.net.listening import is_shared, listen

_VARIABLE: Final = "_VEILLINK_CLAIMS"
# How long another worker may look at an address, in seconds; it takes 50 µs unless it is stopped.
_LOOK: Final = 0.5

# Where what is, in the bytes and the locks of the file. It has holes: only pages that were written take memory.
_PORTS: Final = 1 << 16
_HOSTS: Final = 1 << 12  # those whose names come to the same number are one, port by port
_SECTIONS_AT: Final = 0
_PLACES_AT: Final = 1 << 20
_LOOKS_AT: Final = 1 << 30
_NOTHING: Final = b"\0"


class Claims:
    """The addresses that the workers of one master listen at, in a file that they share.

    Each process has a section of it, where a byte for each address says whether it listens there. It is its own for
    as long as it has a lock of it, which the kernel takes back when the process ends (fcntl_locking(2)). While it looks
    at an address it has another lock, so that two do not come first. A lock for each address was tried: the kernel
    keeps them in a list, and with 8,000 scattered ports four workers took half a minute to start.

    Args:
        fd: opened before the fork.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._section, self._mark, self._owner = 0, _NOTHING, 0

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

    def listen(self, address: Address, options: RuleOptions, *, ahead: bool = False) -> socket.socket:
        """Return a listening socket that is shared with the siblings of this process, as ``net.listen`` does.

        Raises:
            OSError: the address cannot be had, or is another VeilLink's.
        """
        if address.is_unix:
            return listen(address, options)
        if self._owner != os.getpid():
            self._take_section()
        place = place_of(address)
        self.begin_to_look(place)
        try:
            if not self._is_siblings(place) and is_shared(address):
                raise OSError(errno.EADDRINUSE, "another VeilLink would have to share its clients")
            sock = listen(address, options, reuse_port=True, ahead=ahead)
            self._write(place, self._mark)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _LOOKS_AT + place)
        return _Claimed(sock, partial(self._write, place, _NOTHING))

    def _take_section(self) -> None:
        """Take the first section that no living process has; a new mark makes what the one before has written void."""
        for section in count():
            with contextlib.suppress(BlockingIOError, PermissionError):
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, section)
                before = os.pread(self._fd, 1, _SECTIONS_AT + section) or _NOTHING
                self._mark = bytes([before[0] % 255 + 1])
                os.pwrite(self._fd, self._mark, _SECTIONS_AT + section)
                self._section, self._owner = section, os.getpid()
                return

    def begin_to_look(self, place: int) -> None:
        """Be the only one that looks at a place.

        Raises:
            OSError: a sibling does, for too long.
        """
        until = time.monotonic() + _LOOK
        while True:
            with contextlib.suppress(BlockingIOError, PermissionError):
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOOKS_AT + place)
                return
            if time.monotonic() > until:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            os.sched_yield()

    def _is_siblings(self, place: int) -> bool:
        """Return whether a living sibling listens there."""
        for section in count():
            mark = os.pread(self._fd, 1, _SECTIONS_AT + section)
            if mark in (b"", _NOTHING):
                return False
            if (
                section != self._section
                and mark == os.pread(self._fd, 1, _place_at(section, place))
                and self._lives(section)
            ):
                return True
        return False

    def _lives(self, section: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, section)
        except OSError:
            return True
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, section)
        return False

    def _write(self, place: int, mark: bytes) -> None:
        os.pwrite(self._fd, mark, _place_at(self._section, place))


def place_of(address: Address) -> int:
    """Return which of the bytes of a section is an address's."""
    host = blake2b(address.host.encode(), digest_size=2).digest()
    return int.from_bytes(host) % _HOSTS * _PORTS + address.port


def _place_at(section: int, place: int) -> int:
    return _PLACES_AT + section * _HOSTS * _PORTS + place


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
