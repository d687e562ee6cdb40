"""Make sockets: those that listen, those that connect, those that were accepted."""

import _socket
import contextlib
import errno
import os
import resource
import socket
import stat
import sys
from pathlib import Path
from typing import Any, Final

from .model import Address, RuleOptions

# The kernel caps it at net.core.somaxconn. With gevent's 128 a burst of 2,000 connects took over 4 s, with this 0.5 s.
BACKLOG: Final = 4096

_Options = tuple[tuple[int, int, int], ...]

# Urgent data stays in line, otherwise its byte is lost (tcp(7)); small messages leave at once.
_IN_LINE: Final = (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
_OPTIONS: Final[_Options] = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), _IN_LINE)
# Without it nobody can listen on a port that the kernel has given to one of our own legs, nor for the minute that the
# leg stays in TIME_WAIT. It does not change which ports the kernel gives.
_CONNECT_OPTIONS: Final[_Options] = (*_OPTIONS, (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1))
_LONGEST_RTO_MAX_MS: Final = 120_000
_TCP_RTO_MAX_MS: Final = 44  # linux/tcp.h, from Linux 6.15; not named by Python
# IP_FREEBIND and IPV6_FREEBIND of linux/in.h and in6.h; not named by Python 3.11.
_FREEBIND: Final = {socket.AF_INET: (socket.IPPROTO_IP, 15), socket.AF_INET6: (socket.IPPROTO_IPV6, 78)}
_HAS_FREEBIND: Final = sys.platform == "linux"


def error_name(error: OSError) -> str:
    """Return the errno's name (``ECONNREFUSED``), or the error's text where it has none."""
    return errno.errorcode.get(error.errno or 0, str(error))


