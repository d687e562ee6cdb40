"""Be one process: start the rules, heed signals, drain, leave.

Rule: signal handlers only leave a note; the main greenlet reads the notes and acts, one at a time.
"""

import errno
import gc
import os
import signal
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, TypeVar

import gevent
from gevent.event import Event
from gevent.hub import get_hub

from . import __version__
from .limits import Descriptors
from .log import Log
from .model import Address, RuleOptions, RuleSet
from .net import error_name, raise_fd_limit
from .report import Report
from .rules import MAX_FILE, Problem, parse
from .server import Server

_STOP: Final = "stop"
_RELOAD: Final = "reload"
_DUMP: Final = "dump"
_SIGNALS: Final = {
    signal.SIGTERM: _STOP,
    signal.SIGINT: _STOP,
    signal.SIGHUP: _RELOAD,
    signal.SIGUSR1: _DUMP,
}

# How long cut connections get to close and write their access line, in seconds.
_CUT_TIME: Final = 0.3
# Python's 700 new objects look for rubbish every 20 connections, which leave none: 5 % of what each of them costs.
_COLLECT_AFTER: Final = 20_000
_DRAIN_LOOK: Final = 0.02
# How long a report of thousands of lines may take because its reader is slow, in seconds.
_LONG_REPORT: Final = 2.0

