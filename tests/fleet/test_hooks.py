"""Tests of what gunicorn's arbiter calls, with the arbiter that really calls it."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config

from tests.daemon.life import settings_of
from tests.fleet.masters import Idle
from tests.fleet.test_merge import state
from tests.forked import forked
from tests.sockets import no_descriptor_left
from veillink.fleet import hooks
from veillink.fleet.control import Fleet
from veillink.fleet.launch import FleetApplication
from veillink.fleet.scoreboard import Slot


@pytest.fixture
def arbiter(tmp_path: Path) -> Iterator[Arbiter]:
    """Return gunicorn's own, as its command makes it: whatever it needs of ours the hooks give it."""
    app = FleetApplication(settings_of(tmp_path / "rules.csv", workers=3))
    for name in ("child_exit", "pre_exec"):  # those of --workers need its master
        app.cfg.set(name, getattr(hooks, name))
    arbiter = Arbiter(app)
    yield arbiter
    hooks.on_exit(arbiter)


def worker_of(arbiter: Arbiter) -> Idle:
    worker = Idle(1, os.getpid(), [], None, 15.0, Config(), arbiter.log)
    hooks.pre_fork(arbiter, worker)
    return worker


def test_workers_know_among_how_many_the_limits_are_divided(arbiter: Arbiter) -> None:
    control = hooks.scoreboard_of(arbiter).control
    assert control.fleet == Fleet(3)
    arbiter.num_workers = 4
    assert control.fleet == Fleet(4)


def test_a_worker_is_given_what_it_shares_with_its_siblings(arbiter: Arbiter) -> None:
    worker = worker_of(arbiter)
    assert worker.scoreboard is hooks.scoreboard_of(arbiter)
    assert worker.claims is hooks.claims_of(arbiter)
    assert worker.claims is not None
    assert worker.is_first
    worker.scoreboard.control.mark_served()
    assert not worker_of(arbiter).is_first


def test_what_a_dead_one_has_counted_is_kept(arbiter: Arbiter) -> None:
    worker = worker_of(arbiter)
    Slot(worker.scoreboard, worker.tmp, worker.age).publish(state(2, 0, 1))
    hooks.child_exit(arbiter, worker)
    live, gone = worker.scoreboard.read()
    assert live == []
    assert gone is not None
    assert gone["rules"][0]["total"] == 2


def test_that_it_cannot_be_kept_costs_a_line(
    arbiter: Arbiter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(arbiter)
    Slot(worker.scoreboard, worker.tmp, worker.age).publish(state(2, 0, 1))
    monkeypatch.setattr(logging.getLogger("gunicorn.error"), "propagate", True)
    with no_descriptor_left():
        hooks.child_exit(arbiter, worker)
    assert "what worker 1 has counted is not shown: Too many open files" in caplog.text


def test_a_new_program_is_left_the_claims_and_no_socket(arbiter: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks.pre_exec(arbiter)
    (variable,) = [name for name in arbiter.cfg.env_orig if "CLAIMS" in name]
    assert os.get_inheritable(int(arbiter.cfg.env_orig[variable]))
    monkeypatch.setenv("GUNICORN_FD", "")
    monkeypatch.delenv("GUNICORN_PID", raising=False)
    hooks.on_starting(arbiter)
    assert os.environ["GUNICORN_FD"] == ""
    monkeypatch.setenv("GUNICORN_PID", "1")
    hooks.on_starting(arbiter)
    assert os.environ["GUNICORN_FD"] == "0"


def test_a_signal_that_comes_before_its_handler_is_not_lost() -> None:
    def fork_and_heed() -> object:
        with hooks.signals_held([signal.SIGUSR1]):
            os.kill(os.getpid(), signal.SIGUSR1)  # its default would end the process
            came: list[int] = []
            signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
        return came == [signal.SIGUSR1] and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()

    with forked(fork_and_heed) as process:
        assert process.does() == "True"
