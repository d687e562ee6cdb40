"""Every byte arrives, once, in order and unchanged."""

import hashlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from veillink.net.socket_stream import SocketStream

from .conftest import Forward, Hold
from .ends import MIB, SIDES, Side, Unready, Upload, digest_to_eof, most_in_the_kernel, push, wait_until_received
from .harness import HOST, VeilLink, echo, eventually, read_exactly, read_to_eof, reset

bulk = pytest.mark.usefixtures("relay")


@bulk
def test_a_large_random_stream_comes_back_as_it_was(forward: Forward) -> None:
    veillink = forward(echo)
    total = 64 * MIB
    with veillink.connect() as sock:
        upload = Upload(sock, total)
        received = digest_to_eof(sock)
        assert received == upload.digest()
    (line,) = veillink.access()
    assert (line["bytes_in"], line["bytes_out"], line["end"]) == (total, total, "closed")


@bulk
def test_both_sides_can_send_at_full_speed_at_once(hold: Hold) -> None:
    ends = hold()
    client, target = ends.pair()
    from_client, from_target = Upload(client, 64 * MIB, seed=1), Upload(target, 64 * MIB, seed=2)
    at_target: list[bytes] = []
    reader = threading.Thread(target=lambda: at_target.append(digest_to_eof(target)))
    reader.start()
    assert digest_to_eof(client) == from_target.digest()
    reader.join(60)
    assert at_target == [from_client.digest()]
    assert ends.end() == "closed"


@bulk
def test_two_sides_that_send_before_they_read_get_all_of_it_in_the_end(hold: Hold) -> None:
    ends = hold()
    client, target = ends.pair()
    total = most_in_the_kernel() + 8 * MIB
    uploads = [Upload(client, total, seed=1), Upload(target, total, seed=2)]
    eventually(lambda: not select.select([], [client, target], [], 0.2)[1], what="both senders stalled")
    assert digest_to_eof(client) == uploads[1].digest()
    assert digest_to_eof(target) == uploads[0].digest()
    assert ends.end() == "closed"


@bulk
def test_many_connections_at_once_keep_their_bytes_apart(hold: Hold) -> None:
    ends = hold(receive_buffer=16 << 10)
    pairs = [ends.pair() for _ in range(20)]
    for client, _ in pairs[::2]:  # half of them in small portions
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    uploads = [Upload(client, 3 * MIB, seed=n) for n, (client, _) in enumerate(pairs)]
    digests = {target: hashlib.sha256() for _, target in pairs}
    open_ = set(digests)
    while open_:
        for target in select.select(open_, [], [], 20)[0]:
            data = target.recv(50_000)
            digests[target].update(data)
            if not data:
                open_.remove(target)
    assert [digests[target].digest() for _, target in pairs] == [upload.digest() for upload in uploads]


@pytest.mark.parametrize("side", SIDES)
def test_what_was_under_way_on_a_connection_that_was_cut_never_shows_up_on_another(hold: Hold, side: Side) -> None:
    ends = hold()
    cut = [ends.pair(side) for _ in range(3)]
    for near, _ in cut:
        push(near, 64 * MIB, quiet=0.1)
    for _, far in cut:
        reset(far)
    ends.veillink.access(len(cut))
    for seed in range(3):
        near, far = ends.pair(side)
        upload = Upload(near, 4 * MIB, seed)
        assert digest_to_eof(far) == upload.digest()


def test_two_writes_with_a_pause_arrive_joined(hold: Hold) -> None:
    client, target = hold().pair()
    client.sendall(b"first ")
    assert read_exactly(target, 6) == b"first "
    client.sendall(b"second")
    client.shutdown(socket.SHUT_WR)
    assert read_to_eof(target) == b"second"


def test_what_follows_a_long_silence_arrives(hold: Hold) -> None:
    ends = hold("idle_timeout=1m")
    pairs = [ends.pair(side) for side in SIDES]
    for near, far in pairs:
        near.sendall(b"1")
        assert read_exactly(far, 1) == b"1"
    time.sleep(1.5)
    for near, far in pairs:
        near.sendall(b"2")
        assert read_exactly(far, 1) == b"2"


def test_a_target_that_speaks_first_is_heard_at_once(hold: Hold) -> None:
    ends = hold()
    began = time.monotonic()
    client, target = ends.pair()
    target.sendall(b"220 hi")
    assert read_exactly(client, 6) == b"220 hi"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("finished", [False, True], ids=["client stays", "client has finished"])
