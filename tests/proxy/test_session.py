"""Tests of one client's story, from its first byte to its access line."""

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep as stdlib_sleep
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.hub import spawn_raw

from tests.proxy.making import make_shared
from tests.sockets import Journal, Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, free_port, read_exactly, read_to_eof, reset
from veillink.model import Address, End, Ended, Rule, RuleOptions, Target
from veillink.net import resolver, ticker
from veillink.net.sockets import adopt, readable
from veillink.net.stream import Stream
from veillink.proxy import relay, trial
from veillink.proxy.pool import Member, Pool
from veillink.proxy.relay import Relay
from veillink.proxy.service import Binding, Service
from veillink.proxy.session import CancelScope, serve
from veillink.proxy.upstream import Upstream
from veillink.stats.ledger import Flow

LISTEN = Address("", 8000)
FIELDS = "time,rule,id,client,listen,target,tried,bytes_in,bytes_out,connect_ms,duration_ms,end"


class Front:
    """Serves clients of one rule."""

    def __init__(self, sockets: Sockets, journal: Journal, targets: tuple[Target, ...], options: RuleOptions) -> None:
        self.sockets = sockets
        self.journal = journal
        self.shared = shared = make_shared(journal.log)
        self.ledger, self.ticker = shared.ledger, shared.ticker
        self.turned: list[tuple[Address, str]] = []
        rule = Rule("web", LISTEN, 3, targets, options)
        pool = Pool(rule, lambda: 0.5)
        upstream = Upstream(
            pool, shared.resolver, shared.attempts, self._turned, lambda member: None, options.retry_interval
        )
        self.service = Service(rule, upstream, shared.limiter.of_rule(), shared)
        self._listener = sockets.listener()

    def _turned(self, member: Member, reason: str) -> None:
        self.turned.append((member.address, reason))

    def fail(self, target: Address) -> Member:
        """Let connects to a target have failed, and return it."""
        member = self.service.upstream.pool.members[target]
        while not member.failing:
            self.service.upstream.pool.count_failure(member, time.monotonic())
        return member

    def client(self, offset: int = 0) -> socket.socket:
        """Return the socket of a client that is being served."""
        client = self.waiting()
        self.accept(offset)
        return client

    def waiting(self) -> socket.socket:
        """Return the socket of a client that waits to be accepted."""
        return self.sockets.client(address_of(self._listener))

    def accept(self, offset: int = 0) -> None:
        """Begin to serve the next client."""
        accepted, peer = self._listener.accept()
        sock = adopt(accepted.detach(), socket.AF_INET)
        spawn_raw(serve, sock, readable(peer), Address("", 8000 + offset), Binding(self.service, offset))
        gevent.sleep(0)

    def connected(self, backend: socket.socket) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection that is being relayed."""
        client, target = self.client(), self.sockets.accept(backend)
        eventually(lambda: all(connection.connected for connection in self.ledger.live.values()))
        return client, target

    def access(self) -> dict[str, Any]:
        """Return the access line of the one client, once there is one."""
        (line,) = eventually(self.journal.access)
        assert self.ledger.live == {}
        eventually(lambda: not self.ticker._watched)
        assert self.ledger.totals["web"].ends == {End(line["end"]): 1}
        return line


Forward = Callable[..., Front]


@pytest.fixture
def forward(sockets: Sockets, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forward]:
    """Make a front for these targets; every descriptor it took has to be given back."""
    monkeypatch.setattr(ticker, "_TICK", 0.01)
    fronts: list[Front] = []

    def _forward(*targets: Address | Target, **limits: Any) -> Front:
        whole = tuple(target if isinstance(target, Target) else Target(target) for target in targets)
        fronts.append(Front(sockets, journal, whole, RuleOptions(**limits)))
        return fronts[-1]

    yield _forward
    for front in fronts:
        front.shared.resolver.keep({})
        front.shared.resolver._threads.kill()


@pytest.fixture
def backend(sockets: Sockets) -> socket.socket:
    return sockets.listener()


def is_reset(far: socket.socket) -> bool:
    """Wait for the end and tell whether it was a reset."""
    try:
        read_to_eof(far)
    except ConnectionResetError:
        return True
    return False


# --- stories that end well -------------------------------------------------------------------------------------------


def test_the_access_line_tells_the_story(forward: Forward, sockets: Sockets, backend: socket.socket) -> None:
    refusing = Address(HOST, free_port())
    front = forward(refusing, address_of(backend))
    client = front.client(offset=0)
    target = sockets.accept(backend)
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_to_eof(target) == b"question"
    target.sendall(b"answer")
    target.close()
    assert read_to_eof(client) == b"answer"
    line = front.access()
    assert ",".join(line) == FIELDS
    assert line["rule"] == "web"
    assert line["id"] == 1
    assert line["client"] == str(address_of(client))
    assert line["listen"] == "*:8000"
    assert line["target"] == str(address_of(backend))
    assert line["tried"] == f"{refusing} ECONNREFUSED"
    assert (line["bytes_in"], line["bytes_out"]) == (8, 6)
    assert 0 <= line["connect_ms"] <= line["duration_ms"] < 5000
    assert line["end"] == "closed"


def test_a_connection_is_live_from_accept_to_its_end(
    forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    front = forward(address_of(backend))
    client, target = front.connected(backend)
    (connection,) = front.ledger.live.values()
    client.sendall(b"abc")
    assert read_exactly(target, 3) == b"abc"
    assert (connection.client, connection.target, connection.inbound.bytes) == (
        address_of(client),
        address_of(backend),
        3,
    )
    client.close()
    target.close()
    assert front.access()["end"] == "closed"


def test_the_listener_s_place_in_the_range_is_the_target_s(
    forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    first = Address(HOST, address_of(backend).port - 2)
    front = forward(Target(first))
    front.client(offset=2).close()
    sockets.accept(backend).close()
    line = front.access()
    assert (line["listen"], line["target"]) == ("*:8002", str(address_of(backend)))


def test_an_ended_connection_has_given_its_descriptors_back(
    forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    front = forward(address_of(backend))
    before = open_files()
    client, target = front.connected(backend)
    assert open_files() == before + 4  # two of the test's, two of the session's
    client.close()
    target.close()
    front.access()
    assert open_files() == before


# --- other ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [End.CLIENT_RESET, End.TARGET_RESET])
def test_a_reset_is_passed_on(end: End, forward: Forward, sockets: Sockets, backend: socket.socket) -> None:
    front = forward(address_of(backend))
    far = front.connected(backend)
    one, other = far if end is End.CLIENT_RESET else far[::-1]
    reset(one)
    assert is_reset(other)
    assert front.access()["end"] == end


def unreachable(sockets: Sockets) -> dict[End, tuple[Target, str]]:
    """Return a target for each way not to be connected, and what is tried."""
    refusing, silent, impossible = Address(HOST, free_port()), sockets.silent(), Address("fe80::1", 80)
    return {
        End.CONNECT_REFUSED: (Target(refusing), f"{refusing} ECONNREFUSED"),
        End.CONNECT_TIMEOUT: (Target(silent), f"{silent} ETIMEDOUT"),
        End.CONNECT_FAILED: (Target(impossible), f"{impossible} EINVAL"),
        End.NAME_NOT_FOUND: (Target(Address("nowhere", 80)), "nowhere:80 name_not_found"),
        End.NO_TARGET: (Target(refusing, weight=0), ""),
    }


@pytest.mark.parametrize(
    "end",
    [End.CONNECT_REFUSED, End.CONNECT_TIMEOUT, End.CONNECT_FAILED, End.NAME_NOT_FOUND, End.NO_TARGET],
)
def test_without_a_target_the_client_is_reset_and_one_warning_says_why(
    end: End, forward: Forward, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_getaddrinfo", lambda host: ((), "unknown", True))
    target, tried = unreachable(sockets)[end]
    front = forward(target, connect_timeout=0.3)
    started = time.monotonic()
    assert is_reset(front.client())
    assert (time.monotonic() - started > 0.29) is (end is End.CONNECT_TIMEOUT)
    line = front.access()
    assert (line["end"], line["target"], line["connect_ms"], line["tried"]) == (end, None, None, tried or None)
    (warning,) = front.journal.lines("cannot reach a target")
    assert (warning["level"], warning["rule"], warning["failure"]) == ("warning", "web", end)
    assert "end" not in warning  # that word counts connections
    assert warning["tried"] == (tried or None)
    assert warning["reason"]


def test_a_client_that_leaves_while_the_target_is_being_connected_ends_the_attempt_at_once(
    forward: Forward, sockets: Sockets
) -> None:
    front = forward(sockets.silent(), connect_timeout=0)
    client = front.client()
    before = open_files()
    reset(client)
    assert front.access()["end"] == End.CLIENT_LEFT
    assert open_files() == before - 3
    assert front.journal.lines("cannot reach") == []


@pytest.mark.parametrize("says", [b"", b"something"])
def test_a_client_that_was_reset_while_it_waited_to_be_accepted_reaches_no_target(
    says: bytes, forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    front = forward(address_of(backend))
    client = front.waiting()
    client.sendall(says)
    reset(client)
    front.accept()
    line = front.access()
    assert (line["end"], line["target"], line["tried"]) == (End.CLIENT_LEFT, None, None)
    backend.settimeout(0)
    with pytest.raises(BlockingIOError):
        backend.accept()


def test_a_client_that_has_finished_while_it_waited_to_be_accepted_is_served(
    forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    front = forward(address_of(backend))
    client = front.waiting()
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    front.accept()
    target = sockets.accept(backend)
    assert read_to_eof(target) == b"last words"
    target.close()
    assert front.access()["end"] == End.CLOSED


def test_a_client_that_leaves_while_its_target_is_tried_again_and_again_ends_that(
    forward: Forward, sockets: Sockets
) -> None:
    refusing = Address(HOST, free_port())
    front = forward(refusing, connect_timeout=0, retry_interval=0.01)
    client = front.client()
    gevent.sleep(0.1)
    reset(client)
    line = front.access()
    assert (line["end"], line["tried"]) == (End.CLIENT_LEFT, f"{refusing} ECONNREFUSED")


def test_a_client_that_leaves_just_after_the_target_was_connected_has_reset(
    forward: Forward, sockets: Sockets, backend: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticker, "_TICK", 0.1)
    front = forward(sockets.silent(), address_of(backend), connect_timeout=0.6)  # so long that the client was looked at
    client = front.client()
    client.shutdown(socket.SHUT_WR)  # nobody reads from it any more: the reset has to be told
    (connection,) = front.ledger.live.values()
    while not connection.inbound.done:
        gevent.sleep(0)
    reset(client)
    assert front.access()["end"] == End.CLIENT_RESET


def test_a_client_may_get_too_old_while_its_target_is_being_connected(forward: Forward, sockets: Sockets) -> None:
    front = forward(sockets.silent(), connect_timeout=0, max_lifetime=0.2)
    started = time.monotonic()
    assert is_reset(front.client())
    assert 0.2 <= time.monotonic() - started < 2
    assert front.access()["end"] == End.MAX_LIFETIME


def test_a_name_whose_answer_came_while_this_process_did_not_run_is_found_in_time(
    forward: Forward, sockets: Sockets, backend: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(host: str) -> resolver.Answer:
        stdlib_sleep(0.3)
        return (HOST,), "", False

    monkeypatch.setattr(resolver, "_getaddrinfo", slow)
    front = forward(Address("slow", address_of(backend).port), connect_timeout=0.5)
    client = front.client()
    gevent.sleep(0.1)
    stdlib_sleep(0.7)  # as after SIGSTOP
    client.shutdown(socket.SHUT_WR)
    sockets.accept(backend).close()
    assert front.access()["end"] == End.CLOSED


def test_a_target_has_not_failed_because_this_process_did_not_run(forward: Forward, sockets: Sockets) -> None:
    listener = sockets.listener(backlog=0)
    other = sockets.client(address_of(listener))
    front = forward(address_of(listener), sockets.silent(), connect_timeout=0.5, max_fails=1)
    client = front.client()
    sockets.accept(listener).close()
    other.close()
    gevent.sleep(0.1)
    stdlib_sleep(0.7)  # as after SIGSTOP; the kernel sends the SYN again a second after the first
    sockets.accept(listener).close()
    client.shutdown(socket.SHUT_WR)
    line = front.access()
    assert (line["end"], line["target"], line["tried"]) == (End.CLOSED, str(address_of(listener)), None)
    assert front.turned == []


def test_what_the_client_has_sent_and_finished_early_waits_for_the_target(
    forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    front = forward(sockets.silent(), address_of(backend), connect_timeout=0.6)
    client = front.client()
    client.sendall(b"early")
    client.shutdown(socket.SHUT_WR)
    target = sockets.accept(backend)
    assert read_to_eof(target) == b"early"
    target.close()
    assert front.access()["end"] == End.CLOSED


@pytest.mark.parametrize(
    ("limits", "finishes", "end", "reset"),
    [
        ({"idle_timeout": 0.1}, "", End.IDLE_TIMEOUT, ["client", "target"]),
        ({"idle_timeout": 0.1}, "client", End.IDLE_TIMEOUT, ["client"]),
        ({"idle_timeout": 0.1}, "target", End.IDLE_TIMEOUT, ["target"]),
        ({"half_close_timeout": 0.1}, "client", End.HALF_CLOSE_TIMEOUT, ["client"]),
        ({"half_close_timeout": 0.1}, "target", End.HALF_CLOSE_TIMEOUT, ["target"]),
        ({"max_lifetime": 0.1}, "", End.MAX_LIFETIME, ["client", "target"]),
    ],
)
def test_a_limit_ends_it_with_a_reset_for_whoever_has_not_heard_the_other_side_out(
    limits: dict[str, float],
    finishes: str,
    end: End,
    reset: list[str],
    forward: Forward,
    sockets: Sockets,
    backend: socket.socket,
) -> None:
    front = forward(address_of(backend), **limits)
    sides = dict(zip(("client", "target"), front.connected(backend), strict=True))
    for sock in sides.values():
        sock.sendall(b"half")
    for sock in sides.values():
        assert read_exactly(sock, 4) == b"half"
    if finishes:
        sides[finishes].shutdown(socket.SHUT_WR)
    assert [side for side, sock in sides.items() if is_reset(sock)] == reset
    assert front.access()["end"] == end
    if finishes:  # it may still hear the other side, which has had everything: only further bytes are refused
        (other,) = sides.keys() - {finishes}
        sides[other].send(b"x")


def test_silence_that_leaves_bytes_undelivered_is_no_clean_end(forward: Forward, sockets: Sockets) -> None:
    backend = sockets.listener()
    backend.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    front = forward(address_of(backend), idle_timeout=0.2)
    client, target = front.connected(backend)
    client.sendall(bytes(200_000))  # the target takes nothing of it
    assert front.access()["end"] == End.IDLE_TIMEOUT
    assert is_reset(target)


@pytest.mark.parametrize("amount", [1000, 400_000], ids=["unread", "unread and held back"])
def test_who_has_sent_what_a_unix_target_has_not_read_sees_no_clean_end(amount: int, forward: Forward) -> None:
    with tempfile.TemporaryDirectory(prefix="vl-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as backend:
        backend.bind(f"{folder}/target")
        backend.listen()
        front = forward(Address(f"unix:{folder}/target", 0), half_close_timeout=0.2)
        client, target = front.connected(backend)
        target.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        client.sendall(bytes(amount))
        line = front.access()
        assert line["end"] == End.HALF_CLOSE_TIMEOUT
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # a reset after a FIN; a FIN alone would let it send
            client.send(b"x")
        assert len(read_to_eof(target)) <= line["bytes_in"]


def test_a_limit_of_zero_is_off(
    forward: Forward, sockets: Sockets, backend: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_PARK_AFTER", 0.03)
    front = forward(address_of(backend), connect_timeout=0, half_close_timeout=0)
    client, target = front.connected(backend)
    client.shutdown(socket.SHUT_WR)
    assert read_to_eof(target) == b""
    eventually(lambda: not front.ticker._watched)
    target.close()
    assert front.access()["end"] == End.CLOSED


@pytest.mark.parametrize("connected", [False, True])
def test_a_drain_cuts_it_wherever_it_is(
    connected: bool, forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    front = forward(address_of(backend) if connected else sockets.silent())
    far = front.connected(backend) if connected else [front.client()]
    (connection,) = front.ledger.live.values()
    connection.scope.cancel(Ended(End.DRAINED))
    assert [is_reset(sock) for sock in far] == [True] * len(far)
    assert front.access()["end"] == End.DRAINED


# --- targets that are connected and do not serve ---------------------------------------------------------------------


def serving(sockets: Sockets, behaviour: Callable[[socket.socket], object], *, unix: str = "") -> Address:
    """Return the address of a target that does this with everybody who connects."""
    if unix:
        listener = sockets.keep(socket.socket(socket.AF_UNIX))
        listener.bind(unix)
        listener.listen()
    else:
        listener = sockets.listener()

    def accept_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                spawn_raw(behaviour, sockets.accept(listener))

    spawn_raw(accept_all)
    return Address(f"unix:{unix}", 0) if unix else address_of(listener)


def answer(sock: socket.socket) -> None:
    read_to_eof(sock)
    sock.sendall(b"answer")
    sock.close()


def take(sock: socket.socket) -> None:
    read_to_eof(sock)
    sock.close()


def answer_and_reset(sock: socket.socket) -> None:
    sock.sendall(b"answer")
    sock.recv(1)
    reset(sock)


def close_unread(sock: socket.socket) -> None:
    """Wait for a byte and close without reading it: that is a reset, on a UNIX socket too."""
    sock.recv(1, socket.MSG_PEEK)
    sock.close()


def wait(sock: socket.socket) -> None:
    gevent.sleep(60)


def visit(front: Front, says: bytes = b"question") -> End:
    """Be a client from beginning to end, and return how it ended."""
    before = len(front.journal.access())
    with front.client() as client, contextlib.suppress(OSError):
        client.sendall(says)
        client.shutdown(socket.SHUT_WR)
        read_to_eof(client)
    return End(eventually(lambda: front.journal.access()[before:])[0]["end"])


@pytest.mark.parametrize("kind", ["resets", "closes unread", "closes unread, unix"])
def test_a_target_that_resets_before_its_first_byte_is_taken_out(
    kind: str, forward: Forward, sockets: Sockets, tmp_path: Path
) -> None:
    behaviour = reset if kind == "resets" else close_unread
    bad = serving(sockets, behaviour, unix=str(tmp_path / "x") if "unix" in kind else "")
    good = serving(sockets, answer)
    front = forward(bad, good, max_fails=2, fail_timeout=60)
    ends = Counter(visit(front) for _ in range(12))
    assert ends == {End.TARGET_RESET: 2, End.CLOSED: 10}
    assert front.turned == [(bad, "ECONNRESET")]


def test_a_target_that_accepts_and_resets_does_not_come_back_by_being_connected(
    forward: Forward, sockets: Sockets
) -> None:
    bad, good = serving(sockets, reset), serving(sockets, answer)
    front = forward(bad, good, max_fails=2, fail_timeout=0.1)
    while len(front.journal.access()) < 20:
        visit(front)
        gevent.sleep(0.02)
    assert front.turned == [(bad, "ECONNRESET")]
    assert Counter(line["end"] for line in front.journal.access())["target_reset"] >= 3, "it was never tried again"


def answer_questions(sock: socket.socket) -> None:
    """Answer a question; reset whoever says anything else."""
    if sock.recv(1, socket.MSG_PEEK) == b"q":
        answer(sock)
    else:
        sock.close()  # with unread bytes


def test_a_client_whose_bytes_targets_do_not_like_takes_none_out(
    forward: Forward, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_BESIDE", 60.0)  # so that no slow machine makes a difference
    front = forward(serving(sockets, answer_questions), serving(sockets, answer_questions), max_fails=1)
    assert [visit(front) for _ in range(2)] == [End.CLOSED] * 2
    assert [visit(front, b"garbage") for _ in range(4)] == [End.TARGET_RESET] * 4
    assert front.turned == []


@pytest.mark.parametrize(("says", "answered"), [(b"", 0.0), (b"question", -2.0)], ids=["says nothing", "long ago"])
def test_a_reset_that_no_client_has_provoked_counts_though_the_target_has_answered_others(
    says: bytes, answered: float, forward: Forward, sockets: Sockets
) -> None:
    bad = serving(sockets, close_unread if says else reset)
    front = forward(bad, address_of(sockets.listener()), max_fails=1)
    front.service.upstream.pool.members[bad].answered = time.monotonic() + answered
    with front.client() as client:
        client.sendall(says)
        assert front.access()["end"] == End.TARGET_RESET
    assert front.turned == [(bad, "ECONNRESET")]


def test_a_connection_that_brought_a_target_back_long_ago_does_not_at_its_end(
    forward: Forward, sockets: Sockets
) -> None:
    target = serving(sockets, answer)
    front = forward(target, address_of(sockets.listener()), fail_timeout=60)
    front.fail(target).try_again(float("-inf"))
    client = front.client()
    eventually(lambda: front.turned == [(target, "")])
    assert front.fail(target).failing
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_to_eof(client) == b"answer"
    assert front.access()["end"] == End.CLOSED
    assert front.turned == [(target, "")]


@pytest.mark.parametrize("behaviour", [answer, take, answer_and_reset])
def test_a_target_that_serves_again_is_back(
    behaviour: Callable[[socket.socket], None], forward: Forward, sockets: Sockets
) -> None:
    target = serving(sockets, behaviour)
    front = forward(target, address_of(sockets.listener()), fail_timeout=60)
    member = front.fail(target)
    member.try_again(float("-inf"))
    visit(front)
    assert front.turned == [(target, "")]


def test_a_target_that_was_out_and_keeps_a_silent_client_for_a_moment_is_back(
    forward: Forward, sockets: Sockets
) -> None:
    target = serving(sockets, wait)
    front = forward(target, address_of(sockets.listener()), fail_timeout=60)
    front.fail(target).try_again(float("-inf"))
    client = front.client()
    began = time.monotonic()
    eventually(lambda: front.turned)
    assert time.monotonic() - began >= 0.045
    assert front.turned == [(target, "")]
    client.close()


@pytest.mark.parametrize("says", [b"", b"question"])
def test_a_client_that_leaves_at_once_proves_nothing_either_way(
    says: bytes, forward: Forward, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticker, "_TICK", 10)
    target = serving(sockets, wait)
    front = forward(target, address_of(sockets.listener()), max_fails=1, fail_timeout=60)
    member = front.fail(target)
    for failing in (True, False):
        member.failing = failing
        member.try_again(float("-inf"))
        client = front.client()
        client.sendall(says)
        eventually(lambda: all(connection.connected for connection in front.ledger.live.values()))
        reset(client)
        eventually(lambda: not front.ledger.live)
        assert member.failing is failing
    assert front.turned == []


def test_resets_after_the_first_byte_take_no_target_out(forward: Forward, sockets: Sockets) -> None:
    target = serving(sockets, answer_and_reset)
    front = forward(target, serving(sockets, answer), max_fails=1)
    assert Counter(visit(front) for _ in range(6))[End.TARGET_RESET] == 3
    assert front.turned == []


def test_connections_that_are_cut_because_their_target_is_down_are_no_failures_of_it(
    forward: Forward, sockets: Sockets
) -> None:
    target = serving(sockets, wait)
    front = forward(target, address_of(sockets.listener()), max_fails=1)
    member = front.service.upstream.pool.members[target]
    front.client()
    (connection,) = eventually(
        lambda: [connection for connection in front.ledger.live.values() if connection.connected]
    )
    member.down = True
    connection.scope.cancel(Ended(End.TARGET_RESET, "the target is down"))
    assert front.access()["end"] == End.TARGET_RESET
    assert not member.failing


# --- what nobody has foreseen ----------------------------------------------------------------------------------------


class UnforeseenError(Exception):
    pass


def breaks(*_: object) -> None:
    raise UnforeseenError("never mind why")


def break_pump(of: End) -> Callable[..., None]:
    pump = Relay._pump

    def _pump(self: Relay, source: Stream, sink: Stream, flow: Flow, lost: End) -> None:
        if lost is of:
            breaks()
        pump(self, source, sink, flow, lost)

    return _pump


@pytest.fixture(params=["in the choice", "in the client's greenlet", "in the twin"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break something inside."""
    match request.param:
        case "in the choice":
            monkeypatch.setattr(Pool, "choose", breaks)
        case "in the client's greenlet":
            monkeypatch.setattr(Relay, "_pump", break_pump(End.CLIENT_RESET))
        case "in the twin":
            monkeypatch.setattr(Relay, "_pump", break_pump(End.TARGET_RESET))


