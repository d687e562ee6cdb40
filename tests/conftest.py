"""Fixtures for tests that run the loop inside the test process."""

import io
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
from gevent.hub import get_hub

from veillink import daemon
from veillink.inbox import SIGNALS, Inbox
from veillink.stream import watch_resets

from .sockets import Journal, Sockets


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a test 20 s, and fail it for errors that the loop would only print."""
    printed = io.StringIO()
    monkeypatch.setattr(get_hub(), "exception_stream", printed)
    watch_resets()  # takes its one descriptor now, and not while a test counts them
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
def signals(hub: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Inbox]]:
    """Take the signals back afterwards from every daemon that the test has run, and every inbox that it has made."""
    inboxes: list[Inbox] = []

    class _Kept(Inbox):
        def __init__(self, signals: Mapping[signal.Signals, str]) -> None:
            super().__init__(signals)
            inboxes.append(self)

    monkeypatch.setattr(daemon, "Inbox", _Kept)
    yield _Kept
    gevent.sleep(0.01)  # the loop keeps a signal that is still on its way for the next daemon
    for inbox in inboxes:
        for watcher in inbox._watchers:
            watcher.stop()
            watcher.close()
    for number in SIGNALS:
        signal.signal(number, signal.getsignal(number))  # the loop has left SIG_DFL behind
