"""Tests of one process's life: reading the rules, heeding signals, draining, leaving."""

import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from tests.sockets import Journal, Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, free_port, read_exactly, read_to_eof
from tests.system.manager import Manager
from veillink import log
from veillink.config import watch as rules_watch
from veillink.config.rows import MAX_FILE, Problem
from veillink.config.source import anybody_may_write, read_regular, read_rules, signature
from veillink.config.watch import Schedule
from veillink.daemon import process as daemon
from veillink.daemon.commands import SIGNALS, CommandQueue
from veillink.model import Address, RuleOptions, Settings
from veillink.net import listening
from veillink.server.server import Server

DEFAULT = RuleOptions()


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


# --- reading the rules -----------------------------------------------------------------------------------------------


def test_a_file_is_read_with_the_defaults_given(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("8080,db,5432\n8081,db,70000\n")
    rules, problems, _ = read_rules(str(path), RuleOptions(idle_timeout=7))
    assert [(rule.name, rule.options.idle_timeout) for rule in rules.rules] == [("8080", 7)]
    assert [(problem.line, problem.column) for problem in problems] == [(2, 3)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (Path.mkdir, "it is a directory"),
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["missing", "directory", "FIFO", "device", "loop of links"],
)
def test_what_is_no_file_is_a_problem_of_one_line(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "rules.csv")
    before = open_files()
    rules, problems, _ = read_rules(str(tmp_path / "rules.csv"), DEFAULT)
    assert rules.rules == ()
    assert problems == (Problem(0, 0, f"cannot be read: {reason}"),)
    assert open_files() == before


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert len(read_regular(str(path), MAX_FILE + 1)) == MAX_FILE + 1
    _, (problem,), _ = read_rules(str(path), DEFAULT)
    assert "larger than 16 MiB" in problem.message


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "notes"),
    [
        ([signal.SIGHUP], ["reload"]),
        ([signal.SIGUSR1], ["dump"]),
        ([signal.SIGTERM], ["stop"]),
        ([signal.SIGINT], ["stop"]),
        ([signal.SIGHUP] * 50, ["reload"]),
        ([signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP], ["reload", "dump"]),
        ([signal.SIGTERM, signal.SIGTERM], ["stop", "stop"]),
        ([signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ["reload", "stop", "stop"]),
    ],
)
def test_notes_are_taken_in_order_reloads_once_and_stops_each(
    sent: list[signal.Signals], notes: list[str], signals: type[CommandQueue]
) -> None:
    commands = signals(SIGNALS)
    taken = []
    for number in sent:
        send(number)
        gevent.sleep(0.001)  # the loop sees the same signal twice only if it has looked in between
    while note := commands.get(0.01):
        taken.append(note)
    assert taken == notes


def test_a_reload_that_was_begun_does_not_swallow_the_next(signals: type[CommandQueue]) -> None:
    commands = signals(SIGNALS)
    for _ in range(3):
        send(signal.SIGHUP)
        assert commands.get(5) == "reload"
    assert commands.get(0) is None


def test_who_waits_for_a_note_wakes_up_with_it(signals: type[CommandQueue]) -> None:
    commands = signals(SIGNALS)
    gevent.spawn_later(0.01, send, signal.SIGUSR1)
    assert commands.get() == "dump"


# --- a whole life ----------------------------------------------------------------------------------------------------


class Life:
    """A daemon that runs in a greenlet of the test."""

    def __init__(self, path: Path, journal: Journal, **settings: Any) -> None:
        self.path = path
        self.journal = journal
        whole: dict[str, Any] = {"strict": False, "watch": False, "drain_timeout": 5.0, "max_connections": 0}
        whole |= {"relay": "auto", "workers": 0, "worker_timeout": 30.0, "pidfile": "", "admin": None}
        whole |= {"log_format": "text", "log_level": "info", "access_log": True, "defaults": DEFAULT}
        self._settings = Settings(config=str(path), **whole | settings)
        self._greenlet = gevent.spawn(daemon.run, self._settings, journal.log)

    def ready(self) -> "Life":
        self.journal.wait_for("ready")
        return self

    def code(self) -> int:
        """Wait for its end and return its exit code."""
        return self._greenlet.get()

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._greenlet.ready():
            send(signal.SIGTERM)
            gevent.sleep(0.01)
            send(signal.SIGTERM)
            self._greenlet.join()


