"""What a connection needs at run time: of its rule, and of its listener.

Rule: a service is built whole before it is used, and a connection keeps the one that it began with.
"""

import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from veillink.log import Log
from veillink.model import End, Ended, Health, OnDown, Rule
from veillink.names import Routes
from veillink.proxy.bandwidth import Bandwidth
from veillink.proxy.client_limits import Bucket
from veillink.proxy.edge import Edge, build_edge
from veillink.proxy.health import Probes
from veillink.proxy.limiter import ConnectionLimiter
from veillink.proxy.pool import Member, Pool
from veillink.proxy.shared import Shared
from veillink.proxy.tls_front import TlsFront
from veillink.proxy.upstream import Upstream
from veillink.stats.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Service:
    """A rule at work.

    Args:
        rule: its form.
        upstream: its targets, but those of routes.
        limiter: how many connections it may hold.
        shared: what it has in common with the others.
        edge: what it asks of who comes, if anything.
        pace: the account of the rate at which it accepts, if that has a limit.
        bandwidth: the rates at which its bytes may move.
        probes: of its targets, where it asks for them.
        front: what it does with what clients say first in TLS, if that matters.
        routes: the targets that are for certain names, by these.
    """

    rule: Rule
    upstream: Upstream
    limiter: ConnectionLimiter
    shared: Shared
    edge: Edge | None = None
    pace: Bucket | None = None
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    probes: tuple[Probes, ...] = ()
    front: TlsFront | None = None
    routes: Mapping[tuple[str, ...], Upstream] = field(default_factory=dict)

    @classmethod
    def build(cls, rule: Rule, shared: Shared, before: "Service | None" = None) -> "Service":
        """Return a rule's new form; targets that stay keep their state, and its connections go on counting."""
        upstream = _upstream(rule, (), shared, before.upstream if before else None)
        names = dict.fromkeys(target.sni for target in rule.targets if target.sni)
        routes = {each: _upstream(rule, each, shared, before.routes.get(each) if before else None) for each in names}
        limiter = before.limiter if before else shared.limiter.of_rule()
        limiter.most = rule.options.max_connections or math.inf
        probes: tuple[Probes, ...] = ()
        if rule.options.health is not Health.OFF:
            probes = tuple(
                Probes(each, rule.options, shared.probing, shared.tls, random.random)
                for each in (upstream, *routes.values())
            )
        edge = build_edge(rule.options, before.edge if before else None, limiter.among)
        pace = (before.pace if before else None) or (Bucket() if rule.options.connection_rate else None)
        bandwidth = before.bandwidth if before else Bandwidth()
        front: TlsFront | None = None
        if rule.tls is not None or routes:
            front = TlsFront(rule.tls, rule.options, _by_name(routes, upstream) if routes else None, upstream, shared)
        return cls(rule, upstream, limiter, shared, edge, pace, bandwidth, probes, front, routes)

    def members(self) -> Iterator[tuple[tuple[str, ...], Member]]:
        """Yield all its targets, with the names that they are for."""
        for names, upstream in (((), self.upstream), *self.routes.items()):
            for member in upstream.pool.members.values():
                yield names, member

    def divide(self) -> None:
        """Heed among how many processes limits are divided now."""
        if self.edge is not None:
            self.edge.divide(self.limiter.among)
        self.begin()

    def begin(self) -> None:
        """Serve from now on: have its connections heed its limits, and wake who waits for them."""
        mine = (each for each in self.shared.ledger.live.values() if self.rule.listens_at(each.listen))
        self.bandwidth.change(self.rule.options, self.limiter.among, mine, time.monotonic())
        self.limiter.wake()

    def pause(self, now: float) -> float:
        """Return the seconds until the next client may be accepted at the rate that it has; 0 is now."""
        rate = self.rule.options.connection_rate
        if self.pace is None or not rate:
            return 0.0
        return self.pace.delay(rate.divided(self.limiter.among), now)

    def take(self, now: float) -> None:
        """Count a client for that rate."""
        rate = self.rule.options.connection_rate
        if self.pace is not None and rate:
            self.pace.take(rate.divided(self.limiter.among), now)

    def stop_probes(self) -> None:
        """Probe its targets no more; what is known of them stays."""
        for probes in self.probes:
            probes.stop()


@dataclass(frozen=True, slots=True)
class Binding:
    """Where those come to who come to one address.

    Args:
        service: for them.
        port_offset: of the address in its rule's range.
    """

    service: Service
    port_offset: int


def _upstream(rule: Rule, names: tuple[str, ...], shared: Shared, before: Upstream | None) -> Upstream:
    """Return the targets that are for these names; those that stay keep their state."""
    route = replace(rule, targets=tuple(target for target in rule.targets if target.sni == names))
    return Upstream(
        Pool(route, random.random, before.pool.members if before else {}),
        shared.resolver,
        shared.unix_queues,
        shared.attempts,
        partial(_log_state, shared.log, rule),
        partial(_reset_connections, shared.ledger, rule),
        rule.options.retry_interval,
    )


def _by_name(routes: Mapping[tuple[str, ...], Upstream], upstream: Upstream) -> Routes[Upstream]:
    by_name = ((name, each) for names, each in routes.items() for name in names)
    return Routes(by_name, upstream if upstream.pool.members else None)


def _log_state(log: Log, rule: Rule, member: Member, reason: str) -> None:
    if reason:
        log.warning("target down", rule=rule.name, target=member.address, reason=reason)
    else:
        log.info("target up", rule=rule.name, target=member.address)


def _reset_connections(ledger: Ledger, rule: Rule, member: Member) -> None:
    """End the connections of a target that does not answer its probes, where the rule says so."""
    if rule.options.on_down is OnDown.RESET:
        for connection in tuple(ledger.live.values()):
            if connection.member is member:
                connection.scope.cancel(Ended(End.TARGET_RESET, "the target is down"))
