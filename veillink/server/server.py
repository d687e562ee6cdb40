"""Run a rule set: one listener for each listen address, changed rule by rule, drained at the end.

Rule: what a change does not name is not touched.
"""

import math
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from veillink.log import Log
from veillink.model import Address, Diff, End, Ended, Health, OnDown, Rule, RuleSet
from veillink.net.greenlets import unhurried
from veillink.net.listening import listen
from veillink.net.peer_watch import watch_resets
from veillink.net.pipes import Pipes
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.ticker import Ticker
from veillink.proxy.health import Probes, Turns
from veillink.proxy.limiter import ConnectionLimiter, Division
from veillink.proxy.pool import Member, Pool
from veillink.proxy.service import Service
from veillink.proxy.upstream import Route
from veillink.server.fd_budget import FdBudget, fitting
from veillink.server.listener import Binding, Listener
from veillink.server.listeners import Listeners
from veillink.stats.ledger import Ledger

# What each worker may number before it meets the next one's numbers; 9 million workers fit into a double.
_NUMBERS: Final = 1_000_000_000
# Workers begin to listen at different places of the list, and do not wait for each other at each address.
_GOLDEN: Final = 0.618

_NONE: Final[Mapping[Address, socket.socket]] = {}


class Server:
    """The rules at work.

    Args:
        log: told about listeners that cannot be had.
        source: the name of the rules' file, for the log.
        fd_budget: what the process may have.
        max_connections: the most connections at a time; 0 for as many as the descriptors allow.
        inherited: listening sockets that are there already.
        worker: the process's number among several that listen at the same addresses; 0: it is alone.
        memory: bytes that all processes may have together; 0 is no limit.
        open_at: opens a listening socket; as ``net.listen`` does.
    """

    def __init__(
        self,
        log: Log,
        source: str,
        fd_budget: FdBudget,
        max_connections: int,
        inherited: Mapping[Address, socket.socket] = _NONE,
        worker: int = 0,
        memory: int = 0,
        open_at: Callable[..., socket.socket] = listen,
    ) -> None:
        self.division = Division()
        self.limiter = ConnectionLimiter(self.division)
        self.ledger = Ledger(worker * _NUMBERS)
        self.rules = RuleSet()
        self._log = log
        self._fd_budget = fd_budget
        self._memory = memory
        self._max_connections = max_connections
        self._inherited = inherited
        self._shared = worker > 0
        self.leads = worker == 0
        self._listeners = Listeners(log, source, open_at, inherited, worker * _GOLDEN % 1)
        self._resolver = Resolver(log, fd_budget.lookups)
        self._places = Places(fd_budget.parallel_attempts)
        self._ticker = Ticker()
        self._pipes = Pipes(fd_budget.pipes)
        self._probing = Turns(fd_budget.probes)
        self._running: dict[_Key, _Running] = {}
        self._retired: dict[_Key, _Running] = {}
        self.limiter.room = 0
        watch_resets()

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
        return fitting(self._memory, workers + self._shared, workers)

    @property
    def can_go_on(self) -> bool:
        """Whether somebody is or will be served: a listener is open, or waits for an address that is not there yet.

        Of several workers one has the UNIX sockets, or another program still has them.
        """
        found = self._listeners
        return bool(found.open) or found.awaits_any() or (self._shared and all(each.is_unix for each in found.down))

    def apply(self, rules: RuleSet) -> Diff:
        """Make these rules the ones at work, and return what that has changed. Rules that stay are not touched.

        A listener that cannot be had is reported, and tried again in the background.

        Others run meanwhile: 8,000 rules take half a second. They see the old rules until all is built and the new ones
        then; only the listeners follow one by one.
        """
        starting = not self.rules.rules
        changes = self.rules.diff(rules, unhurried)
        before, same = self._running, {rule.key for rule in unhurried(changes.same)}
        running: dict[_Key, _Running] = {}
        for rule in unhurried(rules.rules):
            key = rule.key
            last = before.get(key) or self._retired.get(key)
            running[key] = last if last and key in same else self._build(rule, last)
        gone = [(key, each) for key, each in unhurried((self._retired | before).items()) if key not in running]
        wanted = self._bindings(running)
        hosts, names = _host_names(rules), {rule.name for rule in unhurried(rules.rules)}
        self._retired = {key: each for key, each in gone if each.limiter.in_use}
        self._running, self.rules = running, rules
        self.ledger.keep(names)
        self._resolver.keep(hosts)
        self._set_room(len(wanted))
        self._listeners.want(wanted)
        for key, each in unhurried(before.items()):
            if running.get(key) is not each:
                each.stop_probes()
        for each in unhurried(running.values()):
            each.limiter.wake()
        self._listeners.report(rules, tried_again=not starting or self.can_go_on)
        return changes

    def set_worker_count(self, workers: int) -> None:
        """Be one of so many: each limit is divided among them, but everyone may hold one connection."""
        if workers != self.division.among:
            self.division.among = workers
            self._set_room(len(self._listeners.wanted))
            for running in self._running.values():
                running.limiter.wake()

    def lead(self) -> None:
        """Be the one that listens at UNIX sockets, which cannot be shared."""
        self.leads = True
        self.apply(self.rules)

    def stop_accepting(self) -> None:
        """Close every listener and stop probing; connections go on."""
        for running in unhurried(self._running.values()):
            running.stop_probes()
        self._listeners.close()

    def cut(self) -> None:
        """End every connection, also those whose greenlet has not begun."""
        self._listeners.cut.set()
        for connection in tuple(self.ledger.live.values()):
            connection.scope.cancel(Ended(End.DRAINED))

    def targets(self) -> Iterator[tuple[Rule, Member]]:
        """Yield every target of every rule, with what is known of it."""
        for running in self._running.values():
            for member in running.service.route.pool.members.values():
                yield running.service.rule, member

    def rules_down(self) -> list[str]:
        """Return the names of the rules that do not have all their ports."""
        wanted = self._listeners.wanted
        return list(dict.fromkeys(wanted[address].service.rule.name for address in self._listeners.down))

    def status(self) -> list[dict[str, Any]]:
        """Return for each rule its name, listen cell, whether it listens, its account and its targets."""
        shown = tuple(self._running.values())
        accounts = self.ledger.snapshot([running.service.rule.name for running in shown])
        down = self._listeners.down
        return [
            {
                "name": rule.name,
                "listen": rule.shown_listen,
                "listener_up": not down or not any(address in down for address, _ in rule.listens()),
                **accounts[rule.name],
                "targets": [
                    {"target": str(member.address), "up": member.up, "active": member.active}
                    for member in running.service.route.pool.members.values()
                ],
            }
            for running in unhurried(shown)
            for rule in (running.service.rule,)
        ]

    def _bindings(self, running: "Mapping[_Key, _Running]") -> dict[Address, Binding]:
        places = ((each, address, n) for each in running.values() for address, n in each.service.rule.listens())
        return {
            address: Binding(each.service, offset, each.limiter)
            for each, address, offset in unhurried(places)
            if self.leads or not address.is_unix or address in self._inherited
        }

    def _build(self, rule: Rule, last: "_Running | None") -> "_Running":
        """Return a rule's new form; targets that stay keep their state, and its connections go on counting."""
        pool = Pool(rule, random.random, last.service.route.pool.members if last else {})
        route = Route(
            pool,
            self._resolver,
            self._places,
            partial(self._turned, rule),
            partial(self._lost, rule),
            rule.options.retry_interval,
        )
        service = Service(rule, route, self.ledger, self._ticker, self._pipes, self._log)
        limiter = last.limiter if last else ConnectionLimiter(self.division, self.limiter)
        limiter.most = rule.options.max_connections or math.inf
        probes = (
            Probes(route, rule.options, self._probing, random.random) if rule.options.health is Health.TCP else None
        )
        return _Running(service, limiter, probes)

    def _turned(self, rule: Rule, member: Member, reason: str) -> None:
        """Tell that a target went out or came back."""
        if reason:
            self._log.warning("target down", rule=rule.name, target=member.address, reason=reason)
        else:
            self._log.info("target up", rule=rule.name, target=member.address)

    def _lost(self, rule: Rule, member: Member) -> None:
        """End the connections of a target that does not answer its probes, where the rule says so."""
        if rule.options.on_down is OnDown.RESET:
            for connection in tuple(self.ledger.live.values()):
                if connection.member is member:
                    connection.scope.cancel(Ended(End.TARGET_RESET, "the target is down"))

    def _set_room(self, listeners: int) -> None:
        room = self._fd_budget.connections(listeners)
        self.limiter.room = max(0, min(room, self.fits_memory))
        self.limiter.most = self._max_connections or math.inf
        self.limiter.wake()


_Key = tuple[Address, int]  # of a rule


@dataclass(frozen=True, slots=True)
class _Running:
    """A rule at work."""

    service: Service
    limiter: ConnectionLimiter
    probes: Probes | None

    def stop_probes(self) -> None:
        if self.probes is not None:
            self.probes.stop()


def _host_names(rules: RuleSet) -> dict[str, float]:
    """Return the host names of all targets with the shortest refresh that a rule asks for."""
    wanted: dict[str, float] = {}
    for rule in unhurried(rules.rules):
        for target in rule.targets:
            if target.address.is_name:
                refresh = rule.options.dns_refresh
                wanted[target.address.host] = min(refresh, wanted.get(target.address.host, refresh))
    return wanted
