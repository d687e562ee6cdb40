"""Be one process: start the rules, heed what comes, drain, leave.

Rule: what must not happen twice at a time, the main greenlet does.
"""

import gc
import math
import os
import socket
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from typing import Final, Protocol

import gevent

from . import __version__
from .cells import printable
from .cgroup import memory_limit
from .claims import Claims
from .control import State
from .inbox import CUT, DUMP, LEAD, READ, RELOAD, SIGNALS, STOP, WORKER_SIGNALS, Inbox, reap_orphans
from .limits import Descriptors
from .log import Log
from .model import Address, RuleOptions, RuleSet, Settings
from .net import error_name, listen, raise_fd_limit
from .patience import lived
from .report import FleetReport, Report
from .rows import Notice, Problem
from .rules_watch import RulesWatch
from .scoreboard import Seat
from .server import Server
from .systemd import Manager, inherited, pid_obstacle, remove_pid, write_pid
from .tasks import unhurried

# How long it may take until the next of the cut connections has closed, and what systemd is told for all; in seconds.
_CUT_TIME: Final = 0.3
LONGEST_CUT: Final = 5.0
# Python's 700 new objects look for rubbish every 20 connections, which leave none: 5 % of what each of them costs.
_COLLECT_AFTER: Final = 20_000
_DRAIN_LOOK: Final = 0.02
# Seconds from one look at what the master says to the next.
_LOOK: Final = 0.4


class Outcome(Enum):
    """How a process has ended."""

    NOT_STARTED = "not started"
    DRAINED = "drained"
    CUT_SHORT = "cut short"


class Closable(Protocol):
    """Something that is open."""

    def close(self) -> None:
        """End that."""


def run(settings: Settings, log: Log) -> int:
    """Be the VeilLink process until it is told to stop.

    Returns:
        The exit code: 0 stopped and drained, 1 nothing could be started or the drain was cut short.
    """
    inbox = Inbox(SIGNALS)
    process = _Process(settings, log, Manager(os.environ), inherited(os.environ))
    if os.getpid() == 1:
        reap_orphans()
    return 0 if process.live(inbox, (STOP,)) is Outcome.DRAINED else 1


def work(
    settings: Settings,
    log: Log,
    seat: Seat,
    listening: Mapping[Address, socket.socket],
    claims: Claims | None,
) -> Outcome:
    """Be one of several processes until the master says stop.

    Args:
        settings: of all of them.
        log: of this one.
        seat: among them.
        listening: sockets that the master was handed over.
        claims: where the others listen, if that has to be known.
    """
    inbox = Inbox(WORKER_SIGNALS)
    process = _Process(replace(settings, pidfile=""), log, Manager({}), listening, seat, claims)
    return process.live(inbox, (CUT,))


