"""Be one process: start the rules, heed what comes, drain, leave.

Rule: what must not happen twice at a time, the main greenlet does.
"""

import gc
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Final

import gevent

from veillink.admin.status import ProcessStatus, Shown
from veillink.config.rules import Parsed
from veillink.config.source import open_source
from veillink.daemon.admin_endpoint import AdminEndpoint
from veillink.daemon.announcements import Announcements, summary
from veillink.daemon.commands import SIGNALS, WORKER_SIGNALS, Command, CommandQueue, reap_orphans
from veillink.daemon.expiry import ExpiryWatch
from veillink.daemon.membership import Alone, Membership
from veillink.daemon.pidfile import check_pid, remove_pid, write_pid
from veillink.daemon.reloader import Reloader, check_descriptors
from veillink.daemon.supervisor import ServiceNotifier, inherited
from veillink.log import Log
from veillink.model import Address, StartupError
from veillink.net.cgroup import memory_limit
from veillink.net.sockets import raise_fd_limit
from veillink.net.ticker import lived
from veillink.server.fd_budget import FdBudget
from veillink.server.server import Server
from veillink.settings import Settings

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
    commands = CommandQueue(SIGNALS)
    process = _Process(settings, log, ServiceNotifier(os.environ), inherited(os.environ), Alone())
    if os.getpid() == 1:
        reap_orphans()
    return 0 if process.run(commands, (Command.STOP,)) is Outcome.DRAINED else 1


def run_worker(settings: Settings, log: Log, member: Membership, listening: Mapping[Address, socket.socket]) -> Outcome:
    """Be one of several processes until the master says stop.

    Args:
        settings: of all of them.
        log: of this one.
        member: its part in the fleet.
        listening: sockets that the master was handed over.
    """
    commands = CommandQueue(WORKER_SIGNALS)
    process = _Process(replace(settings, pidfile=""), log, ServiceNotifier({}), listening, member)
    return process.run(commands, (Command.CUT,))


