"""Fixtures for tests of sockets."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent import socket

from veillink.net.pipes import Pipe


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """Close what a test appends."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def path() -> Iterator[Path]:
    """A short path in an empty folder: 107 bytes are all that the path of a socket may have."""
    with tempfile.TemporaryDirectory(prefix="vl-", dir="/tmp") as folder:
        yield Path(folder, "socket")
