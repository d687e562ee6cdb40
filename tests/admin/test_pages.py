"""The admin endpoint, with what the real program's tests cannot wait for."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from tests.sockets import Journal, Sockets, address_of, eventually
from tests.system.harness import HOST, free_port, read_to_eof
from veillink.admin import exposition as metrics
from veillink.admin import http as webserver
from veillink.admin import pages
from veillink.admin.http import listen_at_all
from veillink.admin.pages import Admin, is_known_host
from veillink.model import Address, RuleOptions
from veillink.net.listening import listen

MANY = [{"id": number, "filler": "x" * 1000} for number in range(20_000)]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def fails() -> list[str]:
    """Names of the sources that raise."""
    return []


Open = Callable[..., Admin]


@pytest.fixture
def open_admin(port: int, journal: Journal, fails: list[str]) -> Iterator[Open]:
    """Open an admin endpoint that shows much: ``open_admin(names=["a.name"], token="s3cret", most=3)``."""
    opened: list[Admin] = []

    def source(name: str, answer: Any) -> Callable[[], Any]:
        def _source() -> Any:
            if name in fails:
                raise RuntimeError(f"{name} fails")
            return answer

        return _source

    def _open(names: Sequence[str] = (), token: str = "", most: int = 3) -> Admin:
        sources = SimpleNamespace(
            status=source("status", {}), connections=source("connections", MANY), not_ready_reason=source("reason", "")
        )
        listening = listen(Address(HOST, port), RuleOptions())
        opened.append(Admin([listening], names, token, most, sources, journal.log))
        return opened[-1]

    yield _open
    for admin in opened:
        admin.close()


@pytest.fixture
def admin(open_admin: Open, monkeypatch: pytest.MonkeyPatch) -> Admin:
    """An admin endpoint that is patient for half a second."""
    monkeypatch.setattr(webserver, "_LONGEST", 0.5)
    return open_admin()


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


@pytest.fixture
def ask(sockets: Sockets, port: int) -> Asker:
    return Asker(sockets, port)


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


@pytest.mark.usefixtures("admin")
@pytest.mark.parametrize("trickle", [b"", b"x"])
def test_who_does_not_finish_asking_is_cut(trickle: bytes, sockets: Sockets, port: int) -> None:
    sock = sockets.client(Address(HOST, port))
    sock.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
    assert 0.4 < seconds_to_cut(sock, trickle) < 5


@pytest.mark.usefixtures("admin")
def test_who_does_not_listen_is_cut_and_frees_a_place(sockets: Sockets, port: int) -> None:
    began, deaf = time.monotonic(), []
    for _ in range(3):
        deaf.append(sock := sockets.client(Address(HOST, port)))
        sock.sendall(b"GET /api/connections HTTP/1.0\r\n\r\n")
        assert sock.recv(1) == b"H"
    late = sockets.client(Address(HOST, port))
    late.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert read_to_eof(late).endswith(b"alive\n")
    assert 0.4 < time.monotonic() - began < 10


def test_a_long_answer_is_whole_and_others_run_meanwhile(open_admin: Open, sockets: Sockets, port: int) -> None:
    open_admin()

    def longest_part() -> float:
        """Return the longest turn, as a part of what the answer has cost, in CPU time of this thread."""
        turns: list[float] = []

        def tick() -> None:
            while True:
                began = time.thread_time()
                gevent.sleep(0)
                turns.append(time.thread_time() - began)

        ticker = gevent.spawn(tick)
        sock = sockets.client(Address(HOST, port))
        began = time.thread_time()
        sock.sendall(b"GET /api/connections HTTP/1.0\r\n\r\n")
        body = read_to_eof(sock).partition(b"\r\n\r\n")[2]
        seconds = time.thread_time() - began
        ticker.kill()
        assert json.loads(body) == MANY
        return max(turns) / seconds

    assert min(longest_part() for _ in range(3)) < 1 / 3  # in one piece it would be all of it, each time


@pytest.mark.usefixtures("admin")
def test_a_fault_of_ours_is_told_in_the_log_and_ends_that_answer_alone(
    sockets: Sockets, port: int, fails: list[str], journal: Journal
) -> None:
    fails += ["status", "reason"]
    for path in ("/api/status", "/readyz", "/metrics"):
        sock = sockets.client(Address(HOST, port))
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert read_to_eof(sock).startswith(b"HTTP/1.1 500 ")
    eventually(lambda: len(journal.lines("unforeseen error")) == 3)
    assert "fails" in journal.lines("unforeseen error")[0]["traceback"]


@pytest.mark.parametrize(
    "host", ["", "localhost", "LocalHost:80", "127.0.0.1", "10.0.0.1:1", "::1", "[::1]:9", "Named:1"]
)
def test_known_hosts(host: str) -> None:
    assert is_known_host(host, ["named"])


@pytest.mark.parametrize(
    "host", ["evil", "localhost.evil", "127.0.0.1.evil", "[evil]", "x:y:z", "[::1", "127.1", "named.x"]
)
def test_unknown_hosts(host: str) -> None:
    assert is_known_host(host, ["named"]) == (host == "[::1")


# --- whoever says nothing --------------------------------------------------------------------------------------------


def test_strangers_who_say_nothing_keep_nobody_from_the_health_check(open_admin: Open, ask: Asker) -> None:
    open_admin(most=4)
    strangers = [ask.begin(b"GET /h" if number % 2 else b"") for number in range(40)]
    assert b"alive" in ask.get("/healthz", HOST)
    eventually(lambda: sum(gone(sock) for sock in strangers) >= 37)  # the oldest: one place is kept free
    assert [gone(sock) for sock in strangers[:36]] == [True] * 36


def test_a_whole_request_is_answered_however_many_come_after_it(
    open_admin: Open, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = Event()
    monkeypatch.setattr(metrics, "text", lambda _: b"measured")
    monkeypatch.setattr(pages, "_aside", lambda render, value: let_go.wait() and render(value))
    open_admin(most=4)
    asked = ask.begin(f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    strangers = [ask.begin() for _ in range(40)]
    eventually(lambda: gone(strangers[0]))
    let_go.set()
    assert read_to_eof(asked).endswith(b"measured")


def test_the_head_of_a_request_has_less_time_than_the_answer(
    open_admin: Open, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webserver, "_HEAD", 0.2)
    open_admin()
    deaf = ask.begin(b"GET /api/connections HTTP/1.0\r\n\r\n")
    silent = ask.begin()
    assert 0.15 < seconds_to_cut(silent) < 5
    gevent.sleep(0.2)
    assert json.loads(read_to_eof(deaf).partition(b"\r\n\r\n")[2]) == MANY


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


# --- by which name, in which form ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("token", ["", "s3cret"])
def test_whether_it_is_well_may_be_asked_by_any_name(path: str, token: str, open_admin: Open, ask: Asker) -> None:
    open_admin(token=token)
    assert ask.get(path, "veillink.svc.cluster.local:8079").startswith(b"HTTP/1.1 200")


def test_whoever_shows_the_token_may_use_any_name(open_admin: Open, ask: Asker) -> None:
    open_admin(token="s3cret")
    assert ask.get("/api/status", "proxy.example").startswith(b"HTTP/1.1 401")
    assert ask.get("/api/status", "proxy.example", "Authorization: Bearer s3cret").startswith(b"HTTP/1.1 200")


def test_without_a_token_names_have_to_be_allowed_and_the_refusal_says_how(
    open_admin: Open, ask: Asker, journal: Journal
) -> None:
    open_admin(names=["veillink.example"])
    assert ask.get("/api/status", "VeilLink.example:80").startswith(b"HTTP/1.1 200")
    for host in ("evil.example\x1b[31m", "other.example", "third.example"):
        answer = ask.get("/api/status", host)
        assert answer.startswith(b"HTTP/1.1 421")
        assert b"--admin-host" in answer
        assert b"--admin-token" in answer
    first, *more = [line for line in journal.finish() if "--admin-host" in line["message"]]
    assert (first["level"], first["host"]) == ("warning", "evil.example\x1b[31m")
    assert len(more) < 2  # those of the same second are counted


@pytest.mark.parametrize(
    ("head", "fields", "status"),
    [
        ("GET /healthz HTTP/1.1", [], 400),
        ("GET /healthz HTTP/1.1", ["Host: 127.0.0.1", "Host: 127.0.0.1"], 400),
        ("GET /healthz HTTP/1.1", ["Host: 127.0.0.1"], 200),
        ("GET /healthz HTTP/1.0", [], 200),
        ("GET http://127.0.0.1:8079/healthz HTTP/1.1", ["Host: 127.0.0.1:8079"], 200),
        ("GET HTTP://localhost/api/status?x=/y HTTP/1.1", ["Host: evil.example"], 200),
        ("GET http://evil.example/api/status HTTP/1.1", ["Host: localhost"], 421),
        ("GET http://localhost HTTP/1.1", ["Host: localhost"], 200),
        ("GET http://localhost?x HTTP/1.0", [], 200),
        ("GET http:///healthz HTTP/1.1", ["Host: localhost"], 404),
        # a body, or no telling where the request ends
        ("GET /healthz HTTP/1.1", ["Host: 127.0.0.1", "Content-Length: 4", "", "abcd"], 400),
        ("GET /healthz HTTP/1.1", ["Host: 127.0.0.1", "Content-Length: 0", "Content-Length: 4", "", "abcd"], 400),
        ("GET /healthz HTTP/1.1", ["Host: 127.0.0.1", "Transfer-Encoding: chunked", "", "0", ""], 400),
        ("POST /healthz HTTP/1.1", ["Host: 127.0.0.1", "Content-Length: 4", "", "abcd"], 400),
        ("GET /healthz HTTP/1.1", ["Host: 127.0.0.1", "Content-Length: 0"], 200),
    ],
)
def test_what_a_request_may_look_like(head: str, fields: list[str], status: int, open_admin: Open, ask: Asker) -> None:
    open_admin()
    assert ask(head, *fields).split()[1] == str(status).encode()


@pytest.mark.parametrize("path", ["/", "/healthz", "/api/status", "/api/connections", "/nowhere"])
def test_head_has_the_length_of_the_answer_and_no_body(path: str, open_admin: Open, ask: Asker) -> None:
    open_admin()
    head, _, body = ask(f"HEAD {path} HTTP/1.1", f"Host: {HOST}").partition(b"\r\n\r\n")
    whole = ask(f"GET {path} HTTP/1.0").partition(b"\r\n\r\n")[2]
    assert body == b""
    assert b"\r\nContent-Length: %d" % len(whole) in head
    assert b"Transfer-Encoding" not in head


def test_the_page_asks_for_what_lies_beside_it(open_admin: Open, ask: Asker) -> None:
    """Under https://proxy.example/veillink/ the state is at /veillink/api/status."""
    open_admin()
    page = ask.get("/", HOST).decode()
    links = re.findall(r"""(?:href=|src=|get\(|fetch\()["']([^"']*)""", page)
    assert {"api/status", "api/connections", "metrics"} <= set(links)
    assert not [link for link in links if link.startswith("/")]


def test_it_answers_at_every_address_of_a_name(journal: Journal, sockets: Sockets, port: int) -> None:
    sources = SimpleNamespace(status=dict, connections=list, not_ready_reason=str)
    listening = listen_at_all([Address("192.0.2.1", port), Address(HOST, port), Address("::1", port)], listen)
    admin = Admin(listening, [], "", 3, sources, journal.log)
    for host in (HOST, "::1"):
        sock = sockets.client(Address(host, port))
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert read_to_eof(sock).endswith(b"alive\n")
    admin.close()


def test_an_address_of_a_name_that_somebody_else_has_is_told(sockets: Sockets) -> None:
    port = address_of(sockets.listener()).port
    with pytest.raises(OSError, match="in use"):
        listen_at_all([Address("::1", port), Address(HOST, port)], listen)
    sockets.listener("::1", port)  # it was let go
    with pytest.raises(OSError, match="Cannot assign"):
        listen_at_all([Address("192.0.2.1", port)], listen)
