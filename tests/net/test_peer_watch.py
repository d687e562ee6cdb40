"""Resets that nobody reads."""

import gevent
import pytest
from gevent import socket

from tests.net.peers import heir_of, receive
from tests.sockets import Sockets, eventually
from tests.system.harness import reset
from veillink.net.socket_stream import SocketStream


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
