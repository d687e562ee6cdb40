"""Text or JSON lines on stdout, from a bounded queue that a native thread empties.

Rule: whoever logs never waits. A reader that stopped, a closed pipe or a full disk cost log lines, which are counted,
and nothing else.
"""

import contextlib
import json
import os
import queue
import re
import select
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import gevent
from gevent.hub import get_hub

from veillink.settings import Settings

LEVELS: Final = ("debug", "info", "warning", "error")

# 10,000 lines of about 250 bytes: what a stuck reader may cost in memory.
_QUEUE_LINES: Final = 10_000
_BATCH_LINES: Final = 1000
# Bytes that a pipe takes whole, and at once when it is ready for writing (PIPE_BUF in pipe(7)).
AT_ONCE: Final = 4096
# A wake-up for every line would make the loop and the writer fight for the GIL: gather for so many seconds.
_GATHER: Final = 0.01
_LONGEST_VALUE: Final = 300
_LONGEST_TRACEBACK: Final = 10_000

# How long the exit waits for a reader that takes some lines again and again, in seconds.
_LONGEST_CLOSE: Final = 5.0
# How long a report of thousands of lines may take because its reader is slow, in seconds.
_LONG_REPORT: Final = 2.0

# Printable ASCII without a blank, a quote, an equals sign and a backslash.
_WORD: Final = re.compile(r"[!#-<>-\[\]-~]+")

_T = TypeVar("_T")
_NOTHING: Final[Mapping[str, object]] = {}


def _longest(key: str) -> int:
    return _LONGEST_TRACEBACK if key == "traceback" else _LONGEST_VALUE


def escape(value: object, longest: int = _LONGEST_VALUE) -> str:
    """Return a value as one word of a text line: quoted where it must be, printable ASCII, of limited length."""
    if value is None:
        return "-"
    text = str(value)
    if len(text) > longest:
        text = text[:longest] + "..."
    return text if _WORD.fullmatch(text) else json.dumps(text)


