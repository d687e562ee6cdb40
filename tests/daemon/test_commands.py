"""Tests of commands for the main greenlet, and of the signals that they come from."""

import os
import signal
from pathlib import Path

import gevent
import pytest

from tests.daemon.life import send
from tests.forked import forked
from veillink.daemon.commands import SIGNALS, Command, CommandQueue, reap_orphans


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([signal.SIGHUP], ["reload"]),
        ([signal.SIGUSR1], ["dump"]),
        ([signal.SIGTERM], ["stop"]),
        ([signal.SIGINT], ["stop"]),
        ([signal.SIGHUP] * 50, ["reload"]),
        ([signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP], ["reload", "dump"]),
        ([signal.SIGTERM, signal.SIGTERM], ["stop", "stop"]),
        ([signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ["reload", "stop", "stop"]),
    ],
)
def test_commands_are_taken_in_order_reloads_once_and_stops_each(
    sent: list[signal.Signals], expected: list[str], signals: type[CommandQueue]
) -> None:
    commands = signals(SIGNALS)
    taken = []
    for number in sent:
        send(number)
        gevent.sleep(0.001)  # the loop sees the same signal twice only if it has looked in between
    while command := commands.get(0.01):
        taken.append(command)
    assert taken == expected


def test_a_reload_that_was_begun_does_not_swallow_the_next(signals: type[CommandQueue]) -> None:
    commands = signals(SIGNALS)
    for _ in range(3):
        send(signal.SIGHUP)
        assert commands.get(5) == "reload"
    assert commands.get(0) is None


def test_who_waits_for_a_command_wakes_up_with_it(signals: type[CommandQueue]) -> None:
    commands = signals(SIGNALS)
    gevent.spawn_later(0.01, send, signal.SIGUSR1)
    assert commands.get() == "dump"


def test_a_command_that_waits_is_there_at_once_and_none_is_waited_for_in_vain(signals: type[CommandQueue]) -> None:
    commands = signals({})
    commands.put(Command.LEAD)
    commands.put(Command.LEAD)
    assert [commands.get(0), commands.get(0)] == [Command.LEAD, None]


def test_children_of_others_that_have_ended_are_reaped() -> None:
    def orphan_and_reap() -> object:
        gevent.reinit()
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        reap_orphans()
        gevent.sleep(0.01)
        return Path(f"/proc/{pid}").exists()

    with forked(orphan_and_reap) as process:
        assert process.does() == "False"
