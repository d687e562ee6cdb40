"""One request for each connection, and who may take how long."""

import json
import time
from types import SimpleNamespace

import gevent
import pytest
from gevent.event import Event

from tests.admin.asking import MANY, Asker, Open, gone, seconds_to_cut
from tests.sockets import Journal, Sockets, address_of, eventually
from tests.system.harness import HOST, read_to_eof
from veillink.admin import exposition as metrics
from veillink.admin import pages
from veillink.admin.http import Slots, listen_at_all
from veillink.admin.pages import Admin
from veillink.model import Address
from veillink.net.listening import listen


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
    monkeypatch.setattr(pages, "in_thread", lambda render, value: let_go.wait() and render(value))
    open_admin(most=4)
    asked = ask.begin(f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    strangers = [ask.begin() for _ in range(40)]
    eventually(lambda: gone(strangers[0]))
    let_go.set()
    assert read_to_eof(asked).endswith(b"measured")


def test_the_head_of_a_request_has_less_time_than_the_answer(open_admin: Open, ask: Asker) -> None:
    open_admin(head=0.2)
    deaf = ask.begin(b"GET /api/connections HTTP/1.0\r\n\r\n")
    began = time.monotonic()
    seconds_to_cut(ask.begin())
    assert 0.15 < time.monotonic() - began < 5
    gevent.sleep(0.2)
    assert json.loads(read_to_eof(deaf).partition(b"\r\n\r\n")[2]) == MANY


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


def test_it_answers_at_every_address_of_a_name(journal: Journal, sockets: Sockets, port: int) -> None:
    sources = SimpleNamespace(status=dict, connections=list, not_ready_reason=str)
    listening = listen_at_all([Address("192.0.2.1", port), Address(HOST, port), Address("::1", port)], listen)
    admin = Admin(listening, [], "", Slots(3), sources, journal.log)
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
