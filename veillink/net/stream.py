"""Wrap a connected socket as a ``Stream``.

Rule: at most one greenlet reads from a stream and at most one writes to it, and both have left it before it is closed
(a watcher on a closed descriptor would fire for whoever gets that number next).
"""

import _socket
import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any, Final

from gevent.hub import get_hub, getcurrent

from veillink.model import Address
from veillink.net.peer_watch import reset_watch
from veillink.net.pipes import PIPE_SIZE, Pipe
from veillink.net.sockets import readable, set_keepalive

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


class Stream:
    """A connected peer: bytes in, bytes out, and each way in which TCP can end.

    Args:
        sock: connected and non-blocking; the stream owns it from now on.
        own: its socket address, where we have connected it.
    """

    __slots__ = ("_fd", "_held", "_read_dry", "_reader", "_reading", "_socket", "_watched", "_writer", "broken", "own")

    def __init__(self, sock: _socket.socket, own: Any = None) -> None:
        self.own = own
        self._socket = sock
        self._fd = sock.fileno()
        self._reader: Any = get_hub().loop.io(self._fd, _READ)
        self._writer: Any = None
        self._held = 0
        self._read_dry = False
        self._reading = False
        self._watched = False
        self.broken = ""
        """The errno's name once a send has found the peer gone."""

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes and return how many were read; 0 once the peer has finished.

        Until ``stop_reading`` whatever comes wakes this greenlet, wherever it waits: whoever is to wait for something
        else calls that first. Starting and stopping the watcher for each wait took a seventh of what a request costs.

        Raises:
            OSError: the connection is lost.
        """
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

    def stop_reading(self) -> None:
        """Let this greenlet wait for something else."""
        if self._reading:
            self._reading = False
            self._reader.stop()

    @property
    def waits_to_read(self) -> bool:
        """Whether a greenlet waits for something to read, seen from the hub."""
        return bool(self._reader.active)

    def when_readable(self, call: Callable[[], None]) -> None:
        """Call once, from the hub, when there is something to read. Nobody may read until then."""
        self._reader.start(self._readable, call)

    def _readable(self, call: Callable[[], None]) -> None:
        self._reader.stop()
        call()

    def send(self, data: memoryview) -> int:
        """Hand to the kernel what it has room for, and return how many bytes that were.

        Raises:
            OSError: the connection is lost.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def sendall(self, data: memoryview) -> None:
        """Hand all of it to the kernel, waiting for room.

        Raises:
            OSError: the connection is lost.
        """
        rest = memoryview(bytes(data))  # the caller's buffer serves others while this one waits
        while self._hold(len(rest)):
            self._wait_writable()
            rest = rest[self.send(rest) :]

    def wait_readable(self) -> None:
        """Wait until there is something to read, or the peer has finished."""
        _wait(self._reader)

    def splice_into(self, pipe: Pipe) -> int:
        """Move waiting bytes into an empty pipe and return how many.

        Where urgent data is next, the kernel says 0 or EAGAIN: neither means that the peer has finished.

        Raises:
            BlockingIOError: nothing waits that can be moved so.
            OSError: the connection is lost.
        """
        pipe.held = os.splice(self._fd, pipe.entry, PIPE_SIZE, flags=_SPLICE_FLAGS)
        return pipe.held

    def splice_from(self, pipe: Pipe) -> None:
        """Hand all that the pipe holds to the kernel, waiting for room.

        Raises:
            OSError: the connection is lost.
        """
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
        """Say that we have finished sending; receiving goes on.

        Raises:
            OSError: the connection is lost.
        """
        self._socket.shutdown(socket.SHUT_WR)

    def unacked_bytes(self) -> int:
        """Return about how many bytes for the peer have not arrived there; 0 says that it has everything.

        Those that ``sendall`` or ``splice_from`` still hold count too. TCP: not yet acknowledged; a UNIX socket: not
        yet read (SIOCOUTQ in tcp(7) and unix(7), where it counts the kernel's memory for them).
        """
        return self._held + self._queued()

    def bytes_a_reset_would_lose(self) -> int:
        """Return how many bytes ``abort`` would take from the peer: on a UNIX socket none, its own queue has them."""
        return 0 if self._socket.family == socket.AF_UNIX else self._queued()

    def _queued(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._fd, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)

    def own_address(self) -> Address:
        """Return the address that the peer has come to."""
        return readable(self._socket.getsockname())

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

    def on_reset(self, told: Callable[[], None]) -> None:
        """Call ``told`` from the hub when the connection is reset, even while nobody reads. The last given counts."""
        self._watched = True
        reset_watch().add(self._fd, told)

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
        if self._watched:
            reset_watch().forget(self._fd)
        self._socket.close()
