"""Take part in a fleet: heed what the master says, lead when nobody does, tell how far this process is.

Rule: what is shown decides nothing; when it cannot be published, forwarding goes on.
"""

import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final

import gevent

from veillink.admin.status import ProcessStatus
from veillink.daemon.commands import Command, CommandQueue
from veillink.fleet.claims import Claims
from veillink.fleet.control import State
from veillink.fleet.scoreboard import Slot
from veillink.fleet.view import FleetView
from veillink.log import Log
from veillink.net.listening import listen
from veillink.server.server import Server

# Seconds from one look at what the master says to the next.
_LOOK: Final = 0.4


class FleetMember:
    """The membership of a worker; see ``daemon.membership.Membership``.

    Args:
        slot: among the others.
        claims: where the others listen, if that has to be known.
    """

    def __init__(self, slot: Slot, claims: Claims | None) -> None:
        self.number = slot.number
        self.listen: Callable[..., socket.socket] = claims.listen if claims else partial(listen, reuse_port=True)
        self._slot = slot
        self._view: FleetView | None = None

    @property
    def leads(self) -> bool:
        """Whether this process does what only one may do."""
        return self._slot.control.leads

    @property
    def others_go_on(self) -> bool:
        """Whether there are others, that do not stop now."""
        return not self._slot.control.fleet.draining

    def join(
        self,
        server: Server,
        own: ProcessStatus,
        log: Log,
        commands: CommandQueue,
        lacks: Callable[[], bool],
        *,
        watched: bool,
    ) -> ProcessStatus | FleetView:
        """Take part from now on, and return what is shown."""
        self._server = server
        self._own = own
        self._log = log
        if self._heed():
            server.lead()
        if watched:
            self._view = FleetView(own, self._slot, log)
            self._view.publish()
            gevent.spawn(self._view.publish_forever)
            gevent.spawn(self._view.publish_connections_forever)
        gevent.spawn(self._heed_forever, commands, lacks)
        return self._view or own

    def publish(self) -> None:
        """Tell the others and the master how far this process is."""
        try:
            if self._view is not None:
                self._view.publish()
        except Exception:
            self._log.error("unforeseen error", traceback=traceback.format_exc())
        self._slot.enter(State(self._own.phase, self._own.reads))

    def resign(self) -> None:
        """Let another one lead."""
        self._slot.control.resign()

    def _heed_forever(self, commands: CommandQueue, lacks: Callable[[], bool]) -> None:
        while self._own.phase in ("starting", "running"):
            leads_now = self._heed()
            if leads_now or (self.leads and lacks()):
                commands.put(Command.LEAD)
            gevent.sleep(_LOOK)

    def _heed(self) -> bool:
        """Heed what the master says; return whether this worker has just come to lead."""
        self._server.set_worker_count(self._slot.control.fleet.workers)
        return self._slot.control.lead()
