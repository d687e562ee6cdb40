"""The HTTP window on what runs: health, metrics, state. It only shows.

Rule: whatever is asked, and however slowly, forwarding goes on; what needs a token says nothing without it.
"""

import base64
import binascii
import hashlib
import hmac
import json
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.hub import get_hub
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from . import metrics
from .log import Log

# From accept to the last byte of the answer, in seconds, whoever dawdles.
_LONGEST: Final = 30.0
# An answer about 10,000 connections takes 100 ms to write: others get their turn after so many.
_AT_A_TIME: Final = 200

_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)
_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_PLAIN: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_PUBLIC: Final = ("/healthz", "/readyz")

_Environ = Mapping[str, Any]
_Start = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the answers come from.

    Args:
        status: returns what ``/api/status`` shows.
        connections: yields what ``/api/connections`` lists.
        obstacle: returns why no more clients should be sent here, or nothing.
    """

    status: Callable[[], dict[str, Any]]
    connections: Callable[[], Iterable[dict[str, Any]]]
    obstacle: Callable[[], str]


@dataclass(frozen=True, slots=True)
class _Answer:
    body: Iterable[bytes]
    content_type: str = _PLAIN
    status: HTTPStatus = HTTPStatus.OK
    policy: str = _POLICY
    headers: tuple[tuple[str, str], ...] = ()


class Admin:
    """Answers requests at one address until it is closed.

    Args:
        sock: listens there; it is closed in the end.
        name: the host name it may be called by, beside every IP literal and ``localhost``; may be empty.
        token: what has to be shown, or nothing.
        most: connections at a time.
        sources: of the answers.
        log: told of faults of our own.
    """

    def __init__(self, sock: Any, name: str, token: str, most: int, sources: Sources, log: Log) -> None:
        self._log = log
        self._name = name
        self._token = token.encode()
        self._check_host = sock.family != socket.AF_UNIX
        self._sources = sources
        page = _dashboard()
        self._pages: dict[str, Callable[[], _Answer]] = {
            "/": lambda: page,
            "/healthz": lambda: _Answer([b"alive\n"]),
            "/readyz": self._ready,
            "/metrics": lambda: _Answer([_aside(metrics.text, sources.status())], metrics.CONTENT_TYPE),
            "/api/status": lambda: _Answer([_aside(_json, sources.status())], _JSON),
            "/api/connections": lambda: _Answer(_json_list(sources.connections()), _JSON),
        }
        self._server = _Server(sock, self._answer, most, log)
        self._server.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.close()

    def _ready(self) -> _Answer:
        obstacle = self._sources.obstacle()
        status = HTTPStatus.SERVICE_UNAVAILABLE if obstacle else HTTPStatus.OK
        return _Answer([f"{obstacle or 'ready'}\n".encode()], status=status)

    def _answer(self, environ: _Environ, start_response: _Start) -> Iterable[bytes]:
        try:
            answer = self._page(environ)
        except Exception:
            self._log.error("unforeseen error", traceback=traceback.format_exc())
            answer = _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)
        own = ("Content-Type", answer.content_type), ("Content-Security-Policy", answer.policy)
        headers = [*own, *answer.headers, *_HEADERS]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else answer.body

    def _page(self, environ: _Environ) -> _Answer:
        path = environ["PATH_INFO"]
        if self._check_host and not is_known_host(environ.get("HTTP_HOST", ""), self._name):
            return _refusal(HTTPStatus.MISDIRECTED_REQUEST)  # a page elsewhere has made its name point here
        if self._token and path not in _PUBLIC and not self._shows_token(environ.get("HTTP_AUTHORIZATION", "")):
            return _refusal(HTTPStatus.UNAUTHORIZED, ("WWW-Authenticate", 'Basic realm="VeilLink", charset="UTF-8"'))
        if path not in self._pages:
            return _refusal(HTTPStatus.NOT_FOUND)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
        return self._pages[path]()

    def _shows_token(self, authorization: str) -> bool:
        """Return whether it is ``Bearer TOKEN`` (RFC 6750) or ``Basic`` with any user and the token (RFC 7617)."""
        scheme, _, value = authorization.partition(" ")
        shown = value.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                shown = base64.b64decode(shown, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(shown, self._token)


def _dashboard() -> _Answer:
    """Return the page, with a policy that allows its own style and script, by their hashes, and nothing else."""
    page = Path(__file__).with_name("dashboard.html").read_bytes()
    style, script = (_hash(page, tag) for tag in (b"style", b"script"))
    allowed = f"style-src '{style}'; script-src '{script}'; connect-src 'self'; img-src data:"
    return _Answer([page], "text/html; charset=utf-8", policy=f"{_POLICY}; {allowed}")


def _hash(page: bytes, tag: bytes) -> str:
    inside = page.partition(b"<" + tag + b">")[2].partition(b"</" + tag + b">")[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(inside).digest()).decode()


def is_known_host(header: str, name: str) -> bool:
    """Return whether a ``Host`` header names this host whatever DNS says: an IP literal, ``localhost``, or ``name``.

    Source: RFC 9110 section 7.2 for the header; 7.4 for what to do with another one.
    """
    host = header.strip().lower()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") < 2:
        host = host.partition(":")[0]
    if host in ("", "localhost", name.lower()):
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _refusal(status: HTTPStatus, *headers: tuple[str, str]) -> _Answer:
    return _Answer([f"{status.phrase}\n".encode()], status=status, headers=headers)


def _aside(render: Callable[[Any], bytes], value: object) -> bytes:
    """Render in a thread: 3,000 rules are 7 MB of metrics, for which the loop would stand still for half a second."""
    rendered: bytes = get_hub().threadpool.apply(render, (value,))
    return rendered


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _json_list(items: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    before = "["
    part: list[str] = []
    for number, item in enumerate(items, 1):
        part.append(before + json.dumps(item))
        before = ",\n"
        if number % _AT_A_TIME == 0:
            yield "".join(part).encode()
            part.clear()
            gevent.sleep(0)
    part.append("]\n" if before != "[" else "[]\n")
    yield "".join(part).encode()


class _Handler(WSGIHandler):
    """One request for each connection, and no doubt about where it ends (RFC 9112 section 6.3)."""

    server: "_Server"

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
        self.close_connection = True
        return good

    def handle_error(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, gevent.Timeout):
            self.server.log_error(traceback.format_exception(kind, error, trace))

    def log_error(self, *_: object) -> None:
        """Say nothing: what a client does wrong is its own affair."""

    _log_error = log_error


class _Server(WSGIServer):
    def __init__(self, sock: Any, answer: Any, most: int, log: Log) -> None:
        super().__init__(sock, answer, spawn=Pool(most), log=None, error_log=None, handler_class=_Handler)
        self._told = log

    def log_error(self, lines: list[str]) -> None:
        self._told.error("unforeseen error", traceback="".join(lines))

    def handle(self, sock: Any, address: Any) -> None:
        timeout = gevent.Timeout.start_new(_LONGEST)
        try:
            super().handle(sock, address)
        except gevent.Timeout as reached:
            if reached is not timeout:
                raise
        finally:
            timeout.close()
