"""The measures: load a lane, and give what that cost."""

import json
import re
import select
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from ..processes import HOST, ToolError, clock, settle
from .installed import PATIENCE, fill
from .programs import WRK
from .usage import cpu_seconds, memory_kib, overflows

Figures = dict[str, float]
Pair = tuple[socket.socket, socket.socket]

_WARM_UP = 0.3  # seconds
_SETTLE = 0.2  # seconds, for what a proxy has still to do when the load has ended
_BLOCK = memoryview(bytearray(1 << 20))


@dataclass
class Lane:
    """A way to the backend: through the proxy with this pid, or direct; where its connections come out, and in TLS."""

    port: int
    pid: int
    listener: socket.socket | None = None
    seconds: float = 0
    tls: ssl.SSLContext | None = None

    def pair(self, stack: ExitStack, session: ssl.SSLSession | None = None) -> Pair:
        """Open a connection, in TLS perhaps with a session from before; give both ends."""
        assert self.listener  # noqa: S101
        client = socket.create_connection((HOST, self.port), PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stack.enter_context(client)
        if self.tls:
            client = stack.enter_context(self.tls.wrap_socket(client, session=session))
        return client, stack.enter_context(self.listener.accept()[0])


def _discard(end: socket.socket) -> int:
    """Take what has come, without a copy where it is not encrypted; give how much, 0 at the end."""
    if not isinstance(end, ssl.SSLSocket):
        return end.recv_into(_BLOCK, len(_BLOCK), socket.MSG_TRUNC)
    total = 0
    try:
        while count := end.recv_into(_BLOCK):
            total += count
    except ssl.SSLWantReadError:
        return total
    return 0


def bulk(lane: Lane, streams: int, down: bool = False) -> Figures:
    """Send through some streams from one loop, and discard at the other end."""
    with ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        ends: dict[int, socket.socket] = {}
        for _ in range(streams):
            pair = lane.pair(stack)
            for end, event in zip(pair[::-1] if down else pair, (select.EPOLLOUT, select.EPOLLIN), strict=True):
                end.setblocking(False)
                epoll.register(end, event)
                ends[end.fileno()] = end

        def carry(seconds: float) -> int:
            moved, deadline, arrived = 0, clock() + seconds, clock()
            while (now := clock()) < deadline:
                if now > arrived + PATIENCE:
                    raise ToolError("bulk stands still")
                for fd, event in epoll.poll(0.1):
                    if event & select.EPOLLOUT:
                        with suppress(ssl.SSLWantWriteError):
                            ends[fd].send(_BLOCK)
                    elif count := _discard(ends[fd]):
                        moved, arrived = moved + count, now
                    elif not lane.tls:
                        raise ToolError("bulk was cut")
            return moved

        carry(_WARM_UP)
        cpu, since = cpu_seconds(lane.pid), clock()
        moved = carry(lane.seconds)
        cpu, elapsed = cpu_seconds(lane.pid) - cpu, clock() - since
    if not moved:
        raise ToolError("nothing arrived")
    return {"cost": cpu / moved * 1e9, "rate": moved * 8e-9 / elapsed, "busy": 100 * cpu / elapsed}


def http(lane: Lane, connections: int, *arguments: str) -> Figures:
    """Have wrk ask for as much as it can."""
    seconds = max(1, round(lane.seconds))  # wrk knows whole ones only
    scheme = "https" if lane.tls else "http"
    command = fill(WRK.command, connections=connections, seconds=seconds, port=lane.port, scheme=scheme)
    cpu = cpu_seconds(lane.pid)
    done = subprocess.run(  # noqa: S603
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=seconds + 2 * PATIENCE,
        check=False,
        preexec_fn=lambda: settle(1),
    )
    time.sleep(_SETTLE)
    cpu = cpu_seconds(lane.pid) - cpu
    answer = re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)
    said = json.loads(answer[0]) if answer else {}
    if not said.get("requests"):
        raise ToolError(f"no answer through HTTP {done.stderr}".strip())
    elapsed = said["microseconds"] / 1e6
    return {
        "cost": cpu / said["requests"] * 1e6,
        "rate": said["requests"] / elapsed,
        "p50_ms": said["p50"] / 1000,
        "p99_ms": said["p99"] / 1000,
        "busy": 100 * cpu / elapsed,
        "errors": said["errors"],
    }


def idle(lane: Lane, connections: int) -> Figures:
    """Open connections, say a word both ways over each, and see what the proxy has grown by."""
    before = memory_kib(lane.pid)
    with ExitStack() as stack:
        for _ in range(connections):
            pair = lane.pair(stack)
            for end, other in (pair, pair[::-1]):
                end.sendall(b"word")
                other.settimeout(PATIENCE)
                if other.recv(4) != b"word":
                    raise ToolError("an idle connection was cut")
        time.sleep(2 + _SETTLE)  # idle is what has been silent for longer than a moment
        after = memory_kib(lane.pid)
    return {"cost": (after["Pss"] - before["Pss"]) / connections, "rss": (after["Rss"] - before["Rss"]) / connections}


def handshakes(lane: Lane, resume: bool) -> Figures:
    """Shake hands, have a word said, and close in order, one connection after another."""
    session: ssl.SSLSession | None = None

    def visit() -> None:
        nonlocal session
        with ExitStack() as stack:
            client, target = lane.pair(stack, session)
            assert isinstance(client, ssl.SSLSocket)  # noqa: S101
            if client.session_reused != (session is not None):
                raise ToolError("a session was not resumed")
            target.sendall(b"word")
            if client.recv(4) != b"word":
                raise ToolError("a connection was cut")
            session = session or (client.session if resume else None)  # there once its ticket was read
            target.close()
            client.unwrap().close()

    def visits(seconds: float) -> int:
        count, deadline = 0, clock() + seconds
        while clock() < deadline:
            visit()
            count += 1
        return count

    visits(_WARM_UP)
    cpu, since = cpu_seconds(lane.pid), clock()
    count = visits(lane.seconds)
    time.sleep(_SETTLE)
    cpu, elapsed = cpu_seconds(lane.pid) - cpu, clock() - since
    return {"cost": cpu / count * 1e6, "rate": count / elapsed, "busy": 100 * cpu / elapsed}


def burst(lane: Lane, connections: int) -> Figures:
    """Connect in a tight loop, and see when all have come out at the other end."""
    assert lane.listener  # noqa: S101
    before, since = overflows(), clock()
    with ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(socket.create_connection((HOST, lane.port), PATIENCE))
        connected = clock() - since
        for _ in range(connections):
            stack.enter_context(lane.listener.accept()[0])
        carried = clock() - since
    return {"connects": connections, "seconds": connected, "carried_seconds": carried,
            "overflows_before": before, "overflows_after": overflows()}  # fmt: skip
