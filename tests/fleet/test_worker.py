"""Tests of one worker, in a process of its own where it runs."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config

from tests.daemon.life import settings_of
from tests.forked import forked
from tests.sockets import eventually
from tests.system.harness import HOST, free_port
from veillink.fleet.claims import Claims
from veillink.fleet.control import Control, Heartbeat
from veillink.fleet.scoreboard import Scoreboard
from veillink.fleet.worker import Forwarder, Worker, app


def worker_of(tmp_path: Path, *, served: bool = False, rules: str = "") -> Worker:
    (tmp_path / "rules.csv").write_text(rules)
    forwarder = Forwarder(lambda: settings_of(tmp_path / "rules.csv"))
    worker = Worker(1, os.getpid(), [], SimpleNamespace(wsgi=lambda: forwarder), 15.0, Config(), None)
    worker.wsgi = forwarder  # as gunicorn sets it after the fork
    worker.scoreboard = Scoreboard([tmp_path], Control())
    worker.claims = Claims.of({})
    worker.is_first = not served
    return worker


def run(worker: Worker) -> object:
    """Be that worker to its end, and return its exit code."""
    gevent.reinit()
    try:
        worker.run()
    except SystemExit as end:
        return end.code
    return None


def test_importing_it_leaves_gunicorn_as_it_is_and_making_one_gives_it_our_heartbeat(tmp_path: Path) -> None:
    code = "import veillink.workers; from gunicorn.workers import base; print(base.WorkerTmp.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "gunicorn.workers.workertmp\n"
    assert isinstance(worker_of(tmp_path).tmp, Heartbeat)


def test_a_sign_of_life_needs_no_folder(tmp_path: Path) -> None:
    config = Config()
    config.set("worker_tmp_dir", str(tmp_path))
    tmp_path.chmod(0o500)
    worker = Worker(1, os.getpid(), [], None, 15.0, config, None)
    assert list(tmp_path.iterdir()) == []
    before = worker.tmp.last_update()
    worker.notify()
    assert worker.tmp.last_update() >= before


@pytest.mark.parametrize(
    ("served", "code"), [(False, Arbiter.WORKER_BOOT_ERROR), (True, 1)], ids=["the first", "a later one"]
)
def test_one_that_cannot_start_ends_all_of_them_only_while_none_has_served(
    served: bool, code: int, tmp_path: Path
) -> None:
    worker = worker_of(tmp_path, served=served)
    with forked(lambda: run(worker)) as process:
        worker.ppid = os.getpid()
        assert process.does() == str(code)
    assert worker.tmp.state.phase == "starting"


def test_it_runs_until_it_is_to_stop(tmp_path: Path, hub: None) -> None:
    worker = worker_of(tmp_path, rules=f"{HOST}:{free_port()},{HOST},9\n")
    with forked(lambda: run(worker)) as process:
        process.begin()
        eventually(lambda: worker.tmp.state.phase == "running")
        os.kill(process.pid, signal.SIGTERM)
        assert process.end() == "0"
    assert worker.tmp.state.phase == "drained"
    assert worker.scoreboard.control.has_served


def test_of_the_masters_signals_it_heeds_none_of_those_that_are_not_for_it(tmp_path: Path) -> None:
    worker = worker_of(tmp_path)

    def heed() -> object:
        worker.init_signals()
        ignored = {each for each in Arbiter.SIGNALS if signal.getsignal(each) is signal.SIG_IGN}
        return sorted(signal.Signals(each).name for each in ignored)

    with forked(heed) as process:
        names = "['SIGHUP', 'SIGINT', 'SIGTTIN', 'SIGTTOU', 'SIGUSR1', 'SIGUSR2', 'SIGWINCH']"
        assert process.does() == names


def test_as_a_web_application_it_says_what_it_is() -> None:
    said: list[object] = []
    (body,) = app({}, lambda status, headers: said.append(status))
    assert said == ["501 Not Implemented"]
    assert b"forwards TCP" in body


def test_it_is_asked_for_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gunicorn", "--whatever"])
    monkeypatch.setenv("VEILLINK_CONFIG", "other.csv")
    assert app.settings().config == "other.csv"
