"""Tests of greenlets that are used again."""

import gc
import weakref
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.hub import getcurrent

from tests.sockets import eventually
from veillink.net.greenlets import Greenlets

pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def pool(hub: None) -> Iterator[Greenlets]:
    """Keep two spare greenlets."""
    pool = Greenlets(2)
    yield pool
    for greenlet in pool._spare:
        gevent.kill(greenlet)
    gevent.sleep(0)


def run(pool: Greenlets, function: Callable[..., object], *args: object) -> object:
    """Run a function in a task and return the greenlet it ran in."""
    ran: list[object] = []
    pool.start_soon(lambda args: (ran.append(getcurrent()), function(*args)), args)  # type: ignore[func-returns-value]
    eventually(lambda: ran)
    gevent.sleep(0)
    return ran[0]


def test_a_task_runs_soon_and_not_at_once(pool: Greenlets) -> None:
    order: list[str] = []
    pool.start_soon(order.append, "task")
    order.append("caller")
    eventually(lambda: len(order) == 2)
    assert order == ["caller", "task"]


def test_tasks_run_in_the_order_in_which_they_were_spawned(pool: Greenlets) -> None:
    order: list[int] = []
    run(pool, order.append, -1)  # leaves a spare: new and used greenlets take turns from here
    for n in range(5):
        pool.start_soon(order.append, n)
    eventually(lambda: len(order) == 6)
    assert order == [-1, 0, 1, 2, 3, 4]


def test_a_greenlet_is_used_again(pool: Greenlets) -> None:
    assert run(pool, int) is run(pool, int)


def test_tasks_that_wait_have_a_greenlet_each(pool: Greenlets) -> None:
    ran: list[object] = []

    def wait(_: None) -> None:
        ran.append(getcurrent())
        gevent.sleep(0.01)
        ran.append(getcurrent())

    for _ in range(3):
        pool.start_soon(wait, None)
    eventually(lambda: len(ran) == 6)
    assert ran[:3] == ran[3:]
    assert len(set(map(id, ran))) == 3


def test_only_so_many_greenlets_are_kept(pool: Greenlets) -> None:
    ended: list[int] = []
    for n in range(5):
        pool.start_soon(ended.append, n)
    eventually(lambda: len(ended) == 5)
    gevent.sleep(0)
    assert len(pool._spare) == 2


@pytest.mark.parametrize("before", [0, 1])
def test_a_spare_greenlet_keeps_nothing_of_its_last_task_alive(before: int, pool: Greenlets) -> None:
    class Thing:
        pass

    for _ in range(before):
        run(pool, int)
    thing = Thing()
    gone = weakref.ref(thing)
    run(pool, id, thing)
    del thing
    gc.collect()
    assert gone() is None


def test_a_task_that_is_ended_from_outside_is_not_used_again(pool: Greenlets) -> None:
    begun: list[object] = []

    def wait(_: None) -> None:
        begun.append(getcurrent())
        gevent.sleep(10)

    pool.start_soon(wait, None)
    (greenlet,) = eventually(lambda: begun)
    gevent.kill(greenlet)  # type: ignore[arg-type]
    gevent.sleep(0)
    assert pool._spare == []
    assert run(pool, int) is not greenlet
