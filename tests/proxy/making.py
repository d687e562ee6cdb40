"""Make what connections share, for tests of one rule."""

from veillink.log import Log
from veillink.net.greenlets import Greenlets
from veillink.net.peer_watch import PeerWatch
from veillink.net.pipes import Pipes
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.ticker import Ticker
from veillink.net.turns import Turns
from veillink.net.unix_queue import UnixQueues
from veillink.proxy.limiter import ConnectionLimiter, Division
from veillink.proxy.pump import Pump
from veillink.proxy.shared import Shared
from veillink.stats.ledger import Ledger


def make_shared(log: Log, watch: PeerWatch, pipes: Pipes | None = None) -> Shared:
    """Return what the rules of a small process share."""
    limiter, ticker = ConnectionLimiter(Division()), Ticker()
    pump = Pump(pipes or Pipes(2), ticker)
    resolver = Resolver(log, 8)
    return Shared(
        log, Ledger(), limiter, Greenlets(), ticker, watch, pump, resolver, UnixQueues(), Places(16), Turns(4)
    )
