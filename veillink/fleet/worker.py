"""Be one of several processes under gunicorn's arbiter, each of which forwards as one alone would.

Rule: it is made in the arbiter's process, where no loop may start; ``run`` is the first to need one, after the fork.
"""

import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import gevent
from gunicorn.arbiter import Arbiter
from gunicorn.workers import base

from veillink.config.settings import from_environment
from veillink.daemon.process import Outcome, run_worker
from veillink.fleet.claims import Claims
from veillink.fleet.control import Heartbeat
from veillink.fleet.member import FleetMember
from veillink.fleet.scoreboard import Scoreboard, Slot
from veillink.log import opened
from veillink.model import Address
from veillink.settings import Settings

# Not for workers, but sent to all of a terminal's or a container's processes.
_FOR_THE_MASTER: Final = (signal.SIGINT, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU)
# A worker that is about to start has nothing to reload or to show.
_TOO_EARLY: Final = (signal.SIGHUP, signal.SIGUSR1)
_BEAT: Final = 1.0  # seconds from one sign of life to the next


class Forwarder:
    """What gunicorn's workers load.

    Args:
        settings: returns those of all workers.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self.settings = settings

    def __call__(self, environ: object, start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
        """Answer as a web application, which this is not (PEP 3333)."""
        start_response("501 Not Implemented", [("Content-Type", "text/plain")])
        return [b"VeilLink forwards TCP: give gunicorn --worker-class veillink.workers.Worker\n"]


app: Final = Forwarder(from_environment)
"""For ``gunicorn veillink.workers:app``."""


class Worker(base.Worker):
    """One of the processes.

    Args:
        arguments: gunicorn's.

    Raises:
        OSError: no descriptor is left.
    """

    tmp: Any
    scoreboard: Scoreboard
    """Set before it is forked."""
    claims: Claims | None = None
    """The addresses that its siblings listen at, where it has to know."""
    is_first = True
    """Whether none before it has ever run."""
    listening: Mapping[Address, socket.socket] = {}
    """Sockets that the master was handed over."""

    def __init__(self, *arguments: Any) -> None:
        # gunicorn's own heartbeat is a file in a folder that may be full or gone
        base.WorkerTmp = Heartbeat  # type: ignore[assignment, attr-defined]
        super().__init__(*arguments)

    def init_signals(self) -> None:
        """Forget the master's handlers; from the start of its loop on the process heeds signals itself."""
        ignored = (*_FOR_THE_MASTER, *_TOO_EARLY)
        for number in (*Arbiter.SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def run(self) -> None:
        """Forward until the master says stop, and exit.

        Raises:
            SystemExit: with 0, 1 when connections had to be cut, or what makes gunicorn give up when none can start.
        """
        faulthandler.enable()  # the master ends one that hangs with SIGABRT: this tells where it hung
        gevent.spawn(self._beat_until_orphaned)
        forwarder: Any = self.wsgi
        settings: Settings = forwarder.settings()
        slot = Slot(self.scoreboard, self.tmp, self.age)
        with opened(settings, {"worker": slot.number}) as log:
            member = FleetMember(slot, self.claims, log, watched=settings.admin is not None)
            outcome = run_worker(settings, log, member, self.listening)
        if os.getppid() != self.ppid:
            self.scoreboard.remove()
        if outcome is Outcome.NOT_STARTED and self.is_first:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        sys.exit(0 if outcome is Outcome.DRAINED else 1)

    def _beat_until_orphaned(self) -> None:
        while os.getppid() == self.ppid:
            self.notify()
            gevent.sleep(min(_BEAT, self.timeout / 2 or _BEAT))
        os.kill(os.getpid(), signal.SIGTERM)  # the master has been killed
