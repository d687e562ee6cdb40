"""Sockets that listen."""

import errno
import os
import socket as stdlib
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from gevent import socket

from tests.net.peers import accept_now
from tests.net.test_unix import loop
from tests.sockets import Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, free_port
from tests.system.namespace import Network
from veillink.model import Address, RuleOptions
from veillink.net import listening
from veillink.net import sockets as net

OPTIONS = RuleOptions()


def link_local() -> str:
    """Return a link-local address of this host with its zone, or nothing."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, *_, interface = line.split()
        if digits.startswith("fe80"):
            return f"{stdlib.inet_ntop(stdlib.AF_INET6, bytes.fromhex(digits))}%{interface}"
    return ""


@pytest.mark.parametrize(
    ("host", "ipv4", "ipv6"),
    [("", True, True), ("::", False, True), ("0.0.0.0", True, False), (HOST, True, False), ("::1", False, True)],
)
def test_a_listener_takes_the_families_it_was_asked_for(
    host: str, ipv4: bool, ipv6: bool, sockets: Sockets, listeners: list[socket.socket]
) -> None:
    listeners.append(listening.listen(Address(host, 0), OPTIONS))
    for client_host, taken in ((HOST, ipv4), ("::1", ipv6)):
        client = Address(client_host, address_of(listeners[0]).port)
        if taken:
            sockets.client(client)
        else:
            with pytest.raises(ConnectionRefusedError):
                sockets.client(client)


def test_both_families_may_have_a_listener_of_their_own(listeners: list[socket.socket]) -> None:
    port = free_port()
    listeners.extend(listening.listen(Address(host, port), OPTIONS) for host in ("::", "0.0.0.0"))
    assert [address_of(sock).port for sock in listeners] == [port, port]


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a host without IPv6."""

    def socket_without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6 here")
        return stdlib.socket(family, kind)

    monkeypatch.setattr(net, "socket", SimpleNamespace(**vars(stdlib) | {"socket": socket_without_ipv6}))


@pytest.mark.usefixtures("no_ipv6")
def test_a_host_without_ipv6_listens_on_ipv4(sockets: Sockets, listeners: list[socket.socket]) -> None:
    listeners.append(listening.listen(Address("", 0), OPTIONS))
    sockets.client(Address(HOST, address_of(listeners[0]).port))


def test_a_link_local_address_is_listened_on_in_its_zone(listeners: list[socket.socket]) -> None:
    host = link_local() or pytest.skip("this host has no link-local address")
    listeners.append(listening.listen(Address(host, 0), OPTIONS))
    where = listeners[0].getsockname()
    assert where[3] == stdlib.if_nametoindex(host.partition("%")[2])


def test_a_taken_address_is_an_error_and_leaves_nothing_open(sockets: Sockets) -> None:
    taken = address_of(sockets.listener())
    before = open_files()
    with pytest.raises(OSError, match="in use"):
        listening.listen(taken, OPTIONS)
    assert open_files() == before


@pytest.mark.parametrize("host", ["", HOST, "::1"])
def test_those_who_share_an_address_share_its_clients_and_others_cannot_have_it(
    host: str, sockets: Sockets, listeners: list[socket.socket]
) -> None:
    address = Address(host, free_port())
    assert not listening.is_shared(address)
    listeners.extend(listening.listen(address, RuleOptions(), reuse_port=True) for _ in range(2))
    assert listening.is_shared(address)
    with pytest.raises(OSError, match="in use"):
        listening.listen(address, RuleOptions())
    for _ in range(60):
        sockets.client(Address(host or HOST, address.port))
    for sock in listeners:
        accepted, _ = stdlib.socket.accept(sock)
        accepted.close()


@pytest.mark.usefixtures("no_ipv6")
def test_also_a_host_without_ipv6_finds_what_is_shared(listeners: list[socket.socket]) -> None:
    address = Address("", free_port())
    assert not listening.is_shared(address)
    listeners.append(listening.listen(address, RuleOptions(), reuse_port=True))
    assert listening.is_shared(address)


def test_an_address_of_one_alone_is_not_shared(listeners: list[socket.socket]) -> None:
    address = Address(HOST, free_port())
    listeners.append(listening.listen(address, RuleOptions()))
    assert not listening.is_shared(address)
    with pytest.raises(OSError, match="in use"):
        listening.listen(address, RuleOptions(), reuse_port=True)
    assert not listening.is_shared(Address("unix:/nowhere", 0))


def test_a_port_can_be_listened_on_again_at_once(sockets: Sockets, listeners: list[socket.socket]) -> None:
    first = listening.listen(Address(HOST, 0), OPTIONS)
    client = sockets.client(address_of(first))
    accepted = eventually(lambda: accept_now(first))
    accepted.close()  # the side that closes first keeps the port in TIME_WAIT
    assert client.recv(1) == b""
    client.close()
    address = address_of(first)
    first.close()
    listeners.append(listening.listen(address, OPTIONS))


