"""Tests of one client's story, from its first byte to its access line."""

import tempfile
import time
from collections.abc import Callable
from time import sleep as stdlib_sleep

import gevent
import pytest
from gevent import socket

from tests.names import NameServer
from tests.proxy.front import FIELDS, Forward, is_reset
from tests.proxy.making import look
from tests.sockets import Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, free_port, read_exactly, read_to_eof, reset
from veillink.model import Address, End, Ended, Target
from veillink.net.stream import Stream
from veillink.proxy.pool import Pool
from veillink.proxy.relay import Relay
from veillink.proxy.session import CancelScope
from veillink.stats.ledger import Flow

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
    end: End, forward: Forward, sockets: Sockets
) -> None:
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
    forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
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
    assert 0.2 <= time.monotonic() - started < 5
    assert front.access()["end"] == End.MAX_LIFETIME


def test_a_name_whose_answer_came_while_this_process_did_not_run_is_found_in_time(
    forward: Forward, sockets: Sockets, backend: socket.socket, name_server: NameServer
) -> None:
    name_server.hosts["slow"] = (HOST,)
    name_server.hanging.add("slow")
    front = forward(Address("slow", address_of(backend).port), connect_timeout=0.5)
    client = front.client()
    eventually(lambda: name_server.asked["slow"])
    name_server.awake.set()
    stdlib_sleep(0.7)  # as after SIGSTOP
    client.shutdown(socket.SHUT_WR)
    sockets.accept(backend).close()
    assert front.access()["end"] == End.CLOSED


def test_a_target_has_not_failed_because_this_process_did_not_run(forward: Forward, sockets: Sockets) -> None:
    listener = sockets.listener(backlog=0)
    other = sockets.client(address_of(listener))
    front = forward(address_of(listener), sockets.silent(), connect_timeout=0.9, max_fails=1)
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


def test_a_limit_of_zero_is_off(forward: Forward, sockets: Sockets, backend: socket.socket) -> None:
    front = forward(address_of(backend), connect_timeout=0, half_close_timeout=0)
    client, target = front.connected(backend)
    client.shutdown(socket.SHUT_WR)
    assert read_to_eof(target) == b""
    (relay,) = front.ticker._watched
    assert not look(relay, time.monotonic() + 1e9)  # it is not even looked at any more
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
