"""Each way in which a connection can end is passed on as what it was."""

import random
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from .conftest import Forward, Hold
from .ends import (
    MIB,
    PROMPTLY,
    SIDES,
    Side,
    Unready,
    Upload,
    digest_to_eof,
    frozen,
    most_in_the_kernel,
    push,
    read_to_any_end,
    read_to_reset,
    refuses,
    unsent,
    wait_until_delivered,
    wait_until_received,
)
from .harness import HOST, VeilLink, eventually, read_exactly, read_to_eof, reset

bulk = pytest.mark.usefixtures("relay")


def greet(near: socket.socket, far: socket.socket) -> None:
    """Let a byte through: before that, a target that resets has not been connected yet, and another one is tried."""
    near.sendall(b"!")
    assert read_exactly(far, 1) == b"!"


# --- FIN -------------------------------------------------------------------------------------------------------------


@bulk
def test_a_client_that_has_finished_sending_still_gets_its_answer(forward: Forward) -> None:
    answer = random.Random(1).randbytes(MIB)

    def answer_at_eof(sock: socket.socket) -> None:
        sock.sendall(digest_to_eof(sock) + answer)

    veillink = forward(answer_at_eof)
    with veillink.connect() as client:
        question = Upload(client, MIB)
        assert read_to_eof(client) == question.digest() + answer
    (line,) = veillink.access()
    assert (line["end"], line["bytes_in"], line["bytes_out"]) == ("closed", MIB, MIB + 32)


def test_a_target_that_has_finished_sending_still_gets_the_upload(hold: Hold) -> None:
    ends = hold()
    client, target = ends.pair()
    target.sendall(b"hi")
    target.shutdown(socket.SHUT_WR)
    assert read_to_eof(client) == b"hi"
    upload = Upload(client, MIB)
    assert digest_to_eof(target) == upload.digest()
    assert ends.end() == "closed"


@bulk
@pytest.mark.parametrize("side", SIDES)
def test_a_side_that_sends_and_closes_at_once_is_heard_out(hold: Hold, side: Side) -> None:
    ends = hold()
    data = random.Random(1).randbytes(MIB)
    for _ in range(30):
        near, far = ends.pair(side)
        near.sendall(data)
        near.close()
        assert read_to_eof(far) == data
        far.close()
    assert Counter(line["end"] for line in ends.veillink.access(30)) == {"closed": 30}


def test_both_sides_closing_at_the_same_moment_is_no_error(hold: Hold) -> None:
    ends = hold()
    for _ in range(200):
        client, target = ends.pair()
        client.sendall(b"bye")
        target.sendall(b"bye")
        assert read_exactly(client, 3) == read_exactly(target, 3) == b"bye"
        client.close()
        target.close()
    assert Counter(line["end"] for line in ends.veillink.access(200)) == {"closed": 200}
    assert '"error"' not in ends.veillink.output


def proxy_states(veillink: VeilLink) -> Counter[str]:
    """Return how many of its sockets are in which state (ss(8))."""
    listing = subprocess.run(["ss", "-tanpH"], capture_output=True, text=True, check=True).stdout
    return Counter(line.split()[0] for line in listing.splitlines() if f"pid={veillink.pid}," in line)


def test_a_thousand_connections_closed_by_either_side_leave_no_socket_behind(forward: Forward) -> None:
    def leave_if_told(sock: socket.socket) -> None:
        if sock.recv(1) == b"c":  # the client closes first
            assert sock.recv(1) == b""

    veillink = forward(leave_if_told)
    for first in (b"c", b"t"):
        for _ in range(1000):
            with veillink.connect() as client:
                client.sendall(first)
                if first == b"t":
                    assert client.recv(1) == b""
    assert {line["end"] for line in veillink.access(2000)} == {"closed"}
    eventually(lambda: set(proxy_states(veillink)) == {"LISTEN"}, what="nothing but listeners")


