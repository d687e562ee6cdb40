"""TERM and INT drain and stop, HUP reads the rules again, USR1 shows the state; nothing is cut that need not be."""

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGINT, SIGPIPE, SIGSTOP, SIGTERM, SIGUSR1

import pytest

from .conftest import Forward, Serve, Start
from .ends import Unready
from .harness import (
    HOST,
    VEILLINK,
    VeilLink,
    echo,
    eventually,
    exchange,
    free_port,
    listens,
    read_exactly,
    read_to_eof,
)
from .load import Load


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == errno.ECONNREFUSED


def seconds_to_end(veillink: VeilLink) -> float:
    start = time.monotonic()
    veillink.child.wait(30)
    return time.monotonic() - start


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_with_nothing_connected_it_stops_at_once(forward: Forward, number: signal.Signals) -> None:
    veillink = forward(echo)
    with veillink.connect() as sock:
        exchange(sock)
    veillink.access()
    start = time.monotonic()
    assert veillink.stop(number) == 0
    assert time.monotonic() - start < 5  # the drain timeout is 30 s
    assert '"stopped"' in veillink.lines[-1]


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_after_a_stop_new_clients_are_refused_and_living_connections_finish(
    forward: Forward, number: signal.Signals
) -> None:
    veillink = forward(echo)
    with veillink.connect() as one, veillink.connect() as other:
        for sock in (one, other):
            exchange(sock)
        veillink.send(number)
        eventually(lambda: not (listens(veillink.port) or listens(veillink.echo_port)), what="closed listeners")
        assert refuses(veillink.port)
        for sock in (one, other):
            exchange(sock, b"x" * 100_000)
        one.shutdown(socket.SHUT_WR)
        assert read_to_eof(one) == b""
        exchange(other, b"alone")
        assert veillink.child.poll() is None
        other.shutdown(socket.SHUT_WR)
        assert read_to_eof(other) == b""
    assert seconds_to_end(veillink) < 5
    assert veillink.child.returncode == 0
    assert [line["end"] for line in veillink.access(2)] == ["closed", "closed"]


def test_a_pause_takes_nobodys_time_to_finish(forward: Forward) -> None:
    """As with ``docker pause``, and with a suspended machine."""
    veillink = forward(echo, "", "--drain-timeout=4s")
    with veillink.connect() as sock:
        exchange(sock)
        veillink.send(SIGTERM)
        eventually(lambda: veillink.logged("^stopping$"), what="the drain")
        veillink.send(signal.SIGSTOP)
        time.sleep(4.5)
        veillink.send(signal.SIGCONT)
        exchange(sock)
    assert veillink.child.wait(10) == 0


def test_thousands_that_are_cut_are_all_reset_and_told(start: Start) -> None:
    count = 4000
    with Load() as load:
        veillink = start(load.rows(f"{HOST}:{{port}}"), "--drain-timeout=0")
        with ExitStack() as stack:
            held = [stack.enter_context(veillink.connect()) for _ in range(count)]
            eventually(lambda: all_connected(veillink, count), 20, "all of them")
            veillink.send(SIGTERM)
            assert veillink.child.wait(20) == 1
            ends = Counter(line["end"] for line in veillink.access(count))
            assert ends == {"drained": count}
            for sock in held:
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)


def all_connected(veillink: VeilLink, count: int) -> bool:
    before = len(veillink.logged("^state$"))
    veillink.send(SIGUSR1)
    eventually(lambda: len(veillink.logged("^state$")) > before, what="the state")
    return bool(veillink.logged("^state$")[-1]["connections"] == count)


def test_when_the_drain_timeout_is_over_connections_are_reset_and_the_exit_code_is_1(
    start: Start, backend: Serve
) -> None:
    slow = free_port()
    with Unready() as unready:
        veillink = start(
            f"{HOST}:{{port}},{HOST},{backend(echo).port}\n{HOST}:{slow},{HOST},{unready.port},connect_timeout=1m\n",
            "--drain-timeout=1s",
        )
        with veillink.connect() as talking, veillink.connect() as silent, veillink.connect(slow) as connecting:
            exchange(talking)
            exchange(silent, b"last words")
            eventually(unready.knocked_at, what="a connect under way")
            began = time.monotonic()
            veillink.send(SIGTERM)
            while time.monotonic() - began < 0.5:
                exchange(talking)
            for sock in (talking, silent, connecting):
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
        assert veillink.child.wait(10) == 1
        assert 1.0 <= time.monotonic() - began < 3.0
    lines = {line["bytes_in"]: line for line in veillink.access(3)}
    assert {line["end"] for line in lines.values()} == {"drained"}
    assert lines[10]["bytes_out"] == 10
    assert (lines[0]["target"], lines[0]["connect_ms"]) == (None, None)
    assert '"drain cut short", "connections": 3' in veillink.output


