"""Rules take turns."""

from contextlib import ExitStack

import gevent
import pytest

from veillink.net.turns import Turns

pytestmark = pytest.mark.usefixtures("hub")


def test_who_waits_is_served_rule_by_rule() -> None:
    turns, served, let_go = Turns(2), list[str](), gevent.event.Event()

    def wait(rule: str) -> None:
        with turns.place(rule):
            served.append(rule)
            let_go.wait()

    for rule in ("a", "a", "a", "a", "b", "c"):
        gevent.spawn(wait, rule)
    gevent.sleep(0)
    assert sorted(served) == ["a", "b"]  # and not a, a
    let_go.set()
    gevent.sleep(0.01)
    assert sorted(served) == ["a", "a", "a", "a", "b", "c"]
    assert not turns._waiting


def test_who_is_ended_while_it_waits_leaves_nothing_behind() -> None:
    turns = Turns(1)
    with ExitStack() as stack:
        stack.enter_context(turns.place("a"))

        def wait() -> None:
            with turns.place("b"):
                pass

        waiting = gevent.spawn(wait)
        gevent.sleep(0)
        waiting.kill()
        assert not turns._waiting
    with turns.place("c"):
        pass
