"""Make sockets: those that listen, those that connect, those that were accepted."""

import _socket
import errno
import os
import resource
import socket
from typing import Any, Final

from veillink.model import Address

_Options = tuple[tuple[int, int, int], ...]

# Urgent data stays in line, otherwise its byte is lost (tcp(7)); small messages leave at once.
_IN_LINE: Final = (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
OPTIONS: Final[_Options] = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), _IN_LINE)
# Without it nobody can listen on a port that the kernel has given to one of our own legs, nor for the minute that the
# leg stays in TIME_WAIT. It does not change which ports the kernel gives.
_CONNECT_OPTIONS: Final[_Options] = (*OPTIONS, (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1))
_LONGEST_RTO_MAX_MS: Final = 120_000
_TCP_RTO_MAX_MS: Final = 44  # linux/tcp.h, from Linux 6.15; not named by Python


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
