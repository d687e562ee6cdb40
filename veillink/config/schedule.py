"""When a file has to be read again: arithmetic of what was seen and asked for.

Rule: a file that is still being written is never read.
"""

from typing import Final

# How long the file must have stood still, in seconds: after a HUP, and when nobody has asked.
_ASKED_STILL: Final = 0.1
_WATCHED_STILL: Final = 0.5
# How long HUPs are gathered at most.
_ASKED_LONGEST: Final = 1.0
# After how many seconds it is tried again, when it was the system that failed.
_AGAIN: Final = 5.0
# After how many seconds it is read once more to see whether what was wrong has lasted.
_LASTED: Final = 1.0


class Schedule:
    """When a file has to be read again: when asked for it, or when what its path leads to has changed.

    A path is looked at, not a file: so a rename over it and a swapped symbolic link are seen as a write is.

    Args:
        seen: what was at the path before it was first read.
        watch: whether to look for changes.
    """

    def __init__(self, seen: object, *, watch: bool) -> None:
        self._watch = watch
        self._seen = self._read = seen
        self._changed = self._asked = float("-inf")
        self._first_asked: float | None = None
        self._again: float | None = None

    def refresh_soon(self, now: float) -> None:
        """Read it soon, changed or not."""
        self._asked = now
        if self._first_asked is None:
            self._first_asked = now

    def retry_later(self, now: float) -> None:
        """Read it once more, later: it could not be read, or not be applied, and not for what is in it."""
        self._again = now + _AGAIN

    def confirm(self, now: float) -> None:
        """Read it once more in a moment: what was read may be half of a change."""
        self._again = now + _LASTED

    def begin_from(self, seen: object) -> None:
        """Take this for what was read: the file has named others, which are looked at from now on."""
        self._seen = self._read = seen

    def due(self, seen: object, now: float) -> bool:
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
