"""Move bytes both ways between two streams until both have finished, one fails, or patience runs out.

Rule: each end is passed on as what it was. A FIN follows the last byte; after a reset no FIN is ever sent.
"""

import time
from typing import Any, Final

import gevent
from gevent.hub import GreenletExit, Waiter, get_hub, getcurrent, spawn_raw

from .ledger import Entry, Flow
from .model import End, Ended, Timeouts
from .net import Stream, error_name

# One buffer serves every connection: nothing switches between reading into it and handing it to the kernel.
_BUFFER: Final = memoryview(bytearray(64 * 1024))
# Two sockets that are always ready never wait, and nobody else would run: step aside after so many bytes.
_TURN: Final = 1024 * 1024
# What was received before a reset is given so many seconds without progress to reach the other side.
_FLUSH_TIME: Final = 5.0
_TICK: Final = 0.25


class Patience:
    """Looks for connections that are silent or old.

    One coarse timer looks at byte counts that are kept anyway: a timeout object for each wait costs nine frames.
    """

    def __init__(self) -> None:
        self._relays: set[Relay] = set()
        self._timer: Any = None

    def watch(self, relay: "Relay") -> None:
        """Look at this relay with every tick from now on."""
        self._relays.add(relay)
        if self._timer is None:
            self._timer = get_hub().loop.timer(_TICK, _TICK, ref=False)
            self._timer.start(self._tick)

    def forget(self, relay: "Relay") -> None:
        """Stop looking at it; forgetting an unknown one is harmless."""
        self._relays.discard(relay)
        if not self._relays and self._timer is not None:
            self._timer.close()
            self._timer = None

    def _tick(self) -> None:
        now = time.monotonic()
        for relay in tuple(self._relays):
            ended = relay.overdue(now)
            if ended is not None:
                self.forget(relay)
                relay.interrupt(ended)