# --- RST -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_a_reset_is_passed_on_as_a_reset(hold: Hold, side: Side) -> None:
    ends = hold()
    near, far = ends.pair(side)
    greet(near, far)
    reset(near)
    assert read_to_reset(far) == b""
    assert ends.end() == f"{side}_reset"


@bulk
@pytest.mark.parametrize("side", SIDES)
def test_a_cut_transfer_does_not_look_complete(hold: Hold, side: Side) -> None:
    ends = hold()
    near, far = ends.pair(side)
    upload = push(near, 64 * MIB, quiet=0.2)
    reset(near)
    received = read_to_reset(far)
    assert upload.startswith(received)
    assert ends.end() == f"{side}_reset"


@bulk
@pytest.mark.parametrize("side", SIDES)
def test_what_arrived_before_a_reset_is_delivered_before_it(hold: Hold, side: Side) -> None:
    ends = hold()
    for size in (1, 5000, MIB, 3 * MIB):
        near, far = ends.pair(side)
        greet(near, far)
        upload = push(near, size)
        assert len(upload) == size
        wait_until_delivered(near)
        reset(near)
        assert read_to_reset(far) == upload


@bulk
@pytest.mark.parametrize("side", SIDES)
def test_what_arrived_before_a_reset_is_delivered_although_the_reader_sends_too(hold: Hold, side: Side) -> None:
    ends = hold()
    near, far = ends.pair(side)
    greet(near, far)
    upload = push(near, 64 * MIB, quiet=0.2)
    arrived = len(upload) - unsent(near)
    reset(near)
    far.sendall(b"to nobody")
    received = read_to_reset(far)
    assert upload.startswith(received)
    assert len(received) >= arrived
    assert ends.end() == f"{side}_reset"


def test_a_slow_reader_gets_all_that_arrived_before_a_reset(hold: Hold) -> None:
    ends = hold(receive_buffer=64 << 10)
    target, client = ends.pair("target")
    page = push(target, 2 * MIB)
    wait_until_delivered(target)
    reset(target)
    received = bytearray()
    while len(received) < len(page):  # takes longer than one that does not read at all would be waited for
        received += read_exactly(client, min(len(page) - len(received), 16 << 10))
        time.sleep(0.05)
    assert received == page
    assert read_to_reset(client) == b""
    assert ends.end() == "target_reset"


def test_a_reset_by_one_side_is_noticed_while_the_other_does_not_read(hold: Hold) -> None:
    ends = hold()
    ends_of = {side: ends.pair(side) for side in SIDES}
    for near, _ in ends_of.values():
        push(near, 2 * most_in_the_kernel(), quiet=0.2)
        assert unsent(near)
    began = time.monotonic()
    for near, _ in ends_of.values():
        reset(near)
    lines = ends.veillink.access(2, seconds=15)
    assert time.monotonic() - began < 7
    assert Counter(line["end"] for line in lines) == {"client_reset": 1, "target_reset": 1}
    for _, far in ends_of.values():
        read_to_reset(far)


@pytest.mark.parametrize("side", SIDES)
def test_a_side_that_finishes_and_then_resets_cuts_the_silent_other_one(hold: Hold, side: Side) -> None:
    ends = hold()
    near, far = ends.pair(side)
    near.sendall(b"question")
    near.shutdown(socket.SHUT_WR)
    assert read_to_eof(far) == b"question"
    reset(near)
    assert ends.end(PROMPTLY) == f"{side}_reset"
    eventually(partial(refuses, far), PROMPTLY)


