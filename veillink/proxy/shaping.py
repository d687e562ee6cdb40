"""The arithmetic of bandwidth: when a connection may move how many bytes one way.

Rule: what is allowed at any time is the rate times the time since the demand began, and at most 60 ms' worth more.

Each limit is a line of time on which connections reserve a piece, one after the other and one at a time each: so they
take turns, with pieces of one size, and nobody is woken in vain.
"""

from collections import OrderedDict
from typing import Final

from veillink.limits import ByteRate, ClientKey, Per

# Seconds on the line of time. 40 and 20 ms make two seconds exact within 3 %, with 25 wakes a second.
_PIECE: Final = 0.04
_SAVED: Final = 0.02  # by silence
# Of a turn of all: a newcomer waits no longer.
_ROUND: Final = 0.15
# However many there are: 500 wakes a second, which take 3 % of a core.
_LEAST: Final = 0.002
# Given back to a connection that was woken late, because the loop was held up: that was not its silence.
_LATE: Final = 0.5
# A timer may be that early; waiting again would cost more than it is worth.
_EARLY: Final = 0.001
# Forgotten at a time, at most.
_FORGET: Final = 100


class _Line:
    """One limit's line of time.

    ``free_at``: up to there it is reserved, in monotonic seconds. ``waiting``: connections whose piece is to come.
    ``flows``: that share it.
    """

    __slots__ = ("flows", "free_at", "waiting")

    def __init__(self) -> None:
        self.free_at = float("-inf")
        self.waiting = 0
        self.flows = 0


class Shaping:
    """The limit of one direction of a rule, from reload to reload.

    Args:
        rate: how much, and who shares it; it is not off.
    """

    def __init__(self, rate: ByteRate) -> None:
        self.rate = rate
        self._of_rule = _Line()
        self._of_clients: dict[ClientKey, _Line] = {}
        self._left: OrderedDict[ClientKey, _Line] = OrderedDict()
        self._flows: set[ShapedFlow] = set()

    def __len__(self) -> int:
        return len(self._flows)

    @property
    def remembered(self) -> int:
        """How many clients it knows, with those whose last bytes are not paid for yet."""
        return len(self._of_clients)

    def change(self, rate: ByteRate) -> None:
        """Go on with another rate, also for the connections there are."""
        per, self.rate = self.rate.per, rate
        if rate.per is per:
            return
        for flow in self._flows:
            flow.leave_line()
        self._of_clients.clear()
        self._left.clear()
        for flow in self._flows:
            flow.line = self._line_of(flow.client)

    def join(self, client: ClientKey, now: float) -> "ShapedFlow":
        """Return a connection's part in it, until it leaves.

        Args:
            client: ``client_key`` of its host.
            now: monotonic seconds.
        """
        self._forget(now)
        flow = ShapedFlow(self, client, self._line_of(client))
        self._flows.add(flow)
        return flow

    def remove(self, flow: "ShapedFlow", now: float) -> None:
        """Take a connection's part out; see ``ShapedFlow.leave``."""
        flow.leave_line()
        self._flows.remove(flow)
        if self.rate.per is Per.CLIENT and not flow.line.flows:
            # Not forgotten at once: a client with a connection for each file would never have to wait.
            self._left[flow.client] = flow.line
        self._forget(now)

    def _line_of(self, client: ClientKey) -> _Line:
        match self.rate.per:
            case Per.RULE:
                line = self._of_rule
            case Per.CLIENT:
                line = self._of_clients.setdefault(client, _Line())
                self._left.pop(client, None)
            case Per.CONNECTION:
                line = _Line()
        line.flows += 1
        return line

    def _forget(self, now: float) -> None:
        """Forget clients that have left, and whose bytes are paid for."""
        for _ in range(_FORGET):
            if not self._left or next(iter(self._left.values())).free_at > now:
                break
            del self._of_clients[self._left.popitem(last=False)[0]]


class ShapedFlow:
    """One direction of a connection, under a limit; made by ``Shaping.join``."""

    __slots__ = ("_late", "_reserved", "_shaping", "_start", "client", "line")

    def __init__(self, shaping: Shaping, client: ClientKey, line: _Line) -> None:
        self._shaping = shaping
        self._reserved = 0.0  # seconds of the line, so that a change of the rate is heeded by who waits, too
        self._start = 0.0
        self._late = 0.0
        self.client = client
        self.line = line

    @property
    def waits(self) -> bool:
        """Whether bytes wait for their turn."""
        return self._reserved > 0

    def take(self, now: float, wanted: int) -> tuple[int, float]:
        """Return how many bytes may be moved within the seconds from now, or 0 and those after which to ask again.

        Ask only when there is something to read, and give back what was not used in time: pieces that idle connections
        sit on would all be used in one moment.

        Args:
            now: monotonic seconds.
            wanted: the most that is of use, at least 1.
        """
        rate = self._shaping.rate.bytes_per_second
        if self._reserved and self._start - now <= _EARLY:
            self.line.waiting -= 1
            self._late = max(0.0, now - self._start)
            if self._late > _LATE:  # the process was stopped: what 1,000 had reserved is two seconds' bytes
                self._reserved = self._late = 0.0
        if not self._reserved:
            self._reserve(now, wanted, rate)
        if self._start - now > _EARLY:
            return 0, self._start - now
        allowed, seconds = max(1, round(self._reserved * rate)), self._reserved
        self._reserved = 0.0
        if allowed > wanted:
            self.give_back(allowed - wanted)
            return wanted, seconds
        return allowed, seconds

    def _reserve(self, now: float, wanted: int, rate: int) -> None:
        line = self.line
        piece = max(_LEAST, min(_PIECE, _ROUND / (line.waiting + 1)))
        saved = now - _SAVED
        # Further behind than it was woken late, it was silent.
        self._start = line.free_at if line.free_at >= saved - self._late else saved
        self._reserved = max(1, min(wanted, int(piece * rate))) / rate
        line.free_at = self._start + self._reserved
        if self._start - now > _EARLY:
            line.waiting += 1

    def give_back(self, unused: int) -> None:
        """Give back bytes of the last that were allowed."""
        self.line.free_at -= unused / self._shaping.rate.bytes_per_second

    def leave(self, now: float) -> None:
        """Have no part in it any more; what is reserved and not used is free again."""
        self._shaping.remove(self, now)

    def leave_line(self) -> None:
        """Share its line no more, and give back what is reserved and still to come."""
        if self._reserved:
            self.line.waiting -= 1
            self.line.free_at -= self._reserved
            self._reserved = 0.0
        self.line.flows -= 1
