"""Read the rules' file, and tell when it has to be read again.

Rule: a file that is still being written is never read, and nothing but a regular file ever is.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final

from .model import RuleOptions
from .rows import MAX_FILE, Problem
from .rules import Parsed, parse

# How long the rules' file must have stood still, in seconds: after a HUP, and when nobody has asked.
_ASKED_STILL: Final = 0.1
_WATCHED_STILL: Final = 0.5
# How long HUPs are gathered at most.
_ASKED_LONGEST: Final = 1.0


def read_rules(path: str, defaults: RuleOptions) -> Parsed:
    """Read and parse the rules' file. A file that cannot be read is a problem like any other.

    Args:
        path: of a regular file of at most ``rules.MAX_FILE`` bytes.
        defaults: for what the file leaves open.
    """
    try:
        data = read_regular(path, MAX_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return Parsed(problems=(Problem(0, 0, f"cannot be read: {getattr(error, 'strerror', None) or error}"),))
    found = parse(data, defaults)
    if not (found.rules.rules or found.problems):
        return found._replace(problems=(Problem(0, 0, "has no rule"),))
    return found


def read_regular(path: str, most: int) -> bytes:
    """Return the first ``most`` bytes of a regular file. A FIFO, a device or a directory is refused, never waited for.

    Raises:
        OSError: it cannot be read, or is not regular.
        ValueError: the path holds a NUL.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for its writer
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
        data = bytearray()
        while len(data) < most and (part := os.read(descriptor, most - len(data))):
            data += part
        return bytes(data)
    finally:
        os.close(descriptor)


def anybody_may_write(path: str) -> bool:
    """Return whether everybody on this host may change the file."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IWOTH)


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class RulesFile:
    """Tells when the rules' file has to be read again: when asked for it, or when what its path leads to has changed.

    A path is looked at, not a file: so a rename over it and a swapped symbolic link are seen as a write is.

    Args:
        path: of the file.
        watch: whether to look for changes.
    """

    def __init__(self, path: str, *, watch: bool) -> None:
        self._path = path
        self._watch = watch
        self._seen = self._read = _signature(path)
        self._changed = self._asked = float("-inf")
        self._first_asked: float | None = None

    def ask(self, now: float) -> None:
        """Read it soon, changed or not."""
        self._asked = now
        if self._first_asked is None:
            self._first_asked = now

    def due(self, now: float) -> bool:
        """Look at it, and return whether to read it now, which is taken as done.

        A file that is still being written is never read; waiting for more requests has an end.
        """
        signature = _signature(self._path)
        if signature != self._seen:
            self._seen, self._changed = signature, now
        still = now - self._changed
        if self._first_asked is not None:
            gathered = now - self._asked >= _ASKED_STILL or now - self._first_asked >= _ASKED_LONGEST
            due = gathered and still >= _ASKED_STILL
        else:
            due = self._watch and self._seen != self._read and still >= _WATCHED_STILL
        if due:
            self._read, self._first_asked = self._seen, None
        return due

    @property
    def next_look(self) -> float | None:
        """After how many seconds to call ``due`` again, if at all."""
        if self._first_asked is not None:
            return _ASKED_STILL / 4
        return _WATCHED_STILL / 4 if self._watch else None
