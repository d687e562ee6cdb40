"""Rules from a file, with the files that they name: read at the start, and again whenever it has to be.

Rule: nothing but a regular file is ever read; one that cannot be read is a problem like any other, and a file system
that hangs holds up nothing but this.
"""

import errno
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from veillink.config.assets import Assets
from veillink.config.files import Signature, anybody_may_write, read_regular, signature
from veillink.config.rows import MAX_FILE, Problem
from veillink.config.rules import Parsed, parse
from veillink.config.schedule import Schedule
from veillink.model import RuleOptions
from veillink.text import printable

# How long the file system may take before that is said, in seconds.
_PATIENCE: Final = 5.0
# Errors that stay until the file or its path is another one, which is seen; any other may pass by itself.
_LASTING: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
)

_T = TypeVar("_T")


class FileSource:
    """A file, followed in a thread of its own: one thing at a time, so that a hanging one takes no other thread.

    Args:
        path: of a regular file of at most ``rows.MAX_FILE`` bytes.
        defaults: for what the file leaves open.
    """

    _log: Callable[..., None]
    _schedule: Schedule
    _thread: ThreadPool

    def __init__(self, path: str, defaults: RuleOptions) -> None:
        self._path = path
        self._defaults = defaults
        self._assets = Assets()
        self._named: tuple[str, ...] = ()
        self._unsettled = False
        self._wake = Event()
        self._follower: gevent.Greenlet[..., None] | None = None

    def load(self) -> Parsed:
        """Read the file, and wait for it."""
        try:
            return read(self._path, self._defaults, self._assets)
        except (OSError, ValueError) as error:
            return _unreadable(error)

    def follow(self, on_read: Callable[[Parsed], None], log: Callable[..., None], *, watch: bool) -> None:
        """Begin; see ``source.Source.follow``."""
        self._log = log
        self._schedule = Schedule(None, watch=watch)
        self._thread = ThreadPool(1)
        self._follower = gevent.spawn(self._follow, on_read)

    def refresh_soon(self) -> None:
        """Read it once more, changed or not."""
        self._schedule.refresh_soon(time.monotonic())
        self._wake.set()

    def retry_later(self) -> None:
        """Read it once more, later."""
        self._schedule.retry_later(time.monotonic())
        self._wake.set()

    def close(self) -> None:
        """End that. A thread that hangs ends with the process."""
        if self._follower is not None:
            self._follower.kill()
            if not self._thread:  # it does nothing
                self._thread.kill()

    def _follow(self, on_read: Callable[[Parsed], None]) -> None:
        read_now: Callable[[], Parsed | None] = self._read_first
        while True:
            if found := self._attempt(read_now):
                on_read(found)
            self._wake.wait(self._schedule.next_look(time.monotonic()))
            self._wake.clear()
            read_now = self._read_if_due

    def _attempt(self, read_now: Callable[[], Parsed | None]) -> Parsed | None:
        """Return what is new, if anything: also what has failed, such as to start a thread."""
        try:
            return read_now()
        except Exception as error:
            if not isinstance(error, OSError | ValueError):
                self._log("error", "unforeseen error", traceback="".join(traceback.format_exception(error)))
            if _may_pass(error):
                self.retry_later()
            return _unreadable(error)

    def _read_first(self) -> Parsed:
        seen = self._look()
        self._schedule.begin_from(seen)
        return self._read(seen)

    def _read_if_due(self) -> Parsed | None:
        seen = self._look()
        if not self._schedule.due(seen, time.monotonic()):
            return None
        found = self._read(seen)
        # What is wrong in a file that rules name is said when it has lasted: a new certificate may come before its key.
        self._unsettled = not self._unsettled and any(problem.file for problem in found.problems)
        if self._unsettled:
            self._schedule.confirm(time.monotonic())
            return None
        return found

    def _read(self, seen: tuple[Signature, ...]) -> Parsed:
        """Read all of it; ``seen`` was at the paths before."""
        found = self._in_thread(read, self._path, self._defaults, self._assets)
        names = found.rules.files or (self._named if found.problems else ())
        if names != self._named:
            self._named = names
            self._schedule.begin_from((seen[0], *(self._assets.seen[name] for name in names)))
        return found

    def _look(self) -> tuple[Signature, ...]:
        """Return what is at the path, and at those of the files that its rules name."""
        folder = Path(self._path).parent
        paths = [self._path, *(str(folder / name) for name in self._named)]
        return self._in_thread(_signatures, paths)

    def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
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


def read(path: str, defaults: RuleOptions, assets: Assets) -> Parsed:
    """Read and parse a rules' file and the files that its rules name.

    Args:
        path: of it.
        defaults: for what it leaves open.
        assets: those files as they were read last.

    Raises:
        OSError: it cannot be read, or is not regular.
        ValueError: the path holds a NUL.
    """
    found = assets.fill(parse(read_regular(path, MAX_FILE + 1), defaults, path), path)
    if anybody_may_write(path):
        shown = printable(path)
        found = found._replace(warnings=(f"{shown}: everybody on this host may change it; chmod o-w {shown}",))
    if not (found.rules.rules or found.problems):
        return found._replace(problems=(Problem(0, 0, "has no rule"),))
    return found


def _unreadable(error: Exception) -> Parsed:
    return Parsed(problems=(Problem(0, 0, f"cannot be read: {getattr(error, 'strerror', None) or error}"),))


def _may_pass(error: Exception) -> bool:
    """Return whether the same file may be read later, for all that is known."""
    return not (isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _LASTING))


def _signatures(paths: Sequence[str]) -> tuple[Signature, ...]:
    return tuple(map(signature, paths))


def _caught(function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
    """Return what the function returns or raises: what leaves a thread by itself is printed with a traceback."""
    try:
        return function(*arguments)
    except Exception as error:
        return error
