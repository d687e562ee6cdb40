"""Move bytes both ways between two streams until both have finished, one fails, or time runs out.

Rule: each end is passed on as what it was. A FIN follows the last byte; after a reset no FIN is ever sent.

Theory of operation. A connection has two directions, and each has an end of its own: a side that has finished may still
receive for hours. So each direction has a greenlet. The caller's moves the client's bytes, and a second one, the twin,
those of the target. Each runs the pump until its source has finished, and passes that on (``_pass_on_eof``) unless the
other direction is through as well: then both sockets are closed next, which says the same.

The story is told by the greenlet that called ``run``: it alone returns and raises. The twin hands its errors to it
(``scope.cancel``), and whoever ends the connection from outside does so in the same way: a limit that ``on_tick`` sees,
a reset, a drain. Three things follow.

*The joined end.* When the client has finished first, the caller waits for the twin (``_join_twin``). When anything goes
wrong the twin is ended before anything else runs (``_end_twin``), because its sockets are about to be closed.

*The parked twin.* Most connections are silent most of the time, and a greenlet that waits costs 6 KiB. So a twin whose
target has been silent for a moment is thrown out of its wait, and the target's next byte starts a new one
(``_park_twin``, ``_wake_twin``). Nothing is lost with it: a twin is only parked where it waits to read.

*Resets that nobody reads.* A direction that has finished, or waits for room on the other side, does not see that its
source was reset. ``PeerWatch`` does, once it is armed (``_arm``): for a connection that has lived until the first tick,
since it costs system calls that a short one does not need. What was received before the reset is still given to the
other side (``Flush``), as long as something moves: our own reset would throw its send queue away.

Time is looked after by ``on_tick``, four times a second and more seldom for who is silent. ``deadlines`` has the
arithmetic; here is what it counts from: when something moved last, and how much of that has been acknowledged, because
a slow reader is not silence.
"""

import time
from typing import Any, Final

from gevent.hub import GreenletExit, Waiter, get_hub, getcurrent

from veillink.model import End, Ended, RuleOptions
from veillink.net.sockets import error_name
from veillink.net.stream import Stream
from veillink.proxy.deadlines import is_flushed, lifetime_is_over, postponed, silence_limit
from veillink.proxy.flush import Flush
from veillink.proxy.shared import Shared
from veillink.stats.ledger import Connection, Flow

_PARK_AFTER: Final = 1.0
# A silent connection whose limits are long is looked at once in so many seconds: four looks a second at each of 3,000
# took 1.7 % of a core.
_LONG: Final = 60.0
_REST: Final = 1.0
_UNKNOWN: Final = -1
_LOST_CLIENT: Final = (End.CLIENT_RESET, End.CLIENT_TRUNCATED, End.BAD_TLS)
_LOST_TARGET: Final = (End.TARGET_RESET, End.TARGET_TRUNCATED, End.TARGET_TLS)


class _Parked(Exception):  # noqa: N818 - not an error
    """Thrown into a twin that waits for a silent target."""


