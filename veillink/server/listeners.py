"""Keep a listener open wherever one is wanted: open what is missing, try again what cannot be had, mind what has moved.

Rule: an address that is in trouble costs no other one anything.
"""

import errno
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import gevent
from gevent.event import Event

from veillink.log import Log
from veillink.model import Address, RuleOptions, RuleSet
from veillink.net.greenlets import unhurried
from veillink.net.listening import UnixListener, displaced, listens_ahead, take_over
from veillink.net.sockets import error_name, set_keepalive
from veillink.proxy.service import Binding
from veillink.server.listener import AcceptOrder, Listener

# All that have come due within so many seconds are tried in one go, and rest for so many times as long as that took:
# thousands of them cost 5 % of a core at most.
_GATHER: Final = 0.05
_REST: Final = 19.0

# This host does not have the address, or the interface of its zone, yet.
_AWAITED: Final = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV})
_HINTS: Final = {
    errno.EADDRINUSE: "another program listens there, or a connection of this host has that port",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this host does not have that address now",
    errno.ENODEV: "this host does not have that interface now",
}
_UNIX_HINTS: Final = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "VeilLink may not write to that folder",
}

_NONE: Final[Mapping[Address, socket.socket]] = {}


@dataclass(frozen=True, slots=True)
class Pace:
    """How often something is tried or looked at, in seconds.

    Args:
        first: from the first try at an address to the next; each that fails doubles it.
        last: to which it grows.
        first_unix: the same for a UNIX socket: it is free as soon as the program before this one lets go.
        last_unix: to which that grows.
        awaited: from one try to the next at an address that this host does not have yet.
        look: from one look at listeners whose place can go to the next.
    """

    first: float = 1.0
    last: float = 10.0
    first_unix: float = 0.2
    last_unix: float = 0.8
    awaited: float = 1.0
    look: float = 5.0

    def delay(self, address: Address, last: float, *, awaited: bool) -> float:
        """Return after how long an address is tried again; ``last`` is what it was the last time, or 0."""
        if awaited:
            return self.awaited
        first, longest = (self.first_unix, self.last_unix) if address.is_unix else (self.first, self.last)
        return min(longest, 2 * last) if last else first


PACE: Final = Pace()


@dataclass(frozen=True, slots=True)
class Down:
    """Why there is no listener at an address.

    Args:
        reason: with errno and hint.
        awaited: nothing is wrong but that this host does not have the address yet.
        delay: seconds from the last try to the next.
        due: when that is, in monotonic seconds.
    """

    reason: str
    awaited: bool
    delay: float
    due: float


