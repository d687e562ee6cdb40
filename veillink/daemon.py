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
from functools import partial
from typing import Final

import gevent

from . import __version__
from .cells import printable
from .cgroup import memory_limit
from .claims import Claims
from .inbox import CUT, DUMP, LEAD, READ, RELOAD, SIGNALS, STOP, WORKER_SIGNALS, Inbox, reap_orphans
from .limits import FdBudget
from .log import Log
from .member import Membership
from .model import Address, RuleSet, Settings
from .net import listen, raise_fd_limit
from .report import Report
from .rows import Notice, Problem
from .rules_watch import RulesWatch
from .scoreboard import Seat
from .server import Server
from .systemd import ServiceNotifier, inherited, pid_obstacle, remove_pid, write_pid
from .tasks import unhurried
from .ticker import lived
from .window import AdminWindow

# How long it may take until the next of the cut connections has closed, and what systemd is told for all; in seconds.
_CUT_TIME: Final = 0.3
LONGEST_CUT: Final = 5.0
# Python's 700 new objects look for rubbish every 20 connections, which leave none: 5 % of what each of them costs.
# What is young is looked at in small parts: the rules of a reload of 8,000, in one go, took 100 ms.
_COLLECT: Final = (20_000, 1, 100)
_DRAIN_LOOK: Final = 0.02


class Outcome(Enum):
    """How a process has ended."""

    NOT_STARTED = "not started"
    DRAINED = "drained"
    CUT_SHORT = "cut short"


def run(settings: Settings, log: Log) -> int:
    """Be the VeilLink process until it is told to stop.

    Returns:
        The exit code: 0 stopped and drained, 1 nothing could be started or the drain was cut short.
    """
    inbox = Inbox(SIGNALS)
    process = _Process(settings, log, ServiceNotifier(os.environ), inherited(os.environ))
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
    process = _Process(replace(settings, pidfile=""), log, ServiceNotifier({}), listening, seat, claims)
    return process.live(inbox, (CUT,))


