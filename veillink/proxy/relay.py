"""Move bytes both ways between two streams until both have finished, one fails, or time runs out.

Rule: each end is passed on as what it was. A FIN follows the last byte; after a reset no FIN is ever sent.
"""

import time
from typing import Any, Final

from gevent.hub import GreenletExit, Waiter, get_hub, getcurrent

from veillink.model import End, Ended, RuleOptions
from veillink.net.greenlets import start_soon
from veillink.net.pipes import Pipe, Pipes
from veillink.net.sockets import error_name
from veillink.net.stream import Stream
from veillink.net.ticker import Ticker
from veillink.stats.ledger import Connection, Flow

# One buffer serves every connection: nothing switches between reading into it and handing it to the kernel.
_BUFFER_SIZE: Final = 64 * 1024
_BUFFER: Final = memoryview(bytearray(_BUFFER_SIZE))
# So many full reads in a row make a stream bulk: from then on it is worth a pipe.
_BULK_READS: Final = 3
# What was received before a reset is given so many seconds without progress to reach the other side.
_FLUSH_TIME: Final = 5.0
_PARK_AFTER: Final = 1.0
# A silent connection whose limits are long is looked at once in so many seconds: four looks a second at each of 3,000
# took 1.7 % of a core.
_LONG: Final = 60.0
_REST: Final = 1.0
_UNKNOWN: Final = -1


class _Parked(Exception):  # noqa: N818 - not an error
    """Thrown into a twin that waits for a silent target."""


class _Flush:
    """A wait until a peer has what it was sent before a reset: ours would throw the send queue away.

    Args:
        stream: to that peer.
        since: monotonic seconds at which something moved last.
        ticker: what looks at it.
    """

    __slots__ = ("_lost", "_since", "_stream", "_ticker", "_unacked", "_waiter")

    def __init__(self, stream: Stream, since: float, ticker: Ticker) -> None:
        self._stream = stream
        self._since = since
        self._ticker = ticker
        self._lost = ticker.lost
        self._unacked = stream.bytes_a_reset_would_lose()
        self._waiter: Any = Waiter(get_hub())

    def wait(self) -> None:
        """Wait until all has arrived, or nothing has moved for too long."""
        if self._goes_on(time.monotonic()):
            self._ticker.watch_closely(self)
            try:
                self._waiter.get()
            finally:
                self._waiter = None

    def on_tick(self, now: float) -> bool:
        """Wake who waits, if that is over; return whether it is not."""
        if self._waiter is None:
            return False
        unacked = self._stream.bytes_a_reset_would_lose()
        if unacked != self._unacked:
            self._unacked, self._since, self._lost = unacked, now, self._ticker.lost
        goes_on = self._goes_on(now)
        if not goes_on:
            self._waiter.switch(None)
        return goes_on

    def _goes_on(self, now: float) -> bool:
        silent = now - self._since - (self._ticker.lost - self._lost)
        return bool(self._unacked) and not self._stream.broken and silent < _FLUSH_TIME


