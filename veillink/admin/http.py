"""HTTP as far as the admin endpoint needs it: one request for each connection, and no doubt about where it ends.

Rule: who says nothing takes no place from who asks.
"""

import errno
import os
import re
import socket
import traceback
from collections.abc import Callable, Iterable
from http.client import HTTPException
from typing import Any, Final

import gevent
from gevent import getcurrent
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from veillink.log import Log
from veillink.model import Address, RuleOptions

# A proxy may ask in this form (RFC 9112 section 3.2.2).
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)", re.IGNORECASE)
_WITHOUT_HOST: Final = ("HTTP/0.9", "HTTP/1.0")


def listen_at_all(
    addresses: Iterable[Address], listen: Callable[[Address, RuleOptions], socket.socket]
) -> list[socket.socket]:
    """Return a listening socket for each address of a name, but those that this host does not have.

    ``/etc/hosts`` calls ``::1`` localhost also where IPv6 is switched off.

    Args:
        addresses: all that the name has.
        listen: opens one of them; raises ``OSError``.

    Raises:
        OSError: one of them cannot be had for another reason, or the host has none of them.
    """
    socks: list[socket.socket] = []
    try:
        for address in addresses:
            try:
                socks.append(listen(address, RuleOptions()))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
        if not socks:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except OSError:
        for sock in socks:
            sock.close()
        raise
    return socks


class Slots(Pool):
    """The connections that are served at a time, at all addresses; those who have not asked yet give way to others.

    Args:
        most: as many.
        head: from accept to the whole head of the request, in seconds, whoever dawdles.
        longest: the same to the last byte of the answer.
    """

    def __init__(self, most: int, head: float = 3.0, longest: float = 30.0) -> None:
        super().__init__(most)
        self.head = head
        self.longest = longest
        self._asking: dict[Any, gevent.Timeout] = {}  # greenlets, oldest first
        self._sent_away: set[Any] = set()

    def enter(self, deadline: gevent.Timeout) -> None:
        """Note that the current greenlet waits for a request; if it has the last place, whoever waits longest goes.

        Args:
            deadline: for the head of the request.
        """
        me = getcurrent()
        self._asking[me] = deadline
        oldest = next(iter(self._asking))
        if self.free_count() + len(self._sent_away) == 0 and oldest is not me:
            del self._asking[oldest]
            self._sent_away.add(oldest)
            oldest.kill(block=False)

    def heard(self) -> None:
        """Note that the current greenlet has a whole request."""
        if deadline := self._asking.pop(getcurrent(), None):
            deadline.close()

    def leave(self) -> None:
        """Note that the current greenlet is done."""
        self._asking.pop(getcurrent(), None)
        self._sent_away.discard(getcurrent())


def _at_most(seconds: float) -> gevent.Timeout:
    return gevent.Timeout(seconds, False)  # type: ignore[arg-type]  # leaves its block without an exception


class Server(WSGIServer):
    """Answers at one address.

    Args:
        sock: listens there; it is closed in the end.
        answer: the WSGI application.
        slots: for its connections.
        log: gets faults of our own.
    """

    def __init__(self, sock: Any, answer: Callable[..., Any], slots: Slots, log: Log) -> None:
        # without a name gevent would ask the name server for one, and the start would wait for that
        own = {"SERVER_NAME": "veillink"}
        super().__init__(sock, answer, spawn=slots, log=None, error_log=None, handler_class=_Handler, environ=own)
        self.slots = slots
        self._log = log

    def log_error(self, lines: list[str]) -> None:
        """Say what went wrong here."""
        self._log.error("unforeseen error", traceback="".join(lines))

    def handle(self, sock: Any, address: Any) -> None:
        """Serve one connection, as long as it keeps to its time."""
        with _at_most(self.slots.longest), _at_most(self.slots.head) as head:
            self.slots.enter(head)
            try:
                super().handle(sock, address)
            finally:
                self.slots.leave()


class _Handler(WSGIHandler):
    """One request (RFC 9112 sections 3.2 and 6.3)."""

    server: Server

    def MessageClass(self, *args: Any) -> Any:  # noqa: N802 - gevent's name
        try:
            headers = super().MessageClass(*args)
        except HTTPException as error:  # gevent would print it
            raise ValueError(str(error)) from None
        lengths = headers.get_all("content-length", []) + headers.get_all("transfer-encoding", [])
        if lengths not in ([], ["0"]):
            raise ValueError("a body, which nothing here takes, or more than one length")
        return headers

    def _handle_client_error(self, *_: object) -> tuple[str, bytes]:
        return "400", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    def read_request(self, raw_requestline: str) -> Any:
        good = super().read_request(raw_requestline)
        self.server.slots.heard()
        self.close_connection = True
        hosts = len(self.headers.get_all("host", []))
        if hosts > 1 or (hosts == 0 and self.request_version not in _WITHOUT_HOST):
            raise ValueError("no host, or more than one")
        target = str(self.path)
        if absolute := _ABSOLUTE.match(target):
            rest = target[absolute.end() :]
            self.path = rest if rest.startswith("/") else f"/{rest}"
            del self.headers["host"]
            self.headers["host"] = absolute[1]
        return good

    def handle_error(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, gevent.Timeout | gevent.GreenletExit):
            self.server.log_error(traceback.format_exception(kind, error, trace))

    def log_error(self, *_: object) -> None:
        """Say nothing: what a client does wrong is its own affair."""

    _log_error = log_error
