"""A limit makes clients wait and an error of the kernel passes: neither drops a client nor ends a listener."""

import re
import select
import signal
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import Forward, Serve, Start
from .harness import HOST, VeilLink, echo, eventually, failing, free_port, read_exactly, saying
from .namespace import Network


def readable(clients: list[socket.socket], seconds: float = 0.0) -> list[socket.socket]:
    """Return those who have been told something, or have been dropped."""
    return select.select(clients, [], [], seconds)[0]


def room(veillink: VeilLink) -> int:
    """Return how many connections it says that it can hold."""
    return int(veillink.logged("^ready$")[0]["max_connections"])


def all_are_served_in_turn(veillink: VeilLink, clients: list[socket.socket], at_once: int) -> None:
    """Fail unless so many clients are greeted at a time, each who leaves makes room for one more, and all get in."""
    waiting = list(clients)
    served: list[socket.socket] = []
    while waiting:
        for sock in eventually(lambda: readable(waiting), what="one more client is served"):
            assert read_exactly(sock, 5) == b"hello"
            waiting.remove(sock)
            served.append(sock)
        assert len(served) <= at_once
        if len(served) == at_once:
            served.pop(0).close()


def test_at_the_descriptor_limit_clients_wait_and_each_who_leaves_makes_room_for_the_next(forward: Forward) -> None:
    veillink = forward(saying(b"hello"), before=("prlimit", "--nofile=64"))
    assert 10 <= room(veillink) <= 24
    with ExitStack() as stack:
        clients = [stack.enter_context(veillink.connect()) for _ in range(100)]
        eventually(lambda: len(readable(clients)) == room(veillink))
        assert len(readable(clients, 0.3)) == room(veillink)
        assert veillink.fds() <= 64
        all_are_served_in_turn(veillink, clients, room(veillink))
    assert {line["end"] for line in veillink.access(100)} <= {"closed", "client_reset"}
    assert not veillink.logged("cannot")


def test_no_more_than_max_connections_are_served_at_a_time(forward: Forward) -> None:
    veillink = forward(saying(b"hello"), "", "--max-connections=3")
    assert room(veillink) == 3
    with ExitStack() as stack:
        clients = [stack.enter_context(veillink.connect()) for _ in range(20)]
        eventually(lambda: len(readable(clients)) == 3)
        all_are_served_in_turn(veillink, clients, 3)
    assert len(veillink.access(20)) == 20


def test_a_place_that_gets_free_goes_to_the_client_who_waits_whatever_the_rule(forward: Forward) -> None:
    veillink = forward(echo, "", "--max-connections=2")
    with veillink.connect() as leaving, veillink.connect() as staying:
        for sock in (leaving, staying):
            sock.sendall(b"in")
            assert read_exactly(sock, 2) == b"in"
        with veillink.connect(veillink.echo_port, timeout=5) as waiting:
            waiting.sendall(b"me too")
            assert not readable([waiting], 0.2)
            leaving.close()
            assert read_exactly(waiting, 6) == b"me too"


def test_rules_take_turns_at_the_places_that_get_free(start: Start, backend: Serve) -> None:
    ports = [free_port() for _ in range(3)]
    served = backend(saying(b"hello"))
    veillink = start("".join(f"{HOST}:{port},{HOST},{served.port}\n" for port in ports), "--max-connections=1")
    with ExitStack() as stack:
        waiting = [stack.enter_context(veillink.connect(port)) for port in ports for _ in range(12)]
        turns: Counter[int] = Counter()
        for _ in range(12):
            (sock,) = eventually(lambda: readable(waiting))
            assert read_exactly(sock, 5) == b"hello"
            turns[sock.getpeername()[1]] += 1
            waiting.remove(sock)
            sock.close()
    assert all(3 <= turns[port] <= 5 for port in ports), turns


@pytest.mark.parametrize(
    ("error", "count"),
    [("EMFILE", 20), ("ENFILE", 4), ("ENOBUFS", 4), ("EPERM", 4), ("EINVAL", 4)],
)
def test_when_accept_fails_the_client_waits_and_the_log_and_the_cpu_stay_calm(
    error: str, count: int, forward: Forward, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    veillink = forward(echo, before=failing("accept4", error, count, trace))
    cpu = veillink.cpu()
    seconds = veillink.seconds_to_echo()
    assert trace.read_text().count("INJECTED") == count, "nothing to test: accept has not failed"
    assert 0.05 * count < seconds < 0.1 * count + 4
    assert veillink.cpu() - cpu < 0.1 + 0.1 * seconds
    lines = veillink.logged("cannot accept")
    assert lines[0]["reason"] == error
    assert lines[0]["listen"] == f"{HOST}:{veillink.port}"
    assert len(lines) <= 2 * (1 + seconds)
    assert veillink.seconds_to_echo() < 5


@pytest.mark.parametrize("error", ["ECONNABORTED", "EPROTO"])
def test_a_client_that_left_the_queue_delays_nobody_behind_it(error: str, forward: Forward, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    veillink = forward(echo, before=failing("accept4", error, 20, trace))
    assert veillink.seconds_to_echo() < 0.1 * 20
    assert trace.read_text().count("INJECTED") == 20, "nothing to test: accept has not failed"
    assert not veillink.logged("cannot accept")


def test_no_descriptor_is_left_open_for_child_processes(start: Start, backend: Serve) -> None:
    port = backend(echo).port
    veillink = start(f"{HOST}:{{port}},localhost,{port}\n[::1]:{{port}},{HOST},{port}\n")
    with veillink.connect() as one, veillink.connect(host="::1") as other:
        for sock in (one, other):
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
        flags = {}
        for info in Path(f"/proc/{veillink.pid}/fdinfo").iterdir():
            found = re.search(r"^flags:\s+([0-7]+)", info.read_text(), re.MULTILINE)
            assert found
            flags[int(info.name)] = int(found[1], 8)
    assert len(flags) >= 3 + 3 + 4
    assert [fd for fd, flag in flags.items() if fd > 2 and not flag & 0o2000000] == []


@pytest.mark.parametrize("ports", [1, 100])
def test_a_limit_too_low_for_one_connection_refuses_to_start_with_one_line_that_names_a_sufficient_one(
    ports: int, network: Network, forward: Forward, start: Start
) -> None:
    rows = f"{HOST}:20000-{20_000 + ports},{HOST},1\n"
    veillink = start(rows, before=("prlimit", "--nofile=35"), ready=False)
    assert veillink.child.wait(10) == 1
    veillink.close()
    (line,) = (line for line in veillink.logged("") if line["level"] != "info")
    found = re.search(r"not started: ([0-9]+) file descriptors", line["message"])
    assert found, line
    veillink = start(rows, before=("prlimit", f"--nofile={found[1]}"))
    assert room(veillink) == 1
    veillink.assert_healthy()


def test_a_reload_that_would_leave_no_room_for_a_connection_is_refused(start: Start, backend: Serve) -> None:
    row = f"{HOST}:{{port}},{HOST},{backend(echo).port}\n"
    veillink = start(row, before=("prlimit", "--nofile=64"))
    with veillink.connect() as sock:
        sock.sendall(b"before")
        assert read_exactly(sock, 6) == b"before"
        veillink.write(f"{row}127.0.0.2:20000-20059,{HOST},1\n")
        veillink.send(signal.SIGHUP)
        eventually(lambda: veillink.logged("reloaded"))
        assert veillink.seconds_to_echo() < 5
        sock.sendall(b"after")
        assert read_exactly(sock, 5) == b"after"
    assert "file descriptors" in veillink.logged("^not reloaded")[0]["message"]
