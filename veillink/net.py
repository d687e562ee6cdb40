"""Make sockets that listen and sockets that connect, and wrap a connected one as a ``Stream``.

Rule: at most one greenlet reads from a stream and at most one writes to it, and both have left it before it is closed
(a watcher on a closed descriptor would fire for whoever gets that number next).
"""

import _socket
import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any, Final

from gevent.hub import get_hub, getcurrent

from .model import Address
from .pipes import PIPE_SIZE, Pipe

# The kernel caps it at net.core.somaxconn. With gevent's 128 a burst of 2,000 connects took over 4 s, with this 0.5 s.
BACKLOG: Final = 4096

_Options = tuple[tuple[int, int, int], ...]

# Small messages leave at once; urgent data stays in line, otherwise its byte is lost (tcp(7)).
_OPTIONS: Final[_Options] = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
)
_READ: Final = 1
_WRITE: Final = 2
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_SPLICE_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
_LONGEST_RTO_MAX_MS: Final = 120_000
_TCP_RTO_MAX_MS: Final = 44  # linux/tcp.h, from Linux 6.15; not named by Python


def error_name(error: OSError) -> str:
    """Return the errno's name (``ECONNREFUSED``), or the error's text where it has none."""
    return errno.errorcode.get(error.errno or 0, str(error))


def raise_fd_limit() -> int:
    """Raise the soft limit on open files to the hard one and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def _supported(option: int, value: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError:
            return False
        return True


_HAS_RTO_MAX: Final = _supported(_TCP_RTO_MAX_MS, 10_000)


def _keepalive_options(seconds: float) -> _Options:
    tcp = socket.IPPROTO_TCP
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(seconds > 0))]
    if seconds and hasattr(socket, "TCP_KEEPIDLE"):
        options += [
            (tcp, socket.TCP_KEEPIDLE, round(seconds)),
            (tcp, socket.TCP_KEEPINTVL, max(1, round(seconds / 6))),
            (tcp, socket.TCP_KEEPCNT, 3),
        ]
    if _HAS_RTO_MAX:
        longest = round(seconds * 100) if seconds else _LONGEST_RTO_MAX_MS
        options.append((tcp, _TCP_RTO_MAX_MS, min(_LONGEST_RTO_MAX_MS, max(1000, longest))))
    return tuple(options)


def set_keepalive(sock: _socket.socket, seconds: float) -> None:
    """Find out when the peer has vanished.

    Args:
        sock: a connection, or a listener, from which accepted ones inherit it (four system calls saved for each).
        seconds: of silence after which a peer is asked whether it is still there; three unanswered questions, a sixth
            of that time apart, end the connection. 0 asks never.

    Raises:
        OSError: the connection is gone already.

    Source: tcp(7), socket(7). TCP_USER_TIMEOUT is not used: it also ends a living reader that pauses with a full window
    (measured: a limit of 3 s, dead after 3.3 s). The longest pause between two retransmissions is limited instead where
    the kernel can do that, so that 15 of them (net.ipv4.tcp_retries2) to a vanished peer take about 1.2 times as long
    and not a quarter of an hour.
    """
    for option in _keepalive_options(seconds):
        sock.setsockopt(*option)


def listen(address: Address, keepalive: float) -> socket.socket:
    """Return a listening socket.

    Args:
        address: numeric, or with an empty host for every address of both families. ``::`` is IPv6 alone.
        keepalive: seconds, see ``set_keepalive``.

    Raises:
        OSError: the address cannot be had.
    """
    _reset_watch()  # takes its descriptor now, not with the first connection
    if address.host:
        return _listen(address, keepalive, dual=False)
    try:
        return _listen(Address("::", address.port), keepalive, dual=True)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _listen(Address("0.0.0.0", address.port), keepalive, dual=False)  # a host without IPv6


def _listen(address: Address, keepalive: float, *, dual: bool) -> socket.socket:
    family, where = numeric(address.host, address.port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        for option in _OPTIONS:
            sock.setsockopt(*option)
        set_keepalive(sock, keepalive)
        sock.bind(where)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def numeric(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """Return the family and socket address of an IP literal (an IPv6 zone is looked up among the interfaces).

    Raises:
        OSError: there is no interface of that name.
    """
    if ":" not in host:
        return socket.AF_INET, (host, port)
    literal, _, zone = host.partition("%")
    scope = 0 if not zone else int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return socket.AF_INET6, (literal, port, 0, scope)


def readable(peer: tuple[Any, ...]) -> Address:
    """Return a peer's socket address as it is shown: IPv4 clients of a dual-stack listener as IPv4."""
    host: str = peer[0]
    return Address(host.removeprefix("::ffff:") if "." in host else host, peer[1])