class _Process:
    """What one process holds.

    Args:
        settings: what the command line asks for.
        log: of the process.
        notifier: tells the service manager what it does.
        listening: sockets that were handed over to it.
        member: its part in its fleet.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        notifier: ServiceNotifier,
        listening: Mapping[Address, socket.socket],
        member: Membership,
    ) -> None:
        self._settings = settings
        self._log = log
        self._notifier = notifier
        self._member = member
        self._fd_budget = FdBudget(
            raise_fd_limit(),
            splice=settings.relay != "copy",
            watched=settings.admin is not None,
            inherited=len(listening),
        )
        self._memory = memory_limit()
        self._server = Server(
            log,
            self._fd_budget,
            settings.max_connections,
            listening,
            member.number,
            self._memory,
            member.listen,
        )
        self._status = ProcessStatus(settings.config, self._server, self._fd_budget.limit, log)
        self._shown: Shown = self._status
        self._admin_endpoint = AdminEndpoint(settings.admin, self._fd_budget.admin, member, log)
        self._announcements = Announcements(settings, member, log)
        self._expiry = ExpiryWatch(self._announcements)
        self._source = open_source(settings.config, settings.defaults)
        self._found = Parsed()
        self._reloader = Reloader(self._server, self._fd_budget, self._status, member, notifier, self._announcements)

    def run(self, commands: CommandQueue, cut_on: Sequence[Command]) -> Outcome:
        """Start, serve, drain.

        Args:
            commands: to be carried out.
            cut_on: those of them that cut a drain short.
        """
        try:
            self._shown = self._member.join(self._server, self._status, lambda: self._on_leading(commands))
            if not self._wait_for_rules(commands):
                self._log.info("stopped")
                self._enter(Outcome.DRAINED.value)
                return Outcome.DRAINED
            self._start()
            self._serve(commands)
            return self._drain(commands, cut_on)
        except StartupError as why:
            self._log.error(f"not started: {why}")
            return Outcome.NOT_STARTED
        finally:
            self._close()

    def _enter(self, phase: str) -> None:
        """Come to another phase of life, and let the others know."""
        self._status.phase = phase
        self._member.publish()

    def _on_leading(self, commands: CommandQueue) -> None:
        """Ask for what only the one that leads may do, as long as some of it is left to do."""
        if not self._server.leads or self._admin_endpoint.is_missing():
            commands.put(Command.LEAD)

    def _wait_for_rules(self, commands: CommandQueue) -> bool:
        """Have the rules read, now and whenever they change; return whether that came before the order to stop."""

        def on_read(found: Parsed) -> None:
            self._found = found
            commands.put(Command.READ)

        self._source.follow(on_read, self._announcements.log_as_leader, watch=self._settings.watch)
        others: list[Command] = []
        while (command := commands.get()) not in (Command.READ, Command.STOP, Command.CUT):
            others += [command] if command else []
        for other in others:
            commands.put(other)
        return command is Command.READ

    def _start(self) -> None:
        """Open everything.

        Raises:
            StartupError: nothing can be served.
        """
        settings, server, announcements = self._settings, self._server, self._announcements
        if settings.admin is not None:
            self._status.measure()
        rules, problems = self._found.rules, self._found.problems
        announcements.log_warnings(self._found)
        announcements.log_remarks(self._found)
        if problems and settings.strict:
            raise StartupError(f"{settings.config} has problems and --strict was given")
        announcements.log_certificates(rules)
        announcements.log_start(rules)
        check_descriptors(self._fd_budget, rules)
        check_pid(settings.pidfile)
        self._open_admin_endpoint()
        server.apply(rules)
        self._status.count_reload("applied", problems)
        if not rules.rules or not server.can_go_on:
            raise StartupError("no rule could be started")
        write_pid(settings.pidfile)
        announcements.log_ready(server, self._fd_budget, self._memory)
        gevent.spawn(self._expiry.look_forever, server)
        self._enter("running")
        self._notifier.ready(summary(server))
        if self._notifier.watchdog:
            gevent.spawn(self._stay_alive)
        gc.freeze()
        gc.set_threshold(*_COLLECT)

    def _open_admin_endpoint(self) -> None:
        if self._admin_endpoint.open(self._shown) and self._settings.admin is not None:
            self._announcements.log_as_leader("info", "showing the state", admin=self._settings.admin.shown)

    def _serve(self, commands: CommandQueue) -> None:
        """Carry out commands until it is time to stop."""
        carry_out: Mapping[Command, Callable[[], None]] = {
            Command.RELOAD: self._source.refresh_soon,
            Command.READ: self._reload,
            Command.DUMP: self._status.dump,
            Command.LEAD: self._lead,
        }
        while (command := commands.get()) not in (Command.STOP, Command.CUT):
            try:
                if command is not None:
                    carry_out[command]()
            except Exception:  # whatever it was, what runs goes on
                self._announcements.log_unforeseen()
        if command is Command.CUT:
            commands.put(Command.CUT)

    def _reload(self) -> None:
        self._reloader.reload(self._found, self._source.retry_later)
        self._expiry.look(self._server.rules, time.time())

    def _drain(self, commands: CommandQueue, cut_on: Sequence[Command]) -> Outcome:
        """Stop accepting, let connections finish, cut those that do not.

        Args:
            commands: to be carried out.
            cut_on: those of them that cut at once.
        """
        log, limiter, timeout = self._log, self._server.limiter, self._settings.drain_timeout
        self._enter("draining")
        if self._member.others_go_on:  # they show the state
            self._admin_endpoint.close()
        self._member.resign()
        self._server.stop_accepting()
        self._notifier.stopping(f"draining {limiter.in_use} connections", timeout + LONGEST_CUT)
        log.info("stopping", connections=limiter.in_use, drain_timeout=timeout)
        for _ in lived(timeout):
            if not limiter.in_use or commands.get(_DRAIN_LOOK) in cut_on:
                break
        cut = limiter.in_use
        if cut:
            log.warning("drain cut short", connections=cut)
            self._cut(commands)
        log.info("stopped")
        outcome = Outcome.CUT_SHORT if cut else Outcome.DRAINED
        self._enter(outcome.value)
        return outcome

    def _cut(self, commands: CommandQueue) -> None:
        """End every connection. What the exit would close gets a FIN, and looks complete: so wait while they go."""
        limiter = self._server.limiter
        self._server.cut()
        left = math.inf
        while 0 < limiter.in_use < left:
            left = limiter.in_use
            for _ in lived(_CUT_TIME):
                commands.get(_DRAIN_LOOK)
                if limiter.in_use < left:
                    break

    def _close(self) -> None:
        """Close the admin endpoint, which has been open to the end, and take our number away."""
        self._source.close()
        self._notifier.close()
        self._admin_endpoint.close()
        remove_pid(self._settings.pidfile)

    def _lead(self) -> None:
        """Do what only one of the workers may do, since the one that did it has gone."""
        if not self._server.leads:
            self._server.lead()
        try:
            self._open_admin_endpoint()
        except StartupError as why:
            self._log.error(str(why))

    def _stay_alive(self) -> None:
        while True:
            self._notifier.alive()
            gevent.sleep(self._notifier.watchdog / 3)
