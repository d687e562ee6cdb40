"""scripts/loadtest, run as a child against echo servers made here, and once with the VeilLink it starts."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.alone

LOADTEST = Path(__file__).parents[2] / "scripts/loadtest"
Answer = Callable[[bytes], bytes]


def loadtest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LOADTEST, *arguments], capture_output=True, text=True, timeout=100, check=False)


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def converse(sock: socket.socket, answer: Answer) -> None:
    with sock, contextlib.suppress(OSError):
        while data := sock.recv(65536):
            if not (said := answer(data)):
                return
            sock.sendall(said)


@contextlib.contextmanager
def server(answer: Answer) -> Iterator[str]:
    """A server that answers each piece of data so, or closes if there is nothing to say."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=converse, args=(sock, answer), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.fixture
def echo_server() -> Iterator[str]:
    with server(bytes) as target:
        yield target


@pytest.fixture
def closed_port() -> Iterator[str]:
    with socket.socket() as bound:  # bound without listening: refused, and nobody else can have it
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def measured(target: str, name: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = loadtest(name, "--target", target, "--seconds", "0.5", "--json", *arguments)
    assert done.returncode == code, done.stderr
    found = figures(done)
    assert found["target"] == ["127.0.0.1", int(target.rpartition(":")[2])]
    assert found["machine"].keys() >= {"cpus", "kernel", "python"}
    assert found["measures"].keys() == {name}
    result: dict[str, Any] = found["measures"][name]["target"]
    assert found["failures"] == result["failures"] == sum(result["errors"].values())
    return result


class Echo:
    """An echo that counts what it has answered, and for how many connections."""

    def __init__(self) -> None:
        self.sizes: dict[int, list[int]] = {}

    def __call__(self, data: bytes) -> bytes:
        self.sizes.setdefault(threading.get_native_id(), []).append(len(data))
        return data

    @property
    def total(self) -> int:
        return sum(map(sum, self.sizes.values()))


def test_connect_counts_connections_and_times_them() -> None:
    echo = Echo()
    with server(echo) as target:
        result = measured(target, "connect", "--connections", "4")
    assert result["count"] == echo.total > 0  # a byte for each
    assert result["conn_per_s"] == pytest.approx(result["count"] / 0.5, rel=0.5)
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["max_ms"]
    assert result["failures"] == 0


@pytest.mark.parametrize("size", [1, 300_000])
def test_echo_counts_round_trips_and_times_them(size: int) -> None:
    echo = Echo()
    with server(echo) as target:
        result = measured(target, "echo", "--connections", "4", "--size", str(size))
    assert echo.total == result["count"] * size + 4  # a byte from each when it was opened
    assert len(echo.sizes) == 4
    assert result["rt_per_s"] == pytest.approx(result["count"] / 0.5, rel=0.5)
    assert 0 < result["p50_ms"] <= result["p90_ms"] <= result["p99_ms"] <= result["max_ms"]
    assert result["failures"] == 0


def test_idle_connections_are_open_at_once_and_all_still_echo() -> None:
    echo = Echo()
    with server(echo) as target:
        result = measured(target, "idle", "--connections", "30")
    assert result["still_echo"] == 30
    assert list(echo.sizes.values()) == [[1, 1]] * 30
    assert "rss_kib_each" not in result


def test_bulk_goes_through_the_echo_of_a_target(echo_server: str) -> None:
    result = measured(echo_server, "bulk", "--connections", "2")
    assert result["both_gbit_per_s"] > 0
    assert result["failures"] == 0


@pytest.mark.parametrize("name", ["connect", "echo", "idle", "bulk"])
def test_corrupted_bytes_are_failures(name: str) -> None:
    with server(lambda data: bytes([data[0] ^ 1]) + data[1:]) as target:
        result = measured(target, name, "--connections", "3", code=1)
    assert result["errors"]["CORRUPT"] >= 3


def test_bytes_that_are_corrupted_only_later_are_failures() -> None:
    with server(lambda data: data[::-1]) as target:  # one byte comes back right
        result = measured(target, "echo", "--connections", "3", code=1)
    assert result["errors"] == {"CORRUPT": 3}


@pytest.mark.parametrize("name", ["connect", "echo", "idle", "bulk"])
def test_connections_that_are_closed_without_an_answer_are_failures(name: str) -> None:
    with server(lambda _: b"") as target:
        result = measured(target, name, "--connections", "3", code=1)
    assert result["errors"].keys() <= {"EOF", "ECONNRESET", "EPIPE"}
    assert result["failures"] >= 3


def test_bulk_that_loses_the_end_is_a_failure() -> None:
    count = 0

    def answer(data: bytes) -> bytes:
        nonlocal count
        count += 1
        return data[:-1] if count == 1 else data

    with server(answer) as target:
        result = measured(target, "bulk", code=1)
    assert result["errors"].keys() <= {"CORRUPT", "CUT_SHORT"}
    assert result["failures"] == 1


@pytest.mark.parametrize(("name", "failures"), [("connect", 30), ("echo", 3), ("idle", 3), ("bulk", 3)])
def test_a_closed_port_is_reported_by_errno_name(closed_port: str, name: str, failures: int) -> None:
    result = measured(closed_port, name, "--connections", "3", code=1)
    assert result["errors"] == {"ECONNREFUSED": failures}


def test_a_server_that_never_answers_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = measured(f"127.0.0.1:{silent.getsockname()[1]}", "connect", "--connections", "3", code=1)
    assert result["errors"] == {"ETIMEDOUT": 3}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--target", "192.0.2.1:80"], "not loopback"),
        (["--target", "[2001:db8::1]:80"], "not loopback"),
        (["--target", "127.0.0.1:65536"], "HOST:PORT"),
        (["--target", "127.0.0.1"], "--target"),
        (["--connections", "20001"], "--connections"),
        (["--connections", "0"], "--connections"),
        (["--seconds", "301"], "--seconds"),
        (["--size", "-1"], "--size"),
        (["sideways"], "sideways"),
    ],
)
def test_wrong_usage(arguments: list[str], complaint: str) -> None:
    done = loadtest(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stdout == ""


def test_the_table_is_plain_text(echo_server: str) -> None:
    done = loadtest("connect", "--target", echo_server, "--connections", "2", "--seconds", "0.2")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "connect × 2" in done.stdout
    assert "conn per s" in done.stdout


def children(pid: int) -> dict[int, str]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in found}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_it_ends_what_it_has_started(how: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, LOADTEST, "connect", "--connections", "2", "--seconds", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        wait_until(lambda: any(str(tmp_path) in arguments for arguments in children(process.pid).values()))
        started = children(process.pid)
        assert len(started) == 2
        process.send_signal(how)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not any(map(is_running, started)))
    assert out == ""
    if how != signal.SIGKILL:
        assert process.returncode == 1
        assert err == f"loadtest: stopped by {how.name}\n"
        assert list(tmp_path.iterdir()) == []