class Relay:
    """A connection's two directions.

    Args:
        client: the accepted stream.
        target: the connected one.
        entry: its account; both flows are kept up to date while bytes move.
        timeouts: how long it may be silent or live.
        patience: what watches over that.
    """

    __slots__ = (
        "_client",
        "_entry",
        "_joiner",
        "_moved",
        "_moved_at",
        "_patience",
        "_reset",
        "_target",
        "_timeouts",
        "_unsent",
    )

    def __init__(self, client: Stream, target: Stream, entry: Entry, timeouts: Timeouts, patience: Patience) -> None:
        self._client = client
        self._target = target
        self._entry = entry
        self._timeouts = timeouts
        self._patience = patience
        self._joiner: Any = None
        self._moved = 0
        self._moved_at = time.monotonic()
        self._unsent = -1
        self._reset: tuple[float, End] | None = None

    def run(self) -> None:
        """Relay until both sides have finished. The caller's greenlet moves the client's bytes, a twin the target's.

        Raises:
            Ended: it came to another end. After a reset the other side has been given what was received before.
        """
        self._client.on_reset(self._client_was_reset)
        self._target.on_reset(self._target_was_reset)
        if self._timeouts.idle_timeout or self._timeouts.max_lifetime:
            self._patience.watch(self)
        twin = spawn_raw(self._run_twin)
        try:
            self._pump(self._client, self._target, self._entry.inbound, End.CLIENT_RESET)
            self._join_twin()
        except Ended as ended:
            _end_now(twin)
            if ended.end is End.CLIENT_RESET:
                self._flush(self._target)
            elif ended.end is End.TARGET_RESET:
                self._flush(self._client)
            raise
        finally:
            _end_now(twin)
            self._patience.forget(self)

    def interrupt(self, ended: Exception) -> None:
        """End the connection from outside."""
        self._entry.interrupt(ended)

    def _run_twin(self) -> None:
        try:
            self._pump(self._target, self._client, self._entry.outbound, End.TARGET_RESET)
        except Exception as error:  # the story is told, and its errors are handled, by the greenlet that called run()
            self.interrupt(error)
        if self._joiner is not None:
            get_hub().loop.run_callback(self._joiner.switch, None)

    def _join_twin(self) -> None:
        if not self._entry.outbound.done:
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
        turn = 0
        while True:
            try:
                count = source.recv_into(_BUFFER)
            except OSError as error:
                raise Ended(lost, error_name(error)) from None
            if not count:
                break
            flow.bytes += count
            try:
                sink.sendall(_BUFFER[:count])
            except OSError as error:
                sink.broken = error_name(error)
                break
            turn += count
            if turn >= _TURN:
                turn = 0
                source.step_aside()
        flow.done = True
        self._moved_at = time.monotonic()
        if not (source.broken or sink.broken):
            self._pass_on_eof(sink)

    def _pass_on_eof(self, sink: Stream) -> None:
        try:
            sink.send_eof()
        except OSError as error:
            sink.broken = error_name(error)
        if self._timeouts.half_close_timeout and self._half_closed:
            self._patience.watch(self)

    @property
    def _half_closed(self) -> bool:
        return self._entry.inbound.done != self._entry.outbound.done

    def _client_was_reset(self) -> None:
        self._was_reset(self._client, self._entry.inbound, End.CLIENT_RESET)

    def _target_was_reset(self) -> None:
        self._was_reset(self._target, self._entry.outbound, End.TARGET_RESET)

    def _was_reset(self, stream: Stream, flow: Flow, end: End) -> None:
        """Heed a reset that this stream's reader may not see: it has finished, or waits for the other side."""
        stream.broken = "ECONNRESET"
        if flow.done:
            self.interrupt(Ended(end, stream.broken))
        else:
            self._reset = (time.monotonic(), end)
            self._patience.watch(self)

    def _flush(self, stream: Stream) -> None:
        """Wait until the peer has what it was sent: a reset would throw the send queue away."""
        until = time.monotonic() + _FLUSH_TIME
        while not stream.broken and stream.unsent() and time.monotonic() < until:
            gevent.sleep(0.01)

    def overdue(self, now: float) -> Ended | None:
        """Return why the connection has to end now, if it has to.

        Args:
            now: monotonic seconds. Called with every tick, it learns from the byte counts when something moved last.
        """
        moved = self._entry.inbound.bytes + self._entry.outbound.bytes
        if moved != self._moved:
            self._moved, self._moved_at, self._unsent = moved, now, -1
        lifetime = self._timeouts.max_lifetime
        if lifetime and now - self._entry.opened >= lifetime:
            return Ended(End.MAX_LIFETIME)
        silent = now - self._moved_at
        if self._reset and min(silent, now - self._reset[0]) >= _FLUSH_TIME:
            return Ended(self._reset[1], "ECONNRESET")
        limit, end = self._silence_limit()
        if not limit or silent < limit / 2:
            return None
        if self._unsent < 0:
            self._unsent = self._client.unsent() + self._target.unsent()
        if silent < limit:
            return None
        if self._unsent != self._client.unsent() + self._target.unsent():
            # No byte was read, but the kernel still delivers what was: a slow reader is not silence.
            self._moved_at, self._unsent = now, -1
            return None
        return Ended(end)

    def _silence_limit(self) -> tuple[float, End]:
        idle, half_close = self._timeouts.idle_timeout, self._timeouts.half_close_timeout
        if self._half_closed and half_close and not 0 < idle < half_close:
            return half_close, End.HALF_CLOSE_TIMEOUT
        return idle, End.IDLE_TIMEOUT


def _end_now(twin: Any) -> None:
    """End a blocked greenlet before anything else runs, so that its sockets can be closed at once.

    With the hub as parent it would end in a later pass of the loop; with the caller as parent control comes straight
    back.
    """
    if not twin.dead:
        twin.parent = getcurrent()
        twin.throw(GreenletExit)
        twin.parent = get_hub()