class Relay:
    """A connection's two directions.

    Args:
        client: the accepted stream.
        target: the connected one.
        connection: its account; both flows are kept up to date while bytes move.
        options: how long it may be silent or live.
        shared: what moves bytes, and what watches over that.
    """

    __slots__ = (
        "_armed",
        "_client",
        "_connection",
        "_joiner",
        "_lost",
        "_moved",
        "_moved_at",
        "_options",
        "_over",
        "_reset",
        "_rests_until",
        "_shared",
        "_target",
        "_twin",
        "_unacked",
    )

    def __init__(
        self, client: Stream, target: Stream, connection: Connection, options: RuleOptions, shared: Shared
    ) -> None:
        self._connection = connection
        self._client = client
        self._target = target
        self._options = options
        self._shared = shared
        self._twin: Any = None
        self._joiner: Any = None
        self._over = False
        self._lost = shared.ticker.lost
        self._moved = 0
        self._moved_at = time.monotonic()
        self._unacked = _UNKNOWN
        self._reset: tuple[float, End] | None = None
        self._armed = False
        self._rests_until = 0.0

    def run(self) -> None:
        """Relay until both sides have finished. The caller's greenlet moves the client's bytes, a twin the target's.

        Raises:
            Ended: it came to another end. After a reset the other side has been given what was received before.
        """
        ticker = self._shared.ticker
        self._wake_twin()
        try:
            self._pump(self._client, self._target, self._connection.inbound, End.CLIENT_RESET)
            self._join_twin()
        except Ended as ended:
            self._end_twin()
            if ended.end in _LOST_CLIENT or ended.end in _LOST_TARGET:
                self._reset = self._reset or (time.monotonic(), ended.end)
                sink = self._target if ended.end in _LOST_CLIENT else self._client
                ticker.watch(self)  # max_lifetime holds meanwhile, and lost time is accounted for
                Flush(sink, max(self._moved_at, self._reset[0]), ticker).wait()
            raise
        finally:
            self._end_twin()
            ticker.forget(self)

    # --- the two directions ---

    def _pump(self, source: Stream, sink: Stream, flow: Flow, lost: End) -> None:
        """Move bytes one way until the source has finished, and pass that on."""
        self._shared.pump.run(source, sink, flow, lost)
        flow.done = True
        if self._reset and self._reset[1] is lost and not source.close_says_eof:
            self._reset = None  # that came after it had finished: TLS would have told a cut from that
        self._moved_at = time.monotonic()
        if not sink.broken:
            self._pass_on_eof(sink)

    def _pass_on_eof(self, sink: Stream) -> None:
        if sink.close_says_eof and self._connection.inbound.done and self._connection.outbound.done:
            return  # both sockets are closed next, which says the same
        try:
            sink.send_eof()
        except OSError as error:
            sink.broken = error_name(error)
        self._look_soon()

    def _wake_twin(self) -> None:
        self._shared.greenlets.start_soon(Relay._run_twin, self)
        self._shared.ticker.watch(self)

    def _run_twin(self) -> None:
        if self._over:
            return
        self._twin = getcurrent()
        try:
            self._pump(self._target, self._client, self._connection.outbound, End.TARGET_RESET)
        except _Parked:
            self._target.when_readable(self._wake_twin)
        except Exception as error:  # the story is told, and its errors are handled, by the greenlet that called run()
            self._connection.scope.cancel(error)
        self._twin = None
        if self._joiner is not None and self._connection.outbound.done:
            get_hub().loop.run_callback(self._joiner.switch, None)

    def _park_twin(self) -> None:
        """Take the twin's greenlet, 6 KiB, from a direction that is silent; its next byte brings a new one."""
        if self._twin is not None and self._target.waits_to_read:
            self._twin.throw(_Parked)

    def _end_twin(self) -> None:
        """End the twin before anything else runs, so that its sockets can be closed at once.

        With the hub as parent it would end in a later pass of the loop; with the caller as parent control comes back
        straight away.
        """
        self._over = True
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.parent = getcurrent()
            twin.throw(GreenletExit)
            twin.parent = get_hub()

    def _join_twin(self) -> None:
        if not self._connection.outbound.done or self._twin is not None:  # it may still say that it has finished
            self._joiner = Waiter(get_hub())
            self._joiner.get()
        for stream, end in ((self._client, End.CLIENT_RESET), (self._target, End.TARGET_RESET)):
            if stream.broken:
                raise Ended(end, stream.broken)

    # --- resets ---

    def _arm(self) -> None:
        """Look after a connection that lasts: find out when a peer has vanished, or resets while nobody reads."""
        self._armed = True
        self._target.transport.keep_alive(self._options.keepalive)  # the client's leg has inherited it
        self._client.transport.on_reset(self._shared.peer_watch, self._on_client_reset)
        self._target.transport.on_reset(self._shared.peer_watch, self._on_target_reset)

    def _on_client_reset(self) -> None:
        self._on_reset(self._client, self._connection.inbound, End.CLIENT_RESET)

    def _on_target_reset(self) -> None:
        self._on_reset(self._target, self._connection.outbound, End.TARGET_RESET)

    def _on_reset(self, stream: Stream, flow: Flow, end: End) -> None:
        """Heed a reset that this stream's reader may not see: it has finished, or waits for the other side."""
        if self._connection.inbound.done and self._connection.outbound.done:
            return
        if stream.close_says_eof or self._over:
            stream.broken = "ECONNRESET"
        elif flow.done:
            return  # it said so in TLS, and then closed with a reset because it never read its tickets
        if flow.done:
            self._connection.scope.cancel(Ended(end, stream.broken))
        else:
            self._reset = (time.monotonic(), end)
            self._look_soon()

    # --- time ---

    def _look_soon(self) -> None:
        self._rests_until = 0.0
        self._shared.ticker.watch(self)

    def on_tick(self, now: float) -> bool:
        """End the connection if it has to end now; park what is idle. Return whether there is anything to look for."""
        if now < self._rests_until:
            return True
        if not self._armed:
            self._arm()
        self._postpone(now)
        ended = self.overdue(now)
        if ended is not None:
            self._connection.scope.cancel(ended)
            return False
        limits = [limit for limit in (self._options.max_lifetime, self._silence_limit()[0]) if limit]
        if now - self._moved_at >= _PARK_AFTER:
            self._park_twin()
            if limits and min(limits) >= _LONG and not self._reset:
                self._rests_until = now + _REST
        return bool(limits or self._reset) or self._twin is not None

    def _postpone(self, now: float) -> None:
        """Move what deadlines count from by the time that nobody lived through."""
        lost, self._lost = self._shared.ticker.lost - self._lost, self._shared.ticker.lost
        if lost:
            self._moved_at = postponed(self._moved_at, lost, now)
            if self._reset:
                self._reset = (postponed(self._reset[0], lost, now), self._reset[1])

    def overdue(self, now: float) -> Ended | None:
        """Return why the connection has to end now, if it has to.

        Args:
            now: monotonic seconds. With every call it learns from the byte counts when something moved last.
        """
        moved = self._connection.inbound.bytes + self._connection.outbound.bytes
        if moved != self._moved or self._waits_for_turn():
            self._moved, self._moved_at, self._unacked = moved, now, _UNKNOWN
        if lifetime_is_over(self._options, self._connection.opened, now):
            return Ended(End.MAX_LIFETIME)
        if self._over:  # what was received before a reset is being delivered, which has a limit of its own
            return None
        limit, end = self._silence_limit()
        if not limit and not self._reset:
            return None
        self._heed_delivery(now)
        if self._reset:
            reset_at, end = self._reset
            return Ended(end, "ECONNRESET") if is_flushed(reset_at, self._moved_at, now) else None
        return Ended(end) if now - self._moved_at >= limit else None

    def _waits_for_turn(self) -> bool:
        """Whether bytes wait because of a rate: that is not silence."""
        return any(flow.limit.waits for flow in (self._connection.inbound, self._connection.outbound) if flow.limit)

    def _heed_delivery(self, now: float) -> None:
        """A slow reader is not silence: what was read long ago may still be on its way from the kernel to the peer."""
        if self._unacked:
            unacked = self._client.unacked_bytes() + self._target.unacked_bytes()
            if self._unacked not in (_UNKNOWN, unacked):
                self._moved_at = now
            self._unacked = unacked

    def _silence_limit(self) -> tuple[float, End]:
        half_closed = self._connection.inbound.done != self._connection.outbound.done
        return silence_limit(self._options, half_closed=half_closed)
