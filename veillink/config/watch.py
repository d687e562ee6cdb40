"""Read the rules' file at the start, and again whenever it has to be.

Rule: a file that is still being written is never read, and a file system that hangs holds up nothing but this.
"""

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from veillink.config.files import Signature, anybody_may_write, signature
from veillink.config.rules import Parsed
from veillink.config.source import load, may_pass, unreadable
from veillink.model import RuleOptions
from veillink.text import printable

# How long the rules' file must have stood still, in seconds: after a HUP, and when nobody has asked.
_ASKED_STILL: Final = 0.1
_WATCHED_STILL: Final = 0.5
# How long HUPs are gathered at most.
_ASKED_LONGEST: Final = 1.0
# After how many seconds it is tried again, when it was the system that failed.
_AGAIN: Final = 5.0
# How long the file system may take before it is told, in seconds.
_PATIENCE: Final = 5.0

_T = TypeVar("_T")


class Schedule:
    """Tells when the file has to be read again: when asked for it, or when what its path leads to has changed.

    A path is looked at, not a file: so a rename over it and a swapped symbolic link are seen as a write is.

    Args:
        seen: what was at the path before it was first read.
        watch: whether to look for changes.
    """

    def __init__(self, seen: Signature, *, watch: bool) -> None:
        self._watch = watch
        self._seen = self._read = seen
        self._changed = self._asked = float("-inf")
        self._first_asked: float | None = None
        self._again: float | None = None

    def ask(self, now: float) -> None:
        """Read it soon, changed or not."""
        self._asked = now
        if self._first_asked is None:
            self._first_asked = now

    def ask_again(self, now: float) -> None:
        """Read it once more, later: it could not be read, or not be applied, and not for what is in it."""
        self._again = now + _AGAIN

    def begin_from(self, seen: Signature) -> None:
        """Take this for what was read: the file has named others, which are looked at from now on."""
        self._seen = self._read = seen

    def due(self, seen: Signature, now: float) -> bool:
        """Return whether to read it now, which is taken as done.

        A file that is still being written is never read; waiting for more requests has an end.

        Args:
            seen: what is at the path now.
            now: monotonic time in seconds.
        """
        if seen != self._seen:
            self._seen, self._changed = seen, now
        still = now - self._changed
        if self._first_asked is not None:
            gathered = now - self._asked >= _ASKED_STILL or now - self._first_asked >= _ASKED_LONGEST
            due = gathered and still >= _ASKED_STILL
        else:
            wanted = (self._watch and self._seen != self._read) or (self._again is not None and now >= self._again)
            due = wanted and still >= _WATCHED_STILL
        if due:
            self._read, self._first_asked, self._again = self._seen, None, None
        return due

    def next_look(self, now: float) -> float | None:
        """Return after how many seconds to call ``due`` again, if at all.

        A file that rests is looked at half as often as one that has just changed, whose time is up to the moment.
        """
        if self._first_asked is not None:
            return _ASKED_STILL / 4
        if self._watch:
            left = self._changed + _WATCHED_STILL - now
            return min(left, _WATCHED_STILL / 4) if left > 0 else _WATCHED_STILL / 2
        return None if self._again is None else _AGAIN / 4


class LogLine(Protocol):
    """Writes a line to the log."""

    def __call__(self, level: str, message: str, **fields: object) -> None:
        """Write it."""


class RulesWatch:
    """The rules' file, read in a thread of its own: one thing at a time, so that a hanging one takes no other thread.

    Args:
        path: of the file.
        defaults: for what it leaves open.
        watch: whether to look for changes.
        log: told when the file system hangs, and when it answers again.
    """

    def __init__(self, path: str, defaults: RuleOptions, *, watch: bool, log: LogLine) -> None:
        self.found = Parsed()
        """What was read last."""
        self.anybody_may_write = False
        """Whether everybody on this host could change the file when it was read last."""
        self._path = path
        self._defaults = defaults
        self._log = log
        self._schedule = Schedule(None, watch=watch)
        self._watch = watch
        self._lists: tuple[str, ...] = ()
        self._wake = Event()
        self._thread = ThreadPool(1)
        self._follower: gevent.Greenlet[..., None] | None = None

    def follow(self, on_read: Callable[[], None]) -> None:
        """Begin: read the file now, and again whenever it has to be, and call each time that was done."""
        self._follower = gevent.spawn(self._follow, on_read)

    def ask(self) -> None:
        """Read it soon, changed or not."""
        self._schedule.ask(time.monotonic())
        self._wake.set()

    def ask_again(self) -> None:
        """Read it once more, later."""
        self._schedule.ask_again(time.monotonic())
        self._wake.set()

    def close(self) -> None:
        """End that. A thread that hangs ends with the process."""
        if self._follower is not None:
            self._follower.kill()
        if not self._thread:  # it does nothing
            self._thread.kill()

    def _follow(self, on_read: Callable[[], None]) -> None:
        self._attempt(self._read_first)
        on_read()
        while True:
            self._wake.wait(self._schedule.next_look(time.monotonic()))
            self._wake.clear()
            if self._attempt(self._read_if_due):
                on_read()

    def _attempt(self, read: Callable[[], bool]) -> bool:
        """Return whether there is something to be told of the file: also what has failed, such as to start a thread."""
        try:
            return read()
        except Exception as error:
            if not isinstance(error, OSError | ValueError):
                self._log("error", "unforeseen error", traceback="".join(traceback.format_exception(error)))
            self.found = unreadable(error)
            if may_pass(error):
                self.ask_again()
            return True

    def _read_first(self) -> bool:
        self._schedule = Schedule(self._look(), watch=self._watch)
        return self._read()

    def _read_if_due(self) -> bool:
        return self._schedule.due(self._look(), time.monotonic()) and self._read()

    def _read(self) -> bool:
        self.found = self._aside(load, self._path, self._defaults)
        self.anybody_may_write = self._aside(anybody_may_write, self._path)
        names = self.found.rules.files or (self._lists if self.found.problems else ())
        if names != self._lists:
            self._lists = names
            self._schedule.begin_from(self._look())
        return True

    def _look(self) -> Signature:
        """Return what is at the path, and at those of the lists that its rules name."""
        folder = Path(self._path).parent
        paths = [self._path, *(str(folder / name) for name in self._lists)]
        return self._aside(_signatures, paths)

    def _aside(self, function: Callable[..., _T], *arguments: object) -> _T:
        answer = self._thread.spawn(_caught, function, arguments)
        value: Any
        try:
            value = answer.get(timeout=_PATIENCE)
        except gevent.Timeout:
            path = printable(self._path)
            self._log(
                "warning", f"{path}: no answer for {_PATIENCE:g} s: its file system hangs; the rules stay as they are"
            )
            value = answer.get()
            self._log("info", f"{path}: the file system answers again")
        if isinstance(value, Exception):
            raise value
        found: _T = value
        return found


def _signatures(paths: Sequence[str]) -> Signature:
    return sum((signature(path) or (0,) for path in paths), ())


def _caught(function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
    """Return what the function returns or raises: what leaves a thread by itself is printed with a traceback."""
    try:
        return function(*arguments)
    except Exception as error:
        return error
