"""Who may come in, wherever it is: at UNIX sockets, at ranges of ports, at several workers, by splice and by copy."""

import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from veillink.model import Address
from veillink.net.proxy_protocol import encode

from .conftest import Hold, Serve, Start
from .ends import MIB
from .harness import HOST, echo, eventually, exchange, read_exactly, read_to_eof, saying
from .test_edge import BALANCER, CLIENT, LOCAL_V2, is_reset
from .test_reload import neighbours, served
from .test_unix_sockets import dial, listening


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a path for a UNIX socket, which is short enough."""
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        yield Path(folder, "in")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def header(host: str, port: int = 4711) -> bytes:
    return encode(2, Address(host, port), BALANCER)


def told(sock: socket.socket, first: bytes) -> bytes:
    """Return what a client hears that sends this: nothing where it is cut (a UNIX socket knows no reset)."""
    try:
        sock.sendall(first)
        return sock.recv(5)
    except OSError:
        return b""


# --- all at once -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("options", [(), ("--workers=2",)], ids=["alone", "workers"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_header_with_much_behind_it_in_one_go_loses_nothing(
    kind: str, options: tuple[str, ...], start: Start, backend: Serve, place: Path, stack: ExitStack
) -> None:
    port = backend(echo).port
    where = f"unix:{place}" if kind == "unix" else f"{HOST}:{{port}}"
    veillink = start(f"{where},{HOST},{port},accept_proxy=any,send_proxy=v1\n", *options)
    if options:
        veillink.wait_for_line("is ready")
        veillink.first_fds = veillink.fds()
    client = stack.enter_context(dial(place) if kind == "unix" else veillink.connect())
    data, onward = random.Random(1).randbytes(8 * MIB), encode(1, CLIENT, BALANCER)

    def send() -> None:
        client.sendall(encode(2, CLIENT, BALANCER) + data)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert read_to_eof(client) == onward + data
    sender.join()
    (line,) = veillink.access()
    assert (line["client"], line["bytes_in"], line["end"]) == (str(CLIENT), len(data), "closed")
    assert line["via"].startswith("unix:" if kind == "unix" else HOST)


# --- UNIX sockets ----------------------------------------------------------------------------------------------------


def test_at_a_unix_socket_the_lists_are_for_the_client_of_the_header(
    start: Start, backend: Serve, place: Path, stack: ExitStack
) -> None:
    row = "accept_proxy=192.0.2.0/24,allow=10.0.0.0/8,deny=10.0.0.9"
    veillink = start(f"unix:{place},{HOST},{backend(saying(b'hello')).port},{row}\n")
    firsts = {
        "10.0.0.1": b"hello",
        "10.0.0.9": b"",
        "192.0.2.1": b"",
    }
    for host, expected in firsts.items():
        assert told(stack.enter_context(dial(place)), header(host)) == expected
    assert told(stack.enter_context(dial(place)), LOCAL_V2) == b"hello"  # the permissions of the socket have decided
    assert told(stack.enter_context(dial(place)), b"junk") == b""
    stack.close()
    ends = sorted(line["end"] for line in veillink.access(5))
    assert ends == ["bad_proxy_header", "closed", "closed", "denied", "denied"]


def test_all_who_come_by_a_unix_socket_are_one_client_unless_a_header_names_them(
    start: Start, backend: Serve, place: Path, stack: ExitStack
) -> None:
    port, other = backend(saying(b"hello")).port, place.with_name("other")
    row = "max_connections_per_client=1"
    start(f"unix:{place},{HOST},{port},{row}\nunix:{other},{HOST},{port},{row},accept_proxy=any\n")
    clients = [stack.enter_context(dial(place, name)) for name in (b"\0vl-one", b"\0vl-two")]
    assert [told(client, b"x") for client in clients] == [b"hello", b""]
    hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    assert [told(stack.enter_context(dial(other)), header(host)) for host in hosts] == [b"hello", b"hello", b""]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_who_has_no_address_is_passed_on_as_unknown_and_the_next_one_takes_that(
    version: str, start: Start, backend: Serve, place: Path, stack: ExitStack
) -> None:
    veillink = start(
        f"unix:{place},{HOST},{{port}},name=first,send_proxy={version}\n"
        f"{HOST}:{{port}},{HOST},{backend(echo).port},name=second,accept_proxy=any\n"
    )
    exchange(stack.enter_context(dial(place)))
    stack.close()
    first, second = (veillink.access(1, rule)[0] for rule in ("first", "second"))
    assert first["client"] == "unix:"
    assert second["client"].startswith(HOST)
    assert "via" not in second


@pytest.mark.parametrize(("version", "probe"), [("v1", b"PROXY UNKNOWN\r\n"), ("v2", LOCAL_V2)])
def test_a_target_at_a_unix_socket_is_told_too(
    version: str, probe: bytes, start: Start, place: Path, stack: ExitStack
) -> None:
    target = stack.enter_context(listening(place))
    veillink = start(f"{HOST}:{{port}},unix:{place},,send_proxy={version},health=tcp,health_interval=100ms\n")
    client = stack.enter_context(veillink.connect())
    client.sendall(b"x")
    expected = encode(int(version[1]), Address(*client.getsockname()), Address(HOST, veillink.port)) + b"x"
    found: set[bytes] = set()
    while found != {probe, expected}:
        sock, _ = target.accept()
        with sock:
            first = sock.recv(len(expected))
            found.add(first + (read_exactly(sock, 1) if first == expected[:-1] else b""))
        assert found <= {probe, expected}


# --- ranges of ports -------------------------------------------------------------------------------------------------


def test_the_ports_of_a_range_share_the_limits_of_a_client(start: Start, backend: Serve, stack: ExitStack) -> None:
    first, port = neighbours(), backend(saying(b"hello")).port
    row = "accept_proxy=any,max_connections_per_client=1,connection_rate_per_client=1/h:2"
    veillink = start(f"{HOST}:{first}-{first + 1},{HOST},{port},{row}\n")
    veillink.first_fds += 1

    def come(host: str, offset: int) -> bytes:
        return told(stack.enter_context(veillink.connect(first + offset)), header(host))

    assert [come("10.0.0.1", 0), come("10.0.0.1", 1), come("10.0.0.2", 1)] == [b"hello", b"", b"hello"]
    stack.close()
    veillink.access(3)
    assert [come("10.0.0.1", 1)] == [b"hello"]
    stack.close()
    veillink.access(4)
    assert [come("10.0.0.1", 0), come("10.0.0.2", 0)] == [b"", b"hello"]


def test_the_ports_of_a_range_share_the_rate_at_which_their_rule_accepts(
    start: Start, backend: Serve, stack: ExitStack
) -> None:
    first = neighbours()
    veillink = start(f"{HOST}:{first}-{first + 1},{HOST},{backend(saying(b'hello')).port},connection_rate=1/h:2\n")
    veillink.first_fds += 1
    clients = [stack.enter_context(veillink.connect(first + offset)) for offset in (0, 1, 0, 1)]
    served(clients, 2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_target_is_told_which_port_of_a_range_the_client_has_come_to(
    version: int, start: Start, backend: Serve, stack: ExitStack
) -> None:
    first = neighbours()
    veillink = start(f"{HOST}:{first}-{first + 1},{HOST},{backend(echo).port},send_proxy=v{version}\n")
    veillink.first_fds += 1
    for port in (first, first + 1):
        client = stack.enter_context(veillink.connect(port))
        expected = encode(version, Address(*client.getsockname()), Address(HOST, port))
        assert read_exactly(client, len(expected)) == expected


# --- while a header is waited for ------------------------------------------------------------------------------------


def test_the_time_for_the_target_begins_when_the_header_is_whole(hold: Hold) -> None:
    ends = hold("accept_proxy=any,connect_timeout=500ms")
    client = ends.connect()
    client.sendall(header("10.0.0.1")[:-1])
    time.sleep(0.8)
    client.sendall(header("10.0.0.1")[-1:])
    ends.accept()


def test_who_has_begun_with_a_header_ends_with_it_whatever_the_rules_are_by_then(hold: Hold) -> None:
    ends = hold("accept_proxy=any")
    client = ends.connect()
    client.sendall(header("10.0.0.1")[:20])
    eventually(lambda: ends.veillink.fds() > ends.veillink.first_fds)
    ends.veillink.reload(f"{HOST}:{{port}},{HOST},{ends.port}\n")
    plain = ends.connect()
    plain.sendall(b"PROXY data")
    assert ends.accept().recv(10) == b"PROXY data"
    client.sendall(header("10.0.0.1")[20:] + b"x")
    assert ends.accept().recv(10) == b"x"


def test_who_is_silent_while_it_drains_is_cut_with_the_others(hold: Hold) -> None:
    ends = hold("accept_proxy=any,proxy_timeout=1m")
    client = ends.connect()
    eventually(lambda: ends.veillink.fds() > ends.veillink.first_fds)
    for _ in range(2):
        ends.veillink.send(signal.SIGTERM)
        ends.veillink.wait_for_line('"stopping"')
    assert is_reset(client)
    assert ends.end() == "drained"
    assert ends.veillink.child.wait(10) == 1


def test_the_client_of_the_header_chooses_its_target(start: Start, backend: Serve, stack: ExitStack) -> None:
    ports = [backend(saying(word)).port for word in (b"one--", b"two--", b"three")]
    veillink = start("".join(f"{HOST}:{{port}},{HOST},{port},accept_proxy=any,balance=source\n" for port in ports))

    def target(host: str, port: int) -> bytes:
        return told(stack.enter_context(veillink.connect()), header(host, port))

    hosts = [f"10.0.0.{last}" for last in range(20)]
    first = [target(host, 1) for host in hosts]
    assert set(first) == {b"one--", b"two--", b"three"}
    assert [target(host, 2) for host in hosts] == first
