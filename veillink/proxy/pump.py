"""Move bytes in one direction until its source has finished, through a buffer or past Python, as fast as it may.

Rule: bytes arrive in order, each once. A sink that is gone ends this direction only: what it sent before it went may
still be unread, and is delivered by the other one, which then finds the end (the failed send has eaten the error: it
looks like a FIN there).
"""

import time
from typing import Final

import gevent

from veillink.model import End, Ended
from veillink.net.pipes import PIPE_SIZE, Pipe, Pipes
from veillink.net.sockets import error_name
from veillink.net.stream import Spliceable, Stream
from veillink.net.ticker import Ticker
from veillink.net.tls import TlsError, TruncatedError
from veillink.stats.ledger import ByteLimit, Flow

_BUFFER_SIZE: Final = 64 * 1024
# So many full reads in a row make a stream bulk: from then on it is worth a pipe.
_BULK_READS: Final = 3
# Who has so many waiting has more to come soon.
_BULK: Final = 16 * 1024
# In TLS there is more to how a source is lost.
_TRUNCATED: Final = {End.CLIENT_RESET: End.CLIENT_TRUNCATED, End.TARGET_RESET: End.TARGET_TRUNCATED}
_BROKEN: Final = {End.CLIENT_RESET: End.BAD_TLS, End.TARGET_RESET: End.TARGET_TLS}
# A limit that is taken away wakes nobody.
_LONGEST_WAIT: Final = 1.0


