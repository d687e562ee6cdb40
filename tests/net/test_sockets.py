"""Tests of sockets and the stream around a connected one."""

import _socket
import contextlib
import errno
import fcntl
import os
import resource
import socket as stdlib
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from tests.sockets import Sockets, address_of, eventually, open_files, stuff
from tests.system.harness import HOST, free_port, read_exactly, read_to_eof, reset
from tests.system.namespace import Network
from veillink.model import Address, RuleOptions
from veillink.net import listening
from veillink.net import sockets as net
from veillink.net.pipes import Pipe
from veillink.net.socket_stream import SocketStream

pytestmark = pytest.mark.usefixtures("hub")

OPTIONS = RuleOptions()
TINY = 4096


def link_local() -> str:
    """Return a link-local address of this host with its zone, or nothing."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, *_, interface = line.split()
        if digits.startswith("fe80"):
            return f"{stdlib.inet_ntop(stdlib.AF_INET6, bytes.fromhex(digits))}%{interface}"
    return ""


def pattern(size: int) -> bytes:
    return b"".join(struct.pack("!I", n) for n in range(size // 4))


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """Close what a test appends."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


# --- listening and connecting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keepalive", "expected"),
    [
        (60, {socket.SO_KEEPALIVE: 1, socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}),
        (1, {socket.SO_KEEPALIVE: 1, socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3}),
        (32400, {socket.SO_KEEPALIVE: 1, socket.TCP_KEEPIDLE: 32400, socket.TCP_KEEPINTVL: 5400}),
        (0, {socket.SO_KEEPALIVE: 0}),
    ],
)
def test_keepalive_asks_three_times_a_sixth_apart(keepalive: float, expected: dict[int, int]) -> None:
    given = {option: value for _, option, value in net._keepalive_options(keepalive)}
    assert {option: given.get(option) for option in expected} == expected


@pytest.mark.skipif(not net._HAS_RTO_MAX, reason="needs Linux 6.15")
@pytest.mark.parametrize(
    ("keepalive", "longest"), [(1, 1000), (60, 6000), (1200, 120_000), (32400, 120_000), (0, 120_000)]
)
def test_a_vanished_peer_is_asked_again_after_a_tenth_of_keepalive_at_the_latest(keepalive: int, longest: int) -> None:
    assert (socket.IPPROTO_TCP, net._TCP_RTO_MAX_MS, longest) in net._keepalive_options(keepalive)


@pytest.mark.parametrize("keepalive", [0, 1, 60, 32400])
def test_the_options_are_set_on_both_legs(keepalive: float, sockets: Sockets, listeners: list[socket.socket]) -> None:
    options = net.OPTIONS + net._keepalive_options(keepalive)
    listeners.append(listening.listen(Address(HOST, 0), RuleOptions(keepalive=keepalive)))
    target = net.start_connect(*net.numeric(Address(HOST, address_of(listeners[0]).port)))
    net.set_keepalive(target, keepalive)
    accepted = eventually(lambda: accept_now(listeners[0]))
    for leg in (target, accepted):
        assert {option: leg.getsockopt(*option[:2]) for option in options} == {o: o[2] for o in options}
        leg.close()


def accept_now(listener: socket.socket) -> "_socket.socket | None":
    try:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
    except BlockingIOError:
        return None
    return net.adopt(fd, listener.family)


def test_descriptors_are_not_inherited_by_children(listeners: list[socket.socket]) -> None:
    listeners.append(listening.listen(Address(HOST, 0), OPTIONS))
    target = net.start_connect(*net.numeric(Address(HOST, address_of(listeners[0]).port)))
    accepted = eventually(lambda: accept_now(listeners[0]))
    assert [os.get_inheritable(s.fileno()) for s in (listeners[0], target, accepted)] == [False] * 3
    assert [s.getblocking() for s in (listeners[0], target, accepted)] == [False] * 3
    target.close()
    accepted.close()


@pytest.mark.parametrize(
    ("host", "ipv4", "ipv6"),
    [("", True, True), ("::", False, True), ("0.0.0.0", True, False), (HOST, True, False), ("::1", False, True)],
)
def test_a_listener_takes_the_families_it_was_asked_for(
    host: str, ipv4: bool, ipv6: bool, sockets: Sockets, listeners: list[socket.socket]
) -> None:
    listeners.append(listening.listen(Address(host, 0), OPTIONS))
    for client_host, taken in ((HOST, ipv4), ("::1", ipv6)):
        client = Address(client_host, address_of(listeners[0]).port)
        if taken:
            sockets.client(client)
        else:
            with pytest.raises(ConnectionRefusedError):
                sockets.client(client)


