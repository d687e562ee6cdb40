"""Probe targets: connect to each now and then.

Rule: one rule's targets never delay another rule's probes.
"""

import time
from collections.abc import Callable
from typing import Final

import gevent
from gevent.lock import BoundedSemaphore

from .model import Address, Ended, RuleOptions
from .pool import Member
from .upstream import Route, dial

# Probes of one target are so far off their interval, at most, that those of many do not march in step.
_JITTER: Final = 0.1


class Probes:
    """Probes all targets of a rule, each in a greenlet of its own, from now until ``stop``.

    Args:
        route: to the targets.
        options: how often, how long, and how many count.
        turn: limits how many probes run at a time.
        random: returns a number from 0 up to 1.
    """

    def __init__(self, route: Route, options: RuleOptions, turn: BoundedSemaphore, random: Callable[[], float]) -> None:
        self._route = route
        self._options = options
        self._turn = turn
        self._random = random
        self._greenlets = [gevent.spawn(self._probe_forever, member) for member in route.pool.members.values()]

    def stop(self) -> None:
        """End it; what the targets' states are stays."""
        gevent.killall(self._greenlets, block=False)

    def _probe_forever(self, member: Member) -> None:
        options = self._options
        gevent.sleep(options.health_interval * self._random())
        while True:
            self._route.probed(member, self._probe(member.address), options)
            gevent.sleep(options.health_interval * (1 + _JITTER * (2 * self._random() - 1)))

    def _probe(self, address: Address) -> str:
        """Connect and close; return what failed, or nothing."""
        with self._turn:
            try:
                stream, _ = dial(self._route, address, time.monotonic() + self._options.health_timeout, [])
            except Ended as ended:
                return ended.detail or ended.end
            stream.close()
            return ""
