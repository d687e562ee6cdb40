"""What proxies are measured at, and how one measure is taken: start backend and proxy, load, end both."""

import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..processes import HOST, ToolError
from ..tls import context
from .installed import PATIENCE
from .measures import Figures, Lane, bulk, burst, handshakes, http, idle
from .programs import BACKEND, DIRECT, WRK, Program
from .running import PORTS, running


@dataclass(frozen=True)
class Work:
    """Something that proxies are measured at."""

    title: str
    unit: str
    rate: str
    measure: Callable[..., Figures]
    arguments: tuple[Any, ...]
    key: str = ""  # of the proxy's certificate, where the load speaks TLS

    @property
    def needs(self) -> tuple[Program, ...]:
        """Programs without which it cannot be measured."""
        return (WRK, BACKEND) if self.measure is http else ()


REQUEST = "CPU µs per request"
HANDSHAKE = "CPU µs per connection"
WORKS = {
    "bulk1": Work("bulk, 1 stream", "CPU s per GB", "Gbit/s", bulk, (1,)),
    "bulk8": Work("bulk, 8 streams", "CPU s per GB", "Gbit/s", bulk, (8,)),
    "keep1": Work("HTTP keep-alive, 1 connection", REQUEST, "requests/s", http, (1,)),
    "keep50": Work("HTTP keep-alive, 50 connections", REQUEST, "requests/s", http, (50,)),
    "keep500": Work("HTTP keep-alive, 500 connections", REQUEST, "requests/s", http, (500,)),
    "close": Work(
        "HTTP, a connection per request, 50 at once", "CPU µs per connection", "connections/s",
        http, (50, "-H", "Connection: close"),
    ),
    "idle": Work("idle connections", "KiB each", "", idle, ()),
    "tls_down": Work("TLS, bulk to the client", "CPU s per GB", "Gbit/s", bulk, (1, True), "p256"),
    "tls_up": Work("TLS, bulk from the client", "CPU s per GB", "Gbit/s", bulk, (1,), "p256"),
    "tls_keep50": Work("HTTPS keep-alive, 50 connections", REQUEST, "requests/s", http, (50,), "p256"),
    "tls_p256": Work("TLS, full handshakes, P-256", HANDSHAKE, "handshakes/s", handshakes, (False,), "p256"),
    "tls_rsa2048": Work("TLS, full handshakes, RSA-2048", HANDSHAKE, "handshakes/s", handshakes, (False,), "rsa2048"),
    "tls_resumed": Work("TLS, resumed sessions", HANDSHAKE, "handshakes/s", handshakes, (True,), "p256"),
    "tls_idle": Work("idle connections in TLS", "KiB each", "", idle, (), "p256"),
}  # fmt: skip
BURST = Work("connects in a tight loop", "", "", burst, ())


def take(program: Program, work: Work, arguments: tuple[Any, ...], seconds: float) -> Figures:
    """Start backend and proxy, and take one measure."""
    with ExitStack() as stack:
        listener = None
        if work.measure is http:
            target, _ = stack.enter_context(running(BACKEND, 1))
        else:
            listener = stack.enter_context(socket.create_server((HOST, target := next(PORTS)), backlog=4096))
            listener.settimeout(PATIENCE)
        port, pid = stack.enter_context(running(program, 0, target, work.key)) if program is not DIRECT else (target, 0)
        try:
            return work.measure(Lane(port, pid, listener, seconds, context() if work.key else None), *arguments)
        except subprocess.TimeoutExpired:
            raise ToolError("wrk did not end") from None
