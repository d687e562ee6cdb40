"""Speak with the service manager: what it is told, the sockets that it hands over, the file with our number.

Rule: without a manager nothing happens; a manager that does not listen is no error.
"""

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .cells import printable
from .model import Address
from .net import readable

_FIRST_FD: Final = 3
_LONGEST_NUMBER: Final = 20
_STARTTIME: Final = 22 - 3  # the field of proc_pid_stat(5), counted behind the name
_ROUNDING: Final = 2.0  # seconds


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
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload begins. Without the time ``Type=notify-reload`` would not believe it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str, seconds: float) -> None:
        """Say that the process ends, and will need so many seconds more."""
        self._tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def succeeded(self, pid: int) -> None:
        """Say that another process is the main one from now on."""
        self._tell(f"MAINPID={pid}")

    def alive(self) -> None:
        """Give the sign of life that its watchdog waits for."""
        self._tell("WATCHDOG=1")

    def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()

    def _tell(self, *lines: str) -> None:
        said = "\n".join(map(printable, lines)).encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            sock = self._socket or self._open()
            if sock is None:
                return
            try:
                sock.send(said)
            except OSError:  # not connected yet, or the manager has been started anew
                sock.connect(self._path)
                sock.send(said)

    def _open(self) -> socket.socket | None:
        if self._path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        return self._socket


def pid_obstacle(path: str, instead_of: int = 0) -> str:
    """Return why this process's number must not be written to a file, if one is asked for.

    Args:
        path: of the file; it may be missing.
        instead_of: the process whose place this one takes.
    """
    if not path:
        return ""
    try:
        Path(path).parent.stat()
        number, written = _read_pid(path)
    except (OSError, ValueError) as error:
        return _cannot_write(path, error)
    if number in (0, instead_of, os.getpid()) or not _may_have_written(number, written):
        return ""
    return f"{path} has the number of process {number}, which runs: stop it first, or remove the file"


def write_pid(path: str, instead_of: int = 0) -> str:
    """Write this process's number to a file, if one is asked for; return why not, if it cannot be done.

    It is a new file, renamed over the one that may be there: nobody reads half of it.
    """
    obstacle = pid_obstacle(path, instead_of)
    if obstacle or not path:
        return obstacle
    part = Path(f"{path}.{os.getpid()}")
    try:
        part.unlink(missing_ok=True)
        with part.open("x") as file:
            file.write(f"{os.getpid()}\n")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        return _cannot_write(path, error)
    return ""


def remove_pid(path: str) -> None:
    """Remove that file, unless somebody else's number is in it by now."""
    if path:
        with contextlib.suppress(OSError, ValueError):
            if _read_pid(path)[0] == os.getpid():
                Path(path).unlink()


def _cannot_write(path: str, error: Exception) -> str:
    return f"cannot write {path}: {getattr(error, 'strerror', None) or error}"


def _read_pid(path: str) -> tuple[int, float]:
    """Return the number in a file and when it was written, or nothing where there is no number.

    Raises:
        OSError: it is no regular file, and neither waited for nor followed, or cannot be read.
        ValueError: the path holds a NUL.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return 0, 0.0
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    text = Path(path).read_bytes()[:_LONGEST_NUMBER].strip()
    return int(text) if text.isdigit() else 0, found.st_mtime


def _may_have_written(number: int, written: float) -> bool:
    """Return whether a process runs that may have written a file then: not one that has begun since."""
    try:
        os.kill(number, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    with contextlib.suppress(OSError, ValueError, IndexError):
        began = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[_STARTTIME])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
        return age > time.time() - written - _ROUNDING
    return True


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