def adopt(fd: int, family: int) -> _socket.socket:
    """Take over an accepted descriptor (a bare socket: Python's class around it costs 1 µs and 100 bytes)."""
    sock = _socket.socket(family, socket.SOCK_STREAM, 0, fd)
    sock.setblocking(False)
    return sock


def start_connect(family: int, where: tuple[Any, ...]) -> _socket.socket:
    """Begin to connect and return the socket, which becomes writable when it is decided.

    Raises:
        OSError: it failed at once.
    """
    sock = _socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        for option in _OPTIONS:
            sock.setsockopt(*option)
        code = sock.connect_ex(where)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def is_connected(sock: _socket.socket) -> bool:
    """Return whether a connect that was started has succeeded; on loopback it often has at once.

    A connect to a free port of this host's own ephemeral range can meet itself half-way and be "connected" to nobody
    (about once in 400): that is a refused connect.

    Raises:
        OSError: it has failed.
    """
    try:
        peer = sock.getpeername()
    except OSError:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code)) from None
        return False
    if sock.getsockname() == peer:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
    return True


def _wait(watcher: Any) -> None:
    """Wait until the watcher fires: ``hub.wait`` without its Waiter, whose C frames cost an idle stream 0.5 KiB.

    Nobody else may switch to the waiting greenlet; throwing is fine.
    """
    watcher.start(getcurrent().switch)
    try:
        get_hub().switch()
    finally:
        watcher.stop()


