"""Be one process: start the rules, heed signals, drain, leave.

Rule: signal handlers only leave a note; the main greenlet reads the notes and acts, one at a time.
"""

import contextlib
import gc
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Protocol, TypeVar

import gevent
from gevent.event import Event
from gevent.hub import get_hub

from . import __version__
from .cells import printable
from .limits import Descriptors
from .log import Log
from .model import Address, RuleOptions, RuleSet
from .net import error_name, raise_fd_limit
from .report import Report
from .rules import Problem
from .rules_file import RulesFile, anybody_may_write, read_rules
from .server import Server
from .systemd import Manager, inherited

_STOP: Final = "stop"
_RELOAD: Final = "reload"
_DUMP: Final = "dump"
_SIGNALS: Final = {
    signal.SIGTERM: _STOP,
    signal.SIGINT: _STOP,
    signal.SIGHUP: _RELOAD,
    signal.SIGUSR1: _DUMP,
}

# How long it may take until the next of the cut connections has closed, and what systemd is told for all; in seconds.
_CUT_TIME: Final = 0.3
_LONGEST_CUT: Final = 5.0
# Python's 700 new objects look for rubbish every 20 connections, which leave none: 5 % of what each of them costs.
_COLLECT_AFTER: Final = 20_000
_DRAIN_LOOK: Final = 0.02
# How long a report of thousands of lines may take because its reader is slow, in seconds.
_LONG_REPORT: Final = 2.0

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
    pidfile: str
    admin: Window | None
    defaults: RuleOptions


class Closable(Protocol):
    """Something that is open."""

    def close(self) -> None:
        """End that."""


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
    process = _Process(settings, log)
    try:
        if not process.start():
            return 1
        process.serve(inbox)
        return process.drain(inbox)
    finally:
        process.close()