class Listeners:
    """The listeners of a process.

    Args:
        log: gets which listeners cannot be had, and why.
        listen: opens one; as ``net.listen`` does.
        inherited: listening sockets that are there already.
        spread: where in the list of addresses to begin, from 0 up to 1.
        pace: how often what is down is tried.
    """

    def __init__(
        self,
        log: Log,
        listen: Callable[..., socket.socket],
        inherited: Mapping[Address, socket.socket] = _NONE,
        spread: float = 0.0,
        pace: Pace = PACE,
    ) -> None:
        self.open: dict[Address, Listener] = {}
        self.down: dict[Address, Down] = {}
        self.wanted: Mapping[Address, Binding] = {}
        self.cut = Event()
        """Set when those who come are to be sent away."""
        self._order = AcceptOrder()
        self._log = log
        self._open_at = listen
        self._inherited = inherited
        self._spread = spread
        self._pace = pace
        self._fragile: tuple[Address, ...] = ()
        self._ahead: set[Address] = set()
        self._keeper: gevent.Greenlet[[], None] | None = None

    def want(self, wanted: Mapping[Address, Binding]) -> None:
        """Listen at these addresses, lead to these bindings, and listen nowhere else.

        What cannot be had is tried again in the background.
        """
        self._let_be()
        self._ahead.clear()
        fragile = (address for address in unhurried(wanted) if address.is_unix or "%" in address.host)
        self._fragile = tuple(address for address in fragile if address not in self._inherited)
        down = {address: down for address, down in self.down.items() if address in wanted}
        self.wanted, self.down = wanted, down
        self._reopen_displaced()
        self._open_missing()
        unwanted = [address for address in unhurried(tuple(self.open)) if address not in wanted]
        for address in unhurried(unwanted):
            self.open.pop(address).retire()
        if unwanted:  # an address may have been freed just now, like 127.0.0.1:80 for *:80
            self._open_missing()
        for address, listener in unhurried(tuple(self.open.items())):
            self._hand_over(listener, wanted[address])
        if self._fragile or self.down:
            self._keeper = gevent.spawn(self._keep)

    def awaits_any(self) -> bool:
        """Return whether anything is down only because this host does not have the address yet."""
        return any(down.awaited for down in self.down.values())

    def report(self, rules: RuleSet, *, tried_again: bool) -> None:
        """Tell what is not listened on, and what nobody can come to yet, with the place of its rule."""
        if not self.down and not self._ahead:
            return
        origins = {rule.key: rule.origin for rule in unhurried(rules.rules)}  # one that stayed the same may have moved
        again = "; it is tried again" if tried_again else ""
        for address, down in sorted(self.down.items()):
            rule = self.wanted[address].service.rule
            place = origins[rule.key]
            self._log.error(f"{place}: cannot listen on {address}: {down.reason}{again}", rule=rule.name)
        ahead = {rule.key: rule for rule in (self.wanted[address].service.rule for address in sorted(self._ahead))}
        for key, rule in ahead.items():
            place, listen = origins[key], rule.shown_listen
            why = "this host does not have that address now (EADDRNOTAVAIL)"
            self._log.warning(f"{place}: nobody reaches {listen} yet: {why}", rule=rule.name)

    def close(self) -> None:
        """Stop listening, everywhere and for good."""
        self._let_be()
        self.wanted, self.down, self._fragile = {}, {}, ()
        for listener in unhurried(tuple(self.open.values())):
            listener.retire()
        self.open = {}

    # --- opening ---

    def _open_missing(self) -> None:
        now = time.monotonic()
        missing = sorted(address for address in unhurried(self.wanted) if address not in self.open)
        begin = int(len(missing) * self._spread)
        for address in unhurried(missing[begin:] + missing[:begin]):
            self._try(address, now)

    def _try(self, address: Address, now: float) -> bool:
        binding = self.wanted[address]
        try:
            sock = self._listen(address, binding.service.rule.options)
        except OSError as error:
            last = self.down.get(address)
            awaited = error.errno in _AWAITED
            delay = self._pace.delay(address, last.delay if last else 0.0, awaited=awaited)
            self.down[address] = Down(_reason(error, address), awaited, delay, now + delay)
            return False
        self.open[address] = Listener(sock, address, binding, self.cut, self._order)
        self.open[address].start()
        self.down.pop(address, None)
        return True

    def _listen(self, address: Address, options: RuleOptions) -> socket.socket:
        given = self._inherited.get(address)
        if given is not None:
            return take_over(given, options.keepalive)
        sock = self._open_at(address, options, ahead=True)
        if listens_ahead(sock):
            self._ahead.add(address)
        return sock

    def _hand_over(self, listener: Listener, binding: Binding) -> None:
        if listener.binding == binding:
            return
        sock: Any = listener.socket
        options = binding.service.rule.options
        try:
            if isinstance(sock, UnixListener):
                sock.set_mode(options.socket_mode)
            elif not listener.listens_on.is_unix:
                set_keepalive(sock, options.keepalive)
        except OSError as error:
            self._log.error(f"cannot change {listener.listens_on}: {_reason(error, listener.listens_on)}")
        listener.binding = binding
        listener.start_accepting()  # it may wait at the limiter that it had before

    # --- in the background ---

    def _keep(self) -> None:
        look = time.monotonic() + self._pace.look
        while self._fragile or self.down:
            due = min([down.due for down in self.down.values()], default=look)
            gevent.sleep(max(_GATHER, min(look, due) - time.monotonic()))
            began = time.monotonic()
            if began >= look:
                self._reopen_displaced()
                look = began + self._pace.look
            due_now = [address for address, down in self.down.items() if down.due <= began]
            self._retry([address for address in due_now if address.is_unix])
            self._retry([address for address in due_now if not address.is_unix])
        self._keeper = None

    def _retry(self, addresses: Sequence[Address]) -> None:
        now = time.monotonic()
        for address in unhurried(addresses):
            if self._try(address, now):
                rule = self.wanted[address].service.rule
                self._log.info("listening at last", rule=rule.name, listen=address)
        rested = now + _REST * (time.monotonic() - now)
        for address in addresses:
            down = self.down.get(address)
            if down and down.due < rested:
                self.down[address] = replace(down, due=rested)

    def _reopen_displaced(self) -> None:
        """Listen anew where a listener's place has gone: its socket lives on, but nobody reaches it any more."""
        now = time.monotonic()
        for address in unhurried(self._fragile):
            listener = self.open.get(address)
            sock: Any = listener.socket if listener else None
            why = displaced(sock, address) if sock else ""
            if why:
                self.open.pop(address).retire()
                again = "listening anew" if self._try(address, now) else "cannot listen any more, it is tried again"
                rule = self.wanted[address].service.rule
                self._log.warning(again, rule=rule.name, listen=address, reason=why)

    def _let_be(self) -> None:
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper = None


def _reason(error: OSError, address: Address) -> str:
    hints = _UNIX_HINTS if address.is_unix else _HINTS
    hint = hints.get(error.errno or 0)
    return f"{error.strerror} ({error_name(error)})" + (f": {hint}" if hint else "")
