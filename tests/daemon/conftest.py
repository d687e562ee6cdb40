"""Fixtures for tests of a daemon."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from tests.daemon.life import Life
from tests.sockets import Journal, Sockets
from tests.system.harness import free_port


@pytest.fixture
def live(signals: None, journal: Journal, tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """Start a daemon with this text as its rules."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lives: list[Life] = []

    def _live(text: str, **settings: Any) -> Life:
        path = tmp_path / "rules.csv"
        path.write_text(text)
        lives.append(Life(path, journal, **settings))
        return lives[-1]

    yield _live
    for life in lives:
        with life:
            pass
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def port(hub: None) -> int:
    return free_port()


@pytest.fixture
def backend(sockets: Sockets) -> socket.socket:
    return sockets.listener()
