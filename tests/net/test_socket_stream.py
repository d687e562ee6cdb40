"""A socket as a stream."""

import fcntl
import sys
import termios

import gevent
import pytest
from gevent import socket

from tests.net.peers import TINY, Closing, accept_now, finish_with, heir_of, pattern, receive
from tests.sockets import Sockets, address_of, eventually, open_files, stuff
from tests.system.harness import HOST, read_exactly, read_to_eof, reset
from veillink.model import Address, RuleOptions
from veillink.net import listening
from veillink.net import sockets as net
from veillink.net.pipes import PIPE_SIZE, Pipe
from veillink.net.socket_stream import SocketStream

OPTIONS = RuleOptions()


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


def test_a_stream_knows_how_much_waits_to_be_read(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    assert stream.unread_bytes() == 0
    peer.sendall(b"prefix, data")
    assert stream.read_prefix(lambda data: ("", 2) if len(data) == 6 else None, 6) == ""
    assert stream.unread_bytes() == len("efix, data")


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


def test_what_is_sent_while_something_is_kept_comes_after_it(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    data, rest = pattern(1 << 18), b"and the rest"
    assert not stream.send(memoryview(data))
    received = [peer.recv(1 << 14)]  # now there is room again
    assert not stream.send(memoryview(rest))
    reader = gevent.spawn(read_exactly, peer, len(data) + len(rest) - len(received[0]))
    stream.flush()
    assert stream.kept == 0
    assert received[0] + reader.get() == data + rest


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
    assert stream.kept > 0
    assert stream.unacked_bytes() - stream.kept == stream.bytes_a_reset_would_lose() > 0
    reader = gevent.spawn(read_to_eof, peer)
    stream.flush()
    stream.send_eof()
    reader.get()
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


def test_bytes_go_through_a_pipe_however_little_fits_at_once(sockets: Sockets, pipe: Pipe) -> None:
    source, far_source = sockets.pair()
    sink, far_sink = sockets.pair(TINY)
    data = pattern(1 << 20)
    gevent.spawn(finish_with, far_source, data)
    reader = gevent.spawn(read_exactly, far_sink, len(data))
    moved = 0
    source.wait_readable()
    while count := source.splice_into(pipe, PIPE_SIZE):
        moved += count
        assert pipe.held == count
        sink.splice_from(pipe)
        assert pipe.held == 0
        source.wait_readable()
    assert moved == len(data)
    assert reader.get() == data


def test_nothing_to_splice_is_told_and_no_end(sockets: Sockets, pipe: Pipe) -> None:
    stream, _ = sockets.pair()
    with pytest.raises(BlockingIOError):
        stream.splice_into(pipe, PIPE_SIZE)
    assert pipe.held == 0


def test_splicing_from_a_reset_connection_is_an_error(sockets: Sockets, pipe: Pipe) -> None:
    stream, peer = sockets.pair()
    reset(peer)
    with pytest.raises(ConnectionResetError):
        stream.splice_into(pipe, PIPE_SIZE)


def test_splicing_to_a_peer_that_resets_is_an_error_and_the_pipe_knows_what_it_holds(
    sockets: Sockets, pipe: Pipe
) -> None:
    source, far_source = sockets.pair()
    sink, far_sink = sockets.pair(TINY)
    gevent.spawn(far_source.sendall, bytes(60_000))
    while pipe.held < 50_000:
        source.wait_readable()
        held = pipe.held
        pipe.held = held + source.splice_into(pipe, PIPE_SIZE)
    gevent.spawn_later(0.01, reset, far_sink)
    with pytest.raises(OSError, match=r"reset|pipe"):
        sink.splice_from(pipe)
    assert pipe.held == int.from_bytes(fcntl.ioctl(pipe.exit, termios.FIONREAD, bytes(4)), sys.byteorder) > 0
