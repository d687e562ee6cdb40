"""What gunicorn's arbiter calls, with what it has."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from tests.fleet.boards import in_memory
from veillink.fleet.control import Fleet
from veillink.fleet.hooks import (
    nworkers_changed,
    on_exit,
    on_starting,
    pre_exec,
    pre_fork,
    scoreboard_of,
    signals_held,
)


def test_a_worker_is_given_what_it_shares_before_it_is_forked() -> None:
    board = in_memory()
    arbiter, worker = SimpleNamespace(veillink_scoreboard=board), SimpleNamespace()
    pre_fork(arbiter, worker)  # type: ignore[arg-type]
    assert worker.scoreboard is board
    assert worker.is_first
    assert worker.listening == {}
    board.control.note_service()
    pre_fork(arbiter, worker)  # type: ignore[arg-type]
    assert not worker.is_first
    nworkers_changed(arbiter, 5, None)
    assert board.control.fleet == Fleet(5)
    on_exit(arbiter)
    assert not board.folder.exists()


def test_an_arbiter_without_a_scoreboard_gets_one_and_keeps_it() -> None:
    arbiter = SimpleNamespace()
    board = scoreboard_of(arbiter)
    assert scoreboard_of(arbiter) is board
    board.remove()


def test_a_new_program_is_told_where_this_one_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUNICORN_PID", raising=False)
    arbiter = SimpleNamespace(cfg=SimpleNamespace(env_orig={}))
    pre_exec(arbiter)
    (descriptor,) = arbiter.cfg.env_orig.values()
    assert os.get_inheritable(int(descriptor))


@pytest.mark.parametrize("new", [False, True])
def test_a_new_program_without_sockets_of_gunicorns_can_read_its_environment(
    new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GUNICORN_FD", raising=False)
    monkeypatch.delenv("GUNICORN_PID", raising=False)
    if new:
        monkeypatch.setenv("GUNICORN_PID", "7")
    on_starting(None)
    assert ("GUNICORN_FD" in os.environ) is new


def test_signals_that_come_meanwhile_come_afterwards() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: came.append(number))
    with signals_held([signal.SIGUSR2]):
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)  # and no other thread, which does not hold it
        assert came == []
    signal.signal(signal.SIGUSR2, before)
    assert came == [signal.SIGUSR2]
