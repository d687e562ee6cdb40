"""Who reads slowly makes the sender wait; nothing piles up in between, and nobody else notices."""

import contextlib
import hashlib
import shutil
import socket
import threading
import time

import pytest

from .conftest import Hold
from .ends import MIB, SIDES, Side, Upload, digest_to_eof, most_in_the_kernel, push
from .harness import VeilLink, read_exactly
from .namespace import Network

pytestmark = pytest.mark.alone

KIB = 1 << 10


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("side", SIDES)
def test_a_side_that_does_not_read_stalls_the_sender_and_costs_no_memory(hold: Hold, side: Side) -> None:
    ends = hold()
    near, _ = ends.pair(side)
    before = ends.veillink.rss()
    limit = most_in_the_kernel() + 2 * MIB  # a pipe and a buffer
    assert len(push(near, limit + MIB)) <= limit
    assert ends.veillink.rss() - before < 2 * MIB


@pytest.mark.parametrize("side", SIDES)
def test_two_hundred_stalled_connections_cost_little_and_hinder_nobody(hold: Hold, side: Side) -> None:
    ends = hold(receive_buffer=16 * KIB)
    before = ends.veillink.rss()
    pairs = [ends.pair(side) for _ in range(200)]
    block = bytes(256 * KIB)
    for near, _ in pairs:
        near.setblocking(False)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.3:
        if sum(takes(near, block) for near, _ in pairs):
            quiet_since = time.monotonic()
    busy = ends.veillink.cpu()
    slowest = max(round_trip(ends.veillink) for _ in range(50))
    assert slowest < 1
    assert ends.veillink.cpu() - busy < 0.2
    assert ends.veillink.rss() - before < 200 * 128 * KIB


def takes(sock: socket.socket, block: bytes) -> bool:
    """Return whether the kernel takes any byte of it."""
    try:
        return sock.send(block) > 0
    except BlockingIOError:
        return False


def round_trip(veillink: VeilLink) -> float:
    """Return the seconds that a new connection takes to have a few bytes echoed."""
    began = time.monotonic()
    veillink.assert_healthy()
    return time.monotonic() - began


def test_a_stalled_transfer_goes_on_at_full_speed_once_it_is_read(hold: Hold) -> None:
    ends = hold()
    pairs = [ends.pair(side) for side in SIDES]
    uploads = [Upload(near, 96 * MIB) for near, _ in pairs]
    received = [hashlib.sha256(read_exactly(far, 8 * MIB)) for _, far in pairs]
    time.sleep(1.5)
    began = time.monotonic()
    for (_, far), digest in zip(pairs, received, strict=True):
        while data := far.recv(MIB):
            digest.update(data)
    assert time.monotonic() - began < 5
    assert [digest.digest() for digest in received] == [upload.digest() for upload in uploads]


@pytest.mark.parametrize("side", SIDES)
def test_a_slow_reader_gets_all_of_it_after_the_sender_has_closed(hold: Hold, side: Side) -> None:
    ends = hold(receive_buffer=64 * KIB)
    near, far = ends.pair(side)
    upload = Upload(near, 8 * MIB)
    received = hashlib.sha256()
    while data := far.recv(64 * KIB):
        received.update(data)
        time.sleep(0.002)
    assert received.digest() == upload.digest()
    far.close()
    assert ends.end() == "closed"


def test_a_slow_reader_in_one_direction_does_not_hold_up_the_other(hold: Hold) -> None:
    client, target = hold().pair()
    push(client, 64 * MIB, quiet=0.2)
    upload = Upload(target, 8 * MIB)
    assert digest_to_eof(client) == upload.digest()


# VeilLink's reads are slow: whoever sends and whoever receives is faster, and neither is ever waited for.
SLOWED = [
    *("strace", "-f", "-o", "/dev/null", "-e", "trace=recvfrom,splice"),
    *("-e", "inject=recvfrom:delay_enter=1000", "-e", "inject=splice:delay_enter=4000"),
]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.usefixtures("relay")
def test_a_transfer_that_never_pauses_leaves_room_for_small_talk(network: Network, hold: Hold) -> None:
    for buffers in ("ipv4/tcp_rmem", "ipv4/tcp_wmem"):  # otherwise the first admin is no longer than one read
        network.set(buffers, "4096 4194304 16777216")
    ends = hold(before=SLOWED)
    source, sink = ends.pair()
    block = bytes(4 * MIB)

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                source.sendall(block)

    def drain() -> None:
        with contextlib.suppress(OSError):
            while sink.recv(MIB):
                pass

    threads = [threading.Thread(target=flood), threading.Thread(target=drain)]
    for thread in threads:
        thread.start()
    waited = []
    with ends.veillink.connect(ends.veillink.echo_port) as talk:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            began = time.monotonic()
            talk.sendall(b"small talk")
            read_exactly(talk, 10)
            waited.append(time.monotonic() - began)
    source.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    sink.close()
    (line,) = ends.veillink.access()
    assert line["bytes_in"] > 32 * MIB
    assert max(waited) < 0.5
