"""Targets that are connected and do not serve."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.hub import spawn_raw

from tests.proxy.front import Forward, Front
from tests.proxy.making import NO_TICK
from tests.sockets import Sockets, address_of, eventually
from tests.system.harness import read_to_eof, reset
from veillink.model import Address, End, Ended


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


def test_a_client_whose_bytes_targets_do_not_like_takes_none_out(forward: Forward, sockets: Sockets) -> None:
    front = forward(serving(sockets, answer_questions), serving(sockets, answer_questions), max_fails=1)
    assert [visit(front) for _ in range(2)] == [End.CLOSED] * 2
    for member in front.service.upstream.pool.members.values():
        assert member.answered
        member.answered += 60  # so that no slow machine makes a difference
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
    says: bytes, forward: Forward, sockets: Sockets
) -> None:
    target = serving(sockets, wait)
    front = forward(target, address_of(sockets.listener()), tick=NO_TICK, max_fails=1, fail_timeout=60)
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
