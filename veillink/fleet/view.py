"""Show all workers from any of them, as if they were one process.

Rule: each answers from what was published, for itself too.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent.lock import BoundedSemaphore

from veillink.admin.status import ProcessStatus, not_ready_reason
from veillink.fleet.scoreboard import Slot
from veillink.log import Log
from veillink.net.greenlets import in_thread
from veillink.stats.snapshot import ConnectionState, Status

# Seconds from one publication to the next: 3,000 rules take 15 ms.
_PUBLISH: Final = 0.5
# How long to wait for other workers to publish their connections, and how old these may be, in seconds.
_LONGEST_WAIT: Final = 1.5
_FRESH: Final = 1.0


class FleetView:
    """What all workers show, from any of them.

    Each answers from what was published, for itself too: counters that are ahead of it would fall in the next answer,
    which comes from another worker.

    Args:
        own: the state of this worker.
        slot: of this worker.
        log: gets why it cannot be published.
    """

    def __init__(self, own: ProcessStatus, slot: Slot, log: Log) -> None:
        self._own = own
        self._slot = slot
        self._log = log
        self._turn = BoundedSemaphore(1)
        self._hidden = False

    def publish(self) -> None:
        """Show the others the state of this worker; one at a time, so that an older one never replaces a newer."""
        with self._turn:
            self._publish(self._slot.publish, self._own.status())

    def publish_forever(self) -> None:
        """Do it again and again."""
        while True:
            self.publish()
            gevent.sleep(_PUBLISH)

    def publish_connections_forever(self) -> None:
        """Show the others the live connections of this worker, as long as somebody asks for them."""
        while True:
            if self._slot.scoreboard.is_asked_for_connections():
                self._publish(self._slot.publish_connections, list(self._own.connections()))
            gevent.sleep(_PUBLISH)

    def _publish(self, publish: Callable[[Any], None], what: object) -> None:
        reason = ""
        try:
            in_thread(publish, what)
        except OSError as error:
            reason = error.strerror or str(error)
        if reason and not self._hidden:  # said once, and not twice a second
            self._log.limited("the other workers cannot show this one", reason, reason=reason)
        self._hidden = bool(reason)

    def status(self) -> Status:
        """Return the state of all workers as if they were one, or of this one when what they share is gone."""
        status: Status | None = in_thread(self._slot.scoreboard.status)
        return status or self._own.status()

    def connections(self) -> list[ConnectionState]:
        """Return every live connection of every worker; of one that is late, those it published last."""
        scoreboard = self._slot.scoreboard
        scoreboard.ask_for_connections()
        now = time.monotonic()
        while time.monotonic() < now + _LONGEST_WAIT:
            found: list[ConnectionState] | None = in_thread(scoreboard.connections, now - _FRESH)
            if found is not None:
                return found
            gevent.sleep(_PUBLISH / 8)
        return in_thread(scoreboard.connections, 0.0) or []

    def not_ready_reason(self) -> str:
        """Return why no more clients should be sent here, or nothing."""
        status = self.status()
        return not_ready_reason(status["phase"], [rule["name"] for rule in status["rules"] if not rule["listener_up"]])
