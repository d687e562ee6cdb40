"""Run a rule set: one listener for each listen address, changed rule by rule, drained at the end.

Rule: what a change does not name is not touched.
"""

import math
import socket
from collections.abc import Callable, Mapping
from typing import Final

from veillink.config.describe import options_for_clients
from veillink.log import Log
from veillink.model import Address, Diff, End, Ended, Rule, RuleSet
from veillink.net.greenlets import Greenlets, unhurried
from veillink.net.listening import listen
from veillink.net.peer_watch import PeerWatch
from veillink.net.pipes import Pipes
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.ticker import Ticker
from veillink.net.tls import TlsRoom
from veillink.net.turns import Turns
from veillink.net.unix_queue import UnixQueues
from veillink.proxy.limiter import ConnectionLimiter, Division
from veillink.proxy.pump import Pump
from veillink.proxy.service import Binding, Service
from veillink.proxy.shared import Shared
from veillink.server.fd_budget import FdBudget, fitting
from veillink.server.listener import Listener
from veillink.server.listeners import PACE, Listeners, Pace
from veillink.stats.ledger import Ledger
from veillink.stats.snapshot import CertificateState, RuleState

# What each worker may number before it meets the next one's numbers; 9 million workers fit into a double.
_NUMBERS: Final = 1_000_000_000
# Workers begin to listen at different places of the list, and do not wait for each other at each address.
_GOLDEN: Final = 0.618

_NONE: Final[Mapping[Address, socket.socket]] = {}


