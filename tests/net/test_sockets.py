"""Tests of sockets and the stream around a connected one."""

import contextlib
import errno
import os
import resource
import socket as stdlib
from pathlib import Path

import pytest
from gevent import socket

from tests.net.peers import accept_now
from tests.net.test_listening import bound, listen
from tests.net.test_unix import loop
from tests.sockets import Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, free_port
from veillink.model import Address, RuleOptions
from veillink.net import listening
from veillink.net import sockets as net

pytestmark = pytest.mark.usefixtures("hub")

OPTIONS = RuleOptions()


# --- listening and connecting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keepalive", "expected"),
    [
        (60, {socket.SO_KEEPALIVE: 1, socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}),
        (1, {socket.SO_KEEPALIVE: 1, socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3}),
        (32400, {socket.SO_KEEPALIVE: 1, socket.TCP_KEEPIDLE: 32400, socket.TCP_KEEPINTVL: 5400}),
        (0, {socket.SO_KEEPALIVE: 0}),
    ],
)
def test_keepalive_asks_three_times_a_sixth_apart(keepalive: float, expected: dict[int, int]) -> None:
    given = {option: value for _, option, value in net._keepalive_options(keepalive)}
    assert {option: given.get(option) for option in expected} == expected


@pytest.mark.skipif(not net._HAS_RTO_MAX, reason="needs Linux 6.15")
@pytest.mark.parametrize(
    ("keepalive", "longest"), [(1, 1000), (60, 6000), (1200, 120_000), (32400, 120_000), (0, 120_000)]
)
def test_a_vanished_peer_is_asked_again_after_a_tenth_of_keepalive_at_the_latest(keepalive: int, longest: int) -> None:
    assert (socket.IPPROTO_TCP, net._TCP_RTO_MAX_MS, longest) in net._keepalive_options(keepalive)


@pytest.mark.parametrize("keepalive", [0, 1, 60, 32400])
def test_the_options_are_set_on_both_legs(keepalive: float, sockets: Sockets, listeners: list[socket.socket]) -> None:
    options = net.OPTIONS + net._keepalive_options(keepalive)
    listeners.append(listening.listen(Address(HOST, 0), RuleOptions(keepalive=keepalive)))
    target = net.start_connect(*net.numeric(Address(HOST, address_of(listeners[0]).port)))
    net.set_keepalive(target, keepalive)
    accepted = eventually(lambda: accept_now(listeners[0]))
    for leg in (target, accepted):
        assert {option: leg.getsockopt(*option[:2]) for option in options} == {o: o[2] for o in options}
        leg.close()


def test_descriptors_are_not_inherited_by_children(listeners: list[socket.socket]) -> None:
    listeners.append(listening.listen(Address(HOST, 0), OPTIONS))
    target = net.start_connect(*net.numeric(Address(HOST, address_of(listeners[0]).port)))
    accepted = eventually(lambda: accept_now(listeners[0]))
    assert [os.get_inheritable(s.fileno()) for s in (listeners[0], target, accepted)] == [False] * 3
    assert [s.getblocking() for s in (listeners[0], target, accepted)] == [False] * 3
    target.close()
    accepted.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", (socket.AF_INET, ("127.0.0.1", 80))),
        ("::1", (socket.AF_INET6, ("::1", 80, 0, 0))),
        ("fe80::1%7", (socket.AF_INET6, ("fe80::1", 80, 0, 7))),
        ("fe80::1%lo", (socket.AF_INET6, ("fe80::1", 80, 0, stdlib.if_nametoindex("lo")))),
    ],
)
def test_a_literal_becomes_a_socket_address(host: str, expected: tuple[int, tuple[object, ...]]) -> None:
    assert net.numeric(Address(host, 80)) == expected


def test_a_zone_that_is_no_interface_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No such device") as raised:
        net.numeric(Address("fe80::1%nosuch", 80))
    assert raised.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        (("192.0.2.1", 5), "192.0.2.1:5"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1:5"),
        (("2001:db8::1", 5, 0, 0), "[2001:db8::1]:5"),
        (("::1", 5, 0, 0), "[::1]:5"),
        (("::ffff:0:1", 5, 0, 0), "[::ffff:0:1]:5"),
    ],
)
def test_a_peer_is_shown_in_its_own_family(peer: tuple[object, ...], shown: str) -> None:
    assert str(net.readable(peer)) == shown


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), "ECONNRESET"),
        (OSError(99999, "odd"), "[Errno 99999] odd"),
        (OSError("no number"), "no number"),
    ],
)
def test_an_error_has_a_short_name(error: OSError, name: str) -> None:
    assert net.error_name(error) == name


def test_the_limit_on_descriptors_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(256, soft // 2), hard))
        assert net.raise_fd_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_limit_on_descriptors_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:  # as where the hard limit is above fs.nr_open
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", fails)
    assert net.raise_fd_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_a_connect_that_was_refused_says_so() -> None:
    sock = net.start_connect(*net.numeric(Address(HOST, free_port())))
    socket.wait_write(sock.fileno())
    with pytest.raises(ConnectionRefusedError):
        net.connected_from(sock)
    sock.close()


def test_a_connect_that_is_under_way_is_neither_success_nor_failure(sockets: Sockets) -> None:
    silent = sockets.silent()
    sock = net.start_connect(*net.numeric(Address(silent.host, silent.port)))
    assert not net.connected_from(sock)
    sock.close()


def test_a_connect_that_was_accepted_is_a_success(sockets: Sockets) -> None:
    sock = net.start_connect(*net.numeric(Address(HOST, address_of(sockets.listener()).port)))
    socket.wait_write(sock.fileno())
    assert net.connected_from(sock)
    sock.close()


def test_a_connect_that_met_itself_is_refused() -> None:
    with contextlib.closing(socket.socket()) as sock:
        sock.bind((HOST, 0))
        sock.connect(sock.getsockname())
        with pytest.raises(ConnectionRefusedError, match="itself"):
            net.connected_from(sock)


def test_a_connect_that_fails_at_once_leaves_nothing_open() -> None:
    before = open_files()
    with pytest.raises(OSError, match="Invalid argument"):
        net.start_connect(*net.numeric(Address("fe80::1", 80)))
    assert open_files() == before


def test_a_unix_socket_is_connected_to_by_its_path() -> None:
    assert net.numeric(Address("unix:/run/x:80", 0)) == (socket.AF_UNIX, "/run/x:80")


@pytest.mark.parametrize(
    ("peer", "shown"), [("", "unix:"), ("/run/me", "unix:/run/me"), (b"\0abstract", "unix:\0abstract")]
)
def test_a_client_is_shown_by_its_path_if_it_has_one(peer: object, shown: str) -> None:
    assert str(net.readable(peer)) == shown


@loop
def test_a_full_queue_is_told_at_once_and_leaves_nothing_open(path: Path) -> None:
    with bound(path, backlog=1), stdlib.socket(stdlib.AF_UNIX) as one, stdlib.socket(stdlib.AF_UNIX) as other:
        for sock in (one, other):
            sock.connect(str(path))
        before = open_files()
        with pytest.raises(BlockingIOError):
            net.start_connect(socket.AF_UNIX, str(path))
        assert open_files() == before


@loop
def test_a_connect_to_a_unix_socket_succeeds_at_once_and_never_blocks(path: Path) -> None:
    with listen(path):
        sock = net.start_connect(socket.AF_UNIX, str(path))
        assert (sock.getpeername(), sock.getblocking(), os.get_inheritable(sock.fileno())) == (str(path), False, False)
        sock.close()
