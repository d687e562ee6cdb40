"""The admin endpoint, with what the real program's tests cannot wait for."""

import json
import re
import time

import gevent
import pytest

from tests.admin.asking import MANY, Asker, Open
from tests.sockets import Journal, Sockets, eventually
from tests.system.harness import HOST, read_to_eof
from veillink.admin.pages import is_known_host
from veillink.model import Address


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


def test_the_page_asks_for_what_lies_beside_it(open_admin: Open, ask: Asker) -> None:
    """Under https://proxy.example/veillink/ the state is at /veillink/api/status."""
    open_admin()
    page = ask.get("/", HOST).decode()
    links = re.findall(r"""(?:href=|src=|get\(|fetch\()["']([^"']*)""", page)
    assert {"api/status", "api/connections", "metrics"} <= set(links)
    assert not [link for link in links if link.startswith("/")]