class _Process:
    """What one process holds.

    Args:
        settings: what the command line asks for.
        log: of the process.
        manager: is told what it does.
        listening: sockets that were handed over to it.
        seat: among the others, or ``None`` when it is alone.
        claims: where the others listen.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        manager: Manager,
        listening: Mapping[Address, socket.socket],
        seat: Seat | None = None,
        claims: Claims | None = None,
    ) -> None:
        self._settings = settings
        self._log = log
        self._manager = manager
        self._seat = seat
        self._claims = claims
        self._file = RulesWatch(settings.config, settings.defaults, watch=settings.watch, say=self._say)
        self._descriptors = Descriptors(
            raise_fd_limit(),
            splice=settings.relay != "copy",
            watched=settings.admin is not None,
            inherited=len(listening),
        )
        self._memory = memory_limit()
        self._server = Server(
            log,
            settings.config,
            self._descriptors,
            settings.max_connections,
            listening,
            seat.number if seat else 0,
            self._memory,
            claims,
        )
        self._report = Report(settings.config, self._server, self._descriptors, log)
        self._shown: Report | FleetReport = self._report
        self._admin: Closable | None = None

    def live(self, inbox: Inbox, hurry: Sequence[str]) -> Outcome:
        """Start, serve, drain.

        Args:
            inbox: where notes come.
            hurry: those of them that cut a drain short.
        """
        try:
            if self._seat is not None:
                self._join(self._seat, inbox)
            if not self._read(inbox):
                self._log.info("stopped")
                self._enter(Outcome.DRAINED.value)
                return Outcome.DRAINED
            if not self.start():
                return Outcome.NOT_STARTED
            self.serve(inbox)
            return self.drain(inbox, hurry)
        finally:
            self.close()

    def _read(self, inbox: Inbox) -> bool:
        """Have the rules read, now and whenever they change; return whether that came before the order to stop."""
        self._file.follow(lambda: inbox.leave(READ))
        others: list[str] = []
        while (note := inbox.take()) not in (READ, STOP, CUT):
            others += [note] if note else []
        for other in others:
            inbox.leave(other)
        return note == READ

    def start(self) -> bool:
        """Open everything; return whether there is anything to serve."""
        settings, server = self._settings, self._server
        if settings.admin is not None:
            self._report.measure()
        for warning in settings.warnings:
            self._say("warning", warning)
        rules, problems, notices = self._file.found
        if self._file.anybody_may_write:
            path = printable(settings.config)
            self._say("warning", f"{path}: everybody on this host may change it; chmod o-w {path}")
        self._tell(problems, notices)
        if problems and settings.strict:
            return self._give_up(f"{settings.config} has problems and --strict was given")
        self._log.info(
            f"VeilLink {__version__} starts", pid=os.getpid(), config=settings.config, rules=len(rules.rules)
        )
        obstacle = self._obstacle(rules) or pid_obstacle(settings.pidfile) or self._open_window()
        if obstacle:
            return self._give_up(obstacle)
        server.apply(rules)
        self._report.count_reload("applied", problems)
        if not rules.rules or not server.can_go_on:
            return self._give_up("no rule could be started")
        obstacle = write_pid(settings.pidfile)
        if obstacle:
            return self._give_up(obstacle)
        self._announce()
        self._enter("running")
        self._manager.ready(self._summary())
        if self._manager.watchdog:
            gevent.spawn(self._stay_alive)
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        return True

    def serve(self, inbox: Inbox) -> None:
        """Heed signals and changes of the rules' file until it is time to stop."""
        while (note := inbox.take()) not in (STOP, CUT):
            try:
                if note == RELOAD:
                    self._file.ask()
                elif note == READ:
                    self._reload()
                elif note == DUMP:
                    self._report.dump()
                elif note == LEAD:
                    self._lead()
            except Exception:  # whatever it was, what runs goes on
                self._log.error("unforeseen error", traceback=traceback.format_exc())
        if note == CUT:
            inbox.leave(CUT)

    def drain(self, inbox: Inbox, hurry: Sequence[str]) -> Outcome:
        """Stop accepting, let connections finish, cut those that do not.

        Args:
            inbox: where notes come.
            hurry: those of them that cut at once.
        """
        log, gate, timeout = self._log, self._server.gate, self._settings.drain_timeout
        self._enter("draining")
        if self._seat is not None:
            self._step_aside(self._seat)
        self._server.stop_accepting()
        self._manager.stopping(f"draining {gate.taken} connections", timeout + LONGEST_CUT)
        log.info("stopping", connections=gate.taken, drain_timeout=timeout)
        for _ in lived(timeout):
            if not gate.taken or inbox.take(_DRAIN_LOOK) in hurry:
                break
        cut = gate.taken
        if cut:
            log.warning("drain cut short", connections=cut)
            self._cut(inbox)
        log.info("stopped")
        outcome = Outcome.CUT_SHORT if cut else Outcome.DRAINED
        self._enter(outcome.value)
        return outcome

    def _cut(self, inbox: Inbox) -> None:
        """End every connection. What the exit would close gets a FIN, and looks complete: so wait while they go."""
        gate = self._server.gate
        self._server.cut()
        left = math.inf
        while 0 < gate.taken < left:
            left = gate.taken
            for _ in lived(_CUT_TIME):
                inbox.take(_DRAIN_LOOK)
                if gate.taken < left:
                    break

    def close(self) -> None:
        """Close the window, which has been open to the end, and take our number away."""
        self._file.close()
        self._manager.close()
        if self._admin is not None:
            self._admin.close()
        remove_pid(self._settings.pidfile)

    def _join(self, seat: Seat, inbox: Inbox) -> None:
        """Take part in the fleet."""
        if self._take_part(seat):
            self._server.lead()
        if self._settings.admin is not None:
            self._shown = FleetReport(self._report, seat, self._log)
            self._shown.publish()
            gevent.spawn(self._shown.publish_forever)
            gevent.spawn(self._shown.publish_connections_forever)
        gevent.spawn(self._take_part_forever, seat, inbox)

    def _take_part_forever(self, seat: Seat, inbox: Inbox) -> None:
        while self._report.phase in ("starting", "running"):
            leads_now = self._take_part(seat)
            waits = seat.control.leads and self._settings.admin is not None and self._admin is None
            if leads_now or waits:
                inbox.leave(LEAD)
            gevent.sleep(_LOOK)

    def _take_part(self, seat: Seat) -> bool:
        """Heed what the master says; return whether this worker has just come to lead."""
        self._server.share(seat.control.fleet.workers)
        return seat.control.lead()

    def _lead(self) -> None:
        """Do what only one of the workers may do, since the one that did it has gone."""
        if not self._server.leads:
            self._server.lead()
        obstacle = self._open_window() if self._admin is None else ""
        if obstacle:
            self._log.error(obstacle)

    def _step_aside(self, seat: Seat) -> None:
        """Leave to the others what they can go on with."""
        if self._admin is not None and not seat.control.fleet.draining:
            self._admin.close()
        seat.control.resign()

    def _enter(self, phase: str) -> None:
        self._report.phase = phase
        self._tell_others()

    def _tell_others(self) -> None:
        try:
            if isinstance(self._shown, FleetReport):
                self._shown.publish()
        except Exception:  # what is shown decides nothing
            self._log.error("unforeseen error", traceback=traceback.format_exc())
        if self._seat is not None:
            self._seat.enter(State(self._report.phase, self._report.reads))

    def _give_up(self, why: str) -> bool:
        self._log.error(f"not started: {why}")
        return False

    def _open_window(self) -> str:
        """Begin to show the state, where asked; return why not, if it cannot be done."""
        window = self._settings.admin
        if window is None or (window.is_unix and self._seat is not None and not self._seat.control.leads):
            return ""
        from .admin import Admin, Sources  # 6 MiB that forwarding does not need
        from .webserver import listen_at_all

        shown = self._shown
        sources = Sources(shown.status, shown.connections, shown.obstacle)
        try:
            socks = listen_at_all(window.addresses, self._listen)
        except OSError as error:
            if self._seat is not None and window.is_unix:
                return ""  # the program before this one has not let go yet: it is tried again
            return f"cannot show the state at {window.shown}: {error.strerror} ({error_name(error)})"
        self._admin = Admin(socks, window.names, window.token, self._descriptors.admin, sources, self._log)
        self._say("info", "showing the state", admin=window.shown)
        return ""

    def _listen(self, address: Address, options: RuleOptions) -> socket.socket:
        if self._claims is not None:
            return self._claims.listen(address, options)
        return listen(address, options, shared=self._seat is not None)

    def _say(self, level: str, message: str, **fields: object) -> None:
        """Tell what all workers would tell: one of them does."""
        leads = self._seat is None or self._seat.control.leads
        getattr(self._log, level if leads else "debug")(message, **fields)

    def _tell(self, problems: tuple[Problem, ...], notices: tuple[Notice, ...]) -> None:
        for notice in notices:
            self._say("info", notice.at(self._settings.config))
        for problem in self._log.paced(problems):
            self._say("error", problem.at(self._settings.config))

    def _announce(self) -> None:
        log, server = self._log, self._server
        for rule in unhurried(log.paced(server.rules.rules)):
            targets = ",".join(str(target.address) for target in rule.targets)
            self._say("info", "rule", name=rule.name, listen=rule.shown_listen, targets=targets)
        off = [name for name in ("idle_timeout", "max_lifetime") if not getattr(self._settings.defaults, name)]
        if off:
            limits = ", ".join(off)
            self._say("warning", f"by default these limits are off: {limits}; a silent connection may stay for ever")
        listeners = len(server.listeners)
        self._say("info", "file descriptors", limit=self._descriptors.limit, **self._descriptors.shares(listeners))
        if server.fits_memory < self._descriptors.connections(listeners):
            self._say("info", "memory", limit=self._memory, connections=server.fits_memory)
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
        """Apply the file as it was read, and say that it was done or why not; whatever fails is tried again."""
        self._manager.reloading()
        try:
            refused = self._apply()
        except Exception as error:  # what runs goes on
            self._log.error("unforeseen error", traceback=traceback.format_exc())
            refused = self._refuse(f"{type(error).__name__}: {error}", ())
            self._file.ask_again()
        self._manager.ready(self._summary() + (f"; the last reload was refused: {refused}" if refused else ""))

    def _apply(self) -> str:
        """Apply the file; with any problem in it, what runs goes on: a typo never takes a rule away. Return why not."""
        rules, problems, notices = self._file.found
        self._tell(problems, notices)
        obstacle = f"{printable(self._settings.config)} has problems" if problems else self._obstacle(rules)
        if obstacle:
            return self._refuse(obstacle, problems)
        changes = self._server.apply(rules)
        self._report.count_reload("applied", ())
        self._tell_others()
        counts = {field.name: len(getattr(changes, field.name)) for field in fields(changes)}
        listeners = len(self._server.listeners)
        self._say("info", "reloaded", config=self._settings.config, listeners=listeners, **counts)
        return ""

    def _refuse(self, why: str, problems: tuple[Problem, ...]) -> str:
        self._say("error", f"not reloaded, the rules stay as they were: {why}")
        self._report.count_reload("refused", problems or (Problem(0, 0, why),))
        self._tell_others()
        return why

    def _stay_alive(self) -> None:
        while True:
            self._manager.alive()
            gevent.sleep(self._manager.watchdog / 3)
