"""A worker's membership over what really is shared, in the process of the test."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import gevent

from tests.forked import Cfg
from veillink.admin.status import ProcessStatus
from veillink.fleet.claims import Claims
from veillink.fleet.control import Control, Heartbeat
from veillink.fleet.member import FleetMember
from veillink.fleet.scoreboard import Scoreboard, Slot
from veillink.log import Log
from veillink.server.fd_budget import FdBudget
from veillink.server.server import Server


class Member:
    """A worker, as far as its fleet knows of it.

    Args:
        log: of the process.
        number: of the worker.
        scoreboard: of its fleet; without one it gets its own.
        watched: whether anything is shown.
    """

    def __init__(self, log: Log, number: int, scoreboard: Scoreboard | None = None, *, watched: bool = False) -> None:
        self.scoreboard = scoreboard or Scoreboard([Path("/dev/shm")], Control())
        self.scoreboard.keep()
        self.control = self.scoreboard.control
        self.heartbeat = Heartbeat(Cfg())
        self.slot = Slot(self.scoreboard, self.heartbeat, number)
        self.member = FleetMember(self.slot, Claims.of({}), log, watched=watched)
        budget = FdBudget(1000, splice=True, watched=watched, inherited=0)
        self.server = Server(log, budget, 0, worker=number, open_at=self.member.listen)
        self.own = ProcessStatus("rules.csv", self.server, 1000, log)

    def __enter__(self) -> "Member":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.own.phase = "drained"
        self.scoreboard.remove()
        self.heartbeat.close()


@contextlib.contextmanager
def greenlets_ended() -> Iterator[None]:
    """End the greenlets that a block has started and that would go on until the process ends."""
    before = set(_greenlets())
    try:
        yield
    finally:
        gevent.killall([each for each in _greenlets() if each not in before])


def _greenlets() -> list[gevent.Greenlet]:  # type: ignore[type-arg]
    return [each for each in gc.get_objects() if isinstance(each, gevent.Greenlet) and not each.ready()]
