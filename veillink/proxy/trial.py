"""Learn from a connection whether its target serves: who accepts for others may have nobody behind it.

Rule: being connected proves nothing. A reset before the target's first byte is a failed connect, unless the client may
have provoked it.
"""

import time
from typing import Final

from veillink.model import End
from veillink.net.ticker import Ticker
from veillink.proxy.pool import Member
from veillink.proxy.upstream import Upstream
from veillink.stats.ledger import Connection

# A target that was failing and keeps a connection for so long, in seconds, is back.
_MOMENT: Final = 0.05
# A client may have provoked a reset where the target has answered another one that came at most so long before it, in
# seconds: else one client could take out all targets but the last with a few bytes that they do not like.
_BESIDE: Final = 1.0


class Trial:
    """A connection by which a target that is failing may prove itself.

    ``open``: it has neither passed nor ended.

    Args:
        member: the target.
        upstream: its rule's targets.
        now: monotonic seconds.
    """

    __slots__ = ("_began", "_member", "_upstream", "open")

    def __init__(self, member: Member, upstream: Upstream, now: float) -> None:
        self._member = member
        self._upstream = upstream
        self._began = now
        self.open = True

    def on_tick(self, now: float) -> bool:
        """Count it as passed after a moment; return whether to look again."""
        if self.open and now - self._began >= _MOMENT:
            self.succeed()
        return self.open

    def succeed(self) -> None:
        """Count it as passed."""
        self.open = False
        self._upstream.count_success(self._member)


def begin_trial(member: Member, upstream: Upstream, ticker: Ticker) -> Trial:
    """Watch a connection of a target that is failing; ``judge`` ends that."""
    trial = Trial(member, upstream, time.monotonic())
    ticker.watch(trial)
    return trial


def judge(member: Member, upstream: Upstream, connection: Connection, end: End, trial: Trial | None) -> None:
    """Heed how a connection of a target has ended.

    Args:
        member: the target.
        upstream: its rule's targets.
        connection: its account.
        end: why it ended.
        trial: begun if the target was failing when it was connected.
    """
    connected, answered = connection.connected or 0.0, connection.outbound.bytes > 0
    if answered and connected > member.answered:
        member.answered = connected
    if end is End.TARGET_RESET and not answered:
        provoked = connection.inbound.bytes and connected - member.answered <= _BESIDE
        if not member.down and not provoked:  # else the reset may be our own (on_down), and the target is out anyway
            upstream.count_failure(member, "ECONNRESET")
    elif trial is not None and trial.open and (answered or (end is End.CLOSED and connection.inbound.bytes)):
        trial.succeed()
    if trial is not None:
        trial.open = False
