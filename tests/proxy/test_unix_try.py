"""UNIX targets whose queue is full."""

import contextlib
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
from gevent import socket

from tests.proxy.connecting import Connect
from tests.sockets import Sockets
from veillink.model import Address, Target
from veillink.net.sockets import numeric, start_connect


@pytest.mark.parametrize("room", [False, True])
def test_a_unix_target_whose_queue_is_full_keeps_its_turn_when_the_next_is_tried(
    room: bool, connect: Connect, sockets: Sockets, live: Address, tmp_path: Path
) -> None:
    full, silent = Address(f"unix:{tmp_path}/full", 0), sockets.silent()
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as stack:
        server.bind(full.path)
        server.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                stack.callback(start_connect(*numeric(full)).close)
        if room:
            gevent.spawn_later(0.8, lambda: server.accept()[0].close())
        won = connect(Target(full), Target(silent if room else live), seconds=1.2)
        assert (won.address, won.tried) == ((full, []) if room else (live, [f"{full} EAGAIN"]))
        assert won.seconds >= 0.6
        gevent.sleep(0.01)  # so it has left
        server.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            server.accept()[0].close()
        gevent.sleep(0.03)
        with pytest.raises(BlockingIOError):  # who has left the queue does not come back
            server.accept()
