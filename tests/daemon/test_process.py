"""Tests of one process's life: reading the rules, heeding signals, draining, leaving."""

import gc
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from tests.daemon.life import Live, row, send, talk
from tests.sockets import Journal, Sockets, address_of, eventually
from tests.system.harness import HOST, read_exactly, read_to_eof
from veillink.config import file_source
from veillink.daemon import process as daemon
from veillink.model import Address
from veillink.net import listening

# --- a whole life ----------------------------------------------------------------------------------------------------


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


def test_told_to_stop_while_the_file_system_hangs_at_the_start_it_leaves_at_once(
    live: Live, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def hanging(path: str) -> None:
        asked.set()
        answers.wait()

    monkeypatch.setattr(file_source, "signature", hanging)
    life = live(row(port, backend))
    eventually(asked.is_set)
    send(signal.SIGTERM)
    assert life.code() == 0
    assert [line["message"] for line in journal.finish()] == ["stopped"]
    answers.set()


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
