"""Take part in a fleet: follow what the master publishes, lead when nobody does, publish how far this process is.

Rule: what is shown decides nothing; when it cannot be published, forwarding goes on.
"""

import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final

import gevent

from veillink.admin.status import ProcessStatus
from veillink.fleet.claims import Claims
from veillink.fleet.control import State
from veillink.fleet.scoreboard import Slot
from veillink.fleet.view import FleetView
from veillink.log import Log
from veillink.net.listening import listen
from veillink.server.server import Server

# Seconds from one look at what the master publishes to the next.
_LOOK: Final = 0.4


class FleetMember:
    """The membership of a worker; see ``daemon.membership.Membership``.

    Args:
        slot: among the others.
        claims: where the others listen, if that has to be known.
        log: of the process.
        watched: whether anything is shown.
    """

    def __init__(self, slot: Slot, claims: Claims | None, log: Log, *, watched: bool) -> None:
        self.number = slot.number
        self.listen: Callable[..., socket.socket] = claims.listen if claims else partial(listen, reuse_port=True)
        self._slot = slot
        self._log = log
        self._is_watched = watched
        self._view: FleetView | None = None

    @property
    def leads(self) -> bool:
        """Whether this process does what only one may do."""
        return self._slot.control.leads

    @property
    def others_go_on(self) -> bool:
        """Whether there are others, that do not stop now."""
        return not self._slot.control.fleet.draining

    def join(self, server: Server, own: ProcessStatus, on_leading: Callable[[], None]) -> ProcessStatus | FleetView:
        """Take part from now on, and return what is shown."""
        self._own = own
        server.set_worker_count(self._slot.control.fleet.workers)
        if self._slot.control.lead():
            server.lead()
        if self._is_watched:
            self._view = FleetView(own, self._slot, self._log)
            self._view.publish()
            gevent.spawn(self._view.publish_forever)
            gevent.spawn(self._view.publish_connections_forever)
        gevent.spawn(self._follow_fleet, server, on_leading)
        return self._view or own

    def publish(self) -> None:
        """Let the others and the master know how far this process is."""
        try:
            if self._view is not None:
                self._view.publish()
        except Exception:
            self._log.error("unforeseen error", traceback=traceback.format_exc())
        self._slot.enter(State(self._own.phase, self._own.reads))

    def resign(self) -> None:
        """Let another one lead."""
        self._slot.control.resign()

    def _follow_fleet(self, server: Server, on_leading: Callable[[], None]) -> None:
        """Follow what the master publishes, and take the lead when nobody has it, until this process drains."""
        while self._own.phase in ("starting", "running"):
            server.set_worker_count(self._slot.control.fleet.workers)
            self._slot.control.lead()
            if self.leads:
                on_leading()
            gevent.sleep(_LOOK)