@pytest.mark.parametrize("side", SIDES)
def test_last_words_before_fin_and_reset_at_once_are_heard_at_once(hold: Hold, side: Side) -> None:
    ends = hold()
    pairs = [ends.pair(side) for _ in range(4)]
    time.sleep(0.5)  # resets of a connection are looked for once it has lasted a moment
    for count, (near, far) in enumerate(pairs, 1):
        far.sendall(b"never read")
        wait_until_received(near, b"never read")
        with frozen(ends.veillink):
            near.sendall(b"BYE")
            near.shutdown(socket.SHUT_WR)
            near.close()  # the kernel resets: there is unread input
        assert read_to_any_end(far) == b"BYE"
        assert ends.veillink.access(count, seconds=PROMPTLY)[-1]["end"] == f"{side}_reset"


@pytest.mark.parametrize("side", SIDES)
def test_last_words_of_a_side_that_is_gone_are_heard_by_one_that_still_sends(hold: Hold, side: Side) -> None:
    ends = hold()
    for _ in range(20):
        near, far = ends.pair(side)
        near.sendall(b"go away")
        near.close()
        far.sendall(b"what nobody wants")
        assert read_to_any_end(far) == b"go away"
        eventually(partial(refuses, far), PROMPTLY)
    assert {line["end"] for line in ends.veillink.access(20)} == {f"{side}_reset"}


def test_a_side_that_closed_long_ago_has_not_reset(hold: Hold) -> None:
    ends = hold()
    pairs = [ends.pair(side) for side in SIDES]
    for near, far in pairs:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)  # its kernel forgets it after a second
        near.close()
        assert read_to_eof(far) == b""
    time.sleep(1.5)
    for _, far in pairs:
        far.close()
    assert [line["end"] for line in ends.veillink.access(2)] == ["closed", "closed"]


def test_both_sides_resetting_at_the_same_moment_is_no_error(hold: Hold) -> None:
    ends = hold()
    for _ in range(100):
        client, target = ends.pair()
        greet(client, target)
        reset(client)
        reset(target)
    assert {line["end"] for line in ends.veillink.access(100)} <= {"client_reset", "target_reset"}


# --- after a long silence --------------------------------------------------------------------------------------------


def test_however_long_a_silence_was_its_end_is_noticed_and_passed_on(hold: Hold) -> None:
    ends = hold()
    finishing = [ends.pair(side) for side in SIDES]
    resetting = [ends.pair(side) for side in SIDES]
    asking, answering = ends.pair()
    asking.sendall(b"question")
    asking.shutdown(socket.SHUT_WR)
    assert read_to_eof(answering) == b"question"
    time.sleep(1.6)
    answering.sendall(b"answer")
    answering.close()
    assert read_to_eof(asking) == b"answer"
    for near, far in finishing:
        near.close()
        assert read_to_eof(far) == b""
        far.close()
    for near, far in resetting:
        reset(near)
        assert read_to_reset(far) == b""
    ended = Counter(line["end"] for line in ends.veillink.access(5))
    assert ended == {"closed": 3, "client_reset": 1, "target_reset": 1}


def test_however_long_a_silence_was_what_came_after_it_and_before_a_reset_is_delivered(hold: Hold) -> None:
    ends = hold(receive_buffer=4 << 10)
    pairs = [ends.pair(side) for side in SIDES]
    time.sleep(5.5)  # longer than one that does not read is waited for
    for near, far in pairs:
        with frozen(ends.veillink):
            upload = push(near, 40_000)
            wait_until_delivered(near)
            reset(near)
        time.sleep(0.2)
        assert read_to_reset(far) == upload


# --- while the target is being connected -----------------------------------------------------------------------------


def test_a_client_that_resets_while_the_target_is_connected_is_given_up_at_once(start: Callable[..., VeilLink]) -> None:
    with Unready() as server:
        veillink = start(f"{HOST}:{{port}},{HOST},{server.port},connect_timeout=1m\n")
        client = veillink.connect()
        client.sendall(b"early")
        eventually(server.knocked_at)
        reset(client)
        (line,) = veillink.access(seconds=PROMPTLY)
        assert (line["end"], line["target"], line["connect_ms"]) == ("client_left", None, None)
        veillink.settle(PROMPTLY)
        assert not server.knocked_at()