def _plain(value: object, longest: int = _LONGEST_VALUE) -> object:
    """Return a value as JSON has it: numbers as they are, all else as text of limited length."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return text[:longest] + "..." if len(text) > longest else text


class Lines:
    """How log lines look, and which there are.

    Args:
        json_lines: one JSON object a line instead of text.
        level: the least of ``LEVELS`` that is written.
        always: fields that every line has, but those about a connection.
    """

    def __init__(self, *, json_lines: bool, level: str, always: Mapping[str, object] = _NOTHING) -> None:
        self._json = json_lines
        self._level = LEVELS.index(level)
        self._always = always
        self._second = (-1, "")

    def wants(self, level: str) -> bool:
        """Return whether lines of that level are written."""
        return LEVELS.index(level) >= self._level

    def line(self, level: str, message: str, fields: Mapping[str, object]) -> str:
        """Return a line about the process."""
        fields = {**fields, **self._always}
        if self._json:
            whole = {"time": self._now(), "level": level, "message": message} | fields
            return json.dumps({key: _plain(value, _longest(key)) for key, value in whole.items()})
        words = [f"{key}={escape(value, _longest(key))}" for key, value in fields.items()]
        return " ".join([self._now(), level, _printable(message), *words])

    def access(self, fields: Mapping[str, object]) -> str:
        """Return the line about a connection."""
        if self._json:
            return json.dumps({"time": self._now()} | {key: _plain(value) for key, value in fields.items()})
        return f"time={self._now()} " + " ".join(f"{key}={escape(value)}" for key, value in fields.items())

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second[0]:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{self._second[1]}.{int((now - second) * 1000):03d}Z"


class Log:
    """The process's log.

    Args:
        json_lines: one JSON object a line instead of text.
        level: the least of ``LEVELS`` that is written.
        access: whether connections get their access line.
        fd: the descriptor to write to.
        always: fields that every line has, but access lines.
    """

    def __init__(
        self,
        *,
        json_lines: bool = False,
        level: str = "info",
        access: bool = True,
        fd: int = 1,
        always: Mapping[str, object] = _NOTHING,
    ) -> None:
        self._lines = Lines(json_lines=json_lines, level=level, always=always)
        self.access_lines = access and self._lines.wants("info")
        self._fd = fd
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._suppressed: dict[tuple[str, str], int] = {}
        self._refused = 0
        self._unwritten = 0
        self._reported = 0
        self._in_hand = 0  # lines that the writer has taken and not yet written
        self._steps = 0  # times that somebody has taken some of them
        self._writer = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._writer.start()

    def debug(self, message: str, **fields: object) -> None:
        """Log what helps to find a fault in VeilLink itself."""
        self._line("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        """Log what an operator may want to know."""
        self._line("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """Log what an operator should look at."""
        self._line("warning", message, fields)

    def error(self, message: str, **fields: object) -> None:
        """Log what an operator has to mend."""
        self._line("error", message, fields)

    def limited(self, message: str, about: str, **fields: object) -> None:
        """Warn, but of the same thing only once a second; then say how often it was suppressed.

        Args:
            message: what happened.
            about: what it happened to; with the message it makes "the same thing".
            fields: the details.
        """
        key = (message, about)
        if key in self._suppressed:
            self._suppressed[key] += 1
            return
        self._suppressed[key] = 0
        self.warning(message, **fields)
        timer = get_hub().loop.timer(1.0, ref=False)
        timer.start(self._unlimit, key, timer)

    def _unlimit(self, key: tuple[str, str], timer: Any) -> None:
        timer.close()
        self._log_suppressed(key)

    def _log_suppressed(self, key: tuple[str, str]) -> None:
        count = self._suppressed.pop(key, 0)
        if count:
            self.warning(f"{key[0]}: {count} suppressed", about=key[1])

    def access(self, fields: dict[str, object]) -> None:
        """Write the one line that a connection gets when it ends."""
        if self.access_lines:
            self._put(self._lines.access(fields))

    def _line(self, level: str, message: str, fields: dict[str, object]) -> None:
        if self._lines.wants(level):
            self._put(self._lines.line(level, message, fields))

    def _put(self, line: str) -> None:
        if self._queue.qsize() < _QUEUE_LINES:
            self._queue.put(line)
        else:
            self._refused += 1

    @property
    def crowded(self) -> bool:
        """Whether the queue is more than half full: a long report waits then, so that none of its lines is dropped."""
        return self._queue.qsize() > _QUEUE_LINES // 2

    def paced(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield items no faster than lines about them are written, if somebody reads."""
        until = time.monotonic() + _LONG_REPORT
        for item in items:
            while self.crowded and time.monotonic() < until:
                gevent.sleep(_GATHER)
            yield item

    @property
    def dropped(self) -> int:
        """Lines lost so far because they could not be written, or not in time."""
        return self._refused + self._unwritten

    def close(self, timeout: float = 1.0) -> None:
        """Write what is queued, and say on stderr how many lines were lost.

        Args:
            timeout: how long to wait for a reader that takes nothing, in seconds.
        """
        for key in tuple(self._suppressed):
            self._log_suppressed(key)
        self._queue.put(None)
        until, steps = time.monotonic() + _LONGEST_CLOSE, -1
        while self._writer.is_alive() and steps != self._steps and time.monotonic() < until:
            steps = self._steps
            self._writer.join(timeout)
        left = self._in_hand + max(0, self._queue.qsize() - 1)  # one is the end
        if lost := self.dropped - self._reported + left:
            _write_to_stderr(self._lines.line("warning", _lost(lost), {}))

    def _write_all(self) -> None:
        torn = b""
        closing = False
        while not closing:
            batch = self._gather()
            closing = None in batch
            lines = [line for line in batch if line is not None]
            self._in_hand = len(lines)
            dropped = self.dropped
            lost = dropped - self._reported
            notice = [self._lines.line("warning", _lost(lost), {})] if lost else []
            if self._write(torn + "\n".join([*notice, *lines, ""]).encode()):
                self._reported, torn = dropped, b""
            else:
                self._unwritten += self._in_hand
                torn = b"\n"  # part of a line may have been written: the next one starts afresh
            self._in_hand = 0

    def _write(self, data: bytes) -> bool:
        """Write all of it and return whether that worked.

        A pipe takes whole lines at a time: what is longer than PIPE_BUF (pipe(7)) those of other workers may tear.
        """
        begin, left = 0, data.count(b"\n")
        while begin < len(data):
            end = begin + AT_ONCE
            if end < len(data):
                end = data.rfind(b"\n", begin, end) + 1 or end
            try:
                written = os.write(self._fd, data[begin:end])
            except BlockingIOError:  # a terminal or pipe that somebody else has set to non-blocking
                select.select([], [self._fd], [])
                continue
            except OSError:
                return False
            left -= data.count(b"\n", begin, begin + written)
            begin += written
            self._in_hand = min(self._in_hand, left)
            self._steps += 1
        return True

    def _gather(self) -> list[str | None]:
        batch = [self._queue.get()]
        if batch[0] is not None:
            time.sleep(_GATHER)
        while len(batch) < _BATCH_LINES and not self._queue.empty():
            batch.append(self._queue.get())
        return batch


@contextlib.contextmanager
def opened(settings: Settings, always: Mapping[str, object] = _NOTHING) -> Iterator[Log]:
    """Give a process the log that its options ask for.

    Args:
        settings: the options.
        always: fields that every line has, but access lines.
    """
    json_lines = settings.log_format == "json"
    log = Log(json_lines=json_lines, level=settings.log_level, access=settings.access_log, always=always)
    try:
        yield log
    finally:
        log.close()


def _printable(message: str) -> str:
    if message.isascii() and message.isprintable():
        return message
    return json.dumps(message)[1:-1]


def _lost(count: int) -> str:
    return f"{count} log lines dropped"


def _write_to_stderr(line: str) -> None:
    """Write a line to stderr, if that takes one at once: it may be the same pipe, whose reader has stopped."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"{line}\n".encode()[:AT_ONCE])
