"""The arbiter, as far as it runs without workers: what it lets wait, and what it tells."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.fleet.boards import in_memory
from tests.fleet.test_launch import asked
from tests.system.harness import free_port
from veillink.fleet.journal import Journal
from veillink.fleet.launch import _Application
from veillink.fleet.master import STOPS, Master


@pytest.fixture
def master(tmp_path: Path) -> Any:
    wanted = asked(tmp_path, free_port())
    board = in_memory()
    master: Any = Master(_Application(wanted), wanted, board, Journal(wanted), Mock(watchdog=0.0), {})
    yield master
    board.remove()


def worker(age: int, phase: str, reads: int = 0) -> Any:
    return Mock(age=age, tmp=Mock(state=Mock(phase=phase, reads=reads)))


def test_only_workers_that_run_and_stay_count(master: Any) -> None:
    master.WORKERS = {10: worker(1, "running", 2), 11: worker(2, "starting"), 12: worker(3, "running", 5)}
    master._leaving = {3}
    assert master._running() == {1: 2}
    assert list(master._staying()) == [10, 11]
    master.WORKERS = {}


def test_it_is_ready_once_as_many_run_as_are_wanted(master: Any) -> None:
    master.WORKERS = {10 + n: worker(n, "running") for n in range(2)}
    master._look_after()
    master._notifier.ready.assert_not_called()
    master.WORKERS[12] = worker(12, "running")
    master._look_after()
    master._notifier.ready.assert_called_once_with("3 workers")
    master.WORKERS = {}


def test_a_worker_that_cannot_start_is_not_replaced_at_once(master: Any) -> None:
    spawned: list[int] = []
    master.spawn_worker = lambda: spawned.append(1)
    master.manage_workers()
    assert len(spawned) == 3
    gone = worker(7, "starting")
    master.worker_ended(gone)
    master.manage_workers()
    assert len(spawned) == 3


def test_of_two_stops_the_second_one_is_kept_for_the_drain(master: Any) -> None:
    for number in (STOPS[0], STOPS[1]):
        master.SIG_QUEUE.put(number)
    assert master.wait_for_signals(0.01) == [STOPS[0]]
    assert master.SIG_QUEUE.get_nowait() == STOPS[1]
