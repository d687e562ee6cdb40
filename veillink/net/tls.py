"""A connection that speaks TLS as a ``Stream``: ``ssl.SSLObject`` between a ``SocketStream`` and plain bytes.

Rule: both BIOs and the buffer are empty whenever a method returns or waits. So one of each serves all connections of a
process, and nothing is ever received that is not decrypted: ``unwrap`` would throw it away.
"""

import contextlib
import errno
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar

import gevent

from veillink.net.socket_stream import SocketStream, read_prefix
from veillink.net.stream import Spliceable

_Value = TypeVar("_Value")

# So many bytes of records and a part of one that came before always fit into 64 KiB of plain bytes.
_ROOM: Final = 48 * 1024
_RECORD: Final = 16 * 1024
_AT_ONCE: Final = 64 * 1024
# So much may wait to be sent when the engine has something to say by itself: 64 KiB that were sent, and the answers to
# the peer's KeyUpdates. Who sends these and reads nothing is cut.
_MOST_KEPT: Final = 96 * 1024
# After so many full reads in a row others have a turn: a source that is always ready would never let them.
_FULL_READS: Final = 3


class TlsError(OSError):
    """TLS with a peer has failed; the text says why, in OpenSSL's words.

    It has no errno: that of ``ssl.SSLError`` is a number of OpenSSL's, 1 and 8 and not EPERM and ENOEXEC.
    """


class TruncatedError(TlsError):
    """The peer has finished on TCP, but not in TLS: what it sent may have been cut by somebody else."""

    def __init__(self) -> None:
        super().__init__("truncated")


class TlsRoom:
    """Where the bytes of all TLS connections of a process pass through (a BIO never gives back what it once needed)."""

    __slots__ = ("buffer", "received", "to_send")

    def __init__(self) -> None:
        self.received = ssl.MemoryBIO()
        self.to_send = ssl.MemoryBIO()
        self.buffer = memoryview(bytearray(_ROOM))