def test_what_a_client_sends_before_the_target_is_connected_arrives(
    start: Callable[..., VeilLink], finished: bool
) -> None:
    early = random.Random(1).randbytes(200_000)
    with Unready() as server:
        veillink = start(f"{HOST}:{{port}},{HOST},{server.port}\n")
        with veillink.connect() as client:
            client.sendall(early)
            if finished:
                client.shutdown(socket.SHUT_WR)
            target = server.open()
            assert read_exactly(target, len(early)) == early
            if not finished:
                client.shutdown(socket.SHUT_WR)
            assert read_to_eof(target) == b""
            target.sendall(b"answer")
            target.close()
            assert read_to_eof(client) == b"answer"
        (line,) = veillink.access()
        assert (line["end"], line["bytes_in"], line["bytes_out"]) == ("closed", len(early), 6)
        assert line["connect_ms"] > 500


LOOKS_LIKE_SOMETHING = (
    bytes(range(256)) * 3,
    bytes(5000),
    b"\r\n\r\n.\r\n\n\r",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY UNKNOWN",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),  # PROXY protocol, version 2
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(40),  # TLS
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\xff\xf4\xff\xfd\x06\x04\x1a\x03",  # telnet
)


@pytest.mark.parametrize("side", SIDES)
def test_no_byte_means_anything(hold: Hold, side: Side) -> None:
    ends = hold()
    for data in LOOKS_LIKE_SOMETHING:
        near, far = ends.pair(side)
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
        assert read_to_eof(far) == data
        far.close()
    assert {line["end"] for line in ends.veillink.access(len(LOOKS_LIKE_SOMETHING))} == {"closed"}


def test_a_client_that_says_nothing_is_shown_to_the_target(hold: Hold) -> None:
    ends = hold()
    ends.connect().close()
    target = ends.accept()
    assert read_to_eof(target) == b""
    target.close()
    (line,) = ends.veillink.access()
    assert (line["bytes_in"], line["bytes_out"], line["end"]) == (0, 0, "closed")


@pytest.mark.parametrize("side", SIDES)
def test_an_urgent_byte_arrives_in_its_place(hold: Hold, side: Side) -> None:
    ends = hold()
    near, far = ends.pair(side)
    near.sendall(b"ab")
    near.send(b"!", socket.MSG_OOB)
    near.sendall(b"cd")
    assert read_exactly(far, 5) == b"ab!cd"
    busy = ends.veillink.cpu()
    time.sleep(0.4)
    assert ends.veillink.cpu() - busy < 0.2
    near.send(b"?", socket.MSG_OOB)
    near.shutdown(socket.SHUT_WR)
    assert read_to_eof(far) == b"?"


@bulk
def test_an_urgent_byte_amid_a_large_transfer_arrives_in_its_place(hold: Hold) -> None:
    client, target = hold().pair()
    data = random.Random(1).randbytes(16 * MIB)

    def send() -> None:
        for start in range(0, len(data), MIB):
            client.sendall(data[start : start + MIB - 1])
            client.send(data[start + MIB - 1 : start + MIB], socket.MSG_OOB)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert read_to_eof(target) == data
    sender.join()


def test_a_client_that_will_not_read_can_still_send(hold: Hold) -> None:
    ends = hold()
    client, target = ends.pair()
    client.shutdown(socket.SHUT_RD)
    target.sendall(b"not wanted")
    wait_until_received(client, b"not wanted")
    client.sendall(b"wanted")
    client.shutdown(socket.SHUT_WR)
    assert read_to_eof(target) == b"wanted"
    target.close()
    assert ends.end() == "closed"


def test_a_send_that_the_kernel_takes_in_parts_is_continued_where_it_stopped() -> None:
    with socket.create_server((HOST, 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sender = socket.socket()
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sender.connect(listening.getsockname())
        reader, _ = listening.accept()
    parts: list[bytes] = []

    def read() -> None:
        with reader:
            while part := reader.recv(1000):
                parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    sender.setblocking(False)
    blocks = [random.Random(n).randbytes(64 << 10) for n in range(20)]
    buffer = bytearray(64 << 10)
    with closing(SocketStream(sender)) as stream:
        for block in blocks:
            buffer[:] = block
            stream.sendall(memoryview(buffer))
    thread.join(20)
    assert b"".join(parts) == b"".join(blocks)
