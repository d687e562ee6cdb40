"""A socket as a ``Stream``."""

import _socket
import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any, Final, TypeVar

from gevent.hub import get_hub, getcurrent

from veillink.model import Address
from veillink.net.peer_watch import PeerWatch
from veillink.net.pipes import Pipe
from veillink.net.sockets import readable, set_keepalive
from veillink.net.stream import Stream

_Value = TypeVar("_Value")

_READ: Final = 1
_WRITE: Final = 2
_CREDENTIALS: Final = struct.Struct("3i")
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_SPLICE_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)


def _wait(watcher: Any) -> None:
    """Wait until the watcher fires: ``hub.wait`` without its Waiter, whose C frames cost an idle stream 0.5 KiB.

    Nobody else may switch to the waiting greenlet; throwing is fine.
    """
    watcher.start(getcurrent().switch)
    try:
        get_hub().switch()
    finally:
        watcher.stop()


def read_prefix(
    stream: Stream, parse: Callable[[bytes], tuple[_Value, int] | None], limit: int
) -> tuple[_Value, bytes]:
    """Read what stands before the data; see ``Stream``. Return also what was read beyond it."""
    held, buffer = b"", memoryview(bytearray(limit))
    try:
        while (found := parse(held)) is None:
            if len(held) >= limit:
                raise ValueError("longer than it may be")
            count = stream.recv_into(buffer[: limit - len(held)])
            if not count:
                raise EOFError(held)
            held += buffer[:count]
    finally:
        stream.stop_reading()
    value, used = found
    return value, held[used:]


