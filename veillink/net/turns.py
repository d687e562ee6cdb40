"""Let rules take turns at a number of places.

Rule: who waits is served rule by rule, so that thousands of one rule do not hold up the one of another.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.event import Event

from veillink.net.places import Places


class Turns:
    """Who may probe now: places that rules share and wait for, taking turns rule by rule.

    Args:
        most: how many probes may run at a time.
    """

    def __init__(self, most: int) -> None:
        self._places = Places(most, spread=1)
        self._waiting: OrderedDict[object, deque[Event]] = OrderedDict()  # the rule whose turn is next comes first

    @contextmanager
    def place(self, rule: object) -> Iterator[None]:
        """Hold a place, once there is one."""
        mine = Event()
        self._waiting.setdefault(rule, deque()).append(mine)
        self._share_out()
        try:
            mine.wait()
            yield
        finally:
            self._leave(rule, mine)

    def _share_out(self) -> None:
        # Few are passed over: only rules that hold places have to wait while some are free.
        while rule := next(filter(self._places.take, self._waiting), None):
            self._waiting[rule].popleft().set()
            self._waiting.move_to_end(rule)
            self._forget(rule)

    def _leave(self, rule: object, mine: Event) -> None:
        if mine.is_set():
            self._places.give_back(rule)
        else:
            self._waiting[rule].remove(mine)
            self._forget(rule)
        self._share_out()

    def _forget(self, rule: object) -> None:
        """Keep nothing of a rule that waits for nothing."""
        if not self._waiting[rule]:
            del self._waiting[rule]