class Server:
    """The rules at work.

    Args:
        log: gets which listeners cannot be had, and why.
        fd_budget: what the process may have.
        max_connections: the most connections at a time; 0 for as many as the descriptors allow.
        inherited: listening sockets that are there already.
        worker: the process's number among several that listen at the same addresses; 0: it is alone.
        memory: bytes that all processes may have together; 0 is no limit.
        open_at: opens a listening socket; as ``net.listen`` does.
        pace: how often listeners that are down are tried.
    """

    def __init__(
        self,
        log: Log,
        fd_budget: FdBudget,
        max_connections: int,
        inherited: Mapping[Address, socket.socket] = _NONE,
        worker: int = 0,
        memory: int = 0,
        open_at: Callable[..., socket.socket] = listen,
        pace: Pace = PACE,
    ) -> None:
        self.division = Division()
        self.limiter = ConnectionLimiter(self.division)
        self.ledger = Ledger(worker * _NUMBERS)
        self.rules = RuleSet()
        self.leads = worker == 0
        self._shared = _share(log, self.ledger, self.limiter, fd_budget)
        self._fd_budget = fd_budget
        self._memory = memory
        self._max_connections = max_connections
        self._inherited = inherited
        self._has_siblings = worker > 0
        self._listeners = Listeners(log, open_at, inherited, worker * _GOLDEN % 1, pace)
        self._services: dict[_Key, Service] = {}
        self._retired: dict[_Key, Service] = {}
        self._options: dict[_Key, dict[str, str]] = {}
        self._certificates: dict[_Key, list[CertificateState]] = {}
        self.limiter.room = 0

    @property
    def listeners(self) -> Mapping[Address, Listener]:
        """The listeners that are open."""
        return self._listeners.open

    @property
    def down(self) -> Mapping[Address, str]:
        """Where it cannot listen, and why."""
        return {address: down.reason for address, down in self._listeners.down.items()}

    @property
    def fits_memory(self) -> float:
        """How many connections fit into the memory."""
        workers = self.division.among
        return fitting(self._memory, workers + self._has_siblings, workers)

    @property
    def can_go_on(self) -> bool:
        """Whether somebody is or will be served: a listener is open, or waits for an address that is not there yet.

        Of several workers one has the UNIX sockets, or another program still has them.
        """
        found = self._listeners
        return (
            bool(found.open) or found.awaits_any() or (self._has_siblings and all(each.is_unix for each in found.down))
        )

    def apply(self, rules: RuleSet) -> Diff:
        """Make these rules the ones at work, and return what that has changed. Rules that stay are not touched.

        A listener that cannot be had is reported, and tried again in the background.

        Others run meanwhile: 8,000 rules take half a second. They see the old rules until all is built and the new ones
        then; only the listeners follow one by one.
        """
        starting = not self.rules.rules
        changes = self.rules.diff(rules, unhurried)
        services = self._build(rules, changes)
        bindings = self._bind(services)
        before = self._swap(rules, services, len(bindings))
        self._listeners.want(bindings)
        self._let_go(before)
        self._listeners.report(rules, tried_again=not starting or self.can_go_on)
        return changes

    def _build(self, rules: RuleSet, changes: Diff) -> "dict[_Key, Service]":
        """Return what serves each of these rules: what has served it, or its new form."""
        known, same = self._retired | self._services, {rule.key for rule in unhurried(changes.same)}
        return {
            rule.key: known[rule.key] if rule.key in same else Service.build(rule, self._shared, known.get(rule.key))
            for rule in unhurried(rules.rules)
        }

    def _bind(self, services: "Mapping[_Key, Service]") -> dict[Address, Binding]:
        places = ((service, listen) for service in services.values() for listen in service.rule.listens())
        return {
            address: Binding(service, port_offset)
            for service, (address, port_offset) in unhurried(places)
            if self.leads or not address.is_unix or address in self._inherited
        }

    def _swap(self, rules: RuleSet, services: "dict[_Key, Service]", listeners: int) -> "Mapping[_Key, Service]":
        """Put the new services in the place of the old ones, all at once, and return these."""
        hosts, names = _host_names(rules), {rule.name for rule in unhurried(rules.rules)}
        gone = [item for item in unhurried((self._retired | self._services).items()) if item[0] not in services]
        options = {rule.key: options_for_clients(rule) for rule in unhurried(rules.rules)}
        certificates = {rule.key: _certificates(rule) for rule in unhurried(rules.rules)}
        before, self._services, self.rules = self._services, services, rules
        self._options, self._certificates = options, certificates
        self._retired = {key: service for key, service in gone if service.limiter.in_use}
        self.ledger.keep(names)
        self._shared.resolver.keep(hosts)
        self._set_room(listeners)
        return before

    def _let_go(self, before: "Mapping[_Key, Service]") -> None:
        """End what only the old services have needed, and wake who has waited for the new limits."""
        for key, service in unhurried(before.items()):
            if self._services.get(key) is not service:
                service.stop_probes()
        for service in unhurried(self._services.values()):
            service.begin()

    def set_worker_count(self, workers: int) -> None:
        """Be one of so many: each limit is divided among them, but everyone may hold one connection."""
        if workers != self.division.among:
            self.division.among = workers
            self._set_room(len(self._listeners.wanted))
            for service in self._services.values():
                service.divide()

    def lead(self) -> None:
        """Be the one that listens at UNIX sockets, which cannot be shared."""
        self.leads = True
        self.apply(self.rules)

    def stop_accepting(self) -> None:
        """Close every listener and stop probing; connections go on."""
        for service in unhurried(self._services.values()):
            service.stop_probes()
        self._listeners.close()

    def cut(self) -> None:
        """End every connection, also those whose greenlet has not begun."""
        self._listeners.cut.set()
        for connection in tuple(self.ledger.live.values()):
            connection.scope.cancel(Ended(End.DRAINED))

    def rules_down(self) -> list[str]:
        """Return the names of the rules that do not have all their ports."""
        wanted = self._listeners.wanted
        return list(dict.fromkeys(wanted[address].service.rule.name for address in self._listeners.down))

    def status(self) -> list[RuleState]:
        """Return for each rule how it was written, whether it listens, its account, its targets and certificates."""
        shown, options, certificates = tuple(self._services.values()), self._options, self._certificates
        accounts = self.ledger.snapshot([service.rule.name for service in shown])
        down = self._listeners.down
        return [
            {
                "name": rule.name,
                "listen": rule.shown_listen,
                "options": options[rule.key],
                "certificates": certificates[rule.key],
                "listener_up": not down or not any(address in down for address, _ in rule.listens()),
                **accounts[rule.name],
                "targets": [
                    {
                        "target": str(member.address),
                        "sni": " ".join(names),
                        "send_proxy": member.send_proxy.value,
                        "up": member.up,
                        "active": member.active,
                    }
                    for names, member in service.members()
                ],
            }
            for service in unhurried(shown)
            for rule in (service.rule,)
        ]

    def _set_room(self, listeners: int) -> None:
        room = self._fd_budget.connections(listeners)
        self.limiter.room = max(0, min(room, self.fits_memory))
        self.limiter.most = self._max_connections or math.inf
        self.limiter.wake()


_Key = tuple[Address, int]  # of a rule


def _share(log: Log, ledger: Ledger, limiter: ConnectionLimiter, fd_budget: FdBudget) -> Shared:
    ticker = Ticker()
    return Shared(
        log,
        ledger,
        limiter,
        Greenlets(),
        ticker,
        PeerWatch(),
        Pump(Pipes(fd_budget.pipes), ticker),
        Resolver(log, fd_budget.lookups),
        UnixQueues(),
        Places(fd_budget.parallel_attempts),
        Turns(fd_budget.probes),
        TlsRoom(),
    )


def _certificates(rule: Rule) -> list[CertificateState]:
    return [
        {
            "file": each.file,
            "names": list(each.names),
            "issuer": each.issuer,
            "not_after": each.not_after,
            "doubts": list(each.doubts),
        }
        for each in {certificate.file: certificate for certificate in rule.certificates}.values()
    ]


def _host_names(rules: RuleSet) -> dict[str, float]:
    """Return the host names of all targets with the shortest refresh that a rule asks for."""
    wanted: dict[str, float] = {}
    for rule in unhurried(rules.rules):
        for target in rule.targets:
            if target.address.is_name:
                refresh = rule.options.dns_refresh
                wanted[target.address.host] = min(refresh, wanted.get(target.address.host, refresh))
    return wanted
