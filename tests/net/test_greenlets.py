"""Tests of greenlets that are used again."""

import gc
import weakref
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.hub import getcurrent

from tests.sockets import eventually
from veillink.net import greenlets
from veillink.net.greenlets import start_soon

pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture(autouse=True)
def spare(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Begin without spare greenlets."""
    spare: list[object] = []
    monkeypatch.setattr(greenlets, "_spare", spare)
    yield spare
    for greenlet in spare:
        gevent.kill(greenlet)  # type: ignore[arg-type]
    gevent.sleep(0)


def run(function: Callable[..., object], *args: object) -> object:
    """Run a function in a task and return the greenlet it ran in."""
    ran: list[object] = []
    start_soon(lambda args: (ran.append(getcurrent()), function(*args)), args)  # type: ignore[func-returns-value]
    eventually(lambda: ran)
    gevent.sleep(0)
    return ran[0]


def test_a_task_runs_soon_and_not_at_once() -> None:
    order: list[str] = []
    start_soon(order.append, "task")
    order.append("caller")
    eventually(lambda: len(order) == 2)
    assert order == ["caller", "task"]


def test_tasks_run_in_the_order_in_which_they_were_spawned() -> None:
    order: list[int] = []
    run(order.append, -1)  # leaves a spare: new and used greenlets take turns from here
    for n in range(5):
        start_soon(order.append, n)
    eventually(lambda: len(order) == 6)
    assert order == [-1, 0, 1, 2, 3, 4]


def test_a_greenlet_is_used_again() -> None:
    assert run(int) is run(int)


def test_tasks_that_wait_have_a_greenlet_each() -> None:
    ran: list[object] = []

    def wait(_: None) -> None:
        ran.append(getcurrent())
        gevent.sleep(0.01)
        ran.append(getcurrent())

    for _ in range(3):
        start_soon(wait, None)
    eventually(lambda: len(ran) == 6)
    assert ran[:3] == ran[3:]
    assert len(set(map(id, ran))) == 3


def test_only_so_many_greenlets_are_kept(monkeypatch: pytest.MonkeyPatch, spare: list[object]) -> None:
    monkeypatch.setattr(greenlets, "_SPARES", 2)
    ended: list[int] = []
    for n in range(5):
        start_soon(ended.append, n)
    eventually(lambda: len(ended) == 5)
    gevent.sleep(0)
    assert len(spare) == 2


@pytest.mark.parametrize("before", [0, 1])
def test_a_spare_greenlet_keeps_nothing_of_its_last_task_alive(before: int) -> None:
    class Thing:
        pass

    for _ in range(before):
        run(int)
    thing = Thing()
    gone = weakref.ref(thing)
    run(id, thing)
    del thing
    gc.collect()
    assert gone() is None


def test_a_task_that_is_ended_from_outside_is_not_used_again(spare: list[object]) -> None:
    begun: list[object] = []

    def wait(_: None) -> None:
        begun.append(getcurrent())
        gevent.sleep(10)

    start_soon(wait, None)
    (greenlet,) = eventually(lambda: begun)
    gevent.kill(greenlet)  # type: ignore[arg-type]
    gevent.sleep(0)
    assert spare == []
    assert run(int) is not greenlet
