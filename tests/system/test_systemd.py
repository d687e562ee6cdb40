"""What the service manager is told, and the listening sockets that it hands over."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .admin_client import AdminClient
from .conftest import Forward, Serve, Start
from .harness import HOST, VEILLINK, echo, free_port, open_in, read_exactly, saying
from .manager import Manager

UNIT = Path(__file__).parents[2] / "deploy" / "veillink.service"


def test_it_is_ready_once_it_listens_and_tells_of_reloads_and_of_stopping(forward: Forward, manager: Manager) -> None:
    veillink = forward(echo, "", "--drain-timeout=5s", env=manager.env)
    told = manager.told()
    assert told["READY"] == "1"
    assert re.fullmatch(r"\d rules, \d listeners", told["STATUS"])
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    veillink.send(signal.SIGHUP)
    told = manager.told()
    assert told["RELOADING"] == "1"
    assert before <= int(told["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert manager.told()["READY"] == "1"
    good = veillink.config.read_text()
    veillink.config.write_text("nonsense,,\n")
    veillink.send(signal.SIGHUP)
    assert "RELOADING" in manager.told()
    told = manager.told()
    assert (told["READY"], "refused" in told["STATUS"]) == ("1", True)
    veillink.config.write_text(good)
    with veillink.connect() as sock:
        sock.sendall(b"x")
        read_exactly(sock, 1)
        veillink.send(signal.SIGTERM)
        told = manager.told()
        while "STOPPING" not in told:  # the good file may have been read before
            told = manager.told()
        assert "1 connections" in told["STATUS"]
        assert 5_000_000 <= int(told["EXTEND_TIMEOUT_USEC"]) <= 10_000_000
    assert veillink.child.wait(10) == 0


def test_signs_of_life_come_three_times_within_what_the_watchdog_waits(forward: Forward, manager: Manager) -> None:
    forward(echo, env=manager.env | {"WATCHDOG_USEC": "600000"})
    assert "READY" in manager.told()
    began = time.monotonic()
    assert [manager.told() for _ in range(4)] == [{"WATCHDOG": "1"}] * 4
    assert 0.4 < time.monotonic() - began < 4 * 0.6


@pytest.mark.parametrize("env", [{"NOTIFY_SOCKET": "/nowhere/notify"}, {"WATCHDOG_USEC": "junk"}, {"LISTEN_FDS": "x"}])
def test_a_manager_that_is_not_there_or_talks_nonsense_is_no_error(env: dict[str, str], forward: Forward) -> None:
    veillink = forward(echo, env=env)
    with veillink.connect() as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"


def test_a_refused_reload_is_told_whatever_the_path_looks_like(
    manager: Manager, tmp_path: Path, backend: Serve
) -> None:
    config = os.fsencode(tmp_path) + b"/\xff\n.csv"
    port = free_port()
    Path(os.fsdecode(config)).write_text(f"{HOST}:{port},{HOST},{backend(echo).port}\n")
    child = subprocess.Popen([VEILLINK, b"--config", config], env=os.environ | manager.env, stdout=subprocess.DEVNULL)
    try:
        assert manager.told()["READY"] == "1"
        Path(os.fsdecode(config)).write_text("nonsense,,\n")
        assert "RELOADING" in manager.told()
        assert "refused" in manager.told()["STATUS"]
        with socket.create_connection((HOST, port), 5) as sock:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
    finally:
        child.terminate()
        child.wait(10)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and unshare (Debian)")
def test_what_the_unit_hides_of_proc_hides_no_metric(start: Start, backend: Serve, admin: AdminClient) -> None:
    """ProcSubset=pid takes /proc/stat away, from which the process's start is reckoned, and then all about it goes."""
    names = {"ProtectProc": "hidepid", "ProcSubset": "subset"}
    found = re.findall(r"^(ProtectProc|ProcSubset)=(\w+)$", UNIT.read_text(), re.MULTILINE)
    hidden = ",".join(f"{names[name]}={value}" for name, value in found)
    mount = ("unshare", "--mount", "sh", "-c", f'mount -t proc -o {hidden} proc /proc && exec "$@"', "sh")
    start(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", admin.option, before=mount)
    shown = {name for name, _ in admin.metrics()}
    assert {f"process_{name}" for name in ("cpu_seconds_total", "open_fds", "resident_memory_bytes")} <= shown


# --- sockets that are handed over ------------------------------------------------------------------------------------

HAND_OVER = 'LISTEN_PID=$$ exec "$0" "$@"'  # only the process itself knows its pid


@pytest.fixture
def handed(tmp_path: Path, backend: Serve) -> Iterator[tuple[socket.socket, "subprocess.Popen[str]", list[str]]]:
    """A listening socket, a VeilLink that got it from its parent, and what that said at start."""
    config = tmp_path / "rules.csv"
    with socket.create_server((HOST, 0)) as listening:
        port = listening.getsockname()[1]
        config.write_text(f"{HOST}:{port},{HOST},{backend(saying(b'handed')).port}\n")
        duplicate = os.dup(listening.fileno())
        child = subprocess.Popen(
            ["bash", "-c", f"exec 3<&{duplicate} {duplicate}<&-; {HAND_OVER}", VEILLINK, "--config", str(config)],
            env=os.environ | {"LISTEN_FDS": "1"}, pass_fds=[duplicate], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(duplicate)
        try:
            assert child.stdout is not None
            said = [child.stdout.readline()]
            while "ready" not in said[-1]:
                assert child.poll() is None
                said.append(child.stdout.readline())
            yield listening, child, said
        finally:
            child.terminate()
            child.communicate(timeout=10)


def test_a_socket_that_was_handed_over_is_accepted_from(
    handed: tuple[socket.socket, "subprocess.Popen[str]", list[str]],
) -> None:
    listening, child, said = handed
    with socket.create_connection(listening.getsockname(), 10) as sock:
        assert read_exactly(sock, 6) == b"handed"
    theirs = open_in(child.pid)
    mine = str(Path(f"/proc/self/fd/{listening.fileno()}").readlink())
    assert theirs.count(mine) == 2  # the one that was handed over, and the listener's copy
    (shares,) = [line for line in said if "file descriptors" in line]
    assert " listeners=2 " in shares
    child.terminate()
    assert child.wait(10) == 0
    listening.settimeout(10)  # it is the manager's, and still open
    socket.create_connection(listening.getsockname(), 10).close()
    listening.accept()[0].close()


# --- the unit --------------------------------------------------------------------------------------------------------


def test_the_unit_never_gives_up() -> None:
    """However often the start fails: what is missing may come later (StartLimitIntervalSec= in systemd.unit(5))."""
    assert {"StartLimitIntervalSec=0", "Restart=on-failure"} <= set(UNIT.read_text().splitlines())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)")
def test_the_unit_is_sound_and_hardened(tmp_path: Path) -> None:
    unit = tmp_path / "veillink.service"
    unit.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text()))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