class Pump:
    """Moves the bytes of all connections of a process.

    One buffer serves them all: nothing switches between reading into it and handing it to the kernel.

    Args:
        pipes: for bulk streams.
        ticker: has them closed when bulk is over.
    """

    def __init__(self, pipes: Pipes, ticker: Ticker) -> None:
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))
        self._pipes = pipes
        self._ticker = ticker

    def run(self, source: Stream, sink: Stream, flow: Flow, lost: End) -> None:
        """Move bytes until the source has finished, or the sink is gone.

        Args:
            source: where they come from.
            sink: where they go to.
            flow: their account.
            lost: how the connection ends when the source is lost.

        Raises:
            Ended: the source is lost.
        """
        while self._copy(source, sink, flow, lost):
            raw_source, raw_sink = source.raw(), sink.raw()
            if flow.limit is not None:
                if not self._take_turns(source, sink, flow, flow.limit, lost):
                    break
            elif raw_source is None or raw_sink is None:
                gevent.sleep(0)  # two that are always ready would never let anybody have a turn
            elif not self._splice(raw_source, raw_sink, flow, lost):
                break
        if source.broken and not sink.broken:
            raise Ended(lost, source.broken)

    def _copy(self, source: Stream, sink: Stream, flow: Flow, lost: End) -> bool:
        """Move bytes through the buffer; return whether it has proved to be bulk or is limited now, else it is over.

        Two frames for each chunk (one to read it, one to write it): with five, a request cost a third more.
        """
        full_reads = 0
        try:
            while full_reads < _BULK_READS and flow.limit is None and not sink.broken:
                try:
                    count = source.recv_into(self._buffer)
                except OSError as error:
                    raise _ended(error, lost) from None
                if not count:
                    return False
                flow.bytes += count
                full_reads = full_reads + 1 if count == _BUFFER_SIZE else 0
                try:
                    if not sink.send(self._buffer[:count]):
                        source.stop_reading()
                        sink.flush()
                except OSError as error:
                    sink.broken = error_name(error)
            return not sink.broken
        finally:
            source.stop_reading()

    def _splice(self, source: Spliceable, sink: Spliceable, flow: Flow, lost: End) -> bool:
        """Move bytes through a pipe, past Python; return whether the stream goes on, but not as bulk.

        The pipe is lent for as long as it is filled and emptied, never while the source is waited for. Waiting comes
        first each time: two sockets that are always ready would else never let anybody have a turn.
        """
        count = _BUFFER_SIZE
        while count >= _BUFFER_SIZE and flow.limit is None and not sink.broken:
            source.wait_readable()
            count = self._splice_once(source, sink, flow, lost, PIPE_SIZE)
        return not sink.broken

    def _splice_once(self, source: Spliceable, sink: Spliceable, flow: Flow, lost: End, most: int) -> int:
        """Move what waits, up to ``most`` bytes; 0 is the end, or urgent data in the way: only a read can tell."""
        pipe = self._pipes.take()
        if pipe is None:
            return 0
        self._ticker.watch(self._pipes)  # which closes them when bulk is over
        count = 0
        try:
            count = source.splice_into(pipe, most)
            flow.bytes += count
            sink.splice_from(pipe)
        except BlockingIOError:
            return 0
        except OSError as error:
            if self._pipes.refused(error):
                self._empty(pipe, sink)
                return count
            if not pipe.held:
                raise _ended(error, lost) from None
            sink.broken = error_name(error)
        finally:
            self._pipes.give(pipe)
        return count

    def _take_turns(self, source: Stream, sink: Stream, flow: Flow, limit: ByteLimit, lost: End) -> bool:
        """Move bytes as a limit allows; return whether the stream goes on, under another limit or none.

        A turn is as long as for what waits, or as the last one had use for, and up to twice as long: so bulk streams
        come to use the same, whatever their windows are, and slow readers do not hold what others could have. With one
        of 64 KiB for each answer of 2 KB, 20 connections had a quarter of 8M.
        """
        used = 0
        while flow.limit is limit and not sink.broken:
            source.wait_readable()
            wanted = max(1, source.unread_bytes(), 2 * used)
            allowed, until = _wait_for_turn(flow, limit, min(wanted, PIPE_SIZE))
            used, count = 0, _BUFFER_SIZE
            try:
                while used < allowed and count >= _BULK and flow.limit is limit and not sink.broken:
                    if used:
                        source.wait_readable()
                        if time.monotonic() >= until:
                            break
                    count = self._move(source, sink, flow, lost, allowed - used)
                    if not count:
                        return False
                    used += count
            finally:  # an end has its turn, too: without this, 1M had room for 25 short connections a second
                limit.give_back(allowed - used)
        return not sink.broken

    def _move(self, source: Stream, sink: Stream, flow: Flow, lost: End, most: int) -> int:
        """Move what waits, up to ``most`` bytes, and return how many these were; 0 is the end."""
        raw_source, raw_sink = source.raw(), sink.raw()
        count = 0
        if most > _BUFFER_SIZE and raw_source is not None and raw_sink is not None:
            count = self._splice_once(raw_source, raw_sink, flow, lost, most)
        if not count:
            try:
                count = source.recv_into(self._buffer[:most])
            except OSError as error:
                raise _ended(error, lost) from None
            finally:
                source.stop_reading()
            flow.bytes += count
            try:
                if not sink.send(self._buffer[:count]):
                    sink.flush()
            except OSError as error:
                sink.broken = error_name(error)
        return count

    @staticmethod
    def _empty(pipe: Pipe, sink: Stream) -> None:
        """Hand on what splice has left in the pipe."""
        try:
            sink.sendall(memoryview(pipe.drain()))
        except OSError as error:
            sink.broken = error_name(error)


def _ended(error: OSError, lost: End) -> Ended:
    """Return how a connection ends whose source is lost with this."""
    if isinstance(error, TruncatedError):
        return Ended(_TRUNCATED[lost])
    if isinstance(error, TlsError):
        return Ended(_BROKEN[lost], str(error))
    return Ended(lost, error_name(error))


def _wait_for_turn(flow: Flow, limit: ByteLimit, wanted: int) -> tuple[int, float]:
    """Return how many bytes may be moved, and until when, once it is their turn; none under another limit."""
    while flow.limit is limit:
        now = time.monotonic()
        allowed, seconds = limit.take(now, wanted)
        if allowed:
            return allowed, now + seconds
        gevent.sleep(min(seconds, _LONGEST_WAIT))
    return 0, 0.0
