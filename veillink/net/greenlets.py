"""Share the loop: functions in greenlets that are used again, and long work that lets others run.

A new greenlet costs an mmap and a munmap of 16 KiB and page faults between them (Python 3.11): about a tenth of what a
short connection costs.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import gevent
from gevent.hub import get_hub, getcurrent, spawn_raw

# Each holds about 7 KiB.
_SPARES: Final = 128
# Of thousands of rules so many are worked on before others get their turn: about a millisecond.
_AT_A_TIME: Final = 100

_T = TypeVar("_T")
_R = TypeVar("_R")


class Greenlets:
    """Greenlets that are used again.

    Args:
        most: how many wait for their next function.
    """

    def __init__(self, most: int = _SPARES) -> None:
        self._most = most
        self._spare: list[Any] = []

    def start_soon(self, function: Callable[[_T], object], argument: _T) -> None:
        """Call the function soon in a greenlet of its own. What it raises is printed by the hub.

        One argument, because a call with ``*args`` leaves Python for C: 370 bytes of stack for each one that waits.
        """
        if self._spare:
            get_hub().loop.run_callback(self._spare.pop().switch, function, argument)
        else:
            spawn_raw(self._work, [function, argument])

    def _work(self, first: list[Any]) -> None:
        this, hub, spare = getcurrent(), get_hub(), self._spare
        function, argument = first
        first.clear()  # a greenlet holds what it was started with for as long as it lives
        while True:
            function(argument)
            if len(spare) >= self._most:
                return
            spare.append(this)
            function = argument = None  # nothing of the last job stays alive
            function, argument = hub.switch()


def unhurried(items: Iterable[_T]) -> Iterator[_T]:
    """Yield the items, and let others run in between. What is passed over must not change meanwhile."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _AT_A_TIME == 0:
            gevent.sleep(0)


def in_thread(function: Callable[..., _R], *arguments: object) -> _R:
    """Return what a function returns in a thread, while others run; the loop would print what leaves one by itself.

    Raises:
        OSError: as it does.
    """

    def answer() -> _R | OSError:
        try:
            return function(*arguments)
        except OSError as error:
            return error

    found: _R | OSError = get_hub().threadpool.apply(answer)
    if isinstance(found, OSError):
        raise found
    return found
