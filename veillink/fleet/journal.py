"""Write the log of a master: its own lines, and gunicorn's among them.

Rule: without a thread, which a fork would lose, and without ever waiting for a reader.
"""

import contextlib
import logging
import os
import select
import traceback
from collections import deque
from typing import Any, Final

from gunicorn.glogging import Logger

from veillink.log import AT_ONCE, Lines
from veillink.settings import Settings

_LONGEST_TRACE: Final = 3000
_LEVELS: Final = {logging.DEBUG: "debug", logging.INFO: "debug", logging.WARNING: "warning"}


class Journal:
    """The master's log.

    Args:
        settings: how lines look.
    """

    def __init__(self, settings: Settings) -> None:
        self._lines = Lines(json_lines=settings.log_format == "json", level=settings.log_level)
        self._unwritten: deque[str] = deque(maxlen=1000)
        os.register_at_fork(after_in_child=self._unwritten.clear)

    def write(self, level: str, message: str, **fields: object) -> None:
        """Write a line, now or later."""
        if self._lines.wants(level):
            self._unwritten.append(self._lines.line(level, message, fields))
        self.flush()

    def flush(self) -> None:
        """Write what could not be written before."""
        with contextlib.suppress(OSError):
            while self._unwritten and select.select([], [1], [], 0)[1]:
                os.write(1, f"{self._unwritten[0][: AT_ONCE - 1]}\n".encode())
                self._unwritten.popleft()


class _Handler(logging.Handler):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""
        fields = {"traceback": trace[-_LONGEST_TRACE:]} if trace else {}
        self._journal.write(_LEVELS.get(record.levelno, "error"), record.getMessage(), **fields)


class MasterLog(Logger):
    """gunicorn's log, as lines among ours."""

    def __init__(self, cfg: Any, journal: Journal) -> None:
        self._handler = _Handler(journal)
        super().__init__(cfg)

    def setup(self, cfg: Any) -> None:
        """Write to the journal alone."""
        self.cfg = cfg
        self.error_log.handlers = [self._handler]
        self.error_log.setLevel(logging.DEBUG)
