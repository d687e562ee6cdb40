"""Take part in a fleet: heed what the master says, lead when nobody does, tell how far this process is.

Rule: a process that is alone leads, and has nobody to tell.
"""

import traceback
from collections.abc import Callable
from typing import Final

import gevent

from .control import State
from .inbox import LEAD, Inbox
from .log import Log
from .report import FleetReport, Report
from .scoreboard import Seat
from .server import Server

# Seconds from one look at what the master says to the next.
_LOOK: Final = 0.4


class Membership:
    """A process's part in its fleet.

    Args:
        seat: among the others, or ``None`` when it is alone.
        server: is told among how many it is, and whether it leads.
        report: of the process.
        log: of the process.
    """

    def __init__(self, seat: Seat | None, server: Server, report: Report, log: Log) -> None:
        self.shown: Report | FleetReport = report
        """What is shown to whoever asks: of all, where it is not alone."""
        self._seat = seat
        self._server = server
        self._report = report
        self._log = log

    @property
    def leads(self) -> bool:
        """Whether this process does what only one may do."""
        return self._seat is None or self._seat.control.leads

    @property
    def is_alone(self) -> bool:
        """Whether there is no fleet."""
        return self._seat is None

    def join(self, inbox: Inbox, *, watched: bool, lacks: Callable[[], bool]) -> None:
        """Take part from now on.

        Args:
            inbox: gets ``LEAD`` when there is something to do that only the one that leads may do.
            watched: whether the fleet's state is shown.
            lacks: returns whether the one that leads has something left to do.
        """
        if self._seat is None:
            return
        if self._heed(self._seat):
            self._server.lead()
        if watched:
            self.shown = FleetReport(self._report, self._seat, self._log)
            self.shown.publish()
            gevent.spawn(self.shown.publish_forever)
            gevent.spawn(self.shown.publish_connections_forever)
        gevent.spawn(self._heed_forever, self._seat, inbox, lacks)

    def _heed_forever(self, seat: Seat, inbox: Inbox, lacks: Callable[[], bool]) -> None:
        while self._report.phase in ("starting", "running"):
            leads_now = self._heed(seat)
            if leads_now or (seat.control.leads and lacks()):
                inbox.leave(LEAD)
            gevent.sleep(_LOOK)

    def _heed(self, seat: Seat) -> bool:
        """Heed what the master says; return whether this worker has just come to lead."""
        self._server.share(seat.control.fleet.workers)
        return seat.control.lead()

    @property
    def others_go_on(self) -> bool:
        """Whether there are others, that do not stop now."""
        return self._seat is not None and not self._seat.control.fleet.draining

    def resign(self) -> None:
        """Let another one lead."""
        if self._seat is not None:
            self._seat.control.resign()

    def enter(self, phase: str) -> None:
        """Come to another phase of life, and tell the others."""
        self._report.phase = phase
        self.publish()

    def publish(self) -> None:
        """Tell the others how far this process is."""
        try:
            if isinstance(self.shown, FleetReport):
                self.shown.publish()
        except Exception:  # what is shown decides nothing
            self._log.error("unforeseen error", traceback=traceback.format_exc())
        if self._seat is not None:
            self._seat.enter(State(self._report.phase, self._report.reads))

    def say(self, level: str, message: str, **fields: object) -> None:
        """Log what all workers would log: one of them does."""
        getattr(self._log, level if self.leads else "debug")(message, **fields)
