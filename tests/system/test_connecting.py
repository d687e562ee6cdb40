"""A client gets a target if there is one that answers, and otherwise a quick and truthful end."""

import contextlib
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import Serve, Start
from .harness import HOST, VeilLink, echo, eventually, free_port, read_exactly, read_to_eof, reset, saying
from .namespace import Network, replacing

AT_ONCE = 2.0
"""Seconds; what does not end at once has half of the connect timeout, 2.5 s, at least."""


@contextlib.contextmanager
def silent(host: str = HOST, port: int = 0) -> Iterator[int]:
    """A port that answers nothing, as that of a dead host: its queue is full, and the kernel drops every SYN."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(family))
        listening.bind((host, port))
        listening.listen(0)
        port = listening.getsockname()[1]
        for _ in range(3):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield port


def echoes(sock: socket.socket) -> None:
    """Fail unless the connection leads to an echo."""
    sock.sendall(b"to and fro")
    assert read_exactly(sock, 10) == b"to and fro"


def seconds_to_reset(veillink: VeilLink, port: int = 0) -> float:
    """Return how long a new client waits for its connection to be reset."""
    begun = time.monotonic()
    with pytest.raises(ConnectionResetError), veillink.connect(port) as sock:
        sock.recv(1)
    return time.monotonic() - begun


def test_a_closed_target_port_resets_the_client_at_once_and_the_log_says_why(start: Start) -> None:
    closed = free_port()
    veillink = start(f"{HOST}:{{port}},{HOST},{closed},name=shut\n")
    assert seconds_to_reset(veillink) < AT_ONCE
    (line,) = veillink.access()
    assert (line["end"], line["tried"], line["target"]) == ("connect_refused", f"{HOST}:{closed} ECONNREFUSED", None)
    (warning,) = veillink.logged("cannot reach a target")
    assert (warning["rule"], warning["reason"]) == ("shut", "ECONNREFUSED")


def test_an_unreachable_target_resets_the_client_at_once(network: Network, start: Start) -> None:
    network.run("ip", "route", "add", "unreachable", "198.51.100.0/24")
    without_route = free_port()
    veillink = start(f"{HOST}:{{port}},198.51.100.7,80\n{HOST}:{without_route},203.0.113.7,80\n")
    assert seconds_to_reset(veillink) < AT_ONCE
    assert seconds_to_reset(veillink, without_route) < AT_ONCE
    assert {(line["end"], line["tried"]) for line in veillink.access(2)} == {
        ("connect_failed", "198.51.100.7:80 EHOSTUNREACH"),
        ("connect_failed", "203.0.113.7:80 ENETUNREACH"),
    }


def test_many_refused_clients_cost_a_few_log_lines_a_second_besides_their_own(start: Start) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{free_port()}\n")
    begun = time.monotonic()
    for _ in range(300):
        seconds_to_reset(veillink)
    assert len(veillink.access(300)) == 300
    seconds = time.monotonic() - begun
    assert len(veillink.logged("cannot reach a target")) <= 2 * (1 + seconds)


def test_a_silent_target_costs_the_connect_timeout_and_not_more(start: Start) -> None:
    with silent() as port:
        veillink = start(f"{HOST}:{{port}},{HOST},{port},connect_timeout=1s\n")
        assert 0.95 < seconds_to_reset(veillink) < 3
    (line,) = veillink.access()
    assert (line["end"], line["tried"]) == ("connect_timeout", f"{HOST}:{port} ETIMEDOUT")


def test_several_silent_targets_together_cost_one_connect_timeout(start: Start) -> None:
    with silent() as first, silent() as second, silent() as third:
        ports = (first, second, third)
        rows = "".join(f"{HOST}:{{port}},{HOST},{port}\n" for port in ports)
        veillink = start(rows, "--connect-timeout=1200ms")
        assert 1.15 < seconds_to_reset(veillink) < 2.4
    (line,) = veillink.access()
    assert line["end"] == "connect_timeout"
    assert line["tried"] == ", ".join(f"{HOST}:{port} ETIMEDOUT" for port in ports)


def test_a_silent_first_target_leaves_time_for_the_second(start: Start, backend: Serve) -> None:
    with silent() as port:
        veillink = start(
            f"{HOST}:{{port}},{HOST},{port},connect_timeout=2s\n{HOST}:{{port}},{HOST},{backend(echo).port}\n"
        )
        begun = time.monotonic()
        with veillink.connect() as sock:
            sock.sendall(b"said before anybody listened")
            sock.shutdown(socket.SHUT_WR)
            assert read_to_eof(sock) == b"said before anybody listened"
        assert time.monotonic() - begun > 0.95
    (line,) = veillink.access()
    assert (line["end"], line["tried"]) == ("closed", f"{HOST}:{port} ETIMEDOUT")
    assert line["connect_ms"] > 950


def test_two_hundred_clients_of_a_silent_target_delay_nobody_else(start: Start) -> None:
    with silent() as port, contextlib.ExitStack() as stack:
        veillink = start(f"{HOST}:{{port}},{HOST},{port},connect_timeout=2s\n")
        waiting = [stack.enter_context(veillink.connect()) for _ in range(200)]
        longest = 0.0
        while len(veillink.access(0)) < len(waiting):
            begun = time.monotonic()
            veillink.assert_healthy()
            longest = max(longest, time.monotonic() - begun)
        assert longest < 1.5
        assert {line["end"] for line in veillink.access()} == {"connect_timeout"}
        for sock in waiting:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


@pytest.mark.parametrize("limit", ["30s", "0"])
def test_a_client_that_leaves_ends_the_attempt_at_once(limit: str, start: Start) -> None:
    with silent() as port:
        veillink = start(f"{HOST}:{{port}},{HOST},{port},connect_timeout={limit}\n")
        sock = veillink.connect()
        eventually(lambda: veillink.fds() >= veillink.first_fds + 2, what="client and target descriptors")
        reset(sock)
        veillink.settle(1)
    (line,) = veillink.access()
    assert (line["end"], line["target"]) == ("client_left", None)


def test_for_a_client_that_has_left_no_further_target_is_tried(start: Start, backend: Serve) -> None:
    second = backend(echo)
    with silent() as port:
        veillink = start(
            f"{HOST}:{{port}},{HOST},{port},connect_timeout=30s\n{HOST}:{{port}},{HOST},{second.port},backup=yes\n"
        )
        sock = veillink.connect()
        eventually(lambda: veillink.fds() >= veillink.first_fds + 2, what="client and target descriptors")
        reset(sock)
        (line,) = veillink.access()
    assert (line["end"], line["target"]) == ("client_left", None)
    assert second.accepted == 0


def test_an_attempt_that_the_drain_cuts_short_is_logged_as_drained(start: Start) -> None:
    with silent() as first, silent() as second:
        veillink = start(
            f"{HOST}:{{port}},{HOST},{first},connect_timeout=30s\n{HOST}:{{port}},{HOST},{second}\n",
            "--drain-timeout=0",
        )
        with veillink.connect() as sock:
            eventually(lambda: veillink.fds() >= veillink.first_fds + 2, what="client and target descriptors")
            assert veillink.stop(signal.SIGTERM) == 1
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    (line,) = veillink.access()
    assert line["end"] == "drained"


def test_two_equal_targets_get_every_second_connection_each(start: Start, backend: Serve) -> None:
    rows = [f"{HOST}:{{port}},{HOST},{backend(saying(word)).port}\n" for word in (b"a", b"b")]
    veillink = start("".join(rows))
    assert Counter(veillink.heard() for _ in range(500)) == {b"a": 250, b"b": 250}


def test_targets_get_connections_by_their_weight(start: Start, backend: Serve) -> None:
    weights = {b"a": 5, b"b": 1, b"c": 2, b"none": 0}
    rows = [
        f"{HOST}:{{port}},{HOST},{backend(saying(word)).port},weight={weight}\n" for word, weight in weights.items()
    ]
    veillink = start("".join(rows))
    assert Counter(veillink.heard() for _ in range(400)) == {b"a": 250, b"b": 50, b"c": 100}


def test_no_client_notices_that_one_of_two_targets_refuses(start: Start, backend: Serve) -> None:
    closed = free_port()
    veillink = start(f"{HOST}:{{port}},{HOST},{closed},max_fails=0\n{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    for _ in range(500):
        with veillink.connect() as sock:
            echoes(sock)
    assert {line["end"] for line in veillink.access(500)} == {"closed"}
    tried = Counter(line["tried"] for line in veillink.access())
    assert tried == {f"{HOST}:{closed} ECONNREFUSED": 250, None: 250}


def test_a_backup_serves_while_nobody_else_does(start: Start, backend: Serve) -> None:
    first = free_port()
    spare = backend(saying(b"backup"))
    veillink = start(f"{HOST}:{{port}},{HOST},{first},max_fails=0\n{HOST}:{{port}},{HOST},{spare.port},backup=yes\n")
    assert [veillink.heard() for _ in range(5)] == [b"backup"] * 5
    backend(saying(b"first"), port=first)
    assert [veillink.heard() for _ in range(5)] == [b"first"] * 5
    assert spare.accepted == 5


@pytest.mark.parametrize(("other_weight", "end"), [(1, "connect_refused"), (0, "no_target")])
def test_a_target_without_weight_is_not_used_even_when_all_others_are_down(
    other_weight: int, end: str, start: Start, backend: Serve
) -> None:
    resting = backend(echo)
    veillink = start(
        f"{HOST}:{{port}},{HOST},{free_port()},weight={other_weight}\n"
        f"{HOST}:{{port}},{HOST},{resting.port},weight=0,backup=yes\n"
    )
    assert seconds_to_reset(veillink) < AT_ONCE
    (line,) = veillink.access()
    assert line["end"] == end
    assert resting.accepted == 0


def test_a_connection_that_has_met_itself_is_a_refused_one(network: Network, start: Start) -> None:
    target = 40_000
    veillink = start(f"{HOST}:{{port}},{HOST},{target}\n")
    network.set("ipv4/ip_local_port_range", f"{target} {target + 1}")  # the kernel tries even ports first
    alone = socket.create_connection((HOST, target))
    assert alone.getsockname() == alone.getpeername(), "nothing to test: a connect here does not meet itself"
    reset(alone)
    for source in range(2000, 2010):
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection((HOST, veillink.port), 5, source_address=("127.0.0.2", source)) as sock,
        ):
            sock.recv(1)
    ends = {(line["end"], line["tried"]) for line in veillink.access(10)}
    assert ends == {("connect_refused", f"{HOST}:{target} ECONNREFUSED")}


@pytest.fixture
def two_addresses(network: Network, tmp_path: Path) -> tuple[str, ...]:
    """What lets a VeilLink find the name ``both.test`` at ``::1`` and ``127.0.0.1``."""
    hosts, switch = tmp_path / "hosts", tmp_path / "nsswitch.conf"
    hosts.write_text("::1 both.test\n127.0.0.1 both.test\n")
    switch.write_text("hosts: files\n")
    return replacing({"/etc/hosts": hosts, "/etc/nsswitch.conf": switch})


@pytest.mark.parametrize("dead", ["::1", HOST])
def test_a_name_with_one_silent_address_is_reached_by_the_other_within_half_a_second(
    dead: str, two_addresses: tuple[str, ...], start: Start, backend: Serve
) -> None:
    alive = HOST if dead == "::1" else "::1"
    served = backend(echo, host=alive)
    with silent(dead, served.port):
        veillink = start(f"{HOST}:{{port}},both.test,{served.port}\n", before=two_addresses)
        for _ in range(3):
            begun = time.monotonic()
            with veillink.connect() as sock:
                echoes(sock)
            assert time.monotonic() - begun < 2  # half of the connect timeout is 2.5 s
    shown = f"[{alive}]" if ":" in alive else alive
    assert [line["target"] for line in veillink.access(3)] == [f"{shown}:{served.port}"] * 3


def test_at_the_descriptor_limit_too_a_name_with_one_silent_address_is_reached_by_the_other(
    two_addresses: tuple[str, ...], start: Start, backend: Serve
) -> None:
    served = backend(saying(b"hello"))
    with silent("::1", served.port), contextlib.ExitStack() as stack:
        before = (*two_addresses, "prlimit", "--nofile=200")
        veillink = start(f"{HOST}:{{port}},both.test,{served.port}\n", before=before)
        for sock in [stack.enter_context(veillink.connect()) for _ in range(100)]:
            assert read_exactly(sock, 5) == b"hello"
            sock.close()


@pytest.mark.alone
def test_a_name_with_one_refusing_address_is_reached_by_the_other_at_once(
    two_addresses: tuple[str, ...], start: Start, backend: Serve
) -> None:
    served = backend(echo)
    veillink = start(f"{HOST}:{{port}},both.test,{served.port}\n", before=two_addresses)
    with veillink.connect() as sock:
        echoes(sock)
    (line,) = veillink.access()
    assert (line["end"], line["tried"]) == ("closed", f"[::1]:{served.port} ECONNREFUSED")
    assert line["connect_ms"] < 200


def test_a_name_whose_addresses_all_are_silent_costs_one_connect_timeout(
    two_addresses: tuple[str, ...], start: Start
) -> None:
    with silent("::1") as port, silent(HOST, port):
        veillink = start(f"{HOST}:{{port}},both.test,{port},connect_timeout=1s\n", before=two_addresses)
        assert 0.95 < seconds_to_reset(veillink) < 1.9
    (line,) = veillink.access()
    assert line["end"] == "connect_timeout"
    assert line["tried"] == f"[::1]:{port} ETIMEDOUT, {HOST}:{port} ETIMEDOUT"


def test_clients_and_targets_need_not_be_of_one_address_family(start: Start, backend: Serve) -> None:
    four, six = backend(echo).port, backend(echo, host="::1").port
    bare, bare_to_six = free_port(), free_port()
    veillink = start(
        f"{HOST}:{{port}},::1,{six},name=four to six\n[::1]:{{port}},{HOST},{four},name=six to four\n"
        f"{bare},{HOST},{four},name=both to four\n{bare_to_six},::1,{six},name=both to six\n"
    )
    for rule, port, host, target in [
        ("four to six", veillink.port, HOST, f"[::1]:{six}"),
        ("six to four", veillink.port, "::1", f"{HOST}:{four}"),
        ("both to four", bare, "::1", f"{HOST}:{four}"),
        ("both to six", bare_to_six, HOST, f"[::1]:{six}"),
    ]:
        with veillink.connect(port, host) as sock:
            source = sock.getsockname()[1]
            echoes(sock)
        (line,) = veillink.access(rule=rule)
        assert line["client"] == (f"[::1]:{source}" if host == "::1" else f"{HOST}:{source}")
        assert line["target"] == target


def test_every_client_address_and_port_is_served_and_logged(network: Network, start: Start, backend: Serve) -> None:
    veillink = start(f"{{port}},{HOST},{backend(echo).port}\n")
    sources = [("127.255.255.254", 2000), (HOST, 1), (HOST, 1023), (HOST, 65535)]
    for source in sources:
        with socket.create_connection((HOST, veillink.port), 5, source_address=source) as sock:
            echoes(sock)
    clients = {(line["client"], line["end"]) for line in veillink.access(len(sources))}
    assert clients == {(f"{host}:{port}", "closed") for host, port in sources}


def test_a_target_that_comes_up_serves_the_very_next_client(start: Start, backend: Serve) -> None:
    port = free_port()
    veillink = start(f"{HOST}:{{port}},{HOST},{port}\n")
    for _ in range(3):
        seconds_to_reset(veillink)
    backend(saying(b"here"), port=port)
    assert veillink.heard() == b"here"


def test_clients_that_leave_and_targets_that_refuse_leave_no_descriptor_behind(start: Start) -> None:
    with silent() as port:
        veillink = start(
            f"{HOST}:{{port}},{HOST},{free_port()}\n{HOST}:{{port}},{HOST},{port}\n", "--connect-timeout=30s"
        )

        def come_and_go(_: int) -> None:
            for _ in range(20):
                reset(veillink.connect())

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(come_and_go, range(4)))
        assert {line["end"] for line in veillink.access(80)} == {"client_left"}
        veillink.settle(1)
