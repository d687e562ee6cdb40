"""Ask the admin endpoint in the test process."""

import time
from collections.abc import Callable

import gevent
from gevent import socket

from tests.sockets import Sockets
from tests.system.harness import HOST, read_to_eof
from veillink.admin.pages import Admin
from veillink.model import Address

MANY = [{"id": number, "filler": "x" * 1000} for number in range(20_000)]


Open = Callable[..., Admin]


class Asker:
    """Asks an admin endpoint in so many words."""

    def __init__(self, sockets: Sockets, port: int) -> None:
        self._sockets = sockets
        self._port = port

    def __call__(self, head: str, *fields: str) -> bytes:
        """Return the whole answer."""
        return read_to_eof(self.begin("\r\n".join([head, *fields, "", ""]).encode()))

    def begin(self, what: bytes = b"") -> socket.socket:
        """Return a connection on which this has been said."""
        sock = self._sockets.client(Address(HOST, self._port))
        sock.sendall(what)
        return sock

    def get(self, path: str, host: str, *fields: str) -> bytes:
        """Return the answer to a usual request."""
        return self(f"GET {path} HTTP/1.1", f"Host: {host}", *fields)


def seconds_to_cut(sock: socket.socket, trickle: bytes = b"") -> float:
    """Return after how long the other side has closed; until then send a byte now and then."""
    began = time.monotonic()
    sock.settimeout(0.05)
    while time.monotonic() - began < 10:
        try:
            if trickle:
                sock.sendall(trickle)
            if sock.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


def gone(sock: socket.socket) -> bool:
    """Return whether the other side has closed."""
    gevent.sleep(0)
    sock.settimeout(0)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