class Stream:
    """A connected peer: bytes in, bytes out, and each way in which TCP can end.

    Args:
        sock: connected and non-blocking; the stream owns it from now on.
    """

    __slots__ = ("_fd", "_read_dry", "_reader", "_socket", "_watched", "_writer", "broken")

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._reader: Any = get_hub().loop.io(self._fd, _READ)
        self._writer: Any = None
        self._read_dry = False
        self._watched = False
        self.broken = ""
        """The errno's name once a send has found the peer gone."""

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes and return how many were read; 0 once the peer has finished.

        Raises:
            OSError: the connection is lost.
        """
        while True:
            if self._read_dry:
                self._reader.start(getcurrent().switch)  # as _wait does, without its frame
                try:
                    get_hub().switch()
                finally:
                    self._reader.stop()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                self._read_dry = True  # waiting here would keep the exception alive: 300 bytes for an idle stream
            else:
                # A short read has emptied the queue: asking again now would only cost an EAGAIN.
                self._read_dry = count < len(buffer)
                return count

    @property
    def waits_to_read(self) -> bool:
        """Whether a greenlet waits in ``recv_into`` for bytes."""
        return bool(self._reader.active)

    def when_readable(self, call: Callable[[], None]) -> None:
        """Call once, from the hub, when there is something to read. Nobody may read until then."""
        self._reader.start(self._readable, call)

    def _readable(self, call: Callable[[], None]) -> None:
        self._reader.stop()
        call()

    def sendall(self, data: memoryview) -> None:
        """Hand all of it to the kernel, waiting for room. Only what does not fit at once is copied.

        Raises:
            OSError: the connection is lost.
        """
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return
        rest = memoryview(bytes(data[sent:]))  # the caller's buffer serves others while this one waits
        while rest:
            self._wait_writable()
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                continue

    def wait_readable(self) -> None:
        """Wait until there is something to read, or the peer has finished."""
        _wait(self._reader)

    def splice_into(self, pipe: Pipe) -> int:
        """Move waiting bytes into an empty pipe and return how many.

        Where urgent data is next, the kernel says 0 or EAGAIN: neither means that the peer has finished.

        Raises:
            BlockingIOError: nothing waits that can be moved so.
            OSError: the connection is lost.
        """
        pipe.held = os.splice(self._fd, pipe.entry, PIPE_SIZE, flags=_SPLICE_FLAGS)
        return pipe.held

    def splice_from(self, pipe: Pipe) -> None:
        """Hand all that the pipe holds to the kernel, waiting for room.

        Raises:
            OSError: the connection is lost.
        """
        while pipe.held:
            try:
                pipe.held -= os.splice(pipe.exit, self._fd, pipe.held, flags=_SPLICE_FLAGS)
                continue
            except BlockingIOError:
                pass
            self._wait_writable()

    def _wait_writable(self) -> None:
        if self._writer is None:
            self._writer = get_hub().loop.io(self._fd, _WRITE)
        _wait(self._writer)

    def send_eof(self) -> None:
        """Say that we have finished sending; receiving goes on.

        Raises:
            OSError: the connection is lost.
        """
        self._socket.shutdown(socket.SHUT_WR)

    def unsent(self) -> int:
        """Return how many bytes the peer has not yet acknowledged (tcp(7), SIOCOUTQ)."""
        answer = fcntl.ioctl(self._fd, termios.TIOCOUTQ, b"\0\0\0\0")
        return int.from_bytes(answer, sys.byteorder)

    def keep_alive(self, seconds: float) -> None:
        """Find out when the peer has vanished; see ``set_keepalive``."""
        with contextlib.suppress(OSError):  # it is gone already, which the next read tells
            set_keepalive(self._socket, seconds)

    def on_reset(self, told: Callable[[], None]) -> None:
        """Call ``told`` from the hub when the connection is reset, even while nobody reads. The last given counts."""
        self._watched = True
        _reset_watch().add(self._fd, told)

    def abort(self) -> None:
        """Close with RST: what is still unsent is thrown away, and the peer knows that the connection was cut."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):  # it is gone already
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close()

    def close(self) -> None:
        """Close in order (FIN). Closing twice is harmless."""
        if self._socket.fileno() < 0:
            return
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
        if self._watched:
            _reset_watch().forget(self._fd)
        self._socket.close()


class _ResetWatch:
    """Sees resets of connections that nobody reads from at the moment.

    libev can only wait for readable or writable, and a stream with unread data is always readable. An epoll set of our
    own with an empty event mask reports EPOLLERR and EPOLLHUP alone, at no cost while nothing happens (epoll_ctl(2)).
    EPOLLHUP by itself is two FINs that have met; edge-triggered, it is told once.
    """

    def __init__(self) -> None:
        self._told: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self._watcher = get_hub().loop.io(self._epoll.fileno(), _READ, ref=False)
        self._watcher.start(self._report)

    def add(self, fd: int, told: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):  # no more watches to be had (epoll(7)): it is noticed by the next write
            if fd in self._told:
                self._epoll.modify(fd, select.EPOLLET)  # tells again of a reset that was there before
            else:
                self._epoll.register(fd, select.EPOLLET)
            self._told[fd] = told

    def forget(self, fd: int) -> None:
        self._told.pop(fd, None)  # closing the descriptor takes it out of the set

    def _report(self) -> None:
        for fd, events in self._epoll.poll(0):
            if events & select.EPOLLERR and fd in self._told:
                self._told[fd]()


class _NoResetWatch:
    """Without epoll a reset is noticed with the next read or write."""

    def add(self, fd: int, told: Callable[[], None]) -> None: ...

    def forget(self, fd: int) -> None: ...


_watch: "_ResetWatch | _NoResetWatch | None" = None


def _reset_watch() -> "_ResetWatch | _NoResetWatch":
    global _watch
    if _watch is None:
        _watch = _ResetWatch() if hasattr(select, "epoll") else _NoResetWatch()
    return _watch
