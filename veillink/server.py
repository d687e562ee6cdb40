"""Run a rule set: one listener for each listen address, changed rule by rule, drained at the end.

Rule: what a change does not name is not touched.
"""

import errno
import math
import random
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import gevent
from gevent.event import Event

from .claims import Claims
from .ledger import Ledger
from .limits import Descriptors, Gate
from .listener import Entrance, Listener
from .log import Log
from .model import Address, End, Ended, Health, OnDown, Rule, RuleOptions, RuleSet
from .names import Names
from .net import UnixListener, error_name, listen, set_keepalive, take_over
from .patience import Patience
from .pipes import Pipes
from .places import Places
from .pool import Member, Pool
from .probes import Probes, Turns
from .rules import Diff, diff
from .session import Service
from .stream import watch_resets
from .upstream import Route

# Thousands of rules take a while to apply: others get their turn after so many.
_AT_A_TIME: Final = 100
# What each worker may number before it meets the next one's numbers; 9 million workers fit into a double.
_NUMBERS: Final = 1_000_000_000
# Workers begin to listen at different places of the list, and do not wait for each other at each address.
_GOLDEN: Final = 0.618
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 10.0
_UNIX_RETRY: Final = 0.2  # it is free as soon as the program before this one lets go

_HINTS: Final = {
    errno.EADDRINUSE: "another program listens there, or a connection of this host has that port",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this host has no such address",
}


_T = TypeVar("_T")

_NONE: Final[Mapping[Address, socket.socket]] = {}
_UNIX_HINTS: Final = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "VeilLink may not write to that folder",
}


