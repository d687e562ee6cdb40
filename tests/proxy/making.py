"""Make what connections share, for tests of one rule."""

from veillink.log import Log
from veillink.net.pipes import Pipes
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.ticker import Ticker
from veillink.proxy.health import Turns
from veillink.proxy.limiter import ConnectionLimiter, Division
from veillink.proxy.service import Shared
from veillink.stats.ledger import Ledger


def make_shared(log: Log) -> Shared:
    """Return what the rules of a small process share."""
    limiter = ConnectionLimiter(Division())
    return Shared(log, Ledger(), limiter, Ticker(), Pipes(2), Resolver(log, 8), Places(16), Turns(4))
