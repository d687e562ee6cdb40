"""Connections through a VeilLink of which a test holds both ends."""

import contextlib
import fcntl
import hashlib
import random
import signal
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from .harness import HOST, VeilLink, eventually

Side = Literal["client", "target"]
SIDES: tuple[Side, ...] = ("client", "target")

MIB = 1 << 20

PROMPTLY = 2.0  # seconds; a few milliseconds on an idle machine


class Ends:
    """A VeilLink whose target is the test itself.

    Args:
        start: the fixture.
        row: options of the rule's row.
        receive_buffer: SO_RCVBUF of both ends; it has to be set before they are connected.
        more: for ``VeilLink``.
    """

    def __init__(self, start: Callable[..., VeilLink], row: str = "", receive_buffer: int = 0, **more: Any) -> None:
        self._receive_buffer = receive_buffer
        self._listening = socket.create_server((HOST, 0), backlog=512)
        self._listening.settimeout(20)
        if receive_buffer:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._held: list[socket.socket] = [self._listening]
        self.port: int = self._listening.getsockname()[1]
        try:
            self.veillink = start(f"{HOST}:{{port}},{HOST},{self.port},{row}\n", **more)
        except BaseException:
            self.close()
            raise

    def connect(self) -> socket.socket:
        """Return a client's socket."""
        client = socket.socket()
        self._held.append(client)
        if self._receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        client.settimeout(20)
        client.connect((HOST, self.veillink.port))
        return client

    def accept(self) -> socket.socket:
        """Return the target's socket of the connection that comes next."""
        target, _ = self._listening.accept()
        self._held.append(target)
        target.settimeout(20)
        return target

    def pair(self, near: Side = "client") -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new connection, the one on the side of ``near`` first."""
        client = self.connect()
        target = self.accept()
        return (client, target) if near == "client" else (target, client)

    def end(self, seconds: float = 10.0) -> str:
        """Return why the one connection there was has ended, once it has."""
        (line,) = self.veillink.access(seconds=seconds)
        return str(line["end"])

    def close(self) -> None:
        """Close every end."""
        for sock in self._held:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Unready:
    """A server that no connection comes through to before ``open``: its queue is full, and the kernel drops the rest.

    What was dropped is sent again after a second.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server((HOST, 0), backlog=0)
        self._listening.settimeout(20)
        self.port: int = self._listening.getsockname()[1]
        self._held = [self._listening, socket.create_connection(("127.0.0.1", self.port))]

    def knocked_at(self) -> bool:
        """Return whether somebody waits to be connected (SYN_SENT, proc(5))."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(line[3] == "02" and line[2].endswith(f":{self.port:04X}") for line in lines)

    def open(self) -> socket.socket:
        """Return the socket of the connection that has waited."""
        eventually(self.knocked_at, what="a connect to the server that is not ready")
        self._listening.accept()[0].close()
        sock, _ = self._listening.accept()
        sock.settimeout(20)
        self._held.append(sock)
        return sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._held:
            sock.close()


@contextlib.contextmanager
def frozen(veillink: VeilLink) -> Iterator[None]:
    """Stop it for a while: it finds all that peers do meanwhile at once, in one pass of its loop."""
    veillink.send(signal.SIGSTOP)
    try:
        yield
    finally:
        veillink.send(signal.SIGCONT)


def most_in_the_kernel() -> int:
    """Return what the send and receive buffers of a connection's two legs can take at most (tcp(7))."""
    sizes = [int(Path("/proc/sys/net/ipv4", name).read_text().split()[2]) for name in ("tcp_rmem", "tcp_wmem")]
    return 2 * sum(sizes)


def unsent(sock: socket.socket) -> int:
    """Return how many sent bytes the peer's kernel does not have yet."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)


def wait_until_delivered(sock: socket.socket) -> None:
    """Wait until the peer's kernel has all that was sent: a reset cannot take it back any more."""
    eventually(lambda: not unsent(sock), what="an empty send queue")


def wait_until_received(sock: socket.socket, data: bytes) -> None:
    """Wait until the kernel has ``data`` for this socket, and leave it there."""
    eventually(lambda: sock.recv(len(data) + 1, socket.MSG_PEEK) == data, what=f"{data!r}")


def push(sock: socket.socket, limit: int, quiet: float = 0.5) -> bytes:
    """Send random bytes until nobody has taken one for ``quiet`` seconds, or ``limit``; return what was taken."""
    source = random.Random(sock.fileno())
    taken = bytearray()
    rest = b""
    before = sock.gettimeout()
    sock.settimeout(quiet)
    with contextlib.suppress(TimeoutError):
        while len(taken) < limit:
            rest = rest or source.randbytes(min(MIB, limit - len(taken)))
            count = sock.send(rest)
            taken += rest[:count]
            rest = rest[count:]
    sock.settimeout(before)
    return bytes(taken)


class Upload(threading.Thread):
    """Sends ``total`` random bytes and a FIN in the background; ``digest`` is what has to arrive."""

    def __init__(self, sock: socket.socket, total: int, seed: int = 1) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._left = total
        self._source = random.Random(seed)
        self._digest = hashlib.sha256()
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # then something is left, and ``digest`` says so
            while self._left:
                data = self._source.randbytes(min(self._left, self._source.randint(1, MIB)))
                self._digest.update(data)
                self._sock.sendall(data)
                self._left -= len(data)
            self._sock.shutdown(socket.SHUT_WR)

    def digest(self) -> bytes:
        """Return the hash of what was sent, once all of it was."""
        self.join(60)
        assert not self._left, f"{self._left} bytes were never taken"
        return self._digest.digest()


def digest_to_eof(sock: socket.socket) -> bytes:
    """Return the hash of everything until the peer has finished."""
    received = hashlib.sha256()
    while data := sock.recv(MIB):
        received.update(data)
    return received.digest()


def read_to_reset(sock: socket.socket, seconds: float = PROMPTLY) -> bytes:
    """Return what comes before a reset; fail when the peer finishes instead."""
    data = bytearray()
    sock.settimeout(seconds)
    try:
        while part := sock.recv(MIB):
            data += part
    except ConnectionResetError:
        return bytes(data)
    raise AssertionError(f"a FIN after {len(data)} bytes, and no reset")


def read_to_any_end(sock: socket.socket, seconds: float = PROMPTLY) -> bytes:
    """Return what comes before a FIN or a reset."""
    data = bytearray()
    sock.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(MIB):
            data += part
    return bytes(data)


def refuses(sock: socket.socket) -> bool:
    """Return whether nobody is there to send to any more."""
    try:
        sock.send(b"more")
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False
