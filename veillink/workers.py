"""Be one of several processes under gunicorn's arbiter, each of which forwards as one alone would.

Rule: what runs in the arbiter's process starts no loop, and no error there may cost a connection.
"""

import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import gevent
from gunicorn.arbiter import Arbiter
from gunicorn.workers import base

from .claims import Claims
from .control import Fleet, Slot
from .daemon import Outcome, work
from .log import opened
from .model import Address, Settings
from .options import from_environment
from .scoreboard import Scoreboard, Seat

# Not for workers, but sent to all of a terminal's or a container's processes.
_FOR_THE_MASTER: Final = (signal.SIGINT, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU)
# A worker that is about to start has nothing to reload or to show.
_TOO_EARLY: Final = (signal.SIGHUP, signal.SIGUSR1)
_BEAT: Final = 1.0  # seconds from one sign of life to the next

# gunicorn's own sign of life is a file in a folder that may be full or gone.
base.WorkerTmp = Slot  # type: ignore[assignment, attr-defined]


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
    """One of the processes."""

    tmp: Any
    board: Scoreboard
    """Set before it is forked."""
    claims: Claims | None = None
    """The addresses that its siblings listen at, where it has to know."""
    is_first = True
    """Whether none before it has ever run."""
    listening: Mapping[Address, socket.socket] = {}
    """Sockets that the master was handed over."""

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
        gevent.spawn(self._beat_forever)
        forwarder: Any = self.wsgi
        settings, seat = forwarder.settings(), Seat(self.board, self.tmp, self.age)
        with opened(settings, {"worker": seat.number}) as log:
            outcome = work(settings, log, seat, self.listening, self.claims)
        if os.getppid() != self.ppid:
            self.board.remove()
        if outcome is Outcome.NOT_STARTED and self.is_first:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        sys.exit(0 if outcome is Outcome.DRAINED else 1)

    def _beat_forever(self) -> None:
        while os.getppid() == self.ppid:
            self.notify()
            gevent.sleep(min(_BEAT, self.timeout / 2 or _BEAT))
        os.kill(os.getpid(), signal.SIGTERM)  # the master has been killed


@contextmanager
def signals_held(numbers: Iterable[int]) -> Iterator[None]:
    """Let these signals wait. What is forked has the handlers of its parent until it sets its own, and would lose them.

    Who is forked lets them through itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- what gunicorn calls in its own process --------------------------------------------------------------------------


def on_starting(arbiter: Any) -> None:
    """Repair what gunicorn hands to the program that takes its place: without sockets of its own it cannot read it."""
    if "GUNICORN_PID" in os.environ:
        os.environ["GUNICORN_FD"] = "0"


def pre_fork(arbiter: Any, worker: Worker) -> None:
    """Give a worker its scoreboard."""
    worker.board = board_of(arbiter)
    worker.claims = claims_of(arbiter)
    worker.is_first = not worker.board.control.has_served
    worker.listening = getattr(arbiter, "listening", {})


def child_exit(arbiter: Any, worker: Worker) -> None:
    """Keep the account of a worker that is no more."""
    try:
        board_of(arbiter).bury(worker.age)
    except OSError as error:
        arbiter.log.error("what worker %s has counted is not shown: %s", worker.age, error.strerror)


def nworkers_changed(arbiter: Any, count: int, _: int | None) -> None:
    """Tell the workers among how many the limits are divided."""
    board_of(arbiter).control.tell(Fleet(count))


def on_exit(arbiter: Any) -> None:
    """Remove the scoreboard."""
    board_of(arbiter).remove()


def pre_exec(arbiter: Any) -> None:
    """Leave to the program that takes this one's place what it has to know of where this one's workers listen."""
    claims = claims_of(arbiter)
    if claims is not None:
        arbiter.cfg.env_orig.update(claims.hand_over())


def board_of(arbiter: Any) -> Scoreboard:
    """Return the scoreboard of an arbiter's workers."""
    if not hasattr(arbiter, "veillink_board"):
        arbiter.veillink_board = Scoreboard.make()
    board: Scoreboard = arbiter.veillink_board
    return board


def claims_of(arbiter: Any) -> Claims | None:
    """Return the addresses that an arbiter's workers listen at."""
    if not hasattr(arbiter, "veillink_claims"):
        arbiter.veillink_claims = Claims.of(os.environ)
    claims: Claims | None = arbiter.veillink_claims
    return claims