def test_both_families_may_have_a_listener_of_their_own(listeners: list[socket.socket]) -> None:
    port = free_port()
    listeners.extend(listening.listen(Address(host, port), OPTIONS) for host in ("::", "0.0.0.0"))
    assert [address_of(sock).port for sock in listeners] == [port, port]


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a host without IPv6."""

    def socket_without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6 here")
        return stdlib.socket(family, kind)

    monkeypatch.setattr(net, "socket", SimpleNamespace(**vars(stdlib) | {"socket": socket_without_ipv6}))


@pytest.mark.usefixtures("no_ipv6")
def test_a_host_without_ipv6_listens_on_ipv4(sockets: Sockets, listeners: list[socket.socket]) -> None:
    listeners.append(listening.listen(Address("", 0), OPTIONS))
    sockets.client(Address(HOST, address_of(listeners[0]).port))


def test_a_link_local_address_is_listened_on_in_its_zone(listeners: list[socket.socket]) -> None:
    host = link_local() or pytest.skip("this host has no link-local address")
    listeners.append(listening.listen(Address(host, 0), OPTIONS))
    where = listeners[0].getsockname()
    assert where[3] == stdlib.if_nametoindex(host.partition("%")[2])


def test_a_taken_address_is_an_error_and_leaves_nothing_open(sockets: Sockets) -> None:
    taken = address_of(sockets.listener())
    before = open_files()
    with pytest.raises(OSError, match="in use"):
        listening.listen(taken, OPTIONS)
    assert open_files() == before


@pytest.mark.parametrize("host", ["", HOST, "::1"])
def test_those_who_share_an_address_share_its_clients_and_others_cannot_have_it(
    host: str, sockets: Sockets, listeners: list[socket.socket]
) -> None:
    address = Address(host, free_port())
    assert not listening.is_shared(address)
    listeners.extend(listening.listen(address, RuleOptions(), reuse_port=True) for _ in range(2))
    assert listening.is_shared(address)
    with pytest.raises(OSError, match="in use"):
        listening.listen(address, RuleOptions())
    for _ in range(60):
        sockets.client(Address(host or HOST, address.port))
    for sock in listeners:
        accepted, _ = stdlib.socket.accept(sock)
        accepted.close()


@pytest.mark.usefixtures("no_ipv6")
def test_also_a_host_without_ipv6_finds_what_is_shared(listeners: list[socket.socket]) -> None:
    address = Address("", free_port())
    assert not listening.is_shared(address)
    listeners.append(listening.listen(address, RuleOptions(), reuse_port=True))
    assert listening.is_shared(address)


def test_an_address_of_one_alone_is_not_shared(listeners: list[socket.socket]) -> None:
    address = Address(HOST, free_port())
    listeners.append(listening.listen(address, RuleOptions()))
    assert not listening.is_shared(address)
    with pytest.raises(OSError, match="in use"):
        listening.listen(address, RuleOptions(), reuse_port=True)
    assert not listening.is_shared(Address("unix:/nowhere", 0))


def test_a_port_can_be_listened_on_again_at_once(sockets: Sockets, listeners: list[socket.socket]) -> None:
    first = listening.listen(Address(HOST, 0), OPTIONS)
    client = sockets.client(address_of(first))
    accepted = eventually(lambda: accept_now(first))
    accepted.close()  # the side that closes first keeps the port in TIME_WAIT
    assert client.recv(1) == b""
    client.close()
    address = address_of(first)
    first.close()
    listeners.append(listening.listen(address, OPTIONS))


@pytest.mark.parametrize("closed", [False, True], ids=["live", "TIME_WAIT"])
def test_a_port_that_one_of_our_own_legs_has_can_be_listened_on(
    closed: bool, sockets: Sockets, listeners: list[socket.socket]
) -> None:
    with Network() as network, network.inside():  # elsewhere others have left the same port in TIME_WAIT
        listener = sockets.listener()
        leg = net.start_connect(*net.numeric(address_of(listener)))
        accepted = sockets.accept(listener)
        own = Address(*leg.getsockname())
        if closed:
            leg.close()  # the side that closes first keeps the port in TIME_WAIT
            assert accepted.recv(1) == b""
            accepted.close()
        listeners.append(listening.listen(own, OPTIONS))
        leg.close()


@pytest.mark.skipif(not listening._HAS_FREEBIND, reason="needs Linux")
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_this_host_does_not_have_yet_is_listened_on(host: str, listeners: list[socket.socket]) -> None:
    address = Address(host, free_port())
    with pytest.raises(OSError, match="Cannot assign") as raised:
        listening.listen(address, OPTIONS)
    assert raised.value.errno == errno.EADDRNOTAVAIL
    listeners.append(listening.listen(address, OPTIONS, ahead=True))
    assert listening.listens_ahead(listeners[0])
    with pytest.raises(OSError, match="in use"):
        listening.listen(address, OPTIONS, ahead=True)
    listeners.append(listening.listen(Address(HOST, 0), OPTIONS, ahead=True))
    assert not listening.listens_ahead(listeners[1])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", (socket.AF_INET, ("127.0.0.1", 80))),
        ("::1", (socket.AF_INET6, ("::1", 80, 0, 0))),
        ("fe80::1%7", (socket.AF_INET6, ("fe80::1", 80, 0, 7))),
        ("fe80::1%lo", (socket.AF_INET6, ("fe80::1", 80, 0, stdlib.if_nametoindex("lo")))),
    ],
)
def test_a_literal_becomes_a_socket_address(host: str, expected: tuple[int, tuple[object, ...]]) -> None:
    assert net.numeric(Address(host, 80)) == expected


def test_a_zone_that_is_no_interface_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No such device") as raised:
        net.numeric(Address("fe80::1%nosuch", 80))
    assert raised.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        (("192.0.2.1", 5), "192.0.2.1:5"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1:5"),
        (("2001:db8::1", 5, 0, 0), "[2001:db8::1]:5"),
        (("::1", 5, 0, 0), "[::1]:5"),
        (("::ffff:0:1", 5, 0, 0), "[::ffff:0:1]:5"),
    ],
)
def test_a_peer_is_shown_in_its_own_family(peer: tuple[object, ...], shown: str) -> None:
    assert str(net.readable(peer)) == shown


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), "ECONNRESET"),
        (OSError(99999, "odd"), "[Errno 99999] odd"),
        (OSError("no number"), "no number"),
    ],
)
def test_an_error_has_a_short_name(error: OSError, name: str) -> None:
    assert net.error_name(error) == name


def test_the_limit_on_descriptors_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(256, soft // 2), hard))
        assert net.raise_fd_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_limit_on_descriptors_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:  # as where the hard limit is above fs.nr_open
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", fails)
    assert net.raise_fd_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_a_connect_that_was_refused_says_so() -> None:
    sock = net.start_connect(*net.numeric(Address(HOST, free_port())))
    socket.wait_write(sock.fileno())
    with pytest.raises(ConnectionRefusedError):
        net.connected_from(sock)
    sock.close()


def test_a_connect_that_is_under_way_is_neither_success_nor_failure(sockets: Sockets) -> None:
    silent = sockets.silent()
    sock = net.start_connect(*net.numeric(Address(silent.host, silent.port)))
    assert not net.connected_from(sock)
    sock.close()


def test_a_connect_that_was_accepted_is_a_success(sockets: Sockets) -> None:
    sock = net.start_connect(*net.numeric(Address(HOST, address_of(sockets.listener()).port)))
    socket.wait_write(sock.fileno())
    assert net.connected_from(sock)
    sock.close()


def test_a_connect_that_met_itself_is_refused() -> None:
    with contextlib.closing(socket.socket()) as sock:
        sock.bind((HOST, 0))
        sock.connect(sock.getsockname())
        with pytest.raises(ConnectionRefusedError, match="itself"):
            net.connected_from(sock)


def test_a_connect_that_fails_at_once_leaves_nothing_open() -> None:
    before = open_files()
    with pytest.raises(OSError, match="Invalid argument"):
        net.start_connect(*net.numeric(Address("fe80::1", 80)))
    assert open_files() == before


# --- streams ---------------------------------------------------------------------------------------------------------


def receive(stream: SocketStream, size: int = 100) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: stream.recv_into(memoryview(buffer))])


def test_reading_waits_for_bytes_and_ends_with_none(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    reader = gevent.spawn(lambda: [receive(stream), receive(stream), receive(stream)])
    gevent.sleep(0)
    peer.sendall(b"one")
    gevent.sleep(0.01)
    peer.sendall(b"two")
    peer.shutdown(socket.SHUT_WR)
    assert b"".join(reader.get()) == b"onetwo"


def test_what_does_not_fit_into_the_buffer_stays_for_the_next_read(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(b"abcdefg")
    peer.close()
    assert [receive(stream, 3) for _ in range(4)] == [b"abc", b"def", b"g", b""]


def test_reading_from_a_reset_connection_is_an_error(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    reset(peer)
    with pytest.raises(ConnectionResetError):
        receive(stream)


def test_writing_to_a_reset_connection_is_an_error(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    reset(peer)
    with pytest.raises(OSError, match=r"reset|pipe"):
        stream.sendall(memoryview(b"x"))


def test_a_writer_that_waits_learns_of_a_reset(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    gevent.spawn_later(0.01, reset, peer)
    with pytest.raises(OSError, match=r"reset|pipe"):
        stream.sendall(memoryview(bytes(1 << 20)))


def test_everything_is_sent_however_little_fits_at_once(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    data = pattern(1 << 20)
    caller_s = bytearray(data)
    writer = gevent.spawn(stream.sendall, memoryview(caller_s))
    gevent.sleep(0)
    caller_s[:] = bytes(len(data))  # the buffer serves others while this one waits
    assert not writer.ready()
    assert read_exactly(peer, len(data)) == data
    writer.get()


def test_bytes_go_both_ways_at_once(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    out, back = pattern(200_000), pattern(300_000)
    gevent.spawn(stream.sendall, memoryview(out))
    gevent.spawn(peer.sendall, back)
    reader = gevent.spawn(read_exactly, peer, len(out))
    received = b""
    while len(received) < len(back):
        received += receive(stream, 70_000)
    assert (reader.get(), received) == (out, back)


def test_urgent_data_stays_in_line(sockets: Sockets, listeners: list[socket.socket]) -> None:
    listeners.append(listening.listen(Address(HOST, 0), OPTIONS))
    peer = sockets.client(address_of(listeners[0]))
    stream = SocketStream(eventually(lambda: accept_now(listeners[0])))
    peer.sendall(b"ab")
    peer.send(b"!", socket.MSG_OOB)
    peer.sendall(b"cd")
    received = b""
    while len(received) < 5:
        received += receive(stream)
    stream.close()
    assert received == b"ab!cd"


def test_who_has_finished_sending_may_still_receive(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    stream.send_eof()
    assert peer.recv(1) == b""
    peer.sendall(b"answer")
    assert receive(stream) == b"answer"


def test_finishing_on_a_reset_connection_is_an_error(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    reset(peer)
    with pytest.raises(ConnectionResetError):
        receive(stream)
    with pytest.raises(OSError, match="not connected"):
        stream.send_eof()


def test_close_is_a_fin(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    stream.sendall(memoryview(b"last words"))
    stream.close()
    assert read_to_eof(peer) == b"last words"


def test_abort_is_a_reset(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    stream.abort()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_abort_throws_away_what_is_unsent(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    stuff(stream)
    stream.abort()
    with pytest.raises(ConnectionResetError):
        read_to_eof(peer)


Closing = Callable[[SocketStream], None]


def heir_of(stream: SocketStream, end: Closing, sockets: Sockets) -> tuple[SocketStream, socket.socket]:
    """End a stream and return another one, and its peer, that has got the same descriptor number."""
    listener = sockets.listener()
    peer = sockets.client(address_of(listener))
    accepted = sockets.accept(listener)
    number = stream._fd
    end(stream)
    os.dup2(accepted.fileno(), number, inheritable=False)
    accepted.close()
    return SocketStream(net.adopt(number, socket.AF_INET)), peer


@pytest.mark.parametrize("second", [SocketStream.close, SocketStream.abort])
@pytest.mark.parametrize("first", [SocketStream.close, SocketStream.abort])
def test_closing_twice_leaves_the_next_owner_of_the_number_alone(
    first: Closing, second: Closing, sockets: Sockets
) -> None:
    stream, _ = sockets.pair()
    heir, peer = heir_of(stream, first, sockets)
    told: list[str] = []
    heir.on_reset(sockets.peer_watch, lambda: told.append("reset"))
    second(stream)
    peer.sendall(b"alive")
    assert receive(heir) == b"alive"
    reset(peer)
    eventually(lambda: told)
    heir.close()


def test_closing_gives_the_descriptor_back(sockets: Sockets) -> None:
    stream, _ = sockets.pair(TINY)
    stuff(stream)
    before = open_files()
    stream.close()
    assert open_files() == before - 1


def test_bytes_are_unacked_and_a_reset_would_lose_them_until_the_peer_has_them(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    assert (stream.unacked_bytes(), stream.bytes_a_reset_would_lose()) == (0, 0)
    stream.sendall(memoryview(b"x"))
    eventually(lambda: stream.unacked_bytes() == 0)
    while stream.send(memoryview(bytes(TINY))):
        pass
    assert stream.unacked_bytes() == stream.bytes_a_reset_would_lose() > 0
    stream.send_eof()
    read_to_eof(peer)
    eventually(lambda: stream.unacked_bytes() == 0)


def test_what_a_writer_leaves_behind_that_is_ended_stays_unacked_but_a_reset_cannot_lose_it(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    stuff(stream)
    stream.send_eof()
    read_to_eof(peer)
    eventually(lambda: stream.bytes_a_reset_would_lose() == 0)
    assert stream.unacked_bytes() > 0


def test_of_a_unix_socket_bytes_are_unacked_until_they_are_read_and_a_reset_would_lose_none(hub: None) -> None:
    near, far = socket.socketpair()
    stream = SocketStream(net.adopt(near.detach(), socket.AF_UNIX))
    stream.sendall(memoryview(b"unread"))
    assert (stream.unacked_bytes() > 0, stream.bytes_a_reset_would_lose()) == (True, 0)
    assert far.recv(6) == b"unread"
    assert stream.unacked_bytes() == 0
    stream.close()
    far.close()


def test_a_read_that_has_more_to_give_does_not_let_others_run_and_waiting_does(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(b"abcdef")
    order: list[object] = []
    gevent.spawn(order.append, "other")
    order.append(receive(stream, 2))
    order.append(receive(stream, 2))
    stream.wait_readable()
    order.append(receive(stream, 2))
    assert order == [b"ab", b"cd", "other", b"ef"]


def test_a_stream_knows_whether_somebody_waits_to_read(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    waits = [stream.waits_to_read]
    reader = gevent.spawn(receive, stream)
    gevent.sleep(0)
    waits.append(stream.waits_to_read)
    peer.sendall(b"x")
    assert reader.get() == b"x"
    stream.stop_reading()
    assert [*waits, stream.waits_to_read] == [False, True, False]


def test_a_reader_that_is_thrown_out_leaves_the_bytes_to_the_next(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    reader = gevent.spawn(receive, stream)
    gevent.sleep(0)
    reader.kill()
    stream.stop_reading()
    assert not stream.waits_to_read
    peer.sendall(b"for the next")
    assert receive(stream) == b"for the next"


def test_readability_is_told_once(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    told: list[str] = []
    stream.when_readable(lambda: told.append("readable"))
    gevent.sleep(0)
    assert told == []
    peer.sendall(b"unread")
    eventually(lambda: told)
    gevent.sleep(0)
    peer.sendall(b" and more")
    gevent.sleep(0.01)
    assert told == ["readable"]
    assert receive(stream) == b"unread and more"


def test_a_stream_that_is_closed_tells_nobody_of_readability(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    told: list[str] = []
    stream.when_readable(lambda: told.append("readable"))
    peer.sendall(b"x")
    stream.close()
    gevent.sleep(0.01)
    assert told == []


# --- splicing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_bytes_go_through_a_pipe_however_little_fits_at_once(sockets: Sockets, pipe: Pipe) -> None:
    source, far_source = sockets.pair()
    sink, far_sink = sockets.pair(TINY)
    data = pattern(1 << 20)
    gevent.spawn(finish_with, far_source, data)
    reader = gevent.spawn(read_exactly, far_sink, len(data))
    moved = 0
    source.wait_readable()
    while count := source.splice_into(pipe):
        moved += count
        assert pipe.held == count
        sink.splice_from(pipe)
        assert pipe.held == 0
        source.wait_readable()
    assert moved == len(data)
    assert reader.get() == data


def finish_with(far: socket.socket, data: bytes) -> None:
    far.sendall(data)
    far.shutdown(socket.SHUT_WR)


def test_nothing_to_splice_is_told_and_no_end(sockets: Sockets, pipe: Pipe) -> None:
    stream, _ = sockets.pair()
    with pytest.raises(BlockingIOError):
        stream.splice_into(pipe)
    assert pipe.held == 0


def test_splicing_from_a_reset_connection_is_an_error(sockets: Sockets, pipe: Pipe) -> None:
    stream, peer = sockets.pair()
    reset(peer)
    with pytest.raises(ConnectionResetError):
        stream.splice_into(pipe)


def test_splicing_to_a_peer_that_resets_is_an_error_and_the_pipe_knows_what_it_holds(
    sockets: Sockets, pipe: Pipe
) -> None:
    source, far_source = sockets.pair()
    sink, far_sink = sockets.pair(TINY)
    gevent.spawn(far_source.sendall, bytes(60_000))
    while pipe.held < 50_000:
        source.wait_readable()
        held = pipe.held
        pipe.held = held + source.splice_into(pipe)
    gevent.spawn_later(0.01, reset, far_sink)
    with pytest.raises(OSError, match=r"reset|pipe"):
        sink.splice_from(pipe)
    assert pipe.held == int.from_bytes(fcntl.ioctl(pipe.exit, termios.FIONREAD, bytes(4)), sys.byteorder) > 0


# --- resets that nobody reads ----------------------------------------------------------------------------------------


def test_a_reset_is_told_while_data_is_unread(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    told: list[str] = []
    stream.on_reset(sockets.peer_watch, lambda: told.append("reset"))
    peer.sendall(b"unread")
    gevent.sleep(0.01)
    assert told == []
    reset(peer)
    eventually(lambda: told)
    assert told == ["reset"]
    assert receive(stream) == b"unread"


def test_a_reset_from_before_the_question_is_told(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    reset(peer)
    told: list[str] = []
    stream.on_reset(sockets.peer_watch, lambda: told.append("reset"))
    eventually(lambda: told)


def test_a_reset_after_our_fin_is_told(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    told: list[str] = []
    stream.on_reset(sockets.peer_watch, lambda: told.append("reset"))
    stream.send_eof()
    gevent.sleep(0.01)
    assert told == []
    reset(peer)
    eventually(lambda: told)


@pytest.mark.parametrize("ours", [False, True], ids=["one FIN", "two FINs"])
def test_a_fin_is_no_reset(ours: bool, sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    witness, other = sockets.pair()
    told: list[str] = []
    stream.on_reset(sockets.peer_watch, lambda: told.append("FIN"))
    witness.on_reset(sockets.peer_watch, lambda: told.append("reset"))
    peer.shutdown(socket.SHUT_WR)
    if ours:
        stream.send_eof()
    reset(other)  # comes later: once it is told, a false alarm would have been told too
    eventually(lambda: "reset" in told)
    assert told == ["reset"]


def test_who_asks_after_a_reset_was_told_is_told_too(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    told: list[str] = []
    stream.on_reset(sockets.peer_watch, lambda: told.append("first"))
    reset(peer)
    eventually(lambda: told)
    stream.on_reset(sockets.peer_watch, lambda: told.append("second"))
    eventually(lambda: len(told) == 2)
    assert told == ["first", "second"]


def test_only_the_last_who_asked_is_told(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    told: list[str] = []
    stream.on_reset(sockets.peer_watch, lambda: told.append("first"))
    stream.on_reset(sockets.peer_watch, lambda: told.append("last"))
    reset(peer)
    eventually(lambda: told)
    assert told == ["last"]


def test_the_next_owner_of_a_descriptor_number_is_watched_for_itself(sockets: Sockets) -> None:
    told: list[str] = []
    stream, _ = sockets.pair()
    stream.on_reset(sockets.peer_watch, lambda: told.append("closed one"))
    heir, peer = heir_of(stream, SocketStream.close, sockets)
    heir.on_reset(sockets.peer_watch, lambda: told.append("heir"))
    reset(peer)
    eventually(lambda: told)
    heir.close()
    assert told == ["heir"]
