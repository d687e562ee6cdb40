"""Fixtures for tests that run the loop inside the test process, and how tests share the machine."""

import fcntl
import io
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gevent
import hypothesis
import pytest
from gevent.hub import get_hub

from tests.names import NameServer
from tests.sockets import Journal, Sockets, address_of
from tests.system.harness import HOST, free_port
from veillink.daemon import process as daemon
from veillink.daemon.commands import SIGNALS, Command, CommandQueue
from veillink.model import Address
from veillink.net.resolver import Resolver

_TURNS = "PYTEST_TURNS"  # where a run's processes find each other
_MEASURE = "COVERAGE_PROCESS_CONFIG"  # has a child measure the coverage of what it runs

# An example takes as long as the tests beside it let it: 0.2 s, the default, was too short while coverage was measured.
hypothesis.settings.register_profile("side by side", deadline=None)
hypothesis.settings.load_profile("side by side")


def pytest_configure(config: pytest.Config) -> None:
    """Make the place where the processes of this run wait for each other; those that it starts find it."""
    if not hasattr(config, "workerinput"):
        place = tempfile.TemporaryDirectory(prefix="vl-turns-")
        os.environ[_TURNS] = place.name
        config.add_cleanup(place.cleanup)


@contextmanager
def _turn(*, alone: bool) -> Iterator[None]:
    """Run beside the tests of this run's other processes, or while none of them runs.

    Args:
        alone: whether to wait until all others are through, and to keep them waiting.
    """
    place = Path(os.environ[_TURNS])
    # Who waits to be alone holds the door: tests that came one after another would never leave it a moment (flock(2)).
    with (place / "door").open("a") as door, (place / "room").open("a") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the limit of pytest-timeout begins inside
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test marked ``alone``, which judges time or CPU, have the machine for itself, its children unslowed."""
    alone = item.get_closest_marker("alone") is not None
    with _turn(alone=alone), pytest.MonkeyPatch.context() as patch:
        if alone or item.get_closest_marker("unmeasured"):
            patch.delenv(_MEASURE, raising=False)
        return (yield)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a test 20 s, and fail it for errors that the loop would only print."""
    printed = io.StringIO()
    monkeypatch.setattr(get_hub(), "exception_stream", printed)
    with gevent.Timeout(20):
        yield
    gevent.sleep(0)
    assert not printed.getvalue()


@pytest.fixture
def sockets(hub: None) -> Iterator[Sockets]:
    """Make real peers for a test."""
    with ExitStack() as stack:
        yield Sockets(stack)


@pytest.fixture
def journal(hub: None, tmp_path: Path) -> Iterator[Journal]:
    """Give a test a log that it can read."""
    journal = Journal(tmp_path / "journal")
    yield journal
    journal.close()


@pytest.fixture
def signals(hub: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[CommandQueue]]:
    """Take the signals back afterwards from every daemon that the test has run, and every commands that it has made."""
    queues: list[CommandQueue] = []

    class _Kept(CommandQueue):
        def __init__(self, signals: Mapping[signal.Signals, Command]) -> None:
            super().__init__(signals)
            queues.append(self)

    monkeypatch.setattr(daemon, "CommandQueue", _Kept)
    yield _Kept
    gevent.sleep(0.01)  # the loop keeps a signal that is still on its way for the next daemon
    for commands in queues:
        for watcher in commands._watchers:
            watcher.stop()
            watcher.close()
    for number in SIGNALS:
        signal.signal(number, signal.getsignal(number))  # the loop has left SIG_DFL behind


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    name_server = NameServer()
    yield name_server
    name_server.awake.set()


@pytest.fixture
def hosts(name_server: NameServer) -> dict[str, tuple[str, ...]]:
    """What the name server knows."""
    return name_server.hosts


@pytest.fixture
def book(journal: Journal, name_server: NameServer) -> Iterator[Resolver]:
    book = Resolver(journal.log, 8, name_server)
    yield book
    name_server.awake.set()
    book.keep({})
    book._threads.kill()


@pytest.fixture
def live(sockets: Sockets) -> Address:
    return address_of(sockets.listener())


@pytest.fixture
def refusing() -> Address:
    return Address(HOST, free_port())
