"""Run a server in the test process."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from gevent import socket

from tests.sockets import Sockets, address_of
from tests.system.harness import HOST, read_exactly
from veillink.config.rules import parse
from veillink.model import Address, RuleSet
from veillink.server.listeners import Pace
from veillink.server.server import Server

FD_LIMIT = 1000
QUICK = Pace(first=0.02, last=0.05, first_unix=0.02, last_unix=0.05, awaited=0.02, look=0.02)


def rules(*rows: str) -> RuleSet:
    """Return the rules of these rows, which have no problem."""
    parsed, problems, *_ = parse("\n".join(rows).encode(), source="rules.csv")
    assert not problems
    return parsed


Start = Callable[..., Server]


def row(port: int, backend: socket.socket, options: str = "") -> str:
    return f"{HOST}:{port},{HOST},{address_of(backend).port},{options}"


@dataclass
class Talk:
    """A client and the target that it was forwarded to."""

    client: socket.socket
    target: socket.socket

    def works(self) -> bool:
        self.client.sendall(b"ping")
        self.target.sendall(read_exactly(self.target, 4))
        return read_exactly(self.client, 4) == b"ping"

    def close(self) -> None:
        self.client.close()
        self.target.close()


def talk_to(sockets: Sockets, port: int, backend: socket.socket, host: str = HOST) -> Talk:
    return Talk(sockets.client(Address(host, port)), sockets.accept(backend))


def absent(port: int, backend: socket.socket) -> str:
    return f"192.0.2.1:{port},{HOST},{address_of(backend).port},name=vip"  # this host has no such address


def many(number: int, options: str = "") -> RuleSet:
    """Return rules that listen where nobody else does: at an address that this host does not have.

    Their ports are none that ``free_port`` gives: tests beside this one may listen there at every address.
    """
    host = f"198.51.100.{os.getpid() % 256}"
    return rules(*(f"{host}:{port},{HOST},80,name={port},{options}" for port in range(20_001, 20_001 + number)))
