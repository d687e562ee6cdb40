"""Tests of connecting to UNIX sockets whose queue is full."""

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket

from tests.sockets import Sockets, eventually, no_descriptor_left, open_files
from veillink.net import sockets as net
from veillink.net import unix_queue

FOREVER = float("inf")


class Full:
    """A listening UNIX socket whose queue is full, and clients that want to connect to it."""

    def __init__(self, sockets: Sockets, path: Path) -> None:
        self.path = path
        self.listener = sockets.keep(socket.socket(socket.AF_UNIX))
        self.listener.bind(str(path))
        self.listener.listen(0)
        self.sockets = sockets
        self.queues = unix_queue.UnixQueues()
        self._connect(FOREVER)
        self.asked: list[float] = []
        self.connected: list[str] = []

    def _connect(self, until: float) -> None:
        self.sockets.keep(self.queues.connect(socket.AF_UNIX, str(self.path), until))

    def client(self, name: str, until: float = FOREVER) -> "gevent.Greenlet[[str, float], None]":
        """Let a client wait for its turn."""
        greenlet = gevent.spawn(self._wait, name, until)
        gevent.sleep(0)
        return greenlet

    def _wait(self, name: str, until: float) -> None:
        try:
            self._connect(until)
        except OSError as error:
            name += f" {errno.errorcode[error.errno or 0]}"
        self.connected.append(name)

    def wait_for(self, *names: str) -> None:
        """Wait until these have been told, in this order."""
        eventually(lambda: self.connected == [*names])

    def accept(self) -> None:
        """Make room for one."""
        self.listener.accept()[0].close()


@pytest.fixture
def full(sockets: Sockets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Full]:
    """When all have left, nothing is kept of the path."""
    full = Full(sockets, tmp_path / "full")
    start: Callable[..., object] = net.start_connect

    def noted(family: int, path: str) -> object:
        full.asked.append(time.monotonic())
        return start(family, path)

    monkeypatch.setattr(unix_queue, "start_connect", noted)
    yield full
    assert full.queues._lines == {}


def test_clients_are_connected_in_the_order_in_which_they_came(full: Full) -> None:
    for name in "abc":
        full.client(name)
    for connected in ("a", "ab", "abc"):
        assert "".join(full.connected) == connected[:-1]
        full.accept()
        full.wait_for(*connected)


def test_who_comes_while_others_wait_goes_behind_them_though_there_is_room(full: Full) -> None:
    full.client("a")
    full.accept()
    full.client("b")
    full.wait_for("a")
    full.accept()
    full.wait_for("a", "b")


def test_one_asks_for_all_ever_more_slowly(full: Full) -> None:
    clients = [full.client(str(n)) for n in range(50)]
    gevent.sleep(0.3)
    assert len(full.asked) < 15  # 0, 0, 10, 30, 70, 150, 250 ms; fifty that ask every 10 ms make 1,500
    assert full.connected == []
    gevent.killall(clients)


def test_once_there_is_room_for_many_nobody_waits_for_a_pause(full: Full) -> None:
    for n in range(50):
        full.client(str(n))
    gevent.sleep(0.2)
    full.listener.listen(100)
    eventually(lambda: full.connected)
    before = len(full.asked)
    eventually(lambda: len(full.connected) == 50)
    assert len(full.asked) - before < 50


def test_each_waits_no_longer_than_its_own_time_first_or_not(full: Full) -> None:
    began = time.monotonic()
    for name, seconds in (("a", 0.25), ("b", 0.1), ("c", 0.4), ("d", FOREVER), ("e", -1.0)):
        full.client(name, began + seconds)
    eventually(lambda: len(full.connected) == 4)
    assert full.connected == ["e EAGAIN", "b EAGAIN", "a EAGAIN", "c EAGAIN"]
    assert time.monotonic() - began >= 0.4
    full.accept()
    eventually(lambda: full.connected[4:] == ["d"])


@pytest.mark.parametrize("leaves", ["abc", "a", "b", "ab", "ac"])
def test_who_leaves_is_waited_for_no_more_and_the_others_keep_their_order(full: Full, leaves: str) -> None:
    before = open_files()
    clients = {name: full.client(name) for name in "abc"}
    for name in leaves:
        clients[name].kill()
    assert open_files() == before
    rest = [name for name in "abc" if name not in leaves]
    for n in range(len(rest)):
        full.accept()
        full.wait_for(*rest[: n + 1])


def test_when_nobody_listens_any_more_all_are_told(full: Full) -> None:
    for name in "abc":
        full.client(name)
    full.listener.close()
    eventually(lambda: len(full.connected) == 3)
    assert full.connected == ["a ECONNREFUSED", "b ECONNREFUSED", "c ECONNREFUSED"]


def test_paths_do_not_wait_for_each_other(full: Full, sockets: Sockets, tmp_path: Path) -> None:
    waits = full.client("a")
    other = Full(sockets, tmp_path / "other")
    other.accept()
    other.client("b")
    assert other.connected == ["b"]
    waits.kill()


def test_an_error_of_the_first_ends_nobody_else_s_waiting(full: Full) -> None:
    full.client("a")
    full.client("b", time.monotonic() + 20)
    with no_descriptor_left():
        full.wait_for("a EMFILE", "b EMFILE")
    full.client("c")
    full.accept()
    eventually(lambda: full.connected[2:] == ["c"])