@pytest.fixture
def live(signals: None, journal: Journal, tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """Start a daemon with this text as its rules."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lives: list[Life] = []

    def _live(text: str, **settings: Any) -> Life:
        path = tmp_path / "rules.csv"
        path.write_text(text)
        lives.append(Life(path, journal, **settings))
        return lives[-1]

    yield _live
    for life in lives:
        with life:
            pass
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


Live = Callable[..., Life]


@pytest.fixture
def port(hub: None) -> int:
    return free_port()


@pytest.fixture
def backend(sockets: Sockets) -> socket.socket:
    return sockets.listener()


def row(port: int, backend: socket.socket) -> str:
    return f"{HOST}:{port},{HOST},{address_of(backend).port}\n"


def talk(sockets: Sockets, port: int, backend: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return a client and the target that it was forwarded to, after a word."""
    client = sockets.client(Address(HOST, port))
    target = sockets.accept(backend)
    client.sendall(b"word")
    assert read_exactly(target, 4) == b"word"
    return client, target


def test_told_to_stop_without_a_connection_it_leaves_at_once_with_0(
    live: Live, port: int, backend: socket.socket, journal: Journal
) -> None:
    life = live(row(port, backend)).ready()
    send(signal.SIGTERM)
    assert life.code() == 0
    assert [line["message"] for line in journal.finish()][-2:] == ["stopping", "stopped"]


def test_told_to_stop_it_lets_connections_finish(
    live: Live, sockets: Sockets, port: int, backend: socket.socket
) -> None:
    life = live(row(port, backend)).ready()
    client, target = talk(sockets, port, backend)
    send(signal.SIGTERM)
    life.journal.wait_for("stopping")
    with pytest.raises(ConnectionRefusedError):
        sockets.client(Address(HOST, port))
    client.sendall(b"still here")
    assert read_exactly(target, 10) == b"still here"
    client.close()
    target.close()
    assert life.code() == 0


@pytest.mark.parametrize(("drain_timeout", "stops"), [(0.05, 1), (60.0, 2), (0.0, 1)])
def test_a_drain_that_takes_too_long_or_is_cut_short_ends_with_1(
    drain_timeout: float, stops: int, live: Live, sockets: Sockets, port: int, backend: socket.socket
) -> None:
    life = live(row(port, backend), drain_timeout=drain_timeout).ready()
    client, target = talk(sockets, port, backend)
    for _ in range(stops):
        send(signal.SIGTERM)
        gevent.sleep(0.001)
    assert life.code() == 1
    for far in (client, target):
        with pytest.raises(ConnectionResetError):
            read_to_eof(far)
    life.journal.finish()
    (line,) = life.journal.access()
    assert line["end"] == "drained"


def test_time_in_which_it_was_stopped_is_no_time_to_drain(
    live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal
) -> None:
    life = live(row(port, backend), drain_timeout=1.0).ready()
    client, target = talk(sockets, port, backend)
    send(signal.SIGTERM)
    journal.wait_for("stopping")
    time.sleep(1.1)  # nothing of it runs
    gevent.sleep(0.05)
    client.sendall(b"word")
    assert read_exactly(target, 4) == b"word"
    client.close()
    target.close()
    assert life.code() == 0


@pytest.mark.parametrize(
    ("text", "settings", "last_words"),
    [
        ("", {}, "not started: no rule could be started"),
        ("8080,db,70000\n", {}, "not started: no rule could be started"),
        ("8080,db,80\n8081,db,70000\n", {"strict": True}, "has problems and --strict was given"),
    ],
    ids=["no rule", "no good rule", "strict"],
)
def test_what_cannot_start_says_why_and_ends_with_1(
    text: str, settings: dict[str, Any], last_words: str, live: Live, journal: Journal
) -> None:
    assert live(text, **settings).code() == 1
    last = journal.finish()[-1]
    assert last["level"] == "error"
    assert last_words in last["message"]


def test_a_lone_listener_whose_port_is_taken_is_told_and_not_tried_again(
    live: Live, sockets: Sockets, backend: socket.socket, journal: Journal
) -> None:
    assert live(row(address_of(sockets.listener()).port, backend)).code() == 1
    error, last = journal.finish()[-2:]
    assert "EADDRINUSE" in error["message"]
    assert "tried again" not in error["message"]
    assert last["message"] == "not started: no rule could be started"


@pytest.mark.parametrize("ahead", [True, False], ids=["listens ahead", "waits"])
def test_a_lone_listener_whose_address_is_not_there_yet_is_no_reason_to_leave(
    ahead: bool, live: Live, port: int, backend: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ahead:
        monkeypatch.setattr(listening, "_HAS_FREEBIND", False)
    life = live(f"192.0.2.1:{port},{HOST},{address_of(backend).port}\n").ready()
    send(signal.SIGTERM)
    assert life.code() == 0


def test_too_few_descriptors_for_one_connection_are_told(
    live: Live, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "raise_fd_limit", lambda: 34)
    assert live(row(port, backend)).code() == 1
    assert "36 file descriptors are needed" in journal.finish()[-1]["message"]


def test_a_bad_row_is_reported_and_the_others_run(
    live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal
) -> None:
    life = live("1,db,70000\n" + row(port, backend)).ready()
    talk(sockets, port, backend)
    (problem,) = journal.lines("70000")
    assert problem["message"].startswith(f"{life.path}:1:3: ")


def test_of_ten_thousand_problems_each_is_reported(
    live: Live, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_QUEUE_LINES", 1000)
    monkeypatch.setattr(log, "_LONG_REPORT", 60.0)
    live(row(port, backend) + "1,db,70000\n" * 12_000).ready()
    reported = journal.lines(" is not between 1 and 65535") + journal.lines("no more than 10000 problems")
    assert len(reported) == 10_000
    assert journal.log.dropped == 0


def test_told_to_reload_it_does_as_the_file_says_now(
    live: Live, sockets: Sockets, port: int, backend: socket.socket
) -> None:
    life = live(row(port, backend)).ready()
    other = free_port()
    life.path.write_text(row(other, backend))
    send(signal.SIGHUP)
    life.journal.wait_for("reloaded")
    talk(sockets, other, backend)
    with pytest.raises(ConnectionRefusedError):
        sockets.client(Address(HOST, port))


def test_what_is_to_be_said_of_the_options_is_said_at_the_start(
    live: Live, port: int, backend: socket.socket, journal: Journal
) -> None:
    live(row(port, backend), warnings=("VEILLINK_COLOUR is no option",)).ready()
    (said,) = journal.lines("VEILLINK_COLOUR")
    assert said["level"] == "warning"


def test_how_the_file_was_understood_is_said_at_the_start_and_when_it_is_read_again(
    live: Live, port: int, backend: socket.socket, journal: Journal
) -> None:
    life = live("Port No.,Host,Port\n" + row(port, backend), strict=True).ready()
    (said,) = journal.lines("taken as a header")
    assert (said["level"], said["message"]) == ("info", f"{life.path}:1: taken as a header")
    life.path.write_text(f"# more\n{life.path.read_text()}")
    send(signal.SIGHUP)
    journal.wait_for("reloaded")
    assert [line["message"] for line in journal.lines("taken as a header")][1:] == [f"{life.path}:2: taken as a header"]


def test_a_slip_in_the_first_row_takes_nothing_away(
    live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal
) -> None:
    life = live(row(port, backend)).ready()
    life.path.write_text("l" + row(port, backend) + row(free_port(), backend))
    send(signal.SIGHUP)
    journal.wait_for("not reloaded")
    assert journal.lines()[-2]["message"].startswith(f"{life.path}:1:1: ")
    talk(sockets, port, backend)


def test_told_to_stop_while_the_file_system_hangs_at_the_start_it_leaves_at_once(
    live: Live, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def hanging(path: str) -> None:
        asked.set()
        answers.wait()

    monkeypatch.setattr(rules_watch, "signature", hanging)
    life = live(row(port, backend))
    eventually(asked.is_set)
    send(signal.SIGTERM)
    assert life.code() == 0
    assert [line["message"] for line in journal.finish()] == ["stopped"]
    answers.set()


def test_a_reload_that_breaks_is_refused_told_and_tried_again(
    live: Live,
    port: int,
    backend: socket.socket,
    journal: Journal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(rules_watch, "_AGAIN", 0.2)
    life = live(row(port, backend)).ready()
    apply = Server.apply

    def broken(*_: object) -> None:
        monkeypatch.setattr(Server, "apply", apply)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Server, "apply", broken)
    life.path.write_text(row(port, backend) + row(free_port(), backend))
    send(signal.SIGHUP)
    assert "can't start new thread" in journal.wait_for("unforeseen error")["traceback"]
    eventually(lambda: [line for line in journal.lines("reloaded") if line.get("added") == 1])
    told = [manager.told() for _ in range(5)]
    assert ["READY" in each for each in told] == [True, False, True, False, True]
    assert "refused: RuntimeError: can't start new thread" in told[2]["STATUS"]
    assert told[4]["STATUS"] == "2 rules, 2 listeners"
    manager.close()


@pytest.mark.parametrize("text", ["{row}1,db,70000\n", "# nothing\n", None], ids=["a typo", "no rule", "no file"])
def test_a_file_with_any_problem_takes_nothing_away(
    text: str | None, live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal
) -> None:
    life = live(row(port, backend)).ready()
    client, target = talk(sockets, port, backend)
    if text is None:
        life.path.unlink()
    else:
        life.path.write_text(text.format(row=row(free_port(), backend)))
    send(signal.SIGHUP)
    assert journal.wait_for("not reloaded")["level"] == "error"
    assert str(life.path) in journal.lines()[-2]["message"]
    talk(sockets, port, backend)
    client.sendall(b"still here")
    assert read_exactly(target, 10) == b"still here"


def test_told_to_dump_it_writes_what_runs(
    live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal
) -> None:
    taken = address_of(sockets.listener()).port
    live(row(port, backend) + f"{HOST}:{taken},db,80\n").ready()
    client, target = talk(sockets, port, backend)
    client.close()
    target.close()
    eventually(journal.access)
    client, _ = talk(sockets, port, backend)
    send(signal.SIGUSR1)
    connection = journal.wait_for("state of connection")
    assert connection["client"] == str(address_of(client))
    assert (connection["rule"], connection["bytes_in"], connection["bytes_out"]) == (f"{HOST}:{port}", 4, 0)
    rule, _ = journal.lines("state of rule")
    assert (rule["active"], rule["total"], rule["bytes_in"], rule["ends"]) == (1, 2, 8, "closed:1")
    (listener,) = journal.lines("state of listener")
    assert listener["listen"] == f"{HOST}:{taken}"
    whole = next(line for line in journal.lines() if line.get("message") == "state")
    assert whole["connections"] == 1


def test_a_start_is_announced(
    live: Live, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "memory_limit", lambda: 0)
    live(row(port, backend)).ready()
    started, rule, warning, shares, ready = journal.lines()
    assert started["message"].startswith("VeilLink ")
    assert (started["pid"], started["rules"]) == (os.getpid(), 1)
    assert rule["targets"] == str(address_of(backend))
    assert "idle_timeout" in warning["message"]
    assert ready["listeners"] == shares["listeners"] == 1
    assert ready["max_connections"] == shares["connections"] // 2


@pytest.mark.parametrize("max_connections", [0, 7])
def test_a_start_tells_that_memory_is_what_limits_connections(
    max_connections: int, live: Live, port: int, backend: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "memory_limit", lambda: 32 << 20)
    journal = live(row(port, backend), max_connections=max_connections).ready().journal
    (memory,) = journal.lines("memory")
    assert (memory["limit"], memory["connections"]) == (32 << 20, 409)
    assert journal.lines("ready")[0]["max_connections"] == (max_connections or 409)


def test_the_collector_looks_at_small_parts_of_what_is_young(live: Live, port: int, backend: socket.socket) -> None:
    """Who makes thousands of rules would wait for all of them to be looked at in one go."""
    live(row(port, backend)).ready()
    looked_at: list[int] = []

    def note(phase: str, found: dict[str, int]) -> None:
        if phase == "start":
            looked_at.append(sum(len(gc.get_objects(n)) for n in range(found["generation"] + 1)))

    gc.callbacks.append(note)
    try:
        kept: list[list[int]] = [[] for _ in range(300_000)]
    finally:
        gc.callbacks.remove(note)
    assert len(kept) == 300_000
    assert len(looked_at) < 20
    assert max(looked_at) < 100_000


@pytest.mark.parametrize(("mode", "warned"), [(0o644, False), (0o666, True), (0o664, False)])
def test_a_file_that_everybody_may_change_is_found(mode: int, warned: bool, tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.touch()
    path.chmod(mode)
    assert anybody_may_write(str(path)) is warned
    assert not anybody_may_write(str(tmp_path / "missing"))
    assert not anybody_may_write("/dev/null")


def test_the_pid_is_in_its_file_as_long_as_it_runs(
    live: Live, port: int, backend: socket.socket, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    with live(row(port, backend), pidfile=str(path)).ready():
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_a_pid_of_somebody_else_is_left_alone(live: Live, port: int, backend: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with live(row(port, backend), pidfile=str(path)).ready():
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_a_pid_that_cannot_be_written_is_told(
    live: Live, port: int, backend: socket.socket, journal: Journal, tmp_path: Path
) -> None:
    assert live(row(port, backend), pidfile=str(tmp_path / "none" / "pid")).code() == 1
    assert "No such file" in journal.finish()[-1]["message"]


# --- when the file is read -------------------------------------------------------------------------------------------

WRITE, ASK, LOOK = "write", "ask", "look"


@pytest.mark.parametrize(
    ("watch", "steps", "read_at"),
    [
        (True, [], []),
        (True, [(1.0, WRITE)], [1.5]),
        (False, [(1.0, WRITE)], []),
        (True, [(1.0, WRITE), (1.4, WRITE), (1.8, WRITE)], [2.3]),
        (True, [(1.0, ASK)], [1.1]),
        (False, [(1.0, ASK)], [1.1]),
        (True, [(1.0, WRITE), (1.0, ASK)], [1.1]),
        (True, [(1.0, WRITE), (1.0, ASK), (2.0, ASK)], [1.1, 2.1]),
        (True, [(1.0, ASK), (1.05, WRITE), (1.14, WRITE)], [1.24]),
        (False, [(1 + n * 0.05, ASK) for n in range(40)], [2.0, 3.05]),
        (True, [(1.0, WRITE), (1.5, WRITE)], [2.0]),
        (True, [(1.0, WRITE), (1.6, WRITE)], [1.5, 2.1]),
    ],
)
def test_the_file_is_read_once_it_stands_still(
    watch: bool, steps: list[tuple[float, str]], read_at: list[float], tmp_path: Path
) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("")
    file = Schedule(signature(str(path)), watch=watch)
    due = []
    for tick in range(400):
        now = tick / 100
        for at, step in steps:
            if round(at * 100) == tick:
                if step == WRITE:
                    path.write_text(path.read_text() + "x")
                else:
                    file.ask(now)
        if file.due(signature(str(path)), now):
            due.append(now)
    assert due == pytest.approx(read_at, abs=0.011)


def test_how_often_it_is_looked_at_follows_from_what_is_awaited() -> None:
    assert Schedule(None, watch=False).next_look(0) is None
    file = Schedule(None, watch=True)
    assert file.next_look(0) == 0.25
    file.ask(0)
    assert file.next_look(0) == 0.025
    assert file.due(None, 1)
    assert file.next_look(1) == 0.25
    assert not file.due((1,), 10)  # it has changed
    looks = [file.next_look(now) for now in (10, 10.125, 10.4, 10.5)]
    assert looks == pytest.approx([0.125, 0.125, 0.1, 0.25])
    assert file.due((1,), 10.5)


@pytest.mark.parametrize("watch", [True, False])
def test_what_was_not_to_be_had_is_read_once_more_later(watch: bool) -> None:
    file = Schedule(None, watch=watch)
    file.ask_again(10)
    assert [now for now in range(10, 30) if file.due(None, now)] == [15]


def test_another_file_at_its_path_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("same")
        os.utime(tmp_path / name, (1, 1))
    path = tmp_path / "rules.csv"
    path.symlink_to("one")
    file = Schedule(signature(str(path)), watch=True)

    def due(now: float) -> bool:
        return file.due(signature(str(path)), now)

    assert not due(10)
    path.unlink()
    path.symlink_to("two")
    assert not due(20)
    assert due(20.5)
    path.unlink()
    assert not due(30)
    assert due(30.5)
    assert not due(40)


def test_a_change_that_keeps_size_and_time_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("8080,one,80")
    os.utime(path, (1, 1))
    before = signature(str(path))
    path.write_text("8080,two,80")  # as cp -p does: in place, and with the time of what is copied
    os.utime(path, (1, 1))
    assert signature(str(path)) != before
