"""Learn from a connection whether its target serves: who accepts for others may have nobody behind it.

Rule: being connected proves nothing. A reset before the target's first byte is a failed connect.
"""

from typing import Final

from .ledger import Entry
from .model import End
from .pool import Member
from .upstream import Route

# A target that was failing and keeps a connection for so long, in seconds, is back.
_MOMENT: Final = 0.05


class Trial:
    """A connection by which a target that is failing may prove itself. To be looked at from time to time.

    Args:
        member: the target.
        route: to it.
        now: monotonic seconds.
    """

    __slots__ = ("_began", "_member", "_route")

    def __init__(self, member: Member, route: Route, now: float) -> None:
        self._member = member
        self._route = route
        self._began = now

    def look(self, now: float) -> bool:
        """Count it as passed after a moment; return whether to look again."""
        if now - self._began < _MOMENT:
            return True
        self._route.succeeded(self._member)
        return False


def judge(member: Member, route: Route, entry: Entry, end: End, *, on_trial: bool) -> None:
    """Heed how a connection of a target has ended.

    Args:
        member: the target.
        route: to it.
        entry: of the connection.
        end: why it ended.
        on_trial: whether the target was failing when it was connected.
    """
    answered = entry.outbound.bytes > 0
    if end is End.TARGET_RESET and not answered:
        if not member.down:  # else the reset may be our own (on_down), and the target is out anyway
            route.failed(member, "ECONNRESET")
    elif on_trial and (answered or (end is End.CLOSED and entry.inbound.bytes)):
        route.succeeded(member)
