"""Warn of certificates that end soon, when they are loaded and once a day."""

import math
import time
from typing import Final

import gevent

from veillink.credentials import Certificate, ending
from veillink.daemon.announcements import Announcements
from veillink.model import RuleSet
from veillink.net.greenlets import unhurried
from veillink.server.server import Server

_DAY: Final = 86_400.0
_LOOK: Final = 3_600.0  # by the clock of the wall, which may be put right meanwhile


class ExpiryWatch:
    """Looks at the certificates of all rules.

    Args:
        announcements: where the warnings go.
    """

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        self._warned: dict[Certificate, float] = {}

    def look(self, rules: RuleSet, now: float) -> None:
        """Warn of those of which that was not done within a day; one that many rules show is named once.

        Args:
            rules: which run.
            now: Unix seconds.
        """
        warned: dict[Certificate, float] = {}
        for rule in unhurried(rules.rules):
            for certificate in rule.certificates:
                how = ending(certificate.not_after, now)
                if not how or certificate in warned:
                    continue
                last = self._warned.get(certificate, -math.inf)
                if now - last >= _DAY:
                    self._announcements.log_ending(rule, certificate, how)
                    last = now
                warned[certificate] = last
        self._warned = warned

    def look_forever(self, server: Server) -> None:
        """Do it again and again."""
        while True:
            self.look(server.rules, time.time())
            gevent.sleep(_LOOK)
