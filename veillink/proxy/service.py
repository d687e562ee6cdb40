"""What a rule needs at run time."""

from dataclasses import dataclass

from veillink.log import Log
from veillink.model import Rule
from veillink.net.pipes import Pipes
from veillink.net.ticker import Ticker
from veillink.proxy.upstream import Route
from veillink.stats.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Service:
    """What a rule needs at run time, built whole before it is used. A connection keeps the one it began with."""

    rule: Rule
    route: Route
    ledger: Ledger
    ticker: Ticker
    pipes: Pipes
    log: Log
