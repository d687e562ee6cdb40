"""A connected peer as relay and session know it: bytes in, bytes out, and each way in which a connection can end.

Rule: at most one greenlet reads from a stream and at most one writes to it, and both have left it before it is closed
(a watcher on a closed descriptor would fire for whoever gets that number next).
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from veillink.model import Address
from veillink.net.peer_watch import PeerWatch
from veillink.net.pipes import Pipe

_Value = TypeVar("_Value")


class Transport(Protocol):
    """The kernel's facts about the socket under a stream."""

    own: Any
    """Its socket address, where we have connected it; taken away by who has read it."""

    def own_address(self) -> Address:
        """Return the address that the peer has come to."""

    def peer_address(self) -> Address:
        """Return the address of the peer.

        Raises:
            OSError: it has gone.
        """

    def peer_process(self) -> int:
        """Return the process that has connected to our UNIX socket (SO_PEERCRED in unix(7)), 0 where nobody tells."""

    def keep_alive(self, seconds: float) -> None:
        """Find out when the peer has vanished; see ``set_keepalive``."""

    def was_reset(self) -> bool:
        """Return whether it has been reset already; this is told once (SO_ERROR in socket(7))."""

    def on_reset(self, watch: PeerWatch, callback: Callable[[], None]) -> None:
        """Call back from the hub when the connection is reset, even while nobody reads. The last given counts."""

    def bytes_a_reset_would_lose(self) -> int:
        """Return how many bytes ``abort`` would take from the peer: on a UNIX socket none, its own queue has them."""


class Stream(Protocol):
    """A connected peer. What was read and not used stays inside, so that nobody downstream can lose it."""

    broken: str
    """The errno's name once a send has found the peer gone."""

    close_says_eof: bool
    """Whether ``close`` tells the peer that we have finished; else only ``send_eof`` does."""

    @property
    def transport(self) -> Transport:
        """What the kernel knows of the socket underneath."""

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes and return how many were read; 0 once the peer has finished.

        Until ``stop_reading`` whatever comes wakes this greenlet, wherever it waits: whoever is to wait for something
        else calls that first. Starting and stopping the watcher for each wait took a seventh of what a request costs.

        Raises:
            OSError: the connection is lost.
        """

    def stop_reading(self) -> None:
        """Let this greenlet wait for something else."""

    def wait_readable(self) -> None:
        """Wait until there is something to read, or the peer has finished. This greenlet has stopped reading."""

    def unread_bytes(self) -> int:
        """Return about how many bytes wait to be read."""

    @property
    def waits_to_read(self) -> bool:
        """Whether a greenlet waits for something to read, seen from the hub."""

    def when_readable(self, callback: Callable[[], None]) -> None:
        """Call back once, from the hub, when there is something to read. Nobody may read until then."""

    def read_prefix(self, parse: Callable[[bytes], tuple[_Value, int] | None], limit: int) -> _Value:
        """Read what stands before the data, and return what it says. What was read beyond it stays in the stream.

        Args:
            parse: returns what the bytes so far say and how many it has used, or ``None`` when it needs more. What it
                raises passes through.
            limit: the most bytes that it may need.

        Raises:
            EOFError: the peer has finished before; the bytes so far are its argument.
            ValueError: it was not whole within the limit.
            OSError: the connection is lost.
        """

    def send(self, data: memoryview) -> bool:
        """Hand to the kernel what it has room for, keep the rest, and return whether it has all.

        If it has not, ``flush`` comes next: what is kept is never sent by itself.

        Raises:
            OSError: the connection is lost.
        """

    def flush(self) -> None:
        """Hand to the kernel what ``send`` has kept, waiting for room.

        Raises:
            OSError: the connection is lost.
        """

    def sendall(self, data: memoryview) -> None:
        """Hand all of it to the kernel, waiting for room.

        Raises:
            OSError: the connection is lost.
        """

    def send_eof(self) -> None:
        """Say that we have finished sending; receiving goes on.

        Raises:
            OSError: the connection is lost.
        """

    def unacked_bytes(self) -> int:
        """Return about how many bytes for the peer have not arrived there; 0 says that it has everything.

        Raises:
            OSError: the connection is gone.
        """

    def raw(self) -> "Spliceable | None":
        """Return the socket for splice(2), if the stream is plain and holds no bytes."""

    def abort(self) -> None:
        """Close with RST: what is still unsent is thrown away, and the peer knows that the connection was cut."""

    def close(self) -> None:
        """Close in order (FIN). Closing twice is harmless."""


class Spliceable(Stream, Protocol):
    """A stream that can be an end of splice(2), which moves bytes without showing them to anybody."""

    def splice_into(self, pipe: Pipe, most: int) -> int:
        """Move waiting bytes into an empty pipe and return how many, at most so many.

        Where urgent data is next, the kernel says 0 or EAGAIN: neither means that the peer has finished.

        Raises:
            BlockingIOError: nothing waits that can be moved so.
            OSError: the connection is lost.
        """

    def splice_from(self, pipe: Pipe) -> None:
        """Hand all that the pipe holds to the kernel, waiting for room.

        Raises:
            OSError: the connection is lost.
        """