# How long the rules' file must have stood still, in seconds: after a HUP, and when nobody has asked.
_ASKED_STILL: Final = 0.1
_WATCHED_STILL: Final = 0.5
# How long HUPs are gathered at most.
_ASKED_LONGEST: Final = 1.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Window:
    """Where the state is shown over HTTP.

    Args:
        address: numeric, or a UNIX socket.
        name: the host name it may be called by, or nothing.
        token: what has to be shown, or nothing.
    """

    address: Address
    name: str
    token: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for; the fields are its options."""

    config: str
    strict: bool
    watch: bool
    drain_timeout: float
    max_connections: int
    relay: str
    admin: Window | None
    defaults: RuleOptions


def read_rules(path: str, defaults: RuleOptions) -> tuple[RuleSet, tuple[Problem, ...]]:
    """Read and parse the rules' file. A file that cannot be read is a problem like any other.

    Args:
        path: of a regular file of at most ``rules.MAX_FILE`` bytes.
        defaults: for what the file leaves open.
    """
    try:
        data = read_regular(path, MAX_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return RuleSet(), (Problem(0, 0, f"cannot be read: {getattr(error, 'strerror', None) or error}"),)
    rules, problems = parse(data, defaults)
    if not (rules.rules or problems):
        problems = (Problem(0, 0, "has no rule"),)
    return rules, problems


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


class _Inbox:
    """Notes from signal handlers. A second reload waiting would do nothing that the first does not; stops all count."""

    def __init__(self) -> None:
        self._notes: deque[str] = deque()
        self._came = Event()
        self._watchers = [get_hub().loop.signal(number) for number in _SIGNALS]
        for watcher, note in zip(self._watchers, _SIGNALS.values(), strict=True):
            watcher.start(self._leave, note)

    def _leave(self, note: str) -> None:
        if note == _STOP or note not in self._notes:
            self._notes.append(note)
            self._came.set()

    def take(self, timeout: float | None = None) -> str | None:
        """Return the oldest note, or ``None`` after ``timeout`` seconds without one."""
        if not self._notes:
            self._came.clear()
            self._came.wait(timeout)
        return self._notes.popleft() if self._notes else None


def run(settings: Settings, log: Log) -> int:
    """Be a VeilLink process until it is told to stop.

    Returns:
        The exit code: 0 stopped and drained, 1 nothing could be started or the drain was cut short.
    """
    inbox = _Inbox()
    file = RulesFile(settings.config, watch=settings.watch)
    rules, problems = read_rules(settings.config, settings.defaults)
    _warn_about_file(settings.config, log)
    _report(problems, settings.config, log)
    if problems and settings.strict:
        log.error(f"not started: {settings.config} has problems and --strict was given")
        return 1
    log.info(f"VeilLink {__version__} starts", pid=os.getpid(), config=settings.config, rules=len(rules.rules))
    descriptors = Descriptors(raise_fd_limit(), splice=settings.relay != "copy", watched=settings.admin is not None)
    obstacle = _obstacle(rules, descriptors)
    if obstacle:
        log.error(f"not started: {obstacle}")
        return 1
    server = Server(log, settings.config, descriptors, settings.max_connections)
    report = Report(settings.config, server.status, server.ledger, server.gate, log, descriptors)
    if settings.admin is not None and not _open_admin(settings.admin, report, descriptors, log):
        return 1
    server.apply(rules)
    report.count_reload("applied", problems)
    if not server.listeners:
        log.error("not started: no rule could be started")
        return 1
    _announce(server, descriptors, settings, log)
    report.phase = "running"
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    while (note := inbox.take(file.next_look)) != _STOP:
        if note == _RELOAD:
            file.ask(time.monotonic())
        elif note == _DUMP:
            _dump(server, log)
        if file.due(time.monotonic()):
            _reload(server, report, descriptors, settings, log)
    report.phase = "draining"
    return _drain(server, inbox, settings.drain_timeout, log)


def _paced(items: Iterable[_T], log: Log) -> Iterator[_T]:
    """Yield the items no faster than lines about them are written, if somebody reads."""
    until = time.monotonic() + _LONG_REPORT
    for item in items:
        while log.crowded and time.monotonic() < until:
            gevent.sleep(_DRAIN_LOOK)
        yield item


def _report(problems: tuple[Problem, ...], path: str, log: Log) -> None:
    for problem in _paced(problems, log):
        log.error(problem.at(path))


def _announce(server: Server, descriptors: Descriptors, settings: Settings, log: Log) -> None:
    for rule in _paced(server.rules.rules, log):
        last = f"-{rule.listen.port + rule.ports - 1}" if rule.ports > 1 else ""
        targets = ",".join(str(target.address) for target in rule.targets)
        log.info("rule", name=rule.name, listen=f"{rule.listen}{last}", targets=targets)
    off = [name for name in ("idle_timeout", "max_lifetime") if not getattr(settings.defaults, name)]
    if off:
        log.warning(f"by default these limits are off: {', '.join(off)}; a silent connection may stay for ever")
    listeners = len(server.listeners)
    log.info("file descriptors", limit=descriptors.limit, **descriptors.shares(listeners))
    log.info("ready", listeners=listeners, max_connections=server.gate.limit)


def _obstacle(rules: RuleSet, descriptors: Descriptors) -> str:
    """Return why these rules cannot be run at all, if they cannot."""
    listeners = sum(rule.ports for rule in rules.rules)
    if descriptors.connections(listeners) > 0:
        return ""
    needed = Descriptors.needed(listeners)
    return f"{needed} file descriptors are needed at least, not {descriptors.limit}; raise the limit (ulimit -n)"


def _open_admin(window: Window, report: Report, descriptors: Descriptors, log: Log) -> bool:
    """Open the window that shows the report; return whether that has worked."""
    from .admin import Admin, Sources  # 6 MiB that forwarding does not need

    sources = Sources(report.status, report.connections, report.obstacle)
    try:
        Admin(window.address, window.name, window.token, descriptors.admin, sources, log)
    except OSError as error:
        log.error(f"not started: cannot show the state at {window.address}: {error.strerror} ({error_name(error)})")
        return False
    log.info("showing the state", admin=window.address)
    return True


def _reload(server: Server, report: Report, descriptors: Descriptors, settings: Settings, log: Log) -> None:
    """Apply the file as it is now; with any problem in it, what runs goes on: a typo never takes a rule away.

    It is parsed in a thread: 10,000 rows take 0.2 s, in which nothing would be forwarded.
    """
    rules, problems = get_hub().threadpool.apply(read_rules, (settings.config, settings.defaults))
    _report(problems, settings.config, log)
    obstacle = f"{settings.config} has problems" if problems else _obstacle(rules, descriptors)
    if obstacle:
        log.error(f"not reloaded, the rules stay as they were: {obstacle}")
        report.count_reload("refused", problems or (Problem(0, 0, obstacle),))
        return
    changes = server.apply(rules)
    report.count_reload("applied", ())
    counts = {field.name: len(getattr(changes, field.name)) for field in fields(changes)}
    log.info("reloaded", config=settings.config, listeners=len(server.listeners), **counts)


def _dump(server: Server, log: Log) -> None:
    """Log what runs: each rule with its totals, each target, each listener that is down, each connection."""
    log.info("state", connections=server.gate.taken, max_connections=server.gate.limit, log_lines_dropped=log.dropped)
    for name, totals in server.ledger.totals.items():
        ends = ",".join(f"{end}:{count}" for end, count in totals.ends.items())
        log.info(
            "state of rule",
            rule=name,
            ended=totals.connections,
            bytes_in=totals.bytes_in,
            bytes_out=totals.bytes_out,
            ends=ends,
        )
    for rule, member in _paced(tuple(server.targets()), log):
        state = "up" if member.up else "down"
        log.info("state of target", rule=rule.name, target=member.address, state=state, connections=member.active)
    for address, reason in server.down.items():
        log.info("state of listener", listen=address, down=reason)
    now = time.monotonic()
    for entry in _paced(tuple(server.ledger.live.values()), log):
        log.info(
            "state of connection",
            id=entry.number,
            rule=entry.rule,
            client=entry.client,
            target=entry.target,
            bytes_in=entry.inbound.bytes,
            bytes_out=entry.outbound.bytes,
            age_s=round(now - entry.opened, 1),
        )


def _drain(server: Server, inbox: _Inbox, timeout: float, log: Log) -> int:
    """Stop accepting, let connections finish, cut those that do not. A second stop cuts at once."""
    server.stop_accepting()
    log.info("stopping", connections=server.gate.taken, drain_timeout=timeout)
    until = time.monotonic() + timeout
    while server.gate.taken and time.monotonic() < until:
        if inbox.take(_DRAIN_LOOK) == _STOP:
            break
    left = server.gate.taken
    if left:
        log.warning("drain cut short", connections=left)
        server.cut()
        until = time.monotonic() + _CUT_TIME
        while server.gate.taken and time.monotonic() < until:
            inbox.take(_DRAIN_LOOK)
    log.info("stopped")
    return 1 if left else 0


def _warn_about_file(path: str, log: Log) -> None:
    """Warn of a rules' file that anybody on this host may change."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        log.warning(f"{path}: everybody on this host may change it; chmod o-w {path}")
