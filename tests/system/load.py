"""Many clients and an echo backend at little cost, in a process of their own: the load must not be the bottleneck.

``Load`` is the test's side of it; run as a program, this file is the other one. Each client lives one story, and the
backend closes first where a story's first byte asks for it.
"""

import itertools
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"

Outcome = tuple[float, Counter[str]]
Story = Generator[None, None, str]

_BACKENDS = 4  # the ports of one address and one backend are 28,000; a minute of TIME_WAIT after each
_SIZE = 1024
_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python 3.11 does not name it
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Load:
    """A running load process. Its backend listens on ``ports``: put them all into one rule."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ports: list[int] = self._answer()

    def rows(self, listen: str, options: str = "") -> str:
        """Return the rows of a rule that leads to the backend."""
        return "".join(f"{listen},{HOST},{port},{options}\n" for port in self.ports)

    def run(self, stories: list[tuple[str, int]], count: int, parallel: int) -> Outcome:
        """Live ``count`` stories, taken in turn from (name, port), so many at a time.

        Returns:
            The seconds it took, and how often each ``name result`` came out.
        """
        self.begin(stories, count, parallel)
        return self.end()

    def begin(self, stories: list[tuple[str, int]], count: int, parallel: int) -> None:
        """Like ``run``, but do not wait."""
        assert self._child.stdin is not None
        print(json.dumps([stories, count, parallel]), file=self._child.stdin, flush=True)

    def end(self) -> Outcome:
        """Wait for what was begun."""
        seconds, outcomes = self._answer()
        return seconds, Counter(outcomes)

    def release(self) -> None:
        """Close what ``hold`` stories have left open."""
        self.run([("release", 0)], 1, 1)

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line, "the load process has died"
        return json.loads(line)

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.kill()
        self._child.wait(10)
        self._child.stdin.close()
        self._child.stdout.close()


# ---------------------------------------------------------------------------------------------- the other process

_held: set[socket.socket] = set()
_names = itertools.count()
_sources = itertools.cycle(f"127.0.0.{last}" for last in range(2, 10))


def _client(port: int) -> socket.socket:
    """Return a socket that connects. Until it has, sending and receiving would block."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((next(_sources), 0))
    sock.connect_ex((HOST, port))
    return sock


def _receive(sock: socket.socket, count: int) -> Generator[None, None, bytes]:
    data = b""
    while len(data) < count:
        try:
            part = sock.recv(count - len(data))
        except BlockingIOError:
            yield
            continue
        if not part:
            break
        data += part
    return data


def _send(sock: socket.socket, data: bytes) -> Story:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            yield
    return ""


def _exchange(sock: socket.socket, first: bytes) -> Story:
    sent = first + os.urandom(_SIZE - 1)
    yield from _send(sock, sent)
    received = yield from _receive(sock, _SIZE)
    return "ok" if received == sent else f"{len(received)} bytes"


def _echo(sock: socket.socket) -> Story:
    """Be echoed, and close first."""
    return (yield from _exchange(sock, b"E"))


def _echo_last(sock: socket.socket) -> Story:
    """Be echoed, and close after the backend has."""
    outcome = yield from _exchange(sock, b"C")
    rest = yield from _receive(sock, 1)
    return "late bytes" if rest else outcome


def _as_next(sock: socket.socket) -> Story:
    """Be echoed, as one more client: the next address is named by a PROXY header."""
    number = next(_names)
    source = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    yield from _send(sock, f"PROXY TCP4 {source} 192.0.2.1 4711 80\r\n".encode())
    return (yield from _exchange(sock, b"E"))


def _hold(sock: socket.socket) -> Story:
    """Be echoed, and stay."""
    outcome = yield from _exchange(sock, b"E")
    _held.add(sock)
    return outcome


def _reset(sock: socket.socket) -> Story:
    """Be echoed, and reset."""
    outcome = yield from _exchange(sock, b"E")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    return outcome


