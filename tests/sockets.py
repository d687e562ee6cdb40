"""Real sockets and a real log around the code under test: one process, one loop."""

import _socket
import contextlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import gevent
from gevent import socket

from veillink.log import Log
from veillink.model import Address
from veillink.net.peer_watch import PeerWatch
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import adopt

from .system.harness import HOST

_T = TypeVar("_T")
_Closable = TypeVar("_Closable", socket.socket, _socket.socket)


def eventually(condition: Callable[[], _T | None], seconds: float = 5.0) -> _T:
    """Return the first true answer of ``condition``; the loop runs meanwhile."""
    until = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < until, f"not within {seconds} s"
        gevent.sleep(0.002)
    return answer


def open_files() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open nothing more (EMFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def no_port_left(listener: socket.socket) -> Iterator[None]:
    """Let nobody in this thread's own network connect to the listener any more (EADDRNOTAVAIL)."""
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    ports.write_text("40000 40001")
    with socket.socket() as one, socket.socket() as other:
        for sock in (one, other):
            sock.connect(listener.getsockname())
        yield


def address_of(sock: socket.socket) -> Address:
    """Return the address that a socket is bound to."""
    return Address(*sock.getsockname()[:2])


def stuff(stream: SocketStream) -> None:
    """Send until nothing more fits."""
    with contextlib.suppress(gevent.Timeout), gevent.Timeout(0.02):
        while True:
            stream.sendall(memoryview(bytes(1 << 16)))


class Sockets:
    """Makes peers, and closes what is left of them when the test is over."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.peer_watch = PeerWatch()  # takes its one descriptor now, and not while a test counts them
        stack.callback(self.peer_watch.close)

    def listener(self, host: str = HOST, port: int = 0, backlog: int = 16) -> socket.socket:
        """Return a listening socket; ``accept`` is the test's to call."""
        sock = self.keep(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        return sock

    def client(self, address: Address) -> socket.socket:
        """Return a socket that is connected to the address."""
        sock = self.keep(socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET))
        sock.connect((address.host, address.port))
        return sock

    def accept(self, listener: socket.socket) -> socket.socket:
        """Return the next one who connects."""
        return self.keep(listener.accept()[0])

    def pair(self, buffers: int = 0) -> tuple[SocketStream, socket.socket]:
        """Return a stream and its peer; ``buffers`` makes what the kernel holds between them small."""
        with socket.socket() as listener:
            peer = self.keep(socket.socket())
            for sock in (listener, peer) if buffers else ():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            listener.bind((HOST, 0))
            listener.listen()
            peer.connect(listener.getsockname())
            stream = SocketStream(adopt(listener.accept()[0].detach(), socket.AF_INET))
        self._stack.callback(stream.close)
        return stream, peer

    def silent(self, host: str = HOST, port: int = 0) -> Address:
        """Return an address that never answers: its accept queue is full, and further SYNs are dropped."""
        address = address_of(self.listener(host, port, backlog=0))
        self.client(address)
        return address

    def keep(self, sock: _Closable) -> _Closable:
        """Close it when the test is over."""
        self._stack.callback(sock.close)
        return sock


class Journal:
    """A log, and what was written to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.log = Log(json_lines=True, level="debug", fd=self._fd)

    def lines(self, message: str = "") -> list[dict[str, Any]]:
        """Return the lines whose message contains this; without one all lines, those of connections too."""
        whole, _, _ = self._path.read_text().rpartition("\n")  # the last line may be half written
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if message in line.get("message", "")]

    def wait_for(self, message: str) -> dict[str, Any]:
        """Return the first line with this message."""
        return eventually(lambda: self.lines(message))[0]

    def access(self) -> list[dict[str, Any]]:
        """Return the lines of connections that have ended."""
        return [line for line in self.lines() if "duration_ms" in line]

    def finish(self) -> list[dict[str, Any]]:
        """Write what is still queued, and return all lines."""
        self.log.close()
        return self.lines()

    def close(self) -> None:
        """End the writer before its descriptor goes to somebody else."""
        self.log.close()
        os.close(self._fd)
