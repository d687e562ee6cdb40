"""Stand for the system's look-up of host names."""

import threading
from collections import Counter

from veillink.net.resolver import Answer

NXDOMAIN = "Name or service not known"


class NameServer:
    """Answers from a table, not at all while it hangs, and notes who was asked for.

    ``hanging``: names without an answer until ``awake`` is set. ``troubled``: how often a name gets none for now.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, tuple[str, ...]] = {}
        self.asked: Counter[str] = Counter()
        self.hanging: set[str] = set()
        self.troubled: dict[str, float] = {}
        self.awake = threading.Event()

    def __call__(self, host: str) -> Answer:
        if host in self.hanging:
            self.asked[host] += 1
            self.awake.wait(20)
            return self._answer(host)
        answer = self._answer(host)
        self.asked[host] += 1  # last: who sees this may change the table
        return answer

    def hung(self) -> int:
        """Return how often it was asked for names that hang."""
        return sum(self.asked[host] for host in self.hanging)

    def _answer(self, host: str) -> Answer:
        if self.troubled.get(host, 0) > 0:
            self.troubled[host] -= 1
            return (), "try again", False
        return (self.hosts[host], "", False) if host in self.hosts else ((), NXDOMAIN, True)