class Server:
    """The rules at work.

    Args:
        log: told about listeners that cannot be had.
        source: the name of the rules' file, for the log.
        descriptors: what the process may have.
        max_connections: the most connections at a time; 0 for as many as the descriptors allow.
        inherited: listening sockets that are there already.
        worker: the process's number among several that listen at the same addresses; 0: it is alone.
        claims: where the others of these listen, so that nobody else's clients are shared.
    """

    def __init__(
        self,
        log: Log,
        source: str,
        descriptors: Descriptors,
        max_connections: int,
        inherited: Mapping[Address, socket.socket] = _NONE,
        worker: int = 0,
        claims: Claims | None = None,
    ) -> None:
        self.gate = Gate()
        self.ledger = Ledger(worker * _NUMBERS)
        self.listeners: dict[Address, Listener] = {}
        self.down: dict[Address, str] = {}
        self.rules = RuleSet()
        self._log = log
        self._source = source
        self._descriptors = descriptors
        self._max_connections = max_connections
        self._inherited = inherited
        self._shared = worker > 0
        self._spread = worker * _GOLDEN % 1
        self._claims = claims
        self._workers = 1
        self.leads = worker == 0
        self._names = Names(log, descriptors.lookups)
        self._places = Places(descriptors.beside)
        self._patience = Patience()
        self._pipes = Pipes(descriptors.pipes)
        self._probing = Turns(descriptors.probes)
        self._running: dict[_Key, _Running] = {}
        self._wanted: dict[Address, Entrance] = {}
        self._cut = Event()
        self._retired: dict[_Key, _Running] = {}
        self._retrier: gevent.Greenlet[[], None] | None = None
        self.gate.limit = 0
        watch_resets()

    def apply(self, rules: RuleSet) -> Diff:
        """Make these rules the ones at work, and return what that has changed. Rules that stay are not touched.

        A listener that cannot be had is reported, and tried again in the background.
        """
        if self._retrier is not None:
            self._retrier.kill()
        changes = diff(self.rules, rules)
        before, same = self._running, {rule.key for rule in changes.same}
        running: dict[_Key, _Running] = {}
        for rule in _unhurried(rules.rules):
            last = before.get(rule.key) or self._retired.get(rule.key)
            running[rule.key] = last if last and rule.key in same else self._build(rule, last)
        gone = {key: each for key, each in (self._retired | before).items() if key not in running}
        self._retired = {key: each for key, each in gone.items() if each.gate.taken}
        self._running = running
        self._wanted = {
            address: Entrance(each.service, offset, each.gate)
            for each in running.values()
            for address, offset in each.service.rule.listens()
            if self.leads or not address.is_unix or address in self._inherited
        }
        self.rules = rules
        self._names.keep(_host_names(rules))
        self.down = {address: why for address, why in self.down.items() if address in self._wanted}
        self._set_limit()
        self._open_missing()
        unwanted = [address for address in self.listeners if address not in self._wanted]
        for address in _unhurried(unwanted):
            self.listeners.pop(address).retire()
        if unwanted:  # an address may have been freed just now, like 127.0.0.1:80 for *:80
            self._open_missing()
        for address, listener in self.listeners.items():
            self._hand_over(listener, self._wanted[address])
        for key, each in before.items():
            if running.get(key) is not each:
                each.stop_probes()
        for each in running.values():
            each.gate.wake()
        self._report_down()
        self._retrier = gevent.spawn(self._retry) if self.down else None
        return changes

    def share(self, workers: int) -> None:
        """Be one of so many: each limit is divided among them, but everyone may hold one connection."""
        if workers != self._workers:
            self._workers = workers
            for running in self._running.values():
                running.gate.limit = self._part(running.service.rule.options.max_connections)
                running.gate.wake()
            self._set_limit()

    def lead(self) -> None:
        """Be the one that listens at UNIX sockets, which cannot be shared."""
        self.leads = True
        self.apply(self.rules)

    def stop_accepting(self) -> None:
        """Close every listener and stop probing; connections go on."""
        if self._retrier is not None:
            self._retrier.kill()
        self._wanted = {}
        for running in self._running.values():
            running.stop_probes()
        for listener in self.listeners.values():
            listener.retire()
        self.listeners = {}

    def cut(self) -> None:
        """End every connection, also those whose greenlet has not begun."""
        self._cut.set()
        for entry in tuple(self.ledger.live.values()):
            entry.interrupt(Ended(End.DRAINED))

    def targets(self) -> Iterator[tuple[Rule, Member]]:
        """Yield every target of every rule, with what is known of it."""
        for running in self._running.values():
            for member in running.service.route.pool.members.values():
                yield running.service.rule, member

    def rules_down(self) -> list[str]:
        """Return the names of the rules that do not have all their ports."""
        return list(dict.fromkeys(self._wanted[address].service.rule.name for address in self.down))

    def status(self) -> list[dict[str, Any]]:
        """Return for each rule its name, listen cell, whether it listens, its account and its targets."""
        accounts = self.ledger.snapshot([rule.name for rule in self.rules.rules])
        return [
            {
                "name": rule.name,
                "listen": rule.shown_listen,
                "listener_up": not self.down or not any(address in self.down for address, _ in rule.listens()),
                **accounts[rule.name],
                "targets": [
                    {"target": str(member.address), "up": member.up, "active": member.active}
                    for member in running.service.route.pool.members.values()
                ],
            }
            for rule, running in zip(self.rules.rules, self._running.values(), strict=True)
        ]

    def _build(self, rule: Rule, last: "_Running | None") -> "_Running":
        """Return a rule's new form; targets that stay keep their state, and its connections go on counting."""
        pool = Pool(rule, random.random, last.service.route.pool.members if last else {})
        route = Route(
            pool,
            self._names,
            self._places,
            partial(self._turned, rule),
            partial(self._lost, rule),
            rule.options.retry_interval,
        )
        service = Service(rule, route, self.ledger, self._patience, self._pipes, self._log)
        gate = last.gate if last else Gate(self.gate)
        gate.limit = self._part(rule.options.max_connections)
        probes = (
            Probes(route, rule.options, self._probing, random.random) if rule.options.health is Health.TCP else None
        )
        return _Running(service, gate, probes)

    def _turned(self, rule: Rule, member: Member, reason: str) -> None:
        """Tell that a target went out or came back."""
        if reason:
            self._log.warning("target down", rule=rule.name, target=member.address, reason=reason)
        else:
            self._log.info("target up", rule=rule.name, target=member.address)

    def _lost(self, rule: Rule, member: Member) -> None:
        """End the connections of a target that does not answer its probes, where the rule says so."""
        if rule.options.on_down is OnDown.RESET:
            for entry in tuple(self.ledger.live.values()):
                if entry.member is member:
                    entry.interrupt(Ended(End.TARGET_RESET, "the target is down"))

    def _open_missing(self) -> None:
        missing = sorted(self._wanted.keys() - self.listeners.keys())
        begin = int(len(missing) * self._spread)
        for address in _unhurried(missing[begin:] + missing[:begin]):
            entrance = self._wanted[address]
            try:
                sock = self._listen(address, entrance.service.rule.options)
            except OSError as error:
                self.down.setdefault(address, _reason(error, address))
            else:
                self.listeners[address] = Listener(sock, address, entrance, self._cut)
                self.listeners[address].start()
                self.down.pop(address, None)

    def _listen(self, address: Address, options: RuleOptions) -> socket.socket:
        given = self._inherited.get(address)
        if given is not None:
            return take_over(given, options.keepalive)
        if self._claims is not None:
            return self._claims.listen(address, options)
        return listen(address, options, shared=self._shared)

    def _hand_over(self, listener: Listener, entrance: Entrance) -> None:
        if listener.entrance == entrance:
            return
        sock: Any = listener.socket
        options = entrance.service.rule.options
        try:
            if isinstance(sock, UnixListener):
                sock.set_mode(options.socket_mode)
            elif not listener.listens_on.is_unix:
                set_keepalive(sock, options.keepalive)
        except OSError as error:
            self._log.error(f"cannot change {listener.listens_on}: {_reason(error, listener.listens_on)}")
        listener.entrance = entrance
        listener.start_accepting()  # it may wait at the gate that it had before

    def _set_limit(self) -> None:
        room = self._descriptors.connections(len(self._wanted))
        self.gate.limit = max(0, min(room, self._part(self._max_connections)))
        self.gate.wake()

    def _part(self, limit: int) -> float:
        return max(1, limit // self._workers) if limit else math.inf

    def _report_down(self) -> None:
        lines = {rule: rule.line for rule in self.rules.rules}  # a rule that stayed the same may have moved
        for address, reason in sorted(self.down.items()):
            rule = self._wanted[address].service.rule
            place = f"{self._source}:{lines[rule]}"
            self._log.error(f"{place}: cannot listen on {address}: {reason}; it is tried again", rule=rule.name)

    def _retry(self) -> None:
        delay = _FIRST_RETRY
        while self.down:
            gevent.sleep(_UNIX_RETRY if any(address.is_unix for address in self.down) else delay)
            delay = min(_LAST_RETRY, delay * 2)
            before = tuple(self.down)
            self._open_missing()
            for address in before:
                if address in self.listeners:
                    rule = self.listeners[address].entrance.service.rule
                    self._log.info("listening at last", rule=rule.name, listen=address)
        self._retrier = None


def _unhurried(items: Iterable[_T]) -> Iterator[_T]:
    for number, item in enumerate(items, 1):
        yield item
        if number % _AT_A_TIME == 0:
            gevent.sleep(0)


_Key = tuple[Address, int]  # of a rule


@dataclass(frozen=True, slots=True)
class _Running:
    """A rule at work."""

    service: Service
    gate: Gate
    probes: Probes | None

    def stop_probes(self) -> None:
        if self.probes is not None:
            self.probes.stop()


def _host_names(rules: RuleSet) -> dict[str, float]:
    """Return the host names of all targets with the shortest refresh that a rule asks for."""
    wanted: dict[str, float] = {}
    for rule in rules.rules:
        for target in rule.targets:
            if target.address.is_name:
                refresh = rule.options.dns_refresh
                wanted[target.address.host] = min(refresh, wanted.get(target.address.host, refresh))
    return wanted


def _reason(error: OSError, address: Address) -> str:
    hints = _UNIX_HINTS if address.is_unix else _HINTS
    hint = hints.get(error.errno or 0)
    return f"{error.strerror} ({error_name(error)})" + (f": {hint}" if hint else "")
