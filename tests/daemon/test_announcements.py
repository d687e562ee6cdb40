"""Tests of what a process says of its own life."""

import os
import signal
from pathlib import Path

import pytest
from gevent import socket

from tests.daemon.life import Live, row, send, settings_of, talk
from tests.sockets import Journal, Sockets, address_of, eventually
from tests.tls import certificate
from veillink import log
from veillink.config.rows import Notice, Problem
from veillink.config.rules import Parsed
from veillink.daemon import process as daemon
from veillink.daemon.announcements import Announcements
from veillink.daemon.membership import Alone, Membership
from veillink.model import RuleSet


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


def test_what_is_to_be_said_of_the_options_is_said_at_the_start(
    live: Live, port: int, backend: socket.socket, journal: Journal
) -> None:
    live(row(port, backend), warnings=("VEILLINK_COLOUR is no option",)).ready()
    (said,) = journal.lines("VEILLINK_COLOUR")
    assert said["level"] == "warning"


def test_what_is_wrong_with_a_certificate_is_said_when_it_is_loaded(
    live: Live, port: int, backend: socket.socket, journal: Journal, tmp_path: Path
) -> None:
    pem = tmp_path / "a.pem"
    pem.write_bytes(certificate("a.example").private_key_and_cert_chain_pem.bytes())
    pem.chmod(0o644)
    life = live(row(port, backend).strip() + f",tls={pem}\n").ready()
    (said,) = journal.lines("a.pem")
    assert (said["level"], said["message"]) == ("warning", f"{pem}: others may read its private key")
    life.path.write_text(life.path.read_text() + "# more\n")
    send(signal.SIGHUP)
    journal.wait_for("reloaded")
    assert len(journal.lines("a.pem")) == 1
    pem.write_bytes(certificate("b.example").private_key_and_cert_chain_pem.bytes())
    send(signal.SIGHUP)
    eventually(lambda: len(journal.lines("a.pem")) == 2)


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


class Follower(Alone):
    """One that does not lead."""

    leads = False


@pytest.mark.parametrize(("member", "level"), [(Alone(), "info"), (Follower(), "debug")])
def test_what_all_workers_would_say_the_one_that_leads_says(
    member: Membership, level: str, journal: Journal, tmp_path: Path
) -> None:
    announcements = Announcements(settings_of(tmp_path / "rules.csv"), member, journal.log)
    announcements.log_remarks(Parsed(problems=(Problem(3, 2, "is wrong"),), notices=(Notice(1, 0, "a header"),)))
    announcements.log_reloaded(RuleSet().diff(RuleSet()), 3)
    announcements.log_start(RuleSet())
    noticed, wrong, changed, begun = journal.finish()
    assert (noticed["level"], noticed["message"]) == (level, f"{tmp_path}/rules.csv:1: a header")
    assert wrong["level"] == ("error" if member.leads else "debug")
    assert (changed["level"], changed["message"], changed["listeners"]) == (level, "reloaded", 3)
    assert (changed["added"], changed["removed"], changed["changed"], changed["same"]) == (0, 0, 0, 0)
    assert begun["level"] == "info"
