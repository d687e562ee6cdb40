"""Tests of the master: gunicorn's real arbiter in a process of its own, real forks and signals, a real manager."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.fleet.clock import Clock
from tests.fleet.masters import Idle, Stillborn, Stubborn, master_of, run
from tests.forked import forked
from tests.system.manager import Manager
from veillink.fleet.control import Fleet
from veillink.fleet.master import Master

Made = Callable[..., Master]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    """Make masters, and take away what they have."""
    with ExitStack() as stack:
        yield lambda *what, **settings: stack.enter_context(master_of(tmp_path, *what, **settings))


def staying(master: Master) -> list[int]:
    """Return the numbers of the workers that are not to leave."""
    master.manage_workers()
    return list(master.staying().values())


def start(master: Master) -> list[int]:
    master.start()
    return staying(master)


def test_there_are_as_many_workers_as_there_are_to_be_and_the_oldest_goes_first(made: Made) -> None:
    master = made(Stubborn)

    def change(signal_handler: str) -> list[int]:
        getattr(master, signal_handler)()
        return staying(master)

    steps = [partial(change, handler) for handler in ("handle_ttin", "handle_ttou", "handle_ttin")]
    with forked(partial(start, master), *steps, lambda: len(master.WORKERS)) as process:
        assert process.does() == "[1, 2]"
        assert process.does() == "[1, 2, 3]"
        assert master.veillink_scoreboard.control.fleet == Fleet(3)
        assert process.does() == "[2, 3]"
        assert process.does() == "[2, 3, 4]"  # the first one still drains, and counts no more
        assert process.does() == "4"


def test_one_that_cannot_start_is_not_replaced_at_once(made: Made) -> None:
    clock = Clock()
    master = made(Stillborn, clock=clock, workers=1)

    def reap() -> list[int]:
        for pid in tuple(master.WORKERS):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        master.reap_workers()
        return staying(master)

    def later(seconds: float) -> list[int]:
        clock.now += seconds
        return staying(master)

    with forked(partial(start, master), reap, partial(later, 0.9), partial(later, 0.2)) as process:
        assert [process.does() for _ in range(4)] == ["[1]", "[]", "[]", "[2]"]


def test_without_descriptors_workers_are_started_later(made: Made) -> None:
    clock = Clock()
    master = made(Idle, clock=clock)

    def start_without() -> list[int]:
        master.start()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        return staying(master)

    def start_with() -> list[int]:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
        clock.now += 1.0
        return staying(master)

    with forked(start_without, start_with) as process:
        assert process.does() == "[]"
        assert process.does().count(",") == 1


def test_the_manager_hears_when_all_of_them_run_when_they_have_read_again_and_when_they_stop(
    made: Made, tmp_path: Path, manager: Manager
) -> None:
    master = made(Idle, manager.env, pidfile=str(tmp_path / "pid"))
    with forked(partial(run, master)) as process:
        process.begin()
        assert manager.told() == {"READY": "1", "STATUS": "2 workers"}
        assert (tmp_path / "pid").read_text() == f"{process.pid}\n"
        os.kill(process.pid, signal.SIGHUP)
        assert "RELOADING" in manager.told()
        assert manager.told() == {"READY": "1", "STATUS": "2 workers"}
        os.kill(process.pid, signal.SIGTERM)
        assert "STOPPING" in manager.told()
        assert process.end() == "0"
    assert master.veillink_scoreboard.control.fleet == Fleet(2, draining=True)
    assert list(tmp_path.glob("veillink-fleet-*")) == []


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_stop_cuts_and_the_exit_code_says_so(second: signal.Signals, made: Made, manager: Manager) -> None:
    master = made(Stubborn, manager.env, drain_timeout=600.0)
    with forked(partial(run, master)) as process:
        process.begin()
        assert "READY" in manager.told()
        os.kill(process.pid, signal.SIGTERM)
        assert "STOPPING" in manager.told()
        os.kill(process.pid, second)
        assert process.end() == "1"


def test_of_two_stops_at_once_the_second_one_is_kept_for_the_drain(made: Made) -> None:
    master = made(Idle)
    for number in (signal.SIGTERM, signal.SIGINT):
        master.SIG_QUEUE.put(number)
    assert master.wait_for_signals(0.01) == [signal.SIGTERM]
    assert master.SIG_QUEUE.get_nowait() == signal.SIGINT


def test_a_watchdog_gets_its_signs_of_life_and_a_new_worker_takes_a_killed_ones_place(
    made: Made, manager: Manager
) -> None:
    master = made(Idle, manager.env | {"WATCHDOG_USEC": "300000"}, workers=1)
    with forked(partial(run, master)) as process:
        process.begin()
        heard = [manager.told() for _ in range(3)]
        while {"READY": "1", "STATUS": "1 workers"} not in heard:
            heard.append(manager.told())
        assert {"WATCHDOG": "1"} in heard
        (first,) = _children(process.pid)
        os.kill(first, signal.SIGKILL)
        while _children(process.pid) in ([], [first]):
            assert manager.told() == {"WATCHDOG": "1"}
        os.kill(process.pid, signal.SIGTERM)
        assert process.end() == "0"


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
