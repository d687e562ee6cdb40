"""How fast bytes may move: measured from outside, with connections that would move them at once."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from .conftest import Hold, Start
from .ends import Ends, Side, Upload, digest_to_eof, read_to_reset, wait_until_delivered
from .harness import HOST, eventually, free_port, reset

MIB = 1 << 20


class Stream(threading.Thread):
    """Floods one end of a connection, and notes what comes out of the other and when.

    Args:
        source: written to as fast as it takes it.
        sink: read from as fast as it gives.
    """

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._sink = sink
        self.begun = time.monotonic()
        self.came: list[tuple[float, int]] = []
        self._flood = threading.Thread(target=self._send, daemon=True)
        self._flood.start()
        self.start()

    def _send(self) -> None:
        data = bytes(MIB)
        with contextlib.suppress(OSError):
            while True:
                self._source.sendall(data)

    def run(self) -> None:
        buffer = bytearray(MIB)
        with contextlib.suppress(OSError):
            while count := self._sink.recv_into(buffer):
                self.came.append((time.monotonic(), count))

    def stop(self) -> None:
        """Reset both ends."""
        for sock in (self._source, self._sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._flood.join()
        self.join()
        for sock in (self._source, self._sink):
            reset(sock)

    def bytes(self, first: float, last: float) -> int:
        """Return how many came between two times."""
        return sum(count for at, count in tuple(self.came) if first <= at < last)


@contextmanager
def streams(ends: Ends, count: int, towards: Side = "client") -> Iterator[list[Stream]]:
    """Have so many connections move as much as they may."""
    found: list[Stream] = []
    try:
        for _ in range(count):
            sink, source = ends.pair(towards)
            found.append(Stream(source, sink))
        yield found
    finally:
        for stream in found:
            stream.stop()


def ask(client: socket.socket, target: socket.socket) -> None:
    client.sendall(b"ping")
    assert target.recv(4) == b"ping"
    target.sendall(b"pong")
    assert client.recv(4) == b"pong"


def sleep_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))


def in_all(found: list[Stream], first: float, last: float) -> int:
    return sum(stream.bytes(first, last) for stream in found)


@pytest.mark.parametrize(
    ("relay", "option", "towards", "rate", "count"),
    [
        ("copy", "download_rate", "client", 64 << 10, 1),
        ("auto", "upload_rate", "target", 2 * MIB, 1),
        ("copy", "download_rate", "client", 2 * MIB, 4),
        pytest.param("auto", "download_rate", "client", 64 * MIB, 4, marks=pytest.mark.alone),
        pytest.param("copy", "upload_rate", "target", 64 * MIB, 1, marks=pytest.mark.alone),
    ],
    indirect=["relay"],
)
def test_all_connections_of_a_rule_have_its_rate(
    relay: None, option: str, towards: Side, rate: int, count: int, hold: Hold
) -> None:
    ends = hold(f"{option}={rate >> 10}K")
    with streams(ends, count, towards) as found:
        begun = found[0].begun
        sleep_until(begun + 3.1)
        assert in_all(found, begun, begun + 1) <= 1.1 * rate
        for first in (0.0, 1.0):
            assert in_all(found, begun + first, begun + first + 2) == pytest.approx(2 * rate, rel=0.05)
        if rate >= MIB:
            shares = [stream.bytes(begun + 1, begun + 3) for stream in found]
            assert min(shares) > 0.8 * max(shares)


def test_the_other_direction_is_as_fast_as_ever(hold: Hold) -> None:
    ends = hold("download_rate=64K")
    with streams(ends, 1, "target") as (stream,):
        eventually(lambda: stream.bytes(0, float("inf")) > 64 * MIB)


def test_each_connection_has_a_rate_of_its_own(hold: Hold) -> None:
    ends = hold("download_rate=1M/connection")
    with streams(ends, 3) as found:
        begun = found[-1].begun
        sleep_until(begun + 2.1)
        for stream in found:
            assert stream.bytes(begun, begun + 2) == pytest.approx(2 * MIB, rel=0.05)


def test_the_connections_of_a_client_share_its_rate(hold: Hold) -> None:
    ends = hold("download_rate=1M/client,accept_proxy=any")
    found = [come_through_a_proxy(ends, ends.connect(), host) for host in [*3 * ["192.0.2.1"], "198.51.100.1"]]
    begun = found[-1].begun
    sleep_until(begun + 3.1)
    assert in_all(found[:3], begun + 1, begun + 3) == pytest.approx(2 * MIB, rel=0.05)
    assert in_all(found[3:], begun + 1, begun + 3) == pytest.approx(2 * MIB, rel=0.05)
    for stream in found:
        stream.stop()


def come_through_a_proxy(ends: Ends, client: socket.socket, host: str) -> Stream:
    client.sendall(f"PROXY TCP4 {host} 192.0.2.9 4711 80\r\n".encode())
    return Stream(ends.accept(), client)


def test_who_is_about_to_come_through_a_proxy_gets_the_rate_of_a_client_and_not_the_proxys(hold: Hold) -> None:
    ends = hold("accept_proxy=any")
    before = ends.veillink.fds()
    waiting = [ends.connect() for _ in range(3)]
    eventually(lambda: ends.veillink.fds() == before + 3)
    change(ends, "accept_proxy=any,download_rate=1M/client")
    found = [come_through_a_proxy(ends, client, f"192.0.2.{number}") for number, client in enumerate(waiting)]
    begun = found[-1].begun
    sleep_until(begun + 2.1)
    for stream in found:
        assert stream.bytes(begun, begun + 2) == pytest.approx(2 * MIB, rel=0.05)
        stream.stop()


def test_a_newcomer_has_its_share_within_a_second(hold: Hold) -> None:
    ends = hold("download_rate=4M")
    with streams(ends, 8) as found:
        time.sleep(1)
        with streams(ends, 1) as (newcomer,):
            sleep_until(newcomer.begun + 3.1)
            share = 4 * MIB / 9
            assert newcomer.bytes(newcomer.begun, newcomer.begun + 1) > 0.5 * share
            for stream in (newcomer, *found):
                moved = stream.bytes(newcomer.begun + 1, newcomer.begun + 3)
                assert moved == pytest.approx(2 * share, rel=0.3)


def test_small_messages_do_not_wait_for_what_they_do_not_need(hold: Hold) -> None:
    ends = hold("download_rate=1M,upload_rate=1M")
    client, target = ends.pair()
    begun = time.monotonic()
    for _ in range(200):
        ask(client, target)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("relay", ["auto", "copy"], indirect=True)
def test_every_byte_arrives_in_order(relay: None, hold: Hold) -> None:
    ends = hold("upload_rate=16M,download_rate=8M/connection")
    client, target = ends.pair()
    up, down = Upload(client, 24 * MIB, 1), Upload(target, 12 * MIB, 2)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(digest_to_eof(target)))
    reader.start()
    assert digest_to_eof(client) == down.digest()
    reader.join()
    assert received == [up.digest()]
    (line,) = ends.veillink.access()
    assert (line["bytes_in"], line["bytes_out"], line["end"]) == (24 * MIB, 12 * MIB, "closed")
    assert 1.4 < line["duration_ms"] / 1000 < 2.0


def change(ends: Ends, row: str) -> None:
    ends.veillink.reload(f"{HOST}:{{port}},{HOST},{ends.port},{row}\n")


def test_a_reload_changes_the_rate_of_live_connections(hold: Hold) -> None:
    ends = hold()
    with streams(ends, 4) as found:
        eventually(lambda: in_all(found, 0, float("inf")) > 64 * MIB)
        for row, rate in (
            ("download_rate=2M", 2 * MIB),
            ("download_rate=8M", 8 * MIB),
            ("download_rate=256K/connection", MIB),
            ("download_rate=2M/client", 2 * MIB),
        ):
            change(ends, row)
            begun = time.monotonic() + 1
            sleep_until(begun + 2.1)
            assert in_all(found, begun, begun + 2) == pytest.approx(2 * rate, rel=0.06), row
        change(ends, "")
        begun = time.monotonic()
        eventually(lambda: in_all(found, begun, float("inf")) > 64 * MIB, seconds=2)
    assert len(ends.veillink.access(4)) == 4


def test_a_rule_may_have_another_name_by_then(hold: Hold) -> None:
    ends = hold("download_rate=64K")
    with streams(ends, 2) as found:
        change(ends, "download_rate=64K,name=other")
        change(ends, "name=other")
        begun = time.monotonic()
        eventually(lambda: all(stream.bytes(begun, float("inf")) > MIB for stream in found), seconds=2)


def test_who_waits_at_a_tiny_rate_is_free_soon_after_it_is_taken_away(hold: Hold) -> None:
    ends = hold("download_rate=1K")
    with streams(ends, 20) as found:
        time.sleep(1)
        change(ends, "")
        begun = time.monotonic()
        eventually(lambda: all(stream.bytes(begun, float("inf")) > MIB for stream in found), seconds=2)


@pytest.mark.alone
def test_waiting_costs_nothing_and_is_not_silence(hold: Hold) -> None:
    ends = hold("download_rate=1K,idle_timeout=1s")
    with streams(ends, 50) as found:
        time.sleep(1)
        before = ends.veillink.cpu()
        time.sleep(3)
        assert ends.veillink.cpu() - before < 0.2
        assert in_all(found, found[-1].begun + 1, found[-1].begun + 4) == pytest.approx(3 << 10, rel=0.2)
    assert "idle_timeout" not in {line["end"] for line in ends.veillink.access(50)}


def test_silence_saves_half_a_second_at_most(hold: Hold) -> None:
    ends = hold("download_rate=1M")
    client, target = ends.pair()
    ask(client, target)
    time.sleep(2)
    stream = Stream(target, client)
    sleep_until(stream.begun + 1.1)
    assert stream.bytes(stream.begun, stream.begun + 0.1) <= 0.6 * MIB
    assert stream.bytes(stream.begun, stream.begun + 1) <= 1.1 * MIB
    stream.stop()


@pytest.mark.alone
def test_a_slow_reader_takes_nothing_from_the_others(hold: Hold) -> None:
    ends = hold("download_rate=32M", receive_buffer=64 << 10)
    slow: list[tuple[socket.socket, socket.socket]] = []
    for _ in range(5):
        client, target = ends.pair()
        threading.Thread(target=send_for_ever, args=(target,), daemon=True).start()
        slow.append((client, target))
    time.sleep(0.5)
    with streams(ends, 1) as (stream,):
        for _ in range(20):
            for client, _ in slow:
                client.recv(20_000)
            time.sleep(0.1)
        assert stream.bytes(stream.begun, stream.begun + 2) > 0.85 * 2 * 32 * MIB


def send_for_ever(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(bytes(MIB))


@pytest.mark.parametrize("side", ["client", "target"])
def test_what_was_sent_before_a_reset_arrives_at_the_rate_and_then_the_reset(side: Side, hold: Hold) -> None:
    ends = hold("download_rate=8K,upload_rate=8K")
    near, far = ends.pair(side)
    ask(near, far)  # a target that resets before anybody knows that it is connected has never been
    started = time.monotonic()
    near.sendall(bytes(16 << 10))
    wait_until_delivered(near)
    reset(near)
    assert read_to_reset(far, seconds=20) == bytes(16 << 10)
    assert 1.7 < time.monotonic() - started < 3
    assert ends.end() == f"{side}_reset"


def test_workers_divide_the_rate(start: Start) -> None:
    with socket.create_server((HOST, 0)) as listening:
        listening.settimeout(20)
        port = listening.getsockname()[1]
        veillink = start(f"{HOST}:{{port}},{HOST},{port},download_rate=4M\n", "--workers", "2")
        found = []
        for _ in range(8):
            client = veillink.connect()
            found.append(Stream(listening.accept()[0], client))
        begun = found[-1].begun + 1
        sleep_until(begun + 2.1)
        moved = in_all(found, begun, begun + 2)
        for stream in found:
            stream.stop()
    assert moved <= 2 * 4 * MIB * 1.05


def cpu_per_gib(forward: Callable[[], Ends], seconds: float) -> float:
    ends = forward()
    with streams(ends, 1) as (stream,):
        time.sleep(0.5)
        before, begun = ends.veillink.cpu(), time.monotonic()
        time.sleep(seconds)
        return (ends.veillink.cpu() - before) / stream.bytes(begun, time.monotonic()) * (1 << 30)


@pytest.mark.alone
def test_a_limited_gigabyte_costs_at_most_twice_the_cpu(hold: Hold) -> None:
    limited = cpu_per_gib(lambda: hold("download_rate=100M"), 4)
    free = cpu_per_gib(lambda: hold(""), 2)
    print(f"CPU seconds per GiB: {limited:.3f} at 100 MiB/s, {free:.3f} without a limit")
    assert limited < 2 * free + 0.05


def test_a_bad_rate_is_refused_with_its_place(start: Start) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{free_port()}\n")
    veillink.write(f"{HOST}:{{port}},{HOST},1,download_rate=1MB\n")
    veillink.send(signal.SIGHUP)
    assert "is not a size a second" in veillink.wait_for_line("1MB")
