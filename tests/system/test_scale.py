"""Many connections, one after another and at a time: nothing is left behind, nothing slows down."""

import re
import resource
import shutil
import signal
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from .conftest import Forward, Start
from .ends import Unready
from .harness import HOST, VeilLink, eventually, free_port, read_exactly, running
from .load import Load
from .namespace import Network

pytestmark = pytest.mark.alone


def threads(veillink: VeilLink) -> int:
    return len(list(Path(f"/proc/{veillink.pid}/task").iterdir()))


def wakeups(veillink: VeilLink) -> int:
    """Return how often its main thread has gone to sleep so far."""
    status = Path(f"/proc/{veillink.pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def states(port: int) -> Counter[str]:
    """Return how many sockets with this local or remote port there are in each state, but TIME_WAIT (ss(8))."""
    ports = f"( sport = :{port} or dport = :{port} )"
    ss = subprocess.run(["ss", "-Htan", "exclude", "time-wait", ports], capture_output=True, text=True, check=True)
    return Counter(line.split()[0] for line in ss.stdout.splitlines())


def wait_until_only_the_listener_is_left(port: int) -> None:
    eventually(lambda: states(port) == {"LISTEN": 1}, 5, "no socket but the listener's")


def assert_account_is_even(veillink: VeilLink, ended: int) -> None:
    """Fail unless the state says that no connection is left and how many have ended (probes of the harness aside)."""
    veillink.send(signal.SIGUSR1)
    assert '"connections": 0' in veillink.wait_for_line('"message": "state"')

    def counted() -> int:
        return sum(map(int, re.findall(r'"rule": "(?!canary)[^"]*", "active": 0, "total": (\d+)', veillink.output)))

    eventually(lambda: counted() == ended, 5, f"{ended} ended connections in the state")


# --- one after another -----------------------------------------------------------------------------------------------


def test_twenty_thousand_short_connections_leave_nothing_behind(start: Start) -> None:
    with Load() as load:
        veillink = start(load.rows(f"{HOST}:{{port}}"), "--no-access-log")
        echo = [("echo", veillink.port)]
        assert load.run(echo, 1000, 20)[1] == {"echo ok": 1000}
        first_threads = threads(veillink)
        peaks = []
        for _ in range(2):
            _, outcomes = load.run(echo, 10_000, 20)
            assert outcomes == {"echo ok": 10_000}
            veillink.settle()
            peaks.append(veillink.rss())
        print("RSS after 10,000 and 20,000:", [f"{peak / 2**20:.1f} MiB" for peak in peaks])
        assert peaks[1] <= peaks[0] * 1.05
        assert threads(veillink) == first_threads
        assert_account_is_even(veillink, 21_000)


def test_connections_that_end_in_every_bad_way_leave_nothing_behind(start: Start) -> None:
    refused, idle, unready = free_port(), free_port(), free_port()
    with Load() as load, Unready() as nobody:
        veillink = start(
            load.rows(f"{HOST}:{{port}}")
            + f"{HOST}:{refused},{HOST},{free_port()}\n"
            + load.rows(f"{HOST}:{idle}", "idle_timeout=300ms")
            + f"{HOST}:{unready},{HOST},{nobody.port},connect_timeout=400ms\n",
            "--no-access-log",
        )
        good = veillink.port
        stories = [("echo", good), ("reset", good), ("wait", refused), ("abandon", unready), ("echo_last", good)]
        stories += [("reset", good), ("wait", refused), ("wait", idle), ("echo", good), ("leave", unready)]
        expected = {
            "echo ok": 600,
            "echo_last ok": 300,
            "reset ok": 600,
            "wait ConnectionResetError": 900,
            "abandon ok": 300,
            "leave ok": 300,
        }
        peaks = []
        assert load.run(stories, 3000, 200)[1] == expected
        for _ in range(2):
            assert load.run(stories, 3000, 200)[1] == expected
            veillink.settle()
            peaks.append(veillink.rss())
        print("RSS after 6,000 and 9,000:", [f"{peak / 2**20:.1f} MiB" for peak in peaks])
        assert peaks[1] <= peaks[0] * 1.05
        for port in (good, refused, idle, unready):
            wait_until_only_the_listener_is_left(port)
        assert_account_is_even(veillink, 9000)


def test_tens_of_thousands_of_clients_are_forgotten_when_they_say_nothing_any_more(start: Start) -> None:
    options = "accept_proxy=any,max_connections_per_client=1,connection_rate_per_client="
    with Load() as load:
        veillink = start(load.rows(f"{HOST}:{{port}}", f"{options}1/s"), "--no-access-log")
        story = [("as_next", veillink.port)]
        peaks = []
        for _ in range(3):
            seconds, outcomes = load.run(story, 10_000, 50)
            assert outcomes == {"as_next ok": 10_000}
            peaks.append(veillink.rss())
        print(f"RSS after 10,000 clients each: {[f'{peak / 2**20:.1f} MiB' for peak in peaks]}, {seconds:.1f} s")
        assert peaks[2] <= peaks[0] + 2**20  # 2.4 MiB more for each 10,000 when none was forgotten


@pytest.mark.parametrize("story", ["echo", "echo_last"])
def test_after_a_thousand_closes_by_either_side_no_socket_is_half_closed(start: Start, story: str) -> None:
    with Load() as load:
        veillink = start(load.rows(f"{HOST}:{{port}}"), "--no-access-log")
        _, outcomes = load.run([(story, veillink.port)], 1000, 20)
        assert outcomes == {f"{story} ok": 1000}
        for port in (veillink.port, *load.ports):
            wait_until_only_the_listener_is_left(port)


# --- at a time -------------------------------------------------------------------------------------------------------


def test_thousands_of_idle_connections_cost_little_and_delay_nobody(start: Start) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(3000, (hard - 200) // 2)
    with Load() as load:
        veillink = start(load.rows(f"{HOST}:{{port}}", "idle_timeout=1h"), "--no-access-log")
        assert load.run([("echo", veillink.port)], 500, 20)[1] == {"echo ok": 500}
        veillink.settle()
        before = veillink.rss()
        seconds, outcomes = load.run([("hold", veillink.port)], number, 256)
        assert outcomes == {"hold ok": number}
        time.sleep(1.5)  # after a second the silent directions give their greenlets back
        cpu, woken, begun = veillink.cpu(), wakeups(veillink), time.monotonic()
        time.sleep(1.5)
        lasted = time.monotonic() - begun
        idle, woken = (veillink.cpu() - cpu) / lasted, wakeups(veillink) - woken
        crowded = veillink.rss()
        each = (crowded - before) / number / 1024
        echo = statistics.median(veillink.seconds_to_echo() for _ in range(20))
        print(f"{number} connections: {seconds:.2f} s, {each:.1f} KiB each, idle CPU {idle:.1%}, echo {echo:.4f} s")
        assert seconds < 10
        assert each <= 12
        assert idle < 0.02
        assert woken / lasted < 40  # four times a second it looks for timeouts
        assert echo < 0.05
        load.release()
        veillink.settle()
        assert load.run([("hold", veillink.port)], number, 256)[1] == {"hold ok": number}
        eventually(lambda: veillink.rss() < crowded * 1.05, what="the second crowd takes the room of the first")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("row", "first"),
    [
        ("", b""),
        (
            "accept_proxy=any,allow=10.0.0.0/8,connection_rate=1000/s,connection_rate_per_client=1000/s",
            b"PROXY TCP4 10.0.0.1 192.0.2.1 4711 80\r\n",
        ),
    ],
    ids=["plain", "with all that asks something of clients"],
)
def test_a_short_connection_costs_few_system_calls(row: str, first: bytes, forward: Forward, tmp_path: Path) -> None:
    veillink = forward(lambda sock: sock.sendall(sock.recv(10)), row, "--no-access-log")
    trace = tmp_path / "calls"
    command = ["strace", "-f", "-o", str(trace), "-p", str(veillink.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        number = 50
        for _ in range(number):
            with veillink.connect() as sock:
                sock.sendall(first + b"question")
                assert read_exactly(sock, 8) == b"question"
                assert sock.recv(1) == b""
        veillink.settle()
        strace.terminate()
    calls = Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    for shared in ("epoll_wait", "getpid", "futex"):  # of the loop, for all that happens in one turn of it
        calls.pop(shared, None)
    print(calls)
    assert calls.total() / number < 35  # 29; with every connect waited for and every reset watched 36
    assert calls["mmap"] < 10  # greenlets are used again


def overflows() -> int:
    """Return how many connects found a full accept queue in this thread's network (TcpExtListenOverflows)."""
    names, values = Path("/proc/thread-self/net/netstat").read_text().splitlines()[:2]
    return int(dict(zip(names.split(), values.split(), strict=True))["ListenOverflows"])


def test_two_thousand_connects_at_once_all_fit_into_the_queue(tmp_path: Path) -> None:
    number = 2000
    with Network() as network, network.inside(), Load() as load:
        assert int(Path("/proc/sys/net/core/somaxconn").read_text()) >= number
        with running(load.rows(f"{HOST}:{{port}}"), "--no-access-log", folder=tmp_path) as veillink:
            socks = []
            try:
                begun = time.monotonic()
                for _ in range(number):
                    socks.append(veillink.connect())  # noqa: PERF401 - those there are have to be closed
                seconds = time.monotonic() - begun
                print(f"{number} connects in {seconds:.2f} s")
                for sock in socks:
                    sock.sendall(b"x")
                for sock in socks:
                    assert read_exactly(sock, 1) == b"x"
            finally:
                for sock in socks:
                    sock.close()
            assert seconds < 3  # 4.3 s with a queue of 128
            assert overflows() == 0
