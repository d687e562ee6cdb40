"""Notes for the main greenlet, most of them from signals.

Rule: a signal handler only leaves a note; the main greenlet reads the notes and acts, one at a time.
"""

import os
import signal
from collections import deque
from collections.abc import Mapping
from typing import Final

from gevent.event import Event
from gevent.hub import get_hub

STOP: Final = "stop"
CUT: Final = "cut"
RELOAD: Final = "reload"
READ: Final = "read"
DUMP: Final = "dump"
LEAD: Final = "lead"
SIGNALS: Final = {
    signal.SIGTERM: STOP,
    signal.SIGINT: STOP,
    signal.SIGHUP: RELOAD,
    signal.SIGUSR1: DUMP,
}
# Ctrl+C and service managers send theirs to master and workers alike: a worker heeds its master, and a second TERM
# cuts nobody.
WORKER_SIGNALS: Final = {
    signal.SIGTERM: STOP,
    signal.SIGQUIT: CUT,
    signal.SIGHUP: RELOAD,
    signal.SIGUSR1: DUMP,
}


def reap_orphans() -> None:
    """Take note of the ends of processes that have lost their parents.

    The first process of a container is given them, and until it does they stay as zombies. The loop can do it: it waits
    for every child, known or not (childcb in libev's ev.c), as soon as it is told of ends.
    """
    get_hub().loop.install_sigchld()
    os.kill(os.getpid(), signal.SIGCHLD)  # some may have ended before


class Inbox:
    """Notes, most of them from signal handlers. A second reload that waits would do nothing; stops all count.

    Args:
        signals: the note that each of them leaves.
    """

    def __init__(self, signals: Mapping[signal.Signals, str]) -> None:
        self._notes: deque[str] = deque()
        self._came = Event()
        self._watchers = [get_hub().loop.signal(number) for number in signals]
        for watcher, note in zip(self._watchers, signals.values(), strict=True):
            watcher.start(self.leave, note)

    def leave(self, note: str) -> None:
        """Leave a note."""
        if note == STOP or note not in self._notes:
            self._notes.append(note)
            self._came.set()

    def take(self, timeout: float | None = None) -> str | None:
        """Return the oldest note, or ``None`` after ``timeout`` seconds without one."""
        if not self._notes:
            self._came.clear()
            self._came.wait(timeout)
        return self._notes.popleft() if self._notes else None
