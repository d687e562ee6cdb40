"""A real master, with workers that only say how far they are."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.daemon.life import settings_of
from veillink.daemon.supervisor import ServiceNotifier
from veillink.fleet.control import Control, State
from veillink.fleet.journal import Journal
from veillink.fleet.launch import FleetApplication
from veillink.fleet.master import Master
from veillink.fleet.scoreboard import Scoreboard
from veillink.fleet.worker import Worker


class Idle(Worker):
    """Runs, reads the rules again with each HUP, and ends with TERM, all of it in words."""

    def init_process(self) -> None:
        """Be the worker, without ever returning to the test."""
        self.init_signals()
        reads = 1
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGTERM))
        self.tmp.enter(State("running", reads))
        while os.getppid() == self.ppid:
            self.notify()
            came = signal.sigtimedwait((signal.SIGHUP, signal.SIGTERM), 0.05)
            if came and came.si_signo == signal.SIGTERM:
                self.tmp.enter(State("drained", reads))
                break
            if came:
                reads += 1
                self.tmp.enter(State("running", reads))
        os._exit(0)


class Stubborn(Idle):
    """Is told to end, and goes on draining."""

    def init_process(self) -> None:
        """Be the worker."""
        self.init_signals()
        self.tmp.enter(State("running", 1))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while os.getppid() == self.ppid:
            self.notify()
            time.sleep(0.05)
        os._exit(0)


class Stillborn(Worker):
    """Ends before it has begun."""

    def init_process(self) -> None:
        """Be the worker."""
        os._exit(1)


@contextmanager
def master_of(
    path: Path,
    worker: type[Worker],
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Iterator[Master]:
    """Make a master that has begun nothing yet.

    Args:
        path: of the rules, and of what it shares with its workers.
        worker: of which kind they are.
        environ: where its service manager is, if anywhere.
        clock: returns monotonic seconds.
        settings: what else is asked for.
    """
    asked = settings_of(path / "rules.csv", log_format="json", **{"workers": 2, "drain_timeout": 1.0} | settings)
    app = FleetApplication(asked)
    app.cfg.set("worker_class", worker)
    scoreboard = Scoreboard([path], Control())
    scoreboard.keep()
    with closing(ServiceNotifier(environ or {})) as notifier:
        yield Master(app, asked, scoreboard, Journal(asked), notifier, {}, clock)
    scoreboard.remove()


def run(master: Master) -> object:
    """Be the master to its end, and return its exit code."""
    try:
        master.run()
    except SystemExit as end:
        return end.code
    return None