class TlsStream:
    """A ``Stream`` that encrypts; ``handshake`` comes before everything else.

    Args:
        stream: to the peer; what it holds already is the beginning of TLS. It belongs to this one from now on.
        context: of the side that we are.
        room: of the process.
        name: as a client: the name to ask for (SNI), and to verify where the context does that; nothing for none.
    """

    __slots__ = ("_ending", "_engine", "_full_reads", "_refused", "_room", "_spoke", "_stream", "_unread", "broken")
    close_says_eof = False

    def __init__(self, stream: SocketStream, context: ssl.SSLContext, room: TlsRoom, name: str = "") -> None:
        serves = context.protocol is ssl.PROTOCOL_TLS_SERVER
        self._stream = stream
        self._room = room
        self._engine = context.wrap_bio(room.received, room.to_send, serves, None if serves else name or None)
        self._unread = b""
        self._ending: str | None = None  # once nothing more can be read: why not, nothing after a close_notify
        self._spoke = False
        self._refused = False
        self._full_reads = 0
        self.broken = ""

    # --- the handshake ---

    def handshake(self) -> None:
        """Agree with the peer on keys, and on who it is.

        Raises:
            EOFError: the peer has gone before we could answer anything.
            TlsError: it has failed. Where that was our verdict the peer has been told, and ``abort`` is a FIN.
            OSError: the connection is lost.
        """
        try:
            while not self._agrees():
                if not self._receive(self._room.buffer):
                    raise TlsError("closed in the handshake") if self._spoke else EOFError
        except ConnectionError:
            if self._spoke:
                raise
            raise EOFError from None
        finally:
            self._stream.stop_reading()
        self._decrypt(memoryview(b""))  # what came with the last of it

    def _agrees(self) -> bool:
        """Take the handshake on as far as it goes; return whether it is through."""
        try:
            self._engine.do_handshake()
        except ssl.SSLWantReadError:
            agreed = False
        except ssl.SSLError as error:
            raise self._failed(error) from None
        else:
            agreed = True
        self._spoke = self._spoke or bool(self._room.to_send.pending)
        if not self._hand_over():
            self._stream.stop_reading()
            self._stream.flush()
        return agreed

    @property
    def version(self) -> str:
        """The version that was agreed on, as ``TLSv1.3``."""
        return self._engine.version() or ""

    @property
    def alpn(self) -> str:
        """The protocol that was agreed on, or nothing."""
        return self._engine.selected_alpn_protocol() or ""

    @property
    def peer_names(self) -> tuple[str, ...]:
        """The names of the peer's certificate that was verified, the DNS ones first; none without one."""
        told: Any = self._engine.getpeercert() or {}
        subject = dict(pair[0] for pair in told.get("subject", ()))
        names = [value for kind, value in told.get("subjectAltName", ()) if kind == "DNS"]
        return (*names, *filter(None, (subject.get("commonName"),)))

    # --- reading ---

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; see ``Stream``.

        Raises:
            TruncatedError: the peer has finished without saying so in TLS.
            TlsError: what came is not what TLS may send.
            OSError: the connection is lost.
        """
        if self._unread:
            return self._take(buffer)
        room = self._room.buffer
        if len(buffer) < _AT_ONCE:
            room = room[: max(_RECORD, min(len(buffer), _ROOM))]  # who asks for less wants to hold less
        while self._ending is None:
            if self._full_reads >= _FULL_READS:
                self._full_reads = 0
                self._stream.stop_reading()
                gevent.sleep(0)
            count = self._receive(room)
            if not count:
                raise TruncatedError
            self._full_reads = self._full_reads + 1 if count == len(room) else 0
            if plain := self._decrypt(buffer):
                return plain
        if self._ending:
            raise TlsError(self._ending)
        return 0

    def _receive(self, room: memoryview) -> int:
        """Wait for records."""
        count = self._stream.recv_into(room)
        self._room.received.write(room[:count])
        return count

    def _decrypt(self, buffer: memoryview) -> int:
        """Decrypt all that was received, what the buffer has no room for too; return how much is in the buffer."""
        engine, received, filled = self._engine, self._room.received, 0
        try:
            while received.pending or engine.pending():
                if filled < len(buffer):
                    count: int = engine.read(len(buffer) - filled, buffer[filled:])  # type: ignore[assignment]
                    filled += count
                else:
                    part = engine.read(_RECORD)
                    count = len(part)
                    self._unread += part
                if not count:
                    self._ending = ""
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the same as no bytes, once we have finished ourselves
            self._ending = ""
        except ssl.SSLError as error:  # told after what came before it
            self._ending = str(self._failed(error))
        if self._ending is not None:
            received.read()
        if self._room.to_send.pending:
            self._answer()
        return filled

    def _answer(self) -> None:
        """Send what the engine says by itself, or keep it for the next who writes."""
        with contextlib.suppress(OSError):  # whoever reads on or writes finds out
            self._hand_over()
        if self._stream.kept > _MOST_KEPT:
            self._ending = "asks for answers that it does not read"

    def _take(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._unread))
        buffer[:count] = self._unread[:count]
        self._unread = self._unread[count:]
        return count

    def read_prefix(self, parse: Callable[[bytes], tuple[_Value, int] | None], limit: int) -> _Value:
        """Read what stands before the data; see ``Stream``."""
        value, rest = read_prefix(self, parse, limit)
        self._unread = rest + self._unread
        return value

    def stop_reading(self) -> None:
        """Let this greenlet wait for something else."""
        self._stream.stop_reading()

    def wait_readable(self) -> None:
        """Wait until there is something to read; see ``Stream``."""
        if not self._unread and self._ending is None:
            self._stream.wait_readable()

    def unread_bytes(self) -> int:
        """Return about how many bytes can be read without waiting; see ``Stream``."""
        return len(self._unread) or self._stream.unread_bytes()

    @property
    def waits_to_read(self) -> bool:
        """Whether a greenlet waits for something to read, seen from the hub."""
        return self._stream.waits_to_read

    def when_readable(self, callback: Callable[[], None]) -> None:
        """Call back once when there is something to read; see ``Stream``."""
        self._stream.when_readable(callback)

    # --- writing ---

    def send(self, data: memoryview) -> bool:
        """Encrypt all of it, hand over what there is room for, and keep the rest; see ``Stream``."""
        try:
            while data:
                data = data[self._engine.write(data) :]
        except ssl.SSLError as error:
            raise self._failed(error) from None
        return self._hand_over()

    def _hand_over(self) -> bool:
        """Hand to the kernel what is encrypted, if anything is; return whether it has had room for all."""
        return not self._room.to_send.pending or self._stream.send(memoryview(self._room.to_send.read()))

    def flush(self) -> None:
        """Hand over what ``send`` has kept; see ``Stream``."""
        self._stream.flush()

    def sendall(self, data: memoryview) -> None:
        """Encrypt it and hand all of it over; see ``Stream``."""
        data = memoryview(bytes(data))  # the caller's buffer serves others while this one waits
        while data:
            if not self.send(data[:_AT_ONCE]):
                self.flush()
            data = data[_AT_ONCE:]

    def send_eof(self) -> None:
        """Finish sending, in TLS and on TCP; see ``Stream``.

        A peer that has finished and has everything may have closed: then it answers a close_notify with RST, or has
        sent one as it closed, because it never reads the tickets of TLS 1.3. That is no error.
        """
        try:
            self._engine.unwrap()
        except ssl.SSLWantReadError:  # that of the peer has not come yet
            pass
        except ssl.SSLError as error:
            raise self._failed(error) from None
        needs_nothing = self._ending == "" and not self.unacked_bytes()
        try:
            if not self._hand_over():
                self.flush()
            self._stream.send_eof()
        except OSError as error:
            if not needs_nothing and error.errno != errno.ENOTCONN:  # as shutdown says after such an RST
                raise

    # --- the end ---

    def _failed(self, error: ssl.SSLError) -> TlsError:
        """Send the alert, if it is ours, and return the error as one of this module."""
        self._room.received.read()
        self._refused = self._refused or bool(self._room.to_send.pending)
        with contextlib.suppress(OSError):  # it has gone
            self._hand_over()
        if isinstance(error, ssl.SSLCertVerificationError):
            return TlsError(error.verify_message)
        return TlsError(error.reason or str(error))

    def abort(self) -> None:
        """Close with RST; see ``Stream``. With FIN after an alert of ours, which an RST would overtake."""
        if self._refused:
            self._stream.close()
        else:
            self._stream.abort()

    def close(self) -> None:
        """Close in order (FIN). Closing twice is harmless."""
        self._stream.close()

    # --- what is underneath ---

    @property
    def transport(self) -> SocketStream:
        """The socket."""
        return self._stream

    def unacked_bytes(self) -> int:
        """Return about how many bytes for the peer have not arrived there, encrypted; see ``Stream``."""
        return self._stream.unacked_bytes()

    def raw(self) -> Spliceable | None:
        """Return nothing: the kernel does not encrypt."""
        return None
