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
from .model import End, Ended
from .net import plain_host
from .stream import Stream


def add_leg(target: Stream, entry: Entry, ledger: Ledger) -> None:
    """Remember how a connection to its target looks to a listener. Thousands have the same hosts: kept once."""
    if target.ends is not None:
        own, peer = target.ends
        target.ends = None  # 400 bytes
        ledger.add_leg(entry, (intern(plain_host(own[0])), own[1], peer[1], intern(plain_host(peer[0]))))
    elif entry.target is not None and entry.target.is_unix:
        ledger.add_leg(entry, entry.target.path)


def refuse_loop(client: Stream, entry: Entry, ledger: Ledger) -> None:
    """Find out whose connection the client is, if it is one of ours.

    Raises:
        Ended: it has come through this listener before.
    """
    last = ledger.legs.get((entry.client.host, entry.client.port, entry.listen.port))
    if last is not None:
        last = _checked(last, client)
    elif ledger.unix_legs and entry.listen.is_unix:
        last = _unix_parent(client, entry, ledger)
    if last is not None:
        entry.passed = (*last.passed, last.listen)
        if entry.listen in entry.passed:
            raise Ended(End.LOOP, " -> ".join(map(str, (*entry.passed, entry.listen))))


def _checked(found: Entry, client: Stream) -> Entry | None:
    """Return the connection that looks as if this client were its leg, if it is.

    One port of a host may be in use towards several others: only where that looks so the kernel is asked to which
    address this client has come.
    """
    return found if isinstance(found.leg, tuple) and client.own_address().host == found.leg[3] else None


def _unix_parent(client: Stream, entry: Entry, ledger: Ledger) -> Entry | None:
    """Return the last connection to this UNIX socket by whatever path, if the client is a connection of ours."""
    if client.peer_process() == os.getpid():
        for path, found in ledger.unix_legs.items():
            with contextlib.suppress(OSError):
                if Path(path).samefile(entry.listen.path):
                    return found
    return None
