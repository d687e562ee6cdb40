"""What a peer was sent before a reset reaches it."""

import time

import gevent

from tests.proxy.test_relay import TINY
from tests.sockets import Sockets, stuff
from veillink.net.ticker import Ticker
from veillink.proxy.deadlines import FLUSH_TIME
from veillink.proxy.flush import Flush


def test_a_reader_has_its_time_after_a_reset_though_this_process_did_not_run(sockets: Sockets) -> None:
    stream, _ = sockets.pair(TINY)
    stuff(stream)
    watcher, begun = Ticker(), time.monotonic()
    flush = Flush(stream, begun, watcher)
    assert flush.on_tick(begun + 0.9 * FLUSH_TIME)
    watcher.lost += 100
    assert flush.on_tick(begun + 100.9 + 0.8 * FLUSH_TIME)
    assert not flush.on_tick(begun + 101 + FLUSH_TIME)


def test_a_reader_that_takes_something_has_its_time_anew_after_a_reset(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    stuff(stream)
    begun = time.monotonic()
    flush = Flush(stream, begun, Ticker())
    unacked = stream.unacked_bytes()
    while stream.unacked_bytes() == unacked:
        peer.recv(1000)
        gevent.sleep(0.001)
    assert flush.on_tick(begun + 0.9 * FLUSH_TIME)
    assert flush.on_tick(begun + 1.8 * FLUSH_TIME)
    assert not flush.on_tick(begun + 1.91 * FLUSH_TIME)


def test_what_was_lost_before_a_reader_took_something_gives_it_no_time_afterwards(sockets: Sockets) -> None:
    stream, peer = sockets.pair(TINY)
    stuff(stream)
    watcher, begun = Ticker(), time.monotonic()
    flush = Flush(stream, begun, watcher)
    watcher.lost += 100
    unacked = stream.unacked_bytes()
    while stream.unacked_bytes() == unacked:
        peer.recv(1000)
        gevent.sleep(0.001)
    assert flush.on_tick(begun + 101)
    assert not flush.on_tick(begun + 101 + FLUSH_TIME)