def _wait(sock: socket.socket) -> Story:
    """Send nothing until the other side ends it."""
    received = yield from _receive(sock, 1)
    return "bytes" if received else "finished"


def _abandon(sock: socket.socket) -> Story:
    """Reset as soon as there is a connection."""
    yield  # something has happened: the connection is there, or has failed
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    return "ok"


def _leave(sock: socket.socket) -> Story:
    """Close as soon as there is a connection."""
    yield  # something has happened: the connection is there, or has failed
    return "ok"


_STORIES: dict[str, Callable[[socket.socket], Story]] = {
    "echo": _echo,
    "echo_last": _echo_last,
    "as_next": _as_next,
    "hold": _hold,
    "reset": _reset,
    "wait": _wait,
    "abandon": _abandon,
    "leave": _leave,
}


def _serve(sock: socket.socket) -> Story:
    """Send everything back; finish after the client has, or before it where the first byte asks for that."""
    left, last = _SIZE, False
    while not last or left:
        try:
            data = sock.recv(1 << 16)
        except BlockingIOError:
            yield
            continue
        if not data:
            break
        last = last or (left == _SIZE and data[:1] == b"C")
        left -= len(data)
        yield from _send(sock, data)
    return ""


class _Loop:
    """Moves each story on whenever something happens on its socket."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._stories: dict[int, tuple[socket.socket, Story, Callable[[str], None]]] = {}
        self._listening: dict[int, socket.socket] = {}
        self._epoll.register(0, select.EPOLLIN)

    def listen(self) -> int:
        sock = socket.create_server((HOST, 0), backlog=4096)
        sock.setblocking(False)
        self._listening[sock.fileno()] = sock
        self._epoll.register(sock, select.EPOLLIN)
        return int(sock.getsockname()[1])

    def begin(self, sock: socket.socket, story: Story, told: Callable[[str], None]) -> None:
        self._stories[sock.fileno()] = sock, story, told
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._go_on(sock.fileno())

    def _go_on(self, fd: int) -> None:
        sock, story, told = self._stories[fd]
        try:
            next(story)
        except StopIteration as end:
            outcome = end.value
        except OSError as error:
            outcome = type(error).__name__
        else:
            return
        del self._stories[fd]
        if sock in _held:
            self._epoll.unregister(sock)
        else:
            sock.close()
        told(outcome)

    def turn(self) -> bool:
        """Handle what happens next and return whether the standard input can be read."""
        ready = [fd for fd, _ in self._epoll.poll()]
        for fd in ready:
            if fd in self._stories:
                self._go_on(fd)
            elif fd in self._listening:
                self._accept(self._listening[fd])
        return 0 in ready

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            self.begin(sock, _serve(sock), lambda _: None)


def _run(loop: _Loop, stories: list[tuple[str, int]], count: int, parallel: int) -> Outcome:
    outcomes: Counter[str] = Counter()
    began = running = over = 0
    start = time.monotonic()

    def fill() -> None:
        nonlocal began, running
        while began < count and running < parallel:
            name, port = stories[began % len(stories)]
            began += 1
            running += 1
            sock = _client(port)
            loop.begin(sock, _STORIES[name](sock), partial(ended, name))

    def ended(name: str, outcome: str) -> None:
        nonlocal running, over
        running -= 1
        over += 1
        outcomes[f"{name} {outcome}"] += 1

    while over < count:
        fill()
        loop.turn()
    return time.monotonic() - start, outcomes


def main() -> None:
    """Serve, and do what each line of the standard input says."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = _Loop()
    print(json.dumps([loop.listen() for _ in range(_BACKENDS)]), flush=True)
    while True:
        while not loop.turn():
            pass
        line = os.read(0, 1 << 16)
        if not line:
            return
        stories, count, parallel = json.loads(line)
        if stories[0][0] == "release":
            for sock in _held:
                sock.close()
            _held.clear()
            result: Outcome = (0.0, Counter())
        else:
            result = _run(loop, stories, count, parallel)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