def wait_until(condition: Callable[[], bool]) -> None:
    patience = threading.Event()
    for _ in range(1000):
        if condition():
            return
        patience.wait(0.01)
    raise AssertionError("waited ten seconds in vain")


def test_everything_through_a_veillink_of_its_own() -> None:
    done = loadtest("all", "--seconds", "0.3", "--connections", "20", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    found = figures(done)
    assert found["lanes"] == ["veillink", "direct"]
    measures = found["measures"]
    assert measures.keys() == {"idle", "connect", "echo", "bulk"}
    for measure in measures.values():
        for lane in found["lanes"]:
            assert measure[lane]["failures"] == 0
            assert measure[lane]["errors"] == {}
    assert measures["idle"]["veillink"]["still_echo"] == measures["idle"]["direct"]["still_echo"] == 20
    assert measures["bulk"]["connections"] == 1
    assert measures["bulk"]["veillink"].keys() >= {"up_gbit_per_s", "down_gbit_per_s", "up_cpu_s_per_gb"}
    assert measures["connect"]["ratio"]["conn_per_s"] == pytest.approx(
        measures["connect"]["veillink"]["conn_per_s"] / measures["connect"]["direct"]["conn_per_s"]
    )


def test_everything_can_be_measured_in_tls() -> None:
    done = loadtest("all", "--tls", "--connections", "20", "--seconds", "0.3", "--size", "40000", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = figures(done)
    assert found["tls"]
    assert found["failures"] == 0
    for name, figure in (
        ("connect", "count"),
        ("echo", "count"),
        ("bulk", "up_gbit_per_s"),
        ("bulk", "down_gbit_per_s"),
    ):
        assert found["measures"][name]["veillink"][figure] > 0


def test_who_speaks_no_tls_is_a_failure_with_tls(echo_server: str) -> None:
    result = measured(echo_server, "connect", "--tls", "--connections", "1", code=1)
    assert result["count"] == 0
    assert not {"EPERM", "ENOENT"} & result["errors"].keys()
