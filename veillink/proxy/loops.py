"""See that a client is a connection of our own to a target, which has come round: the rules form a loop.

Rule: a chain of rules is none. Only who comes to a listener that its bytes have come through before is ended.

What the rules alone show is refused when they are read; an address of this host, its name, or a UNIX socket through a
link only shows when a client comes. Of N workers each knows its own connections alone, and the kernel gives a client to
any of them: a rule that leads to itself meets the worker that knows after N rounds on average, a loop through two rules
after about N * N. Two programs that lead to each other are not seen.
"""

import contextlib
import os
from pathlib import Path
from sys import intern

from veillink.model import Address, End, Ended
from veillink.net.sockets import plain_host
from veillink.net.stream import Stream
from veillink.stats.ledger import Connection, Ledger


def add_leg(target: Stream, connection: Connection, ledger: Ledger) -> None:
    """Remember how a connection to its target looks to a listener. Thousands have the same host: kept once."""
    own = target.transport.own
    if own is not None:
        target.transport.own = None  # 200 bytes
        connection.leg = leg = intern(plain_host(own[0])), own[1]
        ledger.legs[leg] = connection
    elif connection.target is not None and connection.target.is_unix:
        connection.leg = path = connection.target.path
        ledger.unix_legs[path] = connection


def refuse_loop(client: Stream, connection: Connection, ledger: Ledger) -> None:
    """Find out whose connection the client is, if it is one of ours.

    Raises:
        Ended: it has come through this listener before.
    """
    last = ledger.legs.get(connection.client)
    if last is not None:
        last = last if _has_come_to(client, last.target) else None
    elif ledger.unix_legs and connection.listen.is_unix:
        last = _unix_parent(client, connection, ledger)
    if last is not None:
        connection.passed = (*last.passed, last.listen)
        if connection.listen in connection.passed:
            raise Ended(End.LOOP, " -> ".join(map(str, (*connection.passed, connection.listen))))


def _has_come_to(client: Stream, target: Address | None) -> bool:
    """Return whether it is there that a client has come to, whose address one of our own connections has.

    One port of a host may be in use towards several others, and not by us alone.
    """
    here = client.transport.own_address()
    if target is None or here.port != target.port:
        return False
    host = plain_host(target.host)
    return host in ("0.0.0.0", "::") or host.partition("%")[0] == here.host.partition("%")[0]


def _unix_parent(client: Stream, connection: Connection, ledger: Ledger) -> Connection | None:
    """Return the last connection to this UNIX socket by whatever path, if the client is a connection of ours."""
    if client.transport.peer_process() == os.getpid():
        for path, found in ledger.unix_legs.items():
            with contextlib.suppress(OSError):
                if Path(str(path)).samefile(connection.listen.path):
                    return found
    return None