class _Process:
    """What one process holds.

    Args:
        settings: what the command line asks for.
        log: of the process.
    """

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._manager = Manager(os.environ)
        self._file = RulesFile(settings.config, watch=settings.watch)
        self._descriptors = Descriptors(
            raise_fd_limit(), splice=settings.relay != "copy", watched=settings.admin is not None
        )
        self._server = Server(log, settings.config, self._descriptors, settings.max_connections, inherited(os.environ))
        self._report = Report(settings.config, self._server, self._descriptors, log)
        self._admin: Closable | None = None

    def start(self) -> bool:
        """Open everything; return whether there is anything to serve."""
        settings, log, server = self._settings, self._log, self._server
        rules, problems = read_rules(settings.config, settings.defaults)
        if anybody_may_write(settings.config):
            log.warning(f"{settings.config}: everybody on this host may change it; chmod o-w {settings.config}")
        self._tell(problems)
        if problems and settings.strict:
            return self._give_up(f"{settings.config} has problems and --strict was given")
        log.info(f"VeilLink {__version__} starts", pid=os.getpid(), config=settings.config, rules=len(rules.rules))
        obstacle = self._obstacle(rules)
        if obstacle:
            return self._give_up(obstacle)
        if settings.pidfile and not self._write_pid(settings.pidfile):
            return False
        if settings.admin is not None and not self._open_admin(settings.admin):
            return False
        server.apply(rules)
        self._report.count_reload("applied", problems)
        if not server.listeners:
            return self._give_up("no rule could be started")
        self._announce()
        self._report.phase = "running"
        self._manager.ready(self._summary())
        if self._manager.watchdog:
            gevent.spawn(self._stay_alive)
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        return True

    def serve(self, inbox: "_Inbox") -> None:
        """Heed signals and changes of the rules' file until it is time to stop."""
        while (note := inbox.take(self._file.next_look)) != _STOP:
            if note == _RELOAD:
                self._file.ask(time.monotonic())
            elif note == _DUMP:
                self._dump()
            if self._file.due(time.monotonic()):
                try:
                    self._reload()
                except Exception:  # whatever it was, what runs goes on
                    self._log.error("unforeseen error", traceback=traceback.format_exc())

    def drain(self, inbox: "_Inbox") -> int:
        """Stop accepting, let connections finish, cut those that do not; a second stop cuts at once.

        Returns:
            The exit code: 1 if any had to be cut.
        """
        log, gate, timeout = self._log, self._server.gate, self._settings.drain_timeout
        self._report.phase = "draining"
        self._server.stop_accepting()
        self._manager.stopping(f"draining {gate.taken} connections", timeout + _LONGEST_CUT)
        log.info("stopping", connections=gate.taken, drain_timeout=timeout)
        until = time.monotonic() + timeout
        while gate.taken and time.monotonic() < until:
            if inbox.take(_DRAIN_LOOK) == _STOP:
                break
        cut = gate.taken
        if cut:
            log.warning("drain cut short", connections=cut)
            self._cut(inbox)
        log.info("stopped")
        return 1 if cut else 0

    def _cut(self, inbox: "_Inbox") -> None:
        """End every connection. What the exit would close gets a FIN, and looks complete: so wait while they go."""
        gate = self._server.gate
        self._server.cut()
        left, until = gate.taken, time.monotonic() + _CUT_TIME
        while gate.taken and time.monotonic() < until:
            inbox.take(_DRAIN_LOOK)
            if gate.taken < left:
                left, until = gate.taken, time.monotonic() + _CUT_TIME

    def close(self) -> None:
        """Close the window, which has been open to the end, and take our number away."""
        if self._admin is not None:
            self._admin.close()
        if self._settings.pidfile:
            with contextlib.suppress(OSError, ValueError):
                file = Path(self._settings.pidfile)
                if file.read_text() == f"{os.getpid()}\n":  # else it is somebody else's by now
                    file.unlink()

    def _write_pid(self, path: str) -> bool:
        try:
            Path(path).write_text(f"{os.getpid()}\n")
        except (OSError, ValueError) as error:
            return self._give_up(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")
        return True

    def _give_up(self, why: str) -> bool:
        self._log.error(f"not started: {why}")
        return False

    def _open_admin(self, window: Window) -> bool:
        from .admin import Admin, Sources  # 6 MiB that forwarding does not need

        report = self._report
        sources = Sources(report.status, report.connections, report.obstacle)
        try:
            self._admin = Admin(window.address, window.name, window.token, self._descriptors.admin, sources, self._log)
        except OSError as error:
            reason = f"{error.strerror} ({error_name(error)})"
            return self._give_up(f"cannot show the state at {window.address}: {reason}")
        report.measure()
        self._log.info("showing the state", admin=window.address)
        return True

    def _tell(self, problems: tuple[Problem, ...]) -> None:
        for problem in _paced(problems, self._log):
            self._log.error(problem.at(self._settings.config))

    def _announce(self) -> None:
        log, server = self._log, self._server
        for rule in _paced(server.rules.rules, log):
            targets = ",".join(str(target.address) for target in rule.targets)
            log.info("rule", name=rule.name, listen=rule.shown_listen, targets=targets)
        off = [name for name in ("idle_timeout", "max_lifetime") if not getattr(self._settings.defaults, name)]
        if off:
            log.warning(f"by default these limits are off: {', '.join(off)}; a silent connection may stay for ever")
        listeners = len(server.listeners)
        log.info("file descriptors", limit=self._descriptors.limit, **self._descriptors.shares(listeners))
        log.info("ready", listeners=listeners, max_connections=server.gate.limit)

    def _summary(self) -> str:
        return f"{len(self._server.rules.rules)} rules, {len(self._server.listeners)} listeners"

    def _obstacle(self, rules: RuleSet) -> str:
        """Return why these rules cannot be run at all, if they cannot."""
        listeners = sum(rule.ports for rule in rules.rules)
        if self._descriptors.connections(listeners) > 0:
            return ""
        limit, needed = self._descriptors.limit, self._descriptors.needed(listeners)
        return f"{needed} file descriptors are needed at least, not {limit}; raise the limit (ulimit -n)"

    def _reload(self) -> None:
        """Apply the file as it is now; with any problem in it, what runs goes on: a typo never takes a rule away.

        It is parsed in a thread: 10,000 rows take 0.2 s, in which nothing would be forwarded.
        """
        settings, log = self._settings, self._log
        self._manager.reloading()
        rules, problems = get_hub().threadpool.apply(read_rules, (settings.config, settings.defaults))
        self._tell(problems)
        obstacle = f"{printable(settings.config)} has problems" if problems else self._obstacle(rules)
        if obstacle:
            log.error(f"not reloaded, the rules stay as they were: {obstacle}")
            self._report.count_reload("refused", problems or (Problem(0, 0, obstacle),))
            self._manager.ready(f"{self._summary()}; the last reload was refused: {obstacle}")
            return
        changes = self._server.apply(rules)
        self._report.count_reload("applied", ())
        counts = {field.name: len(getattr(changes, field.name)) for field in fields(changes)}
        log.info("reloaded", config=settings.config, listeners=len(self._server.listeners), **counts)
        self._manager.ready(self._summary())

    def _stay_alive(self) -> None:
        while True:
            self._manager.alive()
            gevent.sleep(self._manager.watchdog / 3)

    def _dump(self) -> None:
        """Log what runs: each rule with its totals, each target, each listener that is down, each connection."""
        server, log = self._server, self._log
        log.info(
            "state", connections=server.gate.taken, max_connections=server.gate.limit, log_lines_dropped=log.dropped
        )
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


def _paced(items: Iterable[_T], log: Log) -> Iterator[_T]:
    """Yield the items no faster than lines about them are written, if somebody reads."""
    until = time.monotonic() + _LONG_REPORT
    for item in items:
        while log.crowded and time.monotonic() < until:
            gevent.sleep(_DRAIN_LOOK)
        yield item
