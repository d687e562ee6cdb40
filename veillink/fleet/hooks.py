"""What gunicorn's arbiter calls in its own process.

Rule: nothing here starts a loop, and no error here may cost a connection.
"""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from veillink.fleet.claims import Claims
from veillink.fleet.control import Fleet
from veillink.fleet.scoreboard import Scoreboard
from veillink.fleet.worker import Worker


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


def on_starting(arbiter: Any) -> None:
    """Repair what gunicorn hands to the program that takes its place: without sockets of its own it cannot read it."""
    if "GUNICORN_PID" in os.environ:
        os.environ["GUNICORN_FD"] = "0"


def pre_fork(arbiter: Any, worker: Worker) -> None:
    """Give a worker what it shares with its siblings."""
    worker.scoreboard = scoreboard_of(arbiter)
    worker.claims = claims_of(arbiter)
    worker.is_first = not worker.scoreboard.control.has_served
    worker.listening = getattr(arbiter, "listening", {})


def child_exit(arbiter: Any, worker: Worker) -> None:
    """Archive what a worker that is no more has counted."""
    try:
        scoreboard_of(arbiter).archive_worker(worker.age)
    except OSError as error:
        arbiter.log.error("what worker %s has counted is not shown: %s", worker.age, error.strerror)


def nworkers_changed(arbiter: Any, count: int, _: int | None) -> None:
    """Publish among how many workers the limits are divided."""
    scoreboard_of(arbiter).control.publish_fleet(Fleet(count))


def on_exit(arbiter: Any) -> None:
    """Remove the scoreboard."""
    scoreboard_of(arbiter).remove()


def pre_exec(arbiter: Any) -> None:
    """Leave to the program that takes this one's place what it has to know of where this one's workers listen."""
    claims = claims_of(arbiter)
    if claims is not None:
        arbiter.cfg.env_orig.update(claims.hand_over())


def scoreboard_of(arbiter: Any) -> Scoreboard:
    """Return the scoreboard of an arbiter's workers."""
    if not hasattr(arbiter, "veillink_scoreboard"):
        arbiter.veillink_scoreboard = Scoreboard.make()
    scoreboard: Scoreboard = arbiter.veillink_scoreboard
    return scoreboard


def claims_of(arbiter: Any) -> Claims | None:
    """Return the addresses that an arbiter's workers listen at."""
    if not hasattr(arbiter, "veillink_claims"):
        arbiter.veillink_claims = Claims.of(os.environ)
    claims: Claims | None = arbiter.veillink_claims
    return claims