@pytest.mark.parametrize("second", [SIGTERM, SIGINT])
def test_a_second_stop_cuts_everything_at_once(forward: Forward, second: signal.Signals) -> None:
    veillink = forward(echo)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(veillink.connect()) for _ in range(200)]
        for sock in socks:
            exchange(sock)
        veillink.send(SIGTERM)
        eventually(lambda: not listens(veillink.port), 5, "closed listener")
        exchange(socks[0])
        veillink.send(second)
        assert seconds_to_end(veillink) < 5
        assert veillink.child.returncode == 1
        for sock in socks:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    assert [line["end"] for line in veillink.access(200)] == ["drained"] * 200


def test_reload_and_dump_during_the_drain_neither_cut_it_short_nor_open_listeners_again(forward: Forward) -> None:
    veillink = forward(echo)
    with veillink.connect() as sock:
        exchange(sock)
        veillink.send(SIGTERM)
        eventually(lambda: not listens(veillink.port), 5, "closed listener")
        for _ in range(20):
            veillink.send(SIGHUP)
            veillink.send(SIGUSR1)
            exchange(sock)
        assert refuses(veillink.port)
        sock.shutdown(socket.SHUT_WR)
        assert read_to_eof(sock) == b""
    assert seconds_to_end(veillink) < 5
    assert veillink.child.returncode == 0


