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

from .ledger import Entry, Ledger
from .model import Address, End, Ended
from .net import plain_host
from .stream import Stream


def add_leg(target: Stream, entry: Entry, ledger: Ledger) -> None:
    """Remember how a connection to its target looks to a listener. Thousands have the same host: kept once."""
    own = target.own
    if own is not None:
        target.own = None  # 200 bytes
        entry.leg = leg = intern(plain_host(own[0])), own[1]
        ledger.legs[leg] = entry
    elif entry.target is not None and entry.target.is_unix:
        entry.leg = path = entry.target.path
        ledger.unix_legs[path] = entry


def refuse_loop(client: Stream, entry: Entry, ledger: Ledger) -> None:
    """Find out whose connection the client is, if it is one of ours.

    Raises:
        Ended: it has come through this listener before.
    """
    last = ledger.legs.get(entry.client)
    if last is not None:
        last = last if _has_come_to(client, last.target) else None
    elif ledger.unix_legs and entry.listen.is_unix:
        last = _unix_parent(client, entry, ledger)
    if last is not None:
        entry.passed = (*last.passed, last.listen)
        if entry.listen in entry.passed:
            raise Ended(End.LOOP, " -> ".join(map(str, (*entry.passed, entry.listen))))


def _has_come_to(client: Stream, target: Address | None) -> bool:
    """Return whether it is there that a client has come to, whose address one of our own connections has.

    One port of a host may be in use towards several others, and not by us alone.
    """
    here = client.own_address()
    if target is None or here.port != target.port:
        return False
    host = plain_host(target.host)
    return host in ("0.0.0.0", "::") or host.partition("%")[0] == here.host.partition("%")[0]


def _unix_parent(client: Stream, entry: Entry, ledger: Ledger) -> Entry | None:
    """Return the last connection to this UNIX socket by whatever path, if the client is a connection of ours."""
    if client.peer_process() == os.getpid():
        for path, found in ledger.unix_legs.items():
            with contextlib.suppress(OSError):
                if Path(str(path)).samefile(entry.listen.path):
                    return found
    return None
