"""What all rules of a process share.

Rule: made once in each process, and handed on; no module keeps anything of its own.
"""

from dataclasses import dataclass

from veillink.log import Log
from veillink.net.greenlets import Greenlets
from veillink.net.peer_watch import PeerWatch
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.ticker import Ticker
from veillink.net.tls import TlsRoom
from veillink.net.turns import Turns
from veillink.net.unix_queue import UnixQueues
from veillink.proxy.limiter import ConnectionLimiter
from veillink.proxy.pump import Pump
from veillink.stats.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Shared:
    """What all rules of a process share.

    Args:
        log: of the process.
        ledger: the account of its connections.
        limiter: how many it may hold.
        greenlets: for connections.
        ticker: looks at what may have waited too long.
        peer_watch: sees resets while nobody reads.
        pump: moves bytes.
        resolver: of host names.
        unix_queues: of UNIX targets that are full.
        attempts: descriptors for trying addresses and targets side by side.
        probing: how many probes may run at a time.
        tls: where the bytes of all connections in TLS pass through.
    """

    log: Log
    ledger: Ledger
    limiter: ConnectionLimiter
    greenlets: Greenlets
    ticker: Ticker
    peer_watch: PeerWatch
    pump: Pump
    resolver: Resolver
    unix_queues: UnixQueues
    attempts: Places
    probing: Turns
    tls: TlsRoom
