"""Know when a reload of all workers is done.

Rule: nobody is waited for for ever, and nobody who is just being replaced.
"""

from collections.abc import Mapping
from typing import Final

LONGEST: Final = 30.0
"""Seconds after which a reload counts as done, whoever has not answered."""


class FleetReload:
    """Who has still to read the rules' file again.

    How often a worker has read it is given by the worker's number, for those that run.
    """

    def __init__(self) -> None:
        self._reads_before: dict[int, int] = {}
        self._until = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether somebody has still to read it."""
        return bool(self._reads_before)

    def begin(self, reads: Mapping[int, int], now: float) -> None:
        """Wait from now on until each of these workers has read it once more.

        Args:
            reads: how often each has read it before.
            now: monotonic seconds.
        """
        self._reads_before = dict(reads)
        self._until = now + LONGEST

    def ends(self, reads: Mapping[int, int], now: float) -> bool:
        """Look who has read it, and return whether nobody is waited for any more; see ``begin`` for the arguments."""
        waiting = any(number in reads and reads[number] <= before for number, before in self._reads_before.items())
        if not waiting or now > self._until:
            self._reads_before = {}
        return not self._reads_before