class Relay:
    """A connection's two directions.

    Args:
        client: the accepted stream.
        target: the connected one.
        connection: its account; both flows are kept up to date while bytes move.
        options: how long it may be silent or live.
        ticker: what watches over that.
        pipes: for bulk streams.
    """

    __slots__ = (
        "_client",
        "_connection",
        "_joiner",
        "_lost",
        "_moved",
        "_moved_at",
        "_options",
        "_over",
        "_pipes",
        "_reset",
        "_resets_watched",
        "_rests_until",
        "_target",
        "_ticker",
        "_twin",
        "_unacked",
    )

    def __init__(
        self, client: Stream, target: Stream, connection: Connection, options: RuleOptions, ticker: Ticker, pipes: Pipes
    ) -> None:
        self._connection = connection
        self._client = client
        self._target = target
        self._options = options
        self._ticker = ticker
        self._pipes = pipes
        self._twin: Any = None
        self._joiner: Any = None
        self._over = False
        self._lost = ticker.lost
        self._moved = 0
        self._moved_at = time.monotonic()
        self._unacked = _UNKNOWN
        self._reset: tuple[float, End] | None = None
        self._resets_watched = False
        self._rests_until = 0.0

    def run(self) -> None:
        """Relay until both sides have finished. The caller's greenlet moves the client's bytes, a twin the target's.

        Raises:
            Ended: it came to another end. After a reset the other side has been given what was received before.
        """
        self._wake_twin()
        try:
            self._pump(self._client, self._target, self._connection.inbound, End.CLIENT_RESET)
            self._join_twin()
        except Ended as ended:
            self._end_twin()
            if ended.end in (End.CLIENT_RESET, End.TARGET_RESET):
                self._reset = self._reset or (time.monotonic(), ended.end)
                sink = self._target if ended.end is End.CLIENT_RESET else self._client
                self._ticker.watch(self)  # max_lifetime holds meanwhile, and lost time is accounted for
                _Flush(sink, max(self._moved_at, self._reset[0]), self._ticker).wait()
            raise
        finally:
            self._end_twin()
            self._ticker.forget(self)

    def _wake_twin(self) -> None:
        start_soon(Relay._run_twin, self)
        self._ticker.watch(self)

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
        if not self._connection.outbound.done:
            self._joiner = Waiter(get_hub())
            self._joiner.get()
        for stream, end in ((self._client, End.CLIENT_RESET), (self._target, End.TARGET_RESET)):
            if stream.broken:
                raise Ended(end, stream.broken)

    def _pump(self, source: Stream, sink: Stream, flow: Flow, lost: End) -> None:
        """Move bytes one way until the source has finished, and pass that on.

        A sink that is gone ends this direction only: what it sent before it went may still be unread, and is delivered
        by the other one, which then finds the end (the failed send has eaten the error: it looks like a FIN there).
        """
        while self._copy(source, sink, flow, lost) and self._splice(source, sink, flow, lost):
            pass
        if source.broken and not sink.broken:
            raise Ended(lost, source.broken)
        flow.done = True
        self._moved_at = time.monotonic()
        if not sink.broken:
            self._pass_on_eof(sink)

    def _copy(self, source: Stream, sink: Stream, flow: Flow, lost: End) -> bool:
        """Move bytes through the buffer; return whether the stream has proved to be bulk, else the direction is over.

        Two frames for each chunk (one to read it, one to write it): with five, a request cost a third more.
        """
        full_reads = 0
        try:
            while full_reads < _BULK_READS and not sink.broken:
                try:
                    count = source.recv_into(_BUFFER)
                except OSError as error:
                    raise Ended(lost, error_name(error)) from None
                if not count:
                    return False
                flow.bytes += count
                full_reads = full_reads + 1 if count == _BUFFER_SIZE else 0
                try:
                    sent = sink.send(_BUFFER[:count])
                    if sent < count:
                        source.stop_reading()
                        sink.sendall(_BUFFER[sent:count])
                except OSError as error:
                    sink.broken = error_name(error)
            return not sink.broken
        finally:
            source.stop_reading()

    def _splice(self, source: Stream, sink: Stream, flow: Flow, lost: End) -> bool:
        """Move bytes through a pipe, past Python; return whether the stream goes on, but not as bulk.

        The pipe is lent for as long as it is filled and emptied, never while the source is waited for. Waiting comes
        first each time: two sockets that are always ready would else never let anybody have a turn.
        """
        count = _BUFFER_SIZE
        while count >= _BUFFER_SIZE and not sink.broken:
            source.wait_readable()
            pipe = self._pipes.take()
            if pipe is None:
                return True
            self._ticker.watch(self._pipes)  # which closes them when bulk is over
            try:
                count = source.splice_into(pipe)
                flow.bytes += count
                sink.splice_from(pipe)
            except BlockingIOError:  # like a count of 0: the end, or urgent data in the way; only a read can tell
                return True
            except OSError as error:
                if self._pipes.refused(error):
                    self._empty(pipe, sink)
                    return True
                if not pipe.held:
                    raise Ended(lost, error_name(error)) from None
                sink.broken = error_name(error)
            finally:
                self._pipes.give(pipe)
        return not sink.broken

    @staticmethod
    def _empty(pipe: Pipe, sink: Stream) -> None:
        """Hand on what splice has left in the pipe."""
        try:
            sink.sendall(memoryview(pipe.drain()))
        except OSError as error:
            sink.broken = error_name(error)

    def _pass_on_eof(self, sink: Stream) -> None:
        if self._connection.inbound.done and self._connection.outbound.done:
            return  # both sockets are closed next, which says the same
        try:
            sink.send_eof()
        except OSError as error:
            sink.broken = error_name(error)
        self._rests_until = 0.0
        self._ticker.watch(self)

    @property
    def _half_closed(self) -> bool:
        return self._connection.inbound.done != self._connection.outbound.done

    def _client_was_reset(self) -> None:
        self._was_reset(self._client, self._connection.inbound, End.CLIENT_RESET)

    def _target_was_reset(self) -> None:
        self._was_reset(self._target, self._connection.outbound, End.TARGET_RESET)

    def _was_reset(self, stream: Stream, flow: Flow, end: End) -> None:
        """Heed a reset that this stream's reader may not see: it has finished, or waits for the other side."""
        if self._connection.inbound.done and self._connection.outbound.done:
            return
        stream.broken = "ECONNRESET"
        if flow.done:
            self._connection.scope.cancel(Ended(end, stream.broken))
        else:
            self._reset = (time.monotonic(), end)
            self._rests_until = 0.0
            self._ticker.watch(self)

    def on_tick(self, now: float) -> bool:
        """End the connection if it has to end now; park what is idle. Return whether there is anything to look for."""
        if now < self._rests_until:
            return True
        if not self._resets_watched:  # not worth their system calls for a connection that is gone by the first look
            self._resets_watched = True
            self._target.keep_alive(self._options.keepalive)  # the client's leg has inherited it
            self._client.on_reset(self._client_was_reset)
            self._target.on_reset(self._target_was_reset)
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
        lost, self._lost = self._ticker.lost - self._lost, self._ticker.lost
        if lost:
            self._moved_at = min(now, self._moved_at + lost)
            if self._reset:
                self._reset = (min(now, self._reset[0] + lost), self._reset[1])

    def overdue(self, now: float) -> Ended | None:
        """Return why the connection has to end now, if it has to.

        Args:
            now: monotonic seconds. With every call it learns from the byte counts when something moved last.
        """
        moved = self._connection.inbound.bytes + self._connection.outbound.bytes
        if moved != self._moved:
            self._moved, self._moved_at, self._unacked = moved, now, _UNKNOWN
        lifetime = self._options.max_lifetime
        if lifetime and now - self._connection.opened >= lifetime:
            return Ended(End.MAX_LIFETIME)
        if self._over:  # what was received before a reset is being delivered, which has a limit of its own
            return None
        limit, end = self._silence_limit()
        if not limit and not self._reset:
            return None
        self._heed_delivery(now)
        silent = now - self._moved_at
        if self._reset:
            since, end = self._reset
            return Ended(end, "ECONNRESET") if min(silent, now - since) >= _FLUSH_TIME else None
        return Ended(end) if silent >= limit else None

    def _heed_delivery(self, now: float) -> None:
        """A slow reader is not silence: what was read long ago may still be on its way from the kernel to the peer."""
        if self._unacked:
            unacked = self._client.unacked_bytes() + self._target.unacked_bytes()
            if self._unacked not in (_UNKNOWN, unacked):
                self._moved_at = now
            self._unacked = unacked

    def _silence_limit(self) -> tuple[float, End]:
        idle, half_close = self._options.idle_timeout, self._options.half_close_timeout
        if self._half_closed and half_close and not 0 < idle < half_close:
            return half_close, End.HALF_CLOSE_TIMEOUT
        return idle, End.IDLE_TIMEOUT