@pytest.mark.parametrize("closed", [False, True], ids=["live", "TIME_WAIT"])
def test_a_port_that_one_of_our_own_legs_has_can_be_listened_on(
    closed: bool, sockets: Sockets, listeners: list[socket.socket]
) -> None:
    with Network() as network, network.inside():  # elsewhere others have left the same port in TIME_WAIT
        listener = sockets.listener()
        leg = net.start_connect(*net.numeric(address_of(listener)))
        accepted = sockets.accept(listener)
        own = Address(*leg.getsockname())
        if closed:
            leg.close()  # the side that closes first keeps the port in TIME_WAIT
            assert accepted.recv(1) == b""
            accepted.close()
        listeners.append(listening.listen(own, OPTIONS))
        leg.close()


@pytest.mark.skipif(not listening._HAS_FREEBIND, reason="needs Linux")
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_this_host_does_not_have_yet_is_listened_on(host: str, listeners: list[socket.socket]) -> None:
    address = Address(host, free_port())
    with pytest.raises(OSError, match="Cannot assign") as raised:
        listening.listen(address, OPTIONS)
    assert raised.value.errno == errno.EADDRNOTAVAIL
    listeners.append(listening.listen(address, OPTIONS, ahead=True))
    assert listening.listens_ahead(listeners[0])
    with pytest.raises(OSError, match="in use"):
        listening.listen(address, OPTIONS, ahead=True)
    listeners.append(listening.listen(Address(HOST, 0), OPTIONS, ahead=True))
    assert not listening.listens_ahead(listeners[1])


def listen(path: Path, mode: int = 0o660) -> socket.socket:
    return listening.listen(Address(f"unix:{path}", 0), RuleOptions(socket_mode=mode))


def bound(path: Path, kind: int = stdlib.SOCK_STREAM, backlog: int = 0) -> stdlib.socket:
    """Return a socket of somebody else's at the path; with a backlog it listens."""
    sock = stdlib.socket(stdlib.AF_UNIX, kind)
    sock.bind(str(path))
    if backlog:
        sock.listen(backlog)
    return sock


def refused(path: Path) -> OSError:
    """Fail unless nobody can listen there; nothing is touched or left open."""
    before, file = open_files(), path.lstat()
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the caller looks at it
        listen(path)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (file.st_ino, file.st_mode)
    assert open_files() == before
    return raised.value


@loop
@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666, 0o777, 0])
def test_the_file_has_its_mode_and_the_process_keeps_its_umask(path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        with listen(path, mode):
            found = path.lstat().st_mode
            assert (stat.S_ISSOCK(found), stat.S_IMODE(found)) == (True, mode)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


@loop
def test_the_listener_is_not_inherited_and_never_blocks(path: Path) -> None:
    with listen(path) as sock:
        assert (os.get_inheritable(sock.fileno()), sock.getblocking()) == (False, False)
        assert (sock.family, sock.getsockname()) == (socket.AF_UNIX, str(path))


@loop
def test_closing_removes_the_file_once(path: Path) -> None:
    sock = listen(path)
    sock.close()
    assert not path.exists()
    with bound(path, backlog=1):
        sock.close()
        assert path.exists()


@loop
def test_closing_without_the_file_is_no_error(path: Path) -> None:
    sock = listen(path)
    path.unlink()
    sock.close()
    path.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        listen(path)
    path.parent.mkdir()


@loop
def test_closing_leaves_what_somebody_else_has_put_there(path: Path) -> None:
    first = listen(path)
    path.unlink()
    with listen(path):
        first.close()
        assert path.exists()
    assert not path.exists()


@loop
@pytest.mark.parametrize("kind", [stdlib.SOCK_STREAM, stdlib.SOCK_DGRAM, stdlib.SOCK_SEQPACKET])
def test_a_socket_that_nobody_listens_on_is_replaced(path: Path, kind: int) -> None:
    bound(path, kind).close()
    with listen(path), stdlib.socket(stdlib.AF_UNIX) as client:
        client.connect(str(path))


@loop
def test_a_socket_in_use_is_not_replaced(path: Path) -> None:
    with bound(path, backlog=1):
        assert refused(path).errno == errno.EADDRINUSE


@loop
def test_a_socket_whose_queue_is_full_is_in_use(path: Path) -> None:
    with bound(path, backlog=1), stdlib.socket(stdlib.AF_UNIX) as one, stdlib.socket(stdlib.AF_UNIX) as other:
        for sock in (one, other):
            sock.connect(str(path))
        assert refused(path).errno == errno.EADDRINUSE


@loop
@pytest.mark.parametrize("kind", [stdlib.SOCK_DGRAM, stdlib.SOCK_SEQPACKET])
def test_a_socket_of_another_type_is_not_replaced_while_it_is_open(path: Path, kind: int) -> None:
    with bound(path, kind, backlog=int(kind == stdlib.SOCK_SEQPACKET)):
        assert refused(path).errno == errno.EADDRINUSE


@loop
@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link", "dangling"])
def test_what_is_no_socket_is_not_replaced(path: Path, kind: str) -> None:
    stale = path.with_name("stale")
    bound(stale).close()
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(stale if kind == "link" else "nowhere")
    error = refused(path)
    assert (error.errno, error.strerror) == (errno.EEXIST, "a file that is no socket is there")
    assert stale.exists()