def test_clients_that_wait_in_the_accept_queue_are_served_before_it_stops(start: Start) -> None:
    number = min(2000, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    with Load() as load:
        veillink = start(load.rows(f"{HOST}:{{port}}"))
        veillink.send(SIGSTOP)
        load.begin([("echo", veillink.port)], number, number)
        eventually(lambda: waiting_at(veillink.port) == number, 10, "a queue")
        veillink.send(SIGTERM)
        veillink.send(SIGCONT)
        _, outcomes = load.end()
        assert outcomes == {"echo ok": number}
        assert veillink.child.wait(10) == 0


def waiting_at(port: int) -> int:
    """Return how many connections nobody has accepted yet (proc(5), tcp: a listener's receive queue)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(line[4].partition(":")[2], 16) for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")
    )


# --- during the start ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def starting(tmp_path: Path, before: tuple[str, ...] = ()) -> Iterator["subprocess.Popen[str]"]:
    """A VeilLink at its first own instruction. What Python itself does with a signal before that is not ours."""
    rules, stderr = tmp_path / "rules.csv", tmp_path / "stderr"
    rules.write_text(f"{HOST}:{free_port()},{HOST},80\n")
    with (
        stderr.open("w") as file,
        subprocess.Popen(
            [*before, VEILLINK, "--config", rules],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"},  # says what is imported
        ) as child,
    ):

        def has_begun() -> bool:
            return not _catches_int(child.pid) or "configargparse" in stderr.read_text()

        try:
            if not before:
                eventually(lambda: _catches_int(child.pid), what="Python's handler for SIGINT")
                eventually(has_begun, what="VeilLink's own instructions")
            yield child
        finally:
            child.kill()
    assert "Traceback" not in stderr.read_text()
    assert "KeyboardInterrupt" not in stderr.read_text()


def _catches_int(pid: int) -> bool:
    mask = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert mask is not None
    return bool(int(mask[1], 16) >> (SIGINT - 1) & 1)


@pytest.mark.parametrize("moment", range(20))
def test_ctrl_c_at_any_moment_of_the_start_gives_no_traceback(tmp_path: Path, moment: int) -> None:
    with starting(tmp_path) as child:
        time.sleep(moment * 0.015)  # it takes 0.1 s to be ready
        child.send_signal(SIGINT)
        child.communicate(timeout=10)
        assert child.returncode in (0, -SIGINT)


@pytest.mark.parametrize("number", [SIGHUP, SIGUSR1])
def test_reload_and_dump_during_the_start_do_not_end_it(tmp_path: Path, number: signal.Signals) -> None:
    with starting(tmp_path) as child:
        assert child.stdout is not None
        eventually(lambda: "configargparse" in (tmp_path / "stderr").read_text(), what="imports under way")
        child.send_signal(number)
        assert any(" ready " in line for line in child.stdout)
        child.send_signal(SIGTERM)
        assert child.wait(10) == 0


# --- as the first process of a container ------------------------------------------------------------------------------

FIRST = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for processes of its own")
@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_stop_at_the_first_own_instruction_of_a_first_process_is_not_lost(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Before, it had no handler yet, and the kernel does nothing then: it started, and stayed."""
    with starting(tmp_path, FIRST) as child:
        eventually(lambda: "configargparse" in (tmp_path / "stderr").read_text(), what="imports under way")
        os.kill(int(children_of(child.pid)), number)
        child.communicate(timeout=20)
    assert child.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for processes of its own")
def test_a_first_process_reaps_those_whose_parents_are_gone(forward: Forward) -> None:
    veillink = forward(echo, before=FIRST)
    command = ["nsenter", "--target", str(veillink.pid), "--pid", "sh", "-c", "(sleep 0.1 & echo $!)"]
    for _ in range(3):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        eventually(lambda: children_of(veillink.pid), what="an orphan")
        eventually(lambda: not children_of(veillink.pid), what="its end")
    with veillink.connect() as sock:
        exchange(sock)


def children_of(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


# --- reading the rules again -----------------------------------------------------------------------------------------


def _bad_row(path: Path) -> str:
    path.write_text(f"{HOST}:{free_port()},{HOST},1\n{HOST}:99999,{HOST},1\n")
    return rf"{path}:2:1: port .*99999"


def _no_rule(path: Path) -> str:
    path.write_text("# all gone\n")
    return rf"{path}: has no rule"


def _missing(path: Path) -> str:
    path.unlink()
    return rf"{path}: cannot be read: No such file"


def _directory(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return rf"{path}: cannot be read: it is a directory"


@pytest.mark.parametrize("spoil", [_bad_row, _no_rule, _missing, _directory])
def test_a_reload_of_a_broken_file_says_why_and_changes_nothing(
    forward: Forward, backend: Serve, spoil: Callable[[Path], str]
) -> None:
    veillink = forward(echo)
    with veillink.connect() as old:
        exchange(old)
        why = spoil(veillink.config)
        for count in range(1, 4):
            veillink.send(SIGHUP)
            veillink.wait_for_line("not reloaded", count=count)
        veillink.wait_for_line(why, count=3)
        exchange(old)
        with veillink.connect() as new:
            exchange(new)
        if veillink.config.is_dir():
            veillink.config.rmdir()
        veillink.write(f"{HOST}:{{port}},{HOST},{backend(lambda sock: sock.sendall(b'mended')).port}\n")
        veillink.send(SIGHUP)
        veillink.wait_for_line(r'"reloaded"')
        with veillink.connect() as new:
            assert read_exactly(new, 6) == b"mended"
        exchange(old)


def test_a_storm_of_signals_under_traffic_fails_no_connection_and_the_last_change_wins(start: Start) -> None:
    with Load() as load:
        veillink = start(load.rows(f"{HOST}:{{port}}"), "--no-access-log")
        stop = threading.Event()

        def storm() -> None:
            while not stop.wait(0.001):
                veillink.send(SIGHUP)
                veillink.send(SIGUSR1)

        with veillink.connect() as long:
            exchange(long)
            stormer = threading.Thread(target=storm)
            stormer.start()
            try:
                _, outcomes = load.run([("echo", veillink.port)], 8000, 10)
            finally:
                stop.set()
                stormer.join()
            assert outcomes == {"echo ok": 8000}
            exchange(long)
            other = free_port()
            veillink.write(load.rows(f"{HOST}:{{port}}") + load.rows(f"{HOST}:{other}"))
            veillink.send(SIGHUP)
            eventually(lambda: listens(other), 5, "the new rule")
            veillink.write(load.rows(f"{HOST}:{{port}}"))
            veillink.send(SIGHUP)
            eventually(lambda: not listens(other), 5, "the rule's end")
            exchange(long)
        for message, least in (("reloaded", 2), ("state", 50)):  # signals to reload are gathered
            assert len(re.findall(rf'"message": "{message}"', veillink.output)) >= least


# --- the others ------------------------------------------------------------------------------------------------------


def test_usr1_shows_the_totals_the_live_connections_and_the_listeners_that_are_down(
    start: Start, backend: Serve
) -> None:
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        target = backend(echo).port
        veillink = start(
            f"{HOST}:{{port}},{HOST},{target},name=main\n{HOST}:{taken},{HOST},1,name=down\n",
            "--max-connections=77",
            text=True,
        )
        with veillink.connect() as gone:
            exchange(gone, b"12345")
        veillink.wait_for_line(r"\brule=main\b.*\bend=closed$")
        with veillink.connect() as living:
            exchange(living, b"123")
            veillink.send(SIGUSR1)
            source = living.getsockname()[1]
            connection = rf"rule=main client={HOST}:{source} target={HOST}:{target} age=[\d.]+ bytes_in=3 bytes_out=3"
            veillink.wait_for_line(rf" info state of connection id=\d+ {connection}$")
            veillink.wait_for_line(
                r" info state connections=1 max_connections=77 log_lines_dropped=0 config_problems=0$"
            )
            totals = r"rule=main active=1 total=2 bytes_in=8 bytes_out=8 ends=closed:1$"
            veillink.wait_for_line(rf" info state of rule {totals}")
            veillink.wait_for_line(rf" info state of listener listen={HOST}:{taken} down=.*EADDRINUSE")


def test_a_broken_pipe_signal_is_ignored(forward: Forward) -> None:
    veillink = forward(echo)
    with veillink.connect() as sock:
        exchange(sock)
        veillink.send(SIGPIPE)
        exchange(sock)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU])
def test_a_signal_for_a_master_is_ignored_by_one_that_is_alone(number: signal.Signals, forward: Forward) -> None:
    veillink = forward(echo)
    with veillink.connect() as sock:
        veillink.send(number)
        exchange(sock)
