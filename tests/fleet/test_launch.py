"""Tests of what stops a fleet before it starts, and of what gunicorn is asked for."""

import json
import os
from pathlib import Path

import pytest

from tests.daemon.life import settings_of
from tests.fleet.test_claims import claims, listening
from tests.forked import forked
from tests.system.harness import HOST, free_port
from veillink.fleet.launch import FleetApplication, _check_listeners, run_workers
from veillink.model import Address, RuleOptions, StartupError
from veillink.settings import AdminSettings, Settings


def outcome(settings: Settings, tmp_path: Path) -> tuple[str, str]:
    """Be a master in another process, and return its exit code and its last line."""

    def be_one() -> int:
        os.dup2(os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY), 1)
        return run_workers(settings)

    with forked(be_one) as process:
        code = process.does()
    return code, json.loads((tmp_path / "log").read_text().splitlines()[-1])["message"]


def test_where_another_fleet_listens_it_does_not_start(tmp_path: Path) -> None:
    address = Address(HOST, free_port())
    admin = AdminSettings(str(address), (address,), frozenset(), "")
    told = f"not started: {address} is another VeilLink's, which would share its clients; stop it first"
    with forked(listening(claims(), address)) as other:
        assert other.does() == "listens"
        (tmp_path / "rules.csv").write_text(f"{address},{HOST},9\n")
        asked = settings_of(tmp_path / "rules.csv", workers=1, log_format="json")
        assert outcome(asked, tmp_path) == ("1", told)
        (tmp_path / "rules.csv").write_text(f"{HOST}:{free_port()},{HOST},9\n")
        asked = settings_of(tmp_path / "rules.csv", workers=1, log_format="json", admin=admin)
        assert outcome(asked, tmp_path) == ("1", told)


def test_a_socket_that_was_handed_over_is_nobody_elses(tmp_path: Path) -> None:
    address = Address(HOST, free_port())
    (tmp_path / "rules.csv").write_text(f"{address},{HOST},9\n")
    asked = settings_of(tmp_path / "rules.csv", workers=1)
    with claims().listen(address, RuleOptions()) as ours:
        _check_listeners(asked, {address: ours})
        with pytest.raises(StartupError, match="another VeilLink's"):
            _check_listeners(asked, {})


def test_where_another_process_has_the_pidfile_it_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "rules.csv").write_text(f"{HOST}:{free_port()},{HOST},9\n")
    pidfile = tmp_path / "pid"
    asked = settings_of(tmp_path / "rules.csv", workers=1, log_format="json", pidfile=str(pidfile))
    with forked() as other:
        pidfile.write_text(f"{other.pid}\n")
        code, told = outcome(asked, tmp_path)
        assert (code, pidfile.read_text()) == ("1", f"{other.pid}\n")
    assert f"has the number of process {other.pid}, which runs" in told


def test_gunicorn_is_asked_for_what_the_command_line_asks_for(tmp_path: Path) -> None:
    asked = settings_of(tmp_path / "rules.csv", workers=3, worker_timeout=4.5, drain_timeout=7.5)
    app = FleetApplication(asked)
    config = app.cfg
    assert (config.workers, config.timeout, config.graceful_timeout) == (3, 5, 13)
    assert (config.address, config.reuse_port) == ([], True)  # it listens nowhere itself
    assert app.load().settings() is asked
