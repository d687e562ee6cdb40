"""Make sockets that listen.

Rule: an address that another program has is never taken from it, nor its file.
"""

import contextlib
import errno
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Final

from veillink.model import Address, RuleOptions
from veillink.net.sockets import OPTIONS, numeric, set_keepalive

# The kernel caps it at net.core.somaxconn. With gevent's 128 a burst of 2,000 connects took over 4 s, with this 0.5 s.
BACKLOG: Final = 4096


# IP_FREEBIND and IPV6_FREEBIND of linux/in.h and in6.h; not named by Python 3.11.
_FREEBIND: Final = {socket.AF_INET: (socket.IPPROTO_IP, 15), socket.AF_INET6: (socket.IPPROTO_IPV6, 78)}


_HAS_FREEBIND: Final = sys.platform == "linux"


def listen(address: Address, options: RuleOptions, *, reuse_port: bool = False, ahead: bool = False) -> socket.socket:
    """Return a listening socket.

    Args:
        address: numeric, or with an empty host for every address of both families (``::`` is IPv6 alone), or a UNIX
            socket: its file is removed when the socket is closed, and replaced if nobody listens there any more.
        options: of its rule; ``keepalive`` and ``socket_mode`` count.
        reuse_port: other processes of this user may listen there too, and the kernel gives each a part of the clients
            (SO_REUSEPORT in socket(7)); a UNIX socket cannot be shared.
        ahead: also at an address that this host does not have yet, where the kernel can do that.

    Raises:
        OSError: the address cannot be had.
    """
    if address.is_unix:
        return UnixListener(address.path, options.socket_mode)
    sock = _bind(address, reuse_port=reuse_port, ahead=ahead)
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
        _bind(address, reuse_port=False, ahead=True).close()
    except OSError:
        with contextlib.suppress(OSError):
            _bind(address, reuse_port=True, ahead=True).close()
            return True
    return False


def _bind(address: Address, *, reuse_port: bool, ahead: bool = False) -> socket.socket:
    """Return a socket that is bound to an address; one without a host has both families, or IPv4 without IPv6."""
    if address.host:
        return _bind_to(address, dual=False, reuse_port=reuse_port, ahead=ahead)
    try:
        return _bind_to(Address("::", address.port), dual=True, reuse_port=reuse_port)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bind_to(Address("0.0.0.0", address.port), dual=False, reuse_port=reuse_port)


def _bind_to(address: Address, *, dual: bool, reuse_port: bool, ahead: bool = False) -> socket.socket:
    family, where = numeric(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
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
    for option in OPTIONS:
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
