"""Speak with the service manager: how the process fares, and which sockets it is handed over.

Rule: without a manager nothing happens; a manager that does not listen is no error.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

from veillink.model import Address
from veillink.net.sockets import readable
from veillink.text import printable

_FIRST_FD: Final = 3


class ServiceNotifier:
    """Tells the service manager that started this process, if one did, how it fares.

    Args:
        environ: of the process; ``NOTIFY_SOCKET`` is where it listens, ``WATCHDOG_USEC`` how long it waits for us.

    Source: sd_notify(3), sd_watchdog_enabled(3).
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._open()  # now: a sign of life must not need a free descriptor
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environ.get("WATCHDOG_USEC", "") if mine and self._path else ""
        self.watchdog = int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else 0.0
        """Seconds without a sign of life after which this process is ended; 0 is never."""

    def ready(self, status: str) -> None:
        """Say that everything asked for is done: the start, or a reload."""
        self._notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload begins. Without the time ``Type=notify-reload`` would not believe it."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str, seconds: float) -> None:
        """Say that the process ends, and will need so many seconds more."""
        self._notify("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def succeeded(self, pid: int) -> None:
        """Say that another process is the main one from now on."""
        self._notify(f"MAINPID={pid}")

    def alive(self) -> None:
        """Give the sign of life that its watchdog waits for."""
        self._notify("WATCHDOG=1")

    def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()

    def _notify(self, *lines: str) -> None:
        message = "\n".join(map(printable, lines)).encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            sock = self._socket or self._open()
            if sock is None:
                return
            try:
                sock.send(message)
            except OSError:  # not connected yet, or the manager has been started anew
                sock.connect(self._path)
                sock.send(message)

    def _open(self) -> socket.socket | None:
        if self._path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        return self._socket


def inherited(environ: Mapping[str, str]) -> dict[Address, socket.socket]:
    """Return the listening sockets that were handed over, by the address that a rule would have for them.

    Args:
        environ: of the process, with ``LISTEN_PID`` and ``LISTEN_FDS`` (sd_listen_fds(3)).
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return {}
    found: dict[Address, socket.socket] = {}
    for descriptor in range(_FIRST_FD, _FIRST_FD + int(count)):
        with contextlib.suppress(OSError):  # it is no socket, or nothing at all
            os.set_inheritable(descriptor, False)
            sock = socket.socket(fileno=descriptor)
            if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found[_address(sock)] = sock
            else:
                sock.detach()
    return found


def _address(sock: socket.socket) -> Address:
    address = readable(sock.getsockname())
    both = sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return Address("", address.port) if both and address.host == "::" else address