class _Process:
    """What one process holds.

    Args:
        settings: what the command line asks for.
        log: of the process.
        notifier: tells the service manager what it does.
        listening: sockets that were handed over to it.
        seat: among the others, or ``None`` when it is alone.
        claims: where the others listen.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        notifier: ServiceNotifier,
        listening: Mapping[Address, socket.socket],
        seat: Seat | None = None,
        claims: Claims | None = None,
    ) -> None:
        self._settings = settings
        self._log = log
        self._notifier = notifier
        self._fd_budget = FdBudget(
            raise_fd_limit(),
            splice=settings.relay != "copy",
            watched=settings.admin is not None,
            inherited=len(listening),
        )
        self._memory = memory_limit()
        open_at = claims.listen if claims is not None else partial(listen, shared=seat is not None)
        self._server = Server(
            log,
            settings.config,
            self._fd_budget,
            settings.max_connections,
            listening,
            seat.number if seat else 0,
            self._memory,
            open_at,
        )
        self._report = Report(settings.config, self._server, self._fd_budget, log)
        self._member = Membership(seat, self._server, self._report, log)
        self._window = AdminWindow(settings.admin, self._fd_budget.admin, self._member, open_at, log)
        self._say = self._member.say
        self._file = RulesWatch(settings.config, settings.defaults, watch=settings.watch, say=self._say)

    def live(self, inbox: Inbox, hurry: Sequence[str]) -> Outcome:
        """Start, serve, drain.

        Args:
            inbox: where notes come.
            hurry: those of them that cut a drain short.
        """
        try:
            self._member.join(inbox, watched=self._settings.admin is not None, lacks=self._window.is_missing)
            if not self._read(inbox):
                self._log.info("stopped")
                self._member.enter(Outcome.DRAINED.value)
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
        obstacle = self._obstacle(rules) or pid_obstacle(settings.pidfile) or self._window.open()
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
        self._member.enter("running")
        self._notifier.ready(self._summary())
        if self._notifier.watchdog:
            gevent.spawn(self._stay_alive)
        gc.freeze()
        gc.set_threshold(*_COLLECT)
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
        log, limiter, timeout = self._log, self._server.limiter, self._settings.drain_timeout
        self._member.enter("draining")
        if self._member.others_go_on:  # they show the state
            self._window.close()
        self._member.resign()
        self._server.stop_accepting()
        self._notifier.stopping(f"draining {limiter.in_use} connections", timeout + LONGEST_CUT)
        log.info("stopping", connections=limiter.in_use, drain_timeout=timeout)
        for _ in lived(timeout):
            if not limiter.in_use or inbox.take(_DRAIN_LOOK) in hurry:
                break
        cut = limiter.in_use
        if cut:
            log.warning("drain cut short", connections=cut)
            self._cut(inbox)
        log.info("stopped")
        outcome = Outcome.CUT_SHORT if cut else Outcome.DRAINED
        self._member.enter(outcome.value)
        return outcome

    def _cut(self, inbox: Inbox) -> None:
        """End every connection. What the exit would close gets a FIN, and looks complete: so wait while they go."""
        limiter = self._server.limiter
        self._server.cut()
        left = math.inf
        while 0 < limiter.in_use < left:
            left = limiter.in_use
            for _ in lived(_CUT_TIME):
                inbox.take(_DRAIN_LOOK)
                if limiter.in_use < left:
                    break

    def close(self) -> None:
        """Close the window, which has been open to the end, and take our number away."""
        self._file.close()
        self._notifier.close()
        self._window.close()
        remove_pid(self._settings.pidfile)

    def _lead(self) -> None:
        """Do what only one of the workers may do, since the one that did it has gone."""
        if not self._server.leads:
            self._server.lead()
        obstacle = self._window.open()
        if obstacle:
            self._log.error(obstacle)

    def _give_up(self, why: str) -> bool:
        self._log.error(f"not started: {why}")
        return False

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
        self._say("info", "file descriptors", limit=self._fd_budget.limit, **self._fd_budget.shares(listeners))
        if server.fits_memory < self._fd_budget.connections(listeners):
            self._say("info", "memory", limit=self._memory, connections=server.fits_memory)
        log.info("ready", listeners=listeners, max_connections=server.limiter.limit)

    def _summary(self) -> str:
        return f"{len(self._server.rules.rules)} rules, {len(self._server.listeners)} listeners"

    def _obstacle(self, rules: RuleSet) -> str:
        """Return why these rules cannot be run at all, if they cannot."""
        listeners = sum(rule.ports for rule in rules.rules)
        if self._fd_budget.connections(listeners) > 0:
            return ""
        limit, needed = self._fd_budget.limit, self._fd_budget.needed(listeners)
        return f"{needed} file descriptors are needed at least, not {limit}; raise the limit (ulimit -n)"

    def _reload(self) -> None:
        """Apply the file as it was read, and say that it was done or why not; whatever fails is tried again."""
        self._notifier.reloading()
        try:
            refused = self._apply()
        except Exception as error:  # what runs goes on
            self._log.error("unforeseen error", traceback=traceback.format_exc())
            refused = self._refuse(f"{type(error).__name__}: {error}", ())
            self._file.ask_again()
        self._notifier.ready(self._summary() + (f"; the last reload was refused: {refused}" if refused else ""))

    def _apply(self) -> str:
        """Apply the file; with any problem in it, what runs goes on: a typo never takes a rule away. Return why not."""
        rules, problems, notices = self._file.found
        self._tell(problems, notices)
        obstacle = f"{printable(self._settings.config)} has problems" if problems else self._obstacle(rules)
        if obstacle:
            return self._refuse(obstacle, problems)
        changes = self._server.apply(rules)
        self._report.count_reload("applied", ())
        self._member.publish()
        counts = {field.name: len(getattr(changes, field.name)) for field in fields(changes)}
        listeners = len(self._server.listeners)
        self._say("info", "reloaded", config=self._settings.config, listeners=listeners, **counts)
        return ""

    def _refuse(self, why: str, problems: tuple[Problem, ...]) -> str:
        self._say("error", f"not reloaded, the rules stay as they were: {why}")
        self._report.count_reload("refused", problems or (Problem(0, 0, why),))
        self._member.publish()
        return why

    def _stay_alive(self) -> None:
        while True:
            self._notifier.alive()
            gevent.sleep(self._notifier.watchdog / 3)
