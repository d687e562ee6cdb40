"""A whole life of a process, in a greenlet of the test."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent import socket

from tests.sockets import Journal, Sockets, address_of
from tests.system.harness import HOST, read_exactly
from veillink.daemon import process as daemon
from veillink.model import Address, RuleOptions
from veillink.settings import Settings


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def settings_of(path: Path, **settings: Any) -> Settings:
    """Return what a process has to know that runs these rules; what is not given is as where nothing is asked for."""
    whole: dict[str, Any] = {"strict": False, "watch": False, "drain_timeout": 5.0, "max_connections": 0}
    whole |= {"relay": "auto", "workers": 0, "worker_timeout": 30.0, "pidfile": "", "admin": None}
    whole |= {"log_format": "text", "log_level": "info", "access_log": True, "defaults": RuleOptions()}
    return Settings(config=str(path), **whole | settings)


class Life:
    """A daemon that runs in a greenlet of the test."""

    def __init__(self, path: Path, journal: Journal, **settings: Any) -> None:
        self.path = path
        self.journal = journal
        self._greenlet = gevent.spawn(daemon.run, settings_of(path, **settings), journal.log)

    def ready(self) -> "Life":
        self.journal.wait_for("ready")
        return self

    def code(self) -> int:
        """Wait for its end and return its exit code."""
        return self._greenlet.get()

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._greenlet.ready():
            send(signal.SIGTERM)
            gevent.sleep(0.01)
            send(signal.SIGTERM)
            self._greenlet.join()


Live = Callable[..., Life]


def row(port: int, backend: socket.socket) -> str:
    return f"{HOST}:{port},{HOST},{address_of(backend).port}\n"


def talk(sockets: Sockets, port: int, backend: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return a client and the target that it was forwarded to, after a word."""
    client = sockets.client(Address(HOST, port))
    target = sockets.accept(backend)
    client.sendall(b"word")
    assert read_exactly(target, 4) == b"word"
    return client, target