class SocketStream:
    """A ``Stream`` over a socket, which is its own transport.

    Args:
        sock: connected and non-blocking; the stream owns it from now on.
        own: its socket address, where we have connected it.
    """

    __slots__ = (
        "_fd",
        "_held",
        "_read_dry",
        "_reader",
        "_reading",
        "_socket",
        "_unread",
        "_unsent",
        "_watch",
        "_writer",
        "broken",
        "own",
    )
    close_says_eof = True

    def __init__(self, sock: _socket.socket, own: Any = None) -> None:
        self.own = own
        self._socket = sock
        self._fd = sock.fileno()
        self._reader: Any = get_hub().loop.io(self._fd, _READ)
        self._writer: Any = None
        self._held = 0
        self._read_dry = False
        self._reading = False
        self._unread = b""
        self._unsent = b""
        self._watch: PeerWatch | None = None
        self.broken = ""

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; see ``Stream``."""
        if self._unread:
            return self._take(buffer)
        while True:
            if self._read_dry:
                if not self._reading:
                    self._reading = True
                    self._reader.start(getcurrent().switch)
                get_hub().switch()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                self._read_dry = True  # waiting here would keep the exception alive: 300 bytes for an idle stream
            else:
                # A short read has emptied the queue: asking again now would only cost an EAGAIN.
                self._read_dry = count < len(buffer)
                return count

    def _take(self, buffer: memoryview) -> int:
        """Hand out what a prefix has left."""
        count = min(len(buffer), len(self._unread))
        buffer[:count] = self._unread[:count]
        self._unread = self._unread[count:]
        return count

    def read_prefix(self, parse: Callable[[bytes], tuple[_Value, int] | None], limit: int) -> _Value:
        """Read what stands before the data; see ``Stream``."""
        value, rest = read_prefix(self, parse, limit)
        self._unread = rest + self._unread
        return value

    @property
    def transport(self) -> "SocketStream":
        """Itself: a connection has two of them, and an object more would cost both 50 bytes."""
        return self

    def raw(self) -> "SocketStream | None":
        """Return this, unless it holds bytes."""
        return None if self._unread else self

    def stop_reading(self) -> None:
        """Let this greenlet wait for something else."""
        if self._reading:
            self._reading = False
            self._reader.stop()

    @property
    def waits_to_read(self) -> bool:
        """Whether a greenlet waits for something to read, seen from the hub."""
        return bool(self._reader.active)

    def when_readable(self, callback: Callable[[], None]) -> None:
        """Call back once when there is something to read; see ``Stream``."""
        self._reader.start(self._readable, callback)

    def _readable(self, callback: Callable[[], None]) -> None:
        self._reader.stop()
        callback()

    def send(self, data: memoryview) -> bool:
        """Hand over what there is room for, and keep the rest; see ``Stream``."""
        if not self._unsent:
            try:
                count = self._socket.send(data)
            except BlockingIOError:
                count = 0
            if count == len(data):
                return True
            data = data[count:]
        self._unsent += bytes(data)  # a copy: the caller's buffer serves others while this one waits
        return False

    def flush(self) -> None:
        """Hand over what ``send`` has kept; see ``Stream``."""
        while self._unsent:
            self._wait_writable()
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[self._socket.send(self._unsent) :]

    def sendall(self, data: memoryview) -> None:
        """Hand all of it over; see ``Stream``."""
        if not self.send(data):
            self.flush()

    @property
    def kept(self) -> int:
        """How many bytes ``send`` has kept."""
        return len(self._unsent)

    def wait_readable(self) -> None:
        """Wait until there is something to read; see ``Stream``."""
        if not self._unread:
            _wait(self._reader)
            self._read_dry = False

    def unread_bytes(self) -> int:
        """Return how many bytes wait here and in the kernel (FIONREAD in tcp(7) and unix(7))."""
        return len(self._unread) + self._asked(termios.FIONREAD)

    def splice_into(self, pipe: Pipe, most: int) -> int:
        """Move waiting bytes into an empty pipe; see ``Spliceable``."""
        pipe.held = os.splice(self._fd, pipe.entry, most, flags=_SPLICE_FLAGS)
        return pipe.held

    def splice_from(self, pipe: Pipe) -> None:
        """Empty a pipe; see ``Spliceable``."""
        while self._hold(pipe.held):
            try:
                pipe.held -= os.splice(pipe.exit, self._fd, pipe.held, flags=_SPLICE_FLAGS)
                continue
            except BlockingIOError:
                pass
            self._wait_writable()

    def _hold(self, count: int) -> int:
        """Remember that so many bytes for the peer wait here, where a greenlet that is ended leaves them behind."""
        self._held = count
        return count

    def _wait_writable(self) -> None:
        if self._writer is None:
            self._writer = get_hub().loop.io(self._fd, _WRITE)
        _wait(self._writer)

    def send_eof(self) -> None:
        """Finish sending; see ``Stream``."""
        self._socket.shutdown(socket.SHUT_WR)

    def unacked_bytes(self) -> int:
        """Return about how many bytes for the peer have not arrived there; 0 says that it has everything.

        Those that ``send`` has kept or ``splice_from`` still holds count too. TCP: not yet acknowledged; a UNIX socket:
        not yet read (SIOCOUTQ in tcp(7) and unix(7), where it counts the kernel's memory for them).
        """
        return self._held + len(self._unsent) + self._asked(termios.TIOCOUTQ)

    def bytes_a_reset_would_lose(self) -> int:
        """Return how many bytes ``abort`` would take from the peer: on a UNIX socket none, its own queue has them."""
        return 0 if self._socket.family == socket.AF_UNIX else self._asked(termios.TIOCOUTQ)

    def _asked(self, request: int) -> int:
        return int.from_bytes(fcntl.ioctl(self._fd, request, b"\0\0\0\0"), sys.byteorder)

    def own_address(self) -> Address:
        """Return the address that the peer has come to."""
        return readable(self._socket.getsockname())

    def peer_address(self) -> Address:
        """Return the address of the peer; see ``Transport``."""
        return readable(self._socket.getpeername())

    def peer_process(self) -> int:
        """Return the process that has connected to our UNIX socket (SO_PEERCRED in unix(7)), 0 where nobody tells."""
        if not hasattr(socket, "SO_PEERCRED"):
            return 0
        answer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(answer)[0])

    def keep_alive(self, seconds: float) -> None:
        """Find out when the peer has vanished; see ``set_keepalive``."""
        with contextlib.suppress(OSError):  # it is gone already, which the next read tells
            set_keepalive(self._socket, seconds)

    def was_reset(self) -> bool:
        """Return whether it has been reset already; this is told once (SO_ERROR in socket(7))."""
        return bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def on_reset(self, watch: PeerWatch, callback: Callable[[], None]) -> None:
        """Call back when the connection is reset; see ``Transport``."""
        self._watch = watch
        watch.add(self._fd, callback)

    def abort(self) -> None:
        """Close with RST: what is still unsent is thrown away, and the peer knows that the connection was cut."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):  # it is gone already
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close()

    def close(self) -> None:
        """Close in order (FIN). Closing twice is harmless."""
        if self._socket.fileno() < 0:
            return
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
        if self._watch is not None:
            self._watch.forget(self._fd)
        self._socket.close()
