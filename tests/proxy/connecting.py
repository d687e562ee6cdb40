"""Connect to targets in the test process."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.system.harness import HOST, open_in
from veillink.model import Address, End, Ended
from veillink.net.socket_stream import SocketStream
from veillink.net.stream import Stream
from veillink.proxy import connect as connect_module
from veillink.proxy.pool import Member
from veillink.proxy.upstream import Upstream

FOREVER = float("inf")


@dataclass
class Outcome:
    """How an attempt ended, after how many seconds, and what was tried in vain."""

    end: End | None
    address: Address | None
    tried: list[str]
    seconds: float


class Within(contextlib.nullcontext[None]):
    """Lets a connect wait until then (monotonic seconds)."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self._until = until
        self.address: Address | None = None

    def until(self) -> float:
        return self._until

    def introduce(self, stream: SocketStream, address: Address, member: Member, until: float) -> Stream:
        self.address = address
        return stream


def connect_to(upstream: Upstream, offset: int, until: float, tried: list[str]) -> tuple[Stream, Address, Member]:
    """Connect, and return also where."""
    within = Within(until)
    stream, member = connect_module.connect(upstream, offset, HOST, within, tried)
    assert within.address is not None
    return stream, within.address, member


Connect = Callable[..., Outcome]


def outcome(attempt: Callable[[float, list[str]], tuple[Stream, Address]], seconds: float) -> Outcome:
    started, before = time.monotonic(), set(open_in(os.getpid()))
    tried: list[str] = []
    end, address = None, None
    try:
        stream, address = attempt(started + seconds, tried)
    except Ended as ended:
        end = ended.end
    else:
        stream.close()
    assert set(open_in(os.getpid())) <= before, "an attempt that lost is still open"
    return Outcome(end, address, tried, time.monotonic() - started)


@dataclass
class Rows:
    """A rule's targets, and what becomes of them."""

    upstream: Upstream
    turns: list[tuple[Address, str]]

    def connect(self, seconds: float) -> Address:
        """Return where a client got."""
        tried, until = list[str](), time.monotonic() + seconds
        stream, address, member = connect_to(self.upstream, 0, until, tried)
        stream.close()
        member.leave()
        return address

    def member(self, address: Address) -> Member:
        """Return what is known of a target."""
        return self.upstream.pool.members[address]
