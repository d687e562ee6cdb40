"""The measures: load a lane, and give what that cost."""

import json
import re
import select
import socket
import subprocess
import time
from contextlib import ExitStack
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
    """A way to the backend: through the proxy with this pid, or direct; and where its connections come out."""

    port: int
    pid: int
    listener: socket.socket | None = None
    seconds: float = 0

    def pairs(self, count: int, stack: ExitStack) -> list[Pair]:
        """Open connections; give both ends of each."""
        assert self.listener  # noqa: S101
        pairs = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection((HOST, self.port), PATIENCE))
            pairs.append((client, stack.enter_context(self.listener.accept()[0])))
        return pairs


def bulk(lane: Lane, streams: int) -> Figures:
    """Send through some streams from one loop, and discard at the other end without a copy."""
    with ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        ends: dict[int, socket.socket] = {}
        for pair in lane.pairs(streams, stack):
            for end, event in zip(pair, (select.EPOLLOUT, select.EPOLLIN), strict=True):
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
                        ends[fd].send(_BLOCK)
                    elif count := ends[fd].recv_into(_BLOCK, len(_BLOCK), socket.MSG_TRUNC):
                        moved, arrived = moved + count, now
                    else:
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
    command = fill(WRK.command, connections=connections, seconds=seconds, port=lane.port)
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
        for pair in lane.pairs(connections, stack):
            for end, other in (pair, pair[::-1]):
                end.sendall(b"word")
                other.settimeout(PATIENCE)
                if other.recv(4, socket.MSG_WAITALL) != b"word":
                    raise ToolError("an idle connection was cut")
        time.sleep(2 + _SETTLE)  # idle is what has been silent for longer than a moment
        after = memory_kib(lane.pid)
    return {"cost": (after["Pss"] - before["Pss"]) / connections, "rss": (after["Rss"] - before["Rss"]) / connections}


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
