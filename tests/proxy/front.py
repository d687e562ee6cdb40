"""Serve the clients of one rule in the test process."""

import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket
from gevent.hub import spawn_raw

from tests.names import NameServer
from tests.proxy.making import make_shared
from tests.sockets import Journal, Sockets, address_of, eventually
from tests.system.harness import read_to_eof
from veillink.model import Address, End, Rule, RuleOptions, Target
from veillink.net.sockets import adopt, readable
from veillink.proxy.edge import build_edge
from veillink.proxy.pool import Member, Pool
from veillink.proxy.service import Binding, Service
from veillink.proxy.session import serve
from veillink.proxy.upstream import Upstream

LISTEN = Address("", 8000)


FIELDS = "time,rule,id,client,listen,target,tried,bytes_in,bytes_out,connect_ms,duration_ms,end"


class Front:
    """Serves clients of one rule."""

    def __init__(
        self,
        sockets: Sockets,
        journal: Journal,
        targets: tuple[Target, ...],
        options: RuleOptions,
        tick: float,
        names: NameServer,
    ) -> None:
        self.sockets = sockets
        self.journal = journal
        self.shared = shared = make_shared(journal.log, sockets.peer_watch, tick=tick, names=names)
        self.ledger, self.ticker = shared.ledger, shared.ticker
        self.turned: list[tuple[Address, str]] = []
        rule = Rule("web", LISTEN, 3, targets, options)
        pool = Pool(rule, lambda: 0.5)
        upstream = Upstream(
            pool,
            shared.resolver,
            shared.unix_queues,
            shared.attempts,
            self._turned,
            lambda member: None,
            options.retry_interval,
        )
        self.service = Service(rule, upstream, shared.limiter.of_rule(), shared, build_edge(options, None, 1))
        self._listener = sockets.listener()

    def _turned(self, member: Member, reason: str) -> None:
        self.turned.append((member.address, reason))

    def fail(self, target: Address) -> Member:
        """Let connects to a target have failed, and return it."""
        member = self.service.upstream.pool.members[target]
        while not member.failing:
            self.service.upstream.pool.count_failure(member, time.monotonic())
        return member

    def client(self, offset: int = 0) -> socket.socket:
        """Return the socket of a client that is being served."""
        client = self.waiting()
        self.accept(offset)
        return client

    def waiting(self) -> socket.socket:
        """Return the socket of a client that waits to be accepted."""
        return self.sockets.client(address_of(self._listener))

    def accept(self, offset: int = 0) -> None:
        """Begin to serve the next client."""
        accepted, peer = self._listener.accept()
        sock = adopt(accepted.detach(), socket.AF_INET)
        spawn_raw(serve, sock, readable(peer), Address("", 8000 + offset), Binding(self.service, offset))
        gevent.sleep(0)

    def connected(self, backend: socket.socket) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection that is being relayed."""
        client, target = self.client(), self.sockets.accept(backend)
        eventually(lambda: all(connection.connected for connection in self.ledger.live.values()))
        return client, target

    def access(self) -> dict[str, Any]:
        """Return the access line of the one client, once there is one."""
        (line,) = eventually(self.journal.access)
        assert self.ledger.live == {}
        eventually(lambda: not self.ticker._watched)
        assert self.ledger.totals["web"].ends == {End(line["end"]): 1}
        return line


Forward = Callable[..., Front]


def is_reset(far: socket.socket) -> bool:
    """Wait for the end and tell whether it was a reset."""
    try:
        read_to_eof(far)
    except ConnectionResetError:
        return True
    return False
