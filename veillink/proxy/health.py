"""Probe targets: connect to each now and then, and see whether it stays.

Rule: one rule's targets never delay another rule's probes.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import gevent

from veillink.model import Ended, Health, RuleOptions, SendProxy
from veillink.net.sockets import error_name
from veillink.net.stream import Stream
from veillink.net.tls import TlsRoom
from veillink.net.turns import Turns
from veillink.proxy.connect import dial
from veillink.proxy.introduction import send_own_header, shake_hands
from veillink.proxy.pool import Member
from veillink.proxy.upstream import Upstream

# Probes of one target are so far off their interval, at most, that those of many do not march in step.
_JITTER: Final = 0.1
# Who accepts for others (docker-proxy, a sidecar) hangs up at once when nobody is behind it: how long to wait for that.
_STAY: Final = 0.05
_BANNER: Final = 4096  # is read, because closing with unread bytes would send a reset


class Probes:
    """Probes all targets of a rule, each in a greenlet of its own, from now until ``stop``.

    Args:
        upstream: the targets.
        options: how often, how long, and how many count.
        turns: how many probes of all rules may run at a time.
        room: for TLS.
        random: returns a number from 0 up to 1.
    """

    def __init__(
        self, upstream: Upstream, options: RuleOptions, turns: Turns, room: TlsRoom, random: Callable[[], float]
    ) -> None:
        self._upstream = upstream
        self._options = options
        self._turns = turns
        self._room = room
        self._random = random
        self._greenlets = [gevent.spawn(self._probe_forever, member) for member in upstream.pool.members.values()]

    def stop(self) -> None:
        """End it; what the targets' states are stays."""
        gevent.killall(self._greenlets, block=False)
        self._greenlets = []  # which hold this: rubbish of thousands of rules would have to be looked for

    def _probe_forever(self, member: Member) -> None:
        options = self._options
        gevent.sleep(options.health_interval * self._random())
        while True:
            self._upstream.count_probe(member, self._probe(member), options)
            gevent.sleep(options.health_interval * (1 + _JITTER * (2 * self._random() - 1)))

    def _probe(self, member: Member) -> str:
        """Connect, stay for a moment, and close; return what failed, or nothing."""
        with self._turns.place(self):
            until = time.monotonic() + self._options.health_timeout
            try:
                stream: Stream
                stream = connected = dial(self._upstream, member.address, until, [])
            except Ended as ended:
                return ended.detail or ended.end
            try:
                if member.send_proxy is not SendProxy.OFF:
                    send_own_header(stream, member.send_proxy)
                if self._options.health is Health.TLS and member.tls is not None:
                    stream = shake_hands(connected, member.tls, self._room, until)
                return _hangs_up(stream)
            except Ended as ended:
                return ended.detail or ended.end
            except OSError as error:
                return error_name(error)
            finally:
                stream.close()


def _hangs_up(stream: Stream) -> str:
    """Return how the other side ends the connection within a moment, or nothing."""
    try:
        with suppress(gevent.Timeout), gevent.Timeout(_STAY):
            return "" if stream.recv_into(memoryview(bytearray(_BANNER))) else "closed at once"
    except OSError as error:
        return error_name(error)
    return ""