def test_an_unforeseen_error_ends_this_connection_and_no_other(
    broken: None, forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    front = forward(address_of(backend))
    before = open_files()
    client = front.client()
    assert is_reset(client)
    assert front.access()["end"] == End.INTERNAL
    assert open_files() == before + 1  # the test's own client
    (error,) = front.journal.lines("unforeseen error")
    assert (error["level"], error["id"], error["rule"]) == ("error", 1, "web")


def test_the_traceback_of_an_unforeseen_error_tells_where_and_what_it_was(
    broken: None, forward: Forward, backend: socket.socket
) -> None:
    front = forward(address_of(backend))
    assert is_reset(front.client())
    (error,) = [line for line in front.journal.finish() if "traceback" in line]
    assert error["traceback"].startswith("Traceback (most recent call last)")
    assert "in breaks" in error["traceback"]
    assert "UnforeseenError: never mind why" in error["traceback"]


# --- interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "delivered"),
    [
        ([End.IDLE_TIMEOUT], [End.IDLE_TIMEOUT]),
        ([End.CLIENT_RESET, End.IDLE_TIMEOUT], [End.CLIENT_RESET]),
        ([End.CLIENT_RESET, End.DRAINED], [End.CLIENT_RESET, End.DRAINED]),
        ([End.DRAINED, End.CLIENT_RESET], [End.DRAINED]),
    ],
)
def test_the_first_interrupt_counts_and_a_drain_always_does(calls: list[End], delivered: list[End], hub: None) -> None:
    caught: list[End] = []
    made: list[CancelScope] = []

    def story() -> None:
        made.append(CancelScope())
        while True:
            try:
                gevent.sleep(10)
            except Ended as ended:
                caught.append(ended.end)

    greenlet = gevent.spawn(story)
    gevent.sleep(0)
    for end in calls:
        made[0].cancel(Ended(end))
    gevent.sleep(0.01)
    greenlet.kill()
    assert caught == delivered


def test_an_interrupt_after_the_end_changes_nothing(forward: Forward, sockets: Sockets, backend: socket.socket) -> None:
    front = forward(address_of(backend))
    client, target = front.connected(backend)
    (connection,) = front.ledger.live.values()
    client.close()
    target.close()
    assert front.access()["end"] == End.CLOSED
    connection.scope.cancel(Ended(End.DRAINED))
    gevent.sleep(0)
    assert front.access()["end"] == End.CLOSED


def test_an_interrupt_that_comes_too_late_is_ignored(hub: None) -> None:
    made: list[CancelScope] = []

    def story() -> str:
        made.append(CancelScope())
        made[0].cancel(Ended(End.IDLE_TIMEOUT))
        made[0].armed = False
        gevent.sleep(0.01)
        return "told to the end"

    assert gevent.spawn(story).get() == "told to the end"