def raise_fd_limit() -> int:
    """Raise the soft limit on open files to the hard one, if the kernel lets us, and return it.

    It does not where the hard one is above fs.nr_open, as in a container with limits of another host (EPERM in
    setrlimit(2), which Python makes a ValueError).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        hard = soft
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


def listen(address: Address, options: RuleOptions, *, shared: bool = False, ahead: bool = False) -> socket.socket:
    """Return a listening socket.

    Args:
        address: numeric, or with an empty host for every address of both families (``::`` is IPv6 alone), or a UNIX
            socket: its file is removed when the socket is closed, and replaced if nobody listens there any more.
        options: of its rule; ``keepalive`` and ``socket_mode`` count.
        shared: other processes of this user may listen there too, and the kernel gives each a part of the clients
            (SO_REUSEPORT in socket(7)); a UNIX socket cannot be shared.
        ahead: also at an address that this host does not have yet, where the kernel can do that.

    Raises:
        OSError: the address cannot be had.
    """
    if address.is_unix:
        return UnixListener(address.path, options.socket_mode)
    sock = _bind(address, shared=shared, ahead=ahead)
    try:
        sock.setblocking(False)
        _set_inherited(sock, options.keepalive)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def listens_ahead(sock: socket.socket) -> bool:
    """Return whether it listens at an address that this host did not have when it was opened."""
    return _HAS_FREEBIND and sock.family in _FREEBIND and bool(sock.getsockopt(*_FREEBIND[sock.family]))


def displaced(sock: socket.socket, address: Address) -> str:
    """Return why nobody reaches this listener of ours at its address any more, or nothing.

    A UNIX socket lives on without its file, and a link-local address on an interface that has gone; an interface made
    anew has the same name and another index.
    """
    if isinstance(sock, UnixListener):
        return sock.displaced()
    zone = address.host.partition("%")[2]
    if not zone or zone.isdigit():
        return ""
    try:
        index = socket.if_nametoindex(zone)
    except OSError:
        return "its interface has gone"
    return "" if index == sock.getsockname()[3] else "its interface was made anew"


def is_shared(address: Address) -> bool:
    """Return whether another process of this user listens there and would share its clients with whoever joins it."""
    if address.is_unix:
        return False
    try:
        _bind(address, shared=False, ahead=True).close()
    except OSError:
        with contextlib.suppress(OSError):
            _bind(address, shared=True, ahead=True).close()
            return True
    return False


def _bind(address: Address, *, shared: bool, ahead: bool = False) -> socket.socket:
    """Return a socket that is bound to an address; one without a host has both families, or IPv4 without IPv6."""
    if address.host:
        return _bind_to(address, dual=False, shared=shared, ahead=ahead)
    try:
        return _bind_to(Address("::", address.port), dual=True, shared=shared)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bind_to(Address("0.0.0.0", address.port), dual=False, shared=shared)


def _bind_to(address: Address, *, dual: bool, shared: bool, ahead: bool = False) -> socket.socket:
    family, where = numeric(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        try:
            sock.bind(where)
        except OSError as error:
            if not ahead or error.errno != errno.EADDRNOTAVAIL or not _may_bind_ahead(sock):
                raise
            sock.bind(where)
    except BaseException:
        sock.close()
        raise
    return sock


def _may_bind_ahead(sock: socket.socket) -> bool:
    if not _HAS_FREEBIND:
        return False
    try:
        sock.setsockopt(*_FREEBIND[sock.family], 1)
    except OSError:  # an old kernel
        return False
    return True


def _set_inherited(sock: socket.socket, keepalive: float) -> None:
    """Set what every accepted socket inherits from its listener."""
    for option in _OPTIONS:
        sock.setsockopt(*option)
    set_keepalive(sock, keepalive)


def take_over(sock: socket.socket, keepalive: float) -> socket.socket:
    """Return a copy of a listening socket that the service manager keeps open, with our options set."""
    copy = sock.dup()
    copy.setblocking(False)
    if copy.family != socket.AF_UNIX:
        _set_inherited(copy, keepalive)
    return copy


class UnixListener(socket.socket):
    """Listens on a UNIX socket and owns its file: nobody else's is ever removed."""

    def __init__(self, path: str, mode: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._path = path
        self._file: tuple[int, int] | None = None
        try:
            _remove_stale(path)
            before = os.umask(~mode & 0o777)  # not chmod afterwards: somebody could connect in between
            try:
                self.bind(path)
            finally:
                os.umask(before)
            self._file = _file_at(path)
            self.listen(BACKLOG)
        except BaseException:
            self.close()
            raise

    def set_mode(self, mode: int) -> None:
        """Change who may connect."""
        if self._file is not None and self._file == _file_at(self._path):
            Path(self._path).chmod(mode)

    def displaced(self) -> str:
        """Return what has become of its file, or nothing while that is there."""
        found = _file_at(self._path)
        if found == self._file:
            return ""
        return "another file is in its place" if found else "its file was removed"

    def close(self) -> None:
        """Close it, and remove its file unless somebody has put another one there."""
        if self._file is not None and self._file == _file_at(self._path):
            with contextlib.suppress(OSError):
                Path(self._path).unlink()
        self._file = None
        super().close()


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    """Remove a UNIX socket that nobody listens on.

    Raises:
        OSError: somebody does, or it is no socket, or cannot be removed.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file that is no socket is there")
    # A connect of another type finds out whether the socket lives (EPROTOTYPE) without being a client there.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        code = probe.connect_ex(path)
    if code in (0, errno.EPROTOTYPE):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    if code != errno.ECONNREFUSED:
        raise OSError(code, os.strerror(code))
    Path(path).unlink()


def numeric(address: Address) -> tuple[int, Any]:
    """Return the family and socket address of an IP literal or UNIX socket (an IPv6 zone is looked up as interface).

    Raises:
        OSError: there is no interface of that name (ENODEV).
    """
    host, port = address
    if ":" not in host:
        return socket.AF_INET, (host, port)
    if address.is_unix:
        return socket.AF_UNIX, address.path
    literal, _, zone = host.partition("%")
    return socket.AF_INET6, (literal, port, 0, _scope(zone) if zone else 0)


def _scope(zone: str) -> int:
    if zone.isdigit():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except OSError:  # Python gives it no number
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None


def plain_host(host: str) -> str:
    """Return the host of a socket address as it is shown: IPv4 clients of a dual-stack listener as IPv4."""
    return host.removeprefix("::ffff:") if "." in host else host


def readable(peer: Any) -> Address:
    """Return a peer's socket address as it is shown; see ``plain_host``."""
    if not isinstance(peer, tuple):
        return Address(f"unix:{os.fsdecode(peer)}", 0)
    return Address(plain_host(peer[0]), peer[1])


def adopt(fd: int, family: int) -> _socket.socket:
    """Take over an accepted descriptor (a bare socket: Python's class around it costs 1 µs and 100 bytes)."""
    sock = _socket.socket(family, socket.SOCK_STREAM, 0, fd)
    sock.setblocking(False)
    if family == socket.AF_UNIX:  # which inherits nothing
        sock.setsockopt(*_IN_LINE)
    return sock


def start_connect(family: int, where: Any) -> _socket.socket:
    """Begin to connect and return the socket, which becomes writable when it is decided.

    Raises:
        BlockingIOError: the queue of a UNIX socket is full.
        OSError: it failed at once.
    """
    sock = _socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        for option in (_IN_LINE,) if family == socket.AF_UNIX else _CONNECT_OPTIONS:
            sock.setsockopt(*option)
        code = sock.connect_ex(where)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def connected_from(sock: _socket.socket) -> Any:
    """Return our own socket address if a connect that was started has succeeded, else ``None``.

    On loopback it often has at once.

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
        return None
    own = sock.getsockname()
    if own == peer:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
    return own
