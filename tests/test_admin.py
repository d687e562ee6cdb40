"""The window on what runs, with what the real program's tests cannot wait for."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from veillink import admin
from veillink.admin import Admin, Sources, is_known_host
from veillink.model import Address, RuleOptions
from veillink.net import listen

from .sockets import Journal, Sockets, eventually
from .system.harness import HOST, free_port, read_to_eof

MANY = [{"id": number, "filler": "x" * 1000} for number in range(20_000)]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def fails() -> list[str]:
    """Names of the sources that raise."""
    return []


@pytest.fixture
def window(port: int, journal: Journal, fails: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    """A window that shows much, and is patient for half a second."""
    monkeypatch.setattr(admin, "_LONGEST", 0.5)

    def source(name: str, answer: Any) -> Callable[[], Any]:
        def _source() -> Any:
            if name in fails:
                raise RuntimeError(f"{name} fails")
            return answer

        return _source

    sources = Sources(source("status", {}), source("connections", MANY), source("obstacle", ""))
    window = Admin(listen(Address(HOST, port), RuleOptions()), "", "", 3, sources, journal.log)
    yield window
    window.close()


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


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("trickle", [b"", b"x"])
def test_who_does_not_finish_asking_is_cut(trickle: bytes, sockets: Sockets, port: int) -> None:
    sock = sockets.client(Address(HOST, port))
    sock.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
    assert 0.4 < seconds_to_cut(sock, trickle) < 1


@pytest.mark.usefixtures("window")
def test_who_does_not_listen_is_cut_and_frees_a_place(sockets: Sockets, port: int) -> None:
    deaf = [sockets.client(Address(HOST, port)) for _ in range(3)]
    for sock in deaf:
        sock.sendall(b"GET /api/connections HTTP/1.0\r\n\r\n")
    began = time.monotonic()
    late = sockets.client(Address(HOST, port))
    late.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert read_to_eof(late).endswith(b"alive\n")
    assert 0.4 < time.monotonic() - began < 2


@pytest.mark.usefixtures("window")
def test_a_long_answer_is_whole_and_others_run_meanwhile(sockets: Sockets, port: int) -> None:
    longest = [0.0]

    def tick() -> None:
        while True:
            began = time.monotonic()
            gevent.sleep(0)
            longest[0] = max(longest[0], time.monotonic() - began)

    ticker = gevent.spawn(tick)
    sock = sockets.client(Address(HOST, port))
    sock.sendall(b"GET /api/connections HTTP/1.0\r\n\r\n")
    body = read_to_eof(sock).partition(b"\r\n\r\n")[2]
    ticker.kill()
    assert json.loads(body) == MANY
    assert longest[0] < 0.05


@pytest.mark.usefixtures("window")
def test_a_fault_of_ours_is_told_in_the_log_and_ends_that_answer_alone(
    sockets: Sockets, port: int, fails: list[str], journal: Journal
) -> None:
    fails += ["status", "obstacle"]
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
    assert is_known_host(host, "named")


@pytest.mark.parametrize(
    "host", ["evil", "localhost.evil", "127.0.0.1.evil", "[evil]", "x:y:z", "[::1", "127.1", "named.x"]
)
def test_unknown_hosts(host: str) -> None:
    assert is_known_host(host, "named") == (host == "[::1")
