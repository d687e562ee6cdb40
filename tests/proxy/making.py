"""Make what connections share, for tests of one rule."""

from collections.abc import Callable

import gevent
from gevent.hub import get_hub

from veillink.log import Log
from veillink.net.greenlets import Greenlets
from veillink.net.peer_watch import PeerWatch
from veillink.net.pipes import Pipes
from veillink.net.places import Places
from veillink.net.resolver import Answer, Resolver, getaddrinfo
from veillink.net.ticker import Ticker, Watched
from veillink.net.tls import TlsRoom
from veillink.net.turns import Turns
from veillink.net.unix_queue import UnixQueues
from veillink.proxy.limiter import ConnectionLimiter, Division
from veillink.proxy.pump import Pump
from veillink.proxy.shared import Shared
from veillink.stats.ledger import Ledger

TICK = 0.01
"""Seconds from tick to tick: so often that short limits are exact."""
NO_TICK = 3600.0
"""Nobody looks while the test runs, but the test itself."""


def make_shared(
    log: Log,
    watch: PeerWatch,
    pipes: Pipes | None = None,
    tick: float = TICK,
    names: Callable[[str], Answer] = getaddrinfo,
) -> Shared:
    """Return what the rules of a small process share."""
    limiter, ticker = ConnectionLimiter(Division()), Ticker(tick)
    pump = Pump(pipes or Pipes(2), ticker)
    resolver = Resolver(log, 8, names)
    return Shared(
        log,
        Ledger(),
        limiter,
        Greenlets(),
        ticker,
        watch,
        pump,
        resolver,
        UnixQueues(),
        Places(16),
        Turns(4),
        TlsRoom(),
    )


def look(watched: Watched, now: float) -> bool:
    """Look at something as the ticker does, from the loop's own greenlet, and return its answer."""
    answers: list[bool] = []
    get_hub().loop.run_callback(lambda: answers.append(watched.on_tick(now)))
    gevent.sleep(0)
    return answers[0]
