"""Commands for the main greenlet, most of them from signals.

Rule: a signal handler only queues a command; the main greenlet carries them out, one at a time.
"""

import os
import signal
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from gevent.event import Event
from gevent.hub import get_hub


class Command(StrEnum):
    """What the main greenlet is to do."""

    STOP = "stop"
    CUT = "cut"
    RELOAD = "reload"
    READ = "read"
    DUMP = "dump"
    LEAD = "lead"


SIGNALS: Final = {
    signal.SIGTERM: Command.STOP,
    signal.SIGINT: Command.STOP,
    signal.SIGHUP: Command.RELOAD,
    signal.SIGUSR1: Command.DUMP,
}
# Ctrl+C and service managers send theirs to master and workers alike: a worker heeds its master, and a second TERM
# cuts nobody.
WORKER_SIGNALS: Final = {
    signal.SIGTERM: Command.STOP,
    signal.SIGQUIT: Command.CUT,
    signal.SIGHUP: Command.RELOAD,
    signal.SIGUSR1: Command.DUMP,
}


def reap_orphans() -> None:
    """Reap processes that have lost their parents.

    The first process of a container is given them, and until it does they stay as zombies. The loop can do it: it waits
    for every child, known or not (childcb in libev's ev.c), as soon as it hears of ends.
    """
    get_hub().loop.install_sigchld()
    os.kill(os.getpid(), signal.SIGCHLD)  # some may have ended before


class CommandQueue:
    """Commands that wait. A second reload would do nothing; stops all count.

    Args:
        signals: the command that each of them is.
    """

    def __init__(self, signals: Mapping[signal.Signals, Command]) -> None:
        self._waiting: deque[Command] = deque()
        self._came = Event()
        self._watchers = [get_hub().loop.signal(number) for number in signals]
        for watcher, command in zip(self._watchers, signals.values(), strict=True):
            watcher.start(self.put, command)

    def put(self, command: Command) -> None:
        """Queue a command."""
        if command is Command.STOP or command not in self._waiting:
            self._waiting.append(command)
            self._came.set()

    def get(self, timeout: float | None = None) -> Command | None:
        """Return the oldest command, or ``None`` after ``timeout`` seconds without one."""
        if not self._waiting:
            self._came.clear()
            self._came.wait(timeout)
        return self._waiting.popleft() if self._waiting else None
