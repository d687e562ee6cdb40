"""Commands, and the signals that are some."""

import os
import signal

import gevent
import pytest

from veillink.daemon.commands import SIGNALS, CommandQueue


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("sent", "notes"),
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
def test_notes_are_taken_in_order_reloads_once_and_stops_each(
    sent: list[signal.Signals], notes: list[str], signals: type[CommandQueue]
) -> None:
    commands = signals(SIGNALS)
    taken = []
    for number in sent:
        send(number)
        gevent.sleep(0.001)  # the loop sees the same signal twice only if it has looked in between
    while note := commands.get(0.01):
        taken.append(note)
    assert taken == notes


def test_a_reload_that_was_begun_does_not_swallow_the_next(signals: type[CommandQueue]) -> None:
    commands = signals(SIGNALS)
    for _ in range(3):
        send(signal.SIGHUP)
        assert commands.get(5) == "reload"
    assert commands.get(0) is None


def test_who_waits_for_a_note_wakes_up_with_it(signals: type[CommandQueue]) -> None:
    commands = signals(SIGNALS)
    gevent.spawn_later(0.01, send, signal.SIGUSR1)
    assert commands.get() == "dump"
