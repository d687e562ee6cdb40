"""The admin endpoint's pages: health, metrics, state. They only show.

Rule: whatever is asked, and however slowly, forwarding goes on; what needs a token says nothing without it.
"""

import base64
import binascii
import hashlib
import hmac
import json
import socket
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import gevent

from veillink.admin import exposition
from veillink.admin.http import Server, Slots
from veillink.admin.status import Shown
from veillink.log import Log
from veillink.net.greenlets import in_thread

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
_UNKNOWN_HOST: Final = (
    "VeilLink shows its state by an IP address, by localhost, or by a name that --admin-host gives it; with an"
    " --admin-token, by any name."
)

_Environ = Mapping[str, Any]
_Start = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True, slots=True)
class _Answer:
    body: Iterable[bytes]
    content_type: str = _PLAIN
    status: HTTPStatus = HTTPStatus.OK
    policy: str = _POLICY
    headers: tuple[tuple[str, str], ...] = ()


class Admin:
    """Answers requests until it is closed.

    Args:
        socks: listen; they are closed in the end.
        names: the host names it may be called by without a token, beside every IP literal and ``localhost``.
        token: what has to be shown, or nothing.
         slots: for connections.
         shown: what the answers are about.
         log: gets faults of our own.
    """

    def __init__(
        self, socks: Sequence[Any], names: Collection[str], token: str, slots: Slots, shown: Shown, log: Log
    ) -> None:
        self._log = log
        self._names = names
        self._token = token.encode()
        self._is_private = all(sock.family == socket.AF_UNIX for sock in socks)
        self._shown = shown
        page = _dashboard()
        # In a thread: 3,000 rules are 10 MB of metrics, for which the loop would stand still for 0.9 s.
        self._pages: dict[str, Callable[[], _Answer]] = {
            "/": lambda: page,
            "/healthz": lambda: _Answer([b"alive\n"]),
            "/readyz": self._ready,
            "/metrics": lambda: _Answer([in_thread(exposition.text, shown.status())], exposition.CONTENT_TYPE),
            "/api/status": lambda: _Answer([in_thread(_json, shown.status())], _JSON),
            "/api/connections": lambda: _Answer(_json_list(shown.connections()), _JSON),
        }
        self._servers = [Server(sock, self._answer, slots, log) for sock in socks]
        for server in self._servers:
            server.start()

    def close(self) -> None:
        """Answer nobody any more."""
        for server in self._servers:
            server.close()

    def _ready(self) -> _Answer:
        reason = self._shown.not_ready_reason()
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        return _Answer([f"{reason or 'ready'}\n".encode()], status=status)

    def _answer(self, environ: _Environ, start_response: _Start) -> Iterable[bytes]:
        try:
            answer = self._page(environ)
        except Exception:
            self._log.error("unforeseen error", traceback=traceback.format_exc())
            answer = _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)
        own = ("Content-Type", answer.content_type), ("Content-Security-Policy", answer.policy)
        headers = [*own, *answer.headers, *_HEADERS]
        body = answer.body
        if environ["REQUEST_METHOD"] == "HEAD":  # as long as the answer to GET (RFC 9110 section 9.3.2)
            headers.append(("Content-Length", str(sum(map(len, body)))))
            body = []
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return body

    def _page(self, environ: _Environ) -> _Answer:
        path = environ["PATH_INFO"]
        if path not in _PUBLIC and (refusal := self._refuse_stranger(environ)):
            return refusal
        if path not in self._pages:
            return _refusal(HTTPStatus.NOT_FOUND)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, headers=(("Allow", "GET, HEAD"),))
        return self._pages[path]()

    def _refuse_stranger(self, environ: _Environ) -> _Answer | None:
        """Return the answer to whoever may not look, or nothing.

        Without a token the name decides: a page elsewhere may have made its own name point here (DNS rebinding). A
        token says more, and no browser shows it to another name.
        """
        if self._token:
            if self._shows_token(environ.get("HTTP_AUTHORIZATION", "")):
                return None
            asks = ("WWW-Authenticate", 'Basic realm="VeilLink", charset="UTF-8"')
            return _refusal(HTTPStatus.UNAUTHORIZED, headers=(asks,))
        host = environ.get("HTTP_HOST", "")
        if self._is_private or is_known_host(host, self._names):
            return None
        self._log.limited("nobody is shown the state by a name that is not in --admin-host", "Host", host=host)
        return _refusal(HTTPStatus.MISDIRECTED_REQUEST, _UNKNOWN_HOST)

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


def is_known_host(header: str, names: Collection[str]) -> bool:
    """Return whether a ``Host`` header names this host whatever DNS says: an IP literal, ``localhost``, or a known one.

    Source: RFC 9110 section 7.2 for the header; 7.4 for what to do with another one.
    """
    host = header.strip().lower()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") < 2:
        host = host.partition(":")[0]
    host = host.removesuffix(".")
    if host in ("", "localhost") or host in names:
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _refusal(status: HTTPStatus, why: str = "", headers: tuple[tuple[str, str], ...] = ()) -> _Answer:
    return _Answer([f"{why or status.phrase}\n".encode()], status=status, headers=headers)


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _json_list(items: Iterable[object]) -> Iterator[bytes]:
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
