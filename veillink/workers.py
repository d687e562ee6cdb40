"""Be several processes: a master, which is gunicorn's, and workers, each of which forwards as one alone would.

Rule: the master forwards nothing and starts no loop. It starts workers, passes signals on, and keeps their account.
"""

import contextlib
import faulthandler
import gc
import logging
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import gevent
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker as GunicornWorker

from . import __version__
from .daemon import LONGEST_CUT, Outcome, work
from .log import Lines, opened
from .model import Address, Settings
from .net import is_shared
from .options import from_environment
from .rules_file import read_rules
from .scoreboard import Fleet, Scoreboard, Seat
from .systemd import Manager, inherited, remove_pid, write_pid

# Not for workers, but sent to all of a terminal's or a container's processes.
_FOR_THE_MASTER: Final = (signal.SIGINT, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU)
_BEAT: Final = 1.0  # seconds from one sign of life to the next
_LOOK: Final = 0.05  # seconds, while workers are waited for
_RELOAD_TIME: Final = 30.0  # after which a reload counts as done, whoever has not answered
_START_PAUSE: Final = 1.0  # after a worker that could not start
# What a pipe that is ready for writing takes at once (PIPE_BUF in pipe(7)).
_AT_ONCE: Final = 4096
_LEVELS: Final = {logging.DEBUG: "debug", logging.INFO: "debug", logging.WARNING: "warning"}


class Forwarder:
    """What gunicorn's workers load.

    Args:
        settings: returns those of all workers.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self.settings = settings

    def __call__(self, environ: object, start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
        """Answer as a web application, which this is not (PEP 3333)."""
        start_response("501 Not Implemented", [("Content-Type", "text/plain")])
        return [b"VeilLink forwards TCP: give gunicorn --worker-class veillink.workers.Worker\n"]


app: Final = Forwarder(from_environment)
"""For ``gunicorn veillink.workers:app``."""


class Worker(GunicornWorker):
    """One of the processes."""

    board: Scoreboard
    """Set before it is forked."""
    is_first = True
    """Whether none before it has ever run."""
    listening: Mapping[Address, socket.socket] = {}
    """Sockets that the master was handed over."""

    def init_signals(self) -> None:
        """Forget the master's handlers; from the start of its loop on the process heeds signals itself."""
        for number in (*Arbiter.SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN if number in _FOR_THE_MASTER else signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the rules are still to be read

    def run(self) -> None:
        """Forward until the master says stop, and exit.

        Raises:
            SystemExit: with 0, 1 when connections had to be cut, or what makes gunicorn give up when none can start.
        """
        faulthandler.enable()  # the master ends one that hangs with SIGABRT: this tells where it hung
        gevent.spawn(self._beat_forever)
        forwarder: Any = self.wsgi
        settings, seat = forwarder.settings(), Seat(self.board, self.age)
        with opened(settings, {"worker": seat.number}) as log:
            outcome = work(settings, log, seat, self.listening)
        if os.getppid() != self.ppid:
            self.board.remove()
        if outcome is Outcome.NOT_STARTED and self.is_first:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        sys.exit(0 if outcome is Outcome.DRAINED else 1)

    def _beat_forever(self) -> None:
        while os.getppid() == self.ppid:
            self.notify()
            gevent.sleep(min(_BEAT, self.timeout / 2 or _BEAT))
        os.kill(os.getpid(), signal.SIGTERM)  # the master has been killed


# --- what gunicorn calls in the master -------------------------------------------------------------------------------


def pre_fork(arbiter: Any, worker: Worker) -> None:
    """Give a worker its scoreboard."""
    worker.board = _board(arbiter)
    worker.is_first = not worker.board.has_served
    worker.listening = getattr(arbiter, "listening", {})


def child_exit(arbiter: Any, worker: Worker) -> None:
    """Keep the account of a worker that is no more."""
    _board(arbiter).bury(worker.age)


def nworkers_changed(arbiter: Any, count: int, _: int | None) -> None:
    """Tell the workers among how many the limits are divided."""
    _board(arbiter).tell(Fleet(count))


def on_exit(arbiter: Any) -> None:
    """Remove the scoreboard."""
    _board(arbiter).remove()


def _board(arbiter: Any) -> Scoreboard:
    if not hasattr(arbiter, "veillink_board"):
        arbiter.veillink_board = Scoreboard.make()
    board: Scoreboard = arbiter.veillink_board
    return board


# --- the master of --workers -----------------------------------------------------------------------------------------


def run_workers(settings: Settings) -> int:
    """Be the master until told to stop.

    Returns:
        The exit code: 0 all workers have drained, 1 none could start, or connections had to be cut.
    """
    journal = Journal(settings)
    manager, listening = Manager(os.environ), inherited(os.environ)
    upgrades = "GUNICORN_PID" in os.environ
    shared = "" if upgrades else _shared(settings)
    if shared:
        journal.say(
            "error", f"not started: {shared} is another VeilLink's, which would share its clients; stop it first"
        )
        return 1
    try:
        board = Scoreboard.make()
    except OSError as error:
        journal.say("error", f"not started: workers need a place for temporary files: {error.strerror}")
        return 1
    fleet = _Application(settings, board)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS"):
        os.environ.pop(name, None)  # gunicorn would say READY before any worker is
    if upgrades:
        os.environ["GUNICORN_FD"] = "0"  # gunicorn gives none, and cannot read that
    if settings.admin is not None:
        from . import admin  # noqa: F401 - once for all workers
    gc.collect()
    gc.freeze()  # what workers never free they share with the master
    try:
        _Master(fleet, settings, board, journal, manager, listening).run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _shared(settings: Settings) -> str:
    """Return an address at which workers of another master listen, if there is one."""
    rules, _ = read_rules(settings.config, settings.defaults)
    wanted = [address for rule in rules.rules for address, _ in rule.listens()]
    if settings.admin is not None:
        wanted.append(settings.admin.address)
    return next((str(address) for address in wanted if is_shared(address)), "")


class Journal:
    """The master's log: without a thread, which a fork would lose, and without ever waiting for a reader.

    Args:
        settings: how lines look.
    """

    def __init__(self, settings: Settings) -> None:
        self._lines = Lines(json_lines=settings.log_format == "json", level=settings.log_level)
        self._unsaid: deque[str] = deque(maxlen=1000)
        os.register_at_fork(after_in_child=self._unsaid.clear)

    def say(self, level: str, message: str, **fields: object) -> None:
        """Write a line, now or later."""
        if self._lines.wants(level):
            self._unsaid.append(self._lines.line(level, message, fields))
        self.flush()

    def flush(self) -> None:
        """Write what could not be written before."""
        with contextlib.suppress(OSError):
            while self._unsaid and select.select([], [1], [], 0)[1]:
                os.write(1, f"{self._unsaid[0][: _AT_ONCE - 1]}\n".encode())
                self._unsaid.popleft()


class _Handler(logging.Handler):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"traceback": "".join(traceback.format_exception(record.exc_info[1]))} if record.exc_info else {}
        self._journal.say(_LEVELS.get(record.levelno, "error"), record.getMessage(), **fields)


class _Log(Logger):
    """gunicorn's log, as lines among ours."""

    def __init__(self, cfg: Any, journal: Journal) -> None:
        self._handler = _Handler(journal)
        super().__init__(cfg)

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.handlers = [self._handler]
        self.error_log.setLevel(logging.DEBUG)


class _Application(BaseApplication):
    def __init__(self, settings: Settings, board: Scoreboard) -> None:
        self._settings = settings
        self._board = board
        super().__init__()

    def load_config(self) -> None:
        drain = self._settings.drain_timeout + LONGEST_CUT
        for name, value in {
            "bind": [],
            "reuse_port": True,
            "control_socket_disable": True,
            "worker_class": Worker,
            "workers": self._settings.workers,
            "timeout": math.ceil(self._settings.worker_timeout),
            "graceful_timeout": math.ceil(drain),
            "worker_tmp_dir": str(self._board.folder),
            "pre_fork": pre_fork,
            "pre_exec": _Master.hand_over,
            "child_exit": _Master.worker_ended,
            "nworkers_changed": nworkers_changed,
            "on_exit": on_exit,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Forwarder:
        return Forwarder(lambda: self._settings)


class _Master(Arbiter):
    """Reloads in place, stops as one process does, and tells the service manager the truth."""

    def __init__(
        self,
        fleet: _Application,
        settings: Settings,
        board: Scoreboard,
        journal: Journal,
        manager: Manager,
        listening: Mapping[Address, socket.socket],
    ) -> None:
        self.veillink_board = board
        self.listening = listening
        self._settings = settings
        self._journal = journal
        self._manager = manager
        self._ready = False
        self._reading: dict[int, int] = {}
        self._reading_until = 0.0
        self._not_before = 0.0
        self._cut_short = False
        super().__init__(fleet)
        self.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]  # gunicorn's own forgets -m

    def setup(self, app: Any) -> None:
        self.log = self.log or _Log(app.cfg, self._journal)
        super().setup(app)

    def reload(self) -> None:
        """Have every worker read the rules again, in place."""
        self._manager.reloading()
        board = self.veillink_board
        self._reading = {worker.age: board.state(worker.age).reads for worker in self.WORKERS.values()}
        self._reading_until = time.monotonic() + _RELOAD_TIME
        self.kill_workers(signal.SIGHUP)

    def wait_for_signals(self, timeout: float | None = 1.0) -> list[int]:
        self._look_after()
        if self._reading or not self._ready:
            timeout = _LOOK
        elif self._manager.watchdog:
            timeout = min(1.0, self._manager.watchdog / 3)
        return super().wait_for_signals(timeout)

    def _look_after(self) -> None:
        self._journal.flush()
        if self._manager.watchdog:
            self._manager.alive()
        states = {worker.age: self.veillink_board.state(worker.age) for worker in self.WORKERS.values()}
        if (
            not self._ready
            and len(states) >= self.num_workers
            and all(state.phase == "running" for state in states.values())
        ):
            self._ready = True
            self._announce()
        if self._reading:
            unread = [age for age, reads in self._reading.items() if age in states and states[age].reads <= reads]
            if not unread or time.monotonic() > self._reading_until:
                self._reading = {}
                self._manager.ready(self._summary())

    def _announce(self) -> None:
        obstacle = write_pid(self._settings.pidfile)
        if obstacle:
            self._journal.say("error", obstacle)
        self._journal.say("info", f"VeilLink {__version__} is ready", pid=os.getpid(), workers=self.num_workers)
        self._manager.ready(self._summary())
        if self.master_pid:
            os.kill(self.master_pid, signal.SIGTERM)  # it has been waiting for this

    def _summary(self) -> str:
        return f"{self.num_workers} workers"

    def maybe_promote_master(self) -> None:
        before = self.master_pid
        super().maybe_promote_master()
        if before and not self.master_pid and self._ready:
            self._manager.ready(self._summary())  # nobody listened to this process before

    def spawn_workers(self) -> None:
        if time.monotonic() >= self._not_before:
            for _ in range(self.num_workers - len(self.WORKERS)):
                self.spawn_worker()

    def worker_ended(self, worker: Worker) -> None:
        """Keep its account, and start no other one in its place at once when it could not start."""
        phase = self.veillink_board.state(worker.age).phase
        if phase == "starting":
            self._not_before = time.monotonic() + _START_PAUSE
        self._cut_short = self._cut_short or phase == Outcome.CUT_SHORT.value
        child_exit(self, worker)

    def reap_workers(self) -> None:
        upgrade = self.reexec_pid
        super().reap_workers()
        if upgrade and not self.reexec_pid:
            self._journal.say("error", "the new program has ended: this one goes on", pid=upgrade)

    def hand_over(self) -> None:
        """Leave the sockets that this process was handed over to the program that takes its place."""
        for sock in self.listening.values():
            sock.set_inheritable(True)
        self.cfg.env_orig["LISTEN_PID"] = str(os.getpid())

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop, and exit as one process would: 1 when none could start, or connections had to be cut."""
        try:
            super().halt(reason, exit_status)
        except SystemExit:
            sys.exit(1 if exit_status or self._cut_short else 0)

    def handle_int(self) -> None:
        raise StopIteration

    def stop(self, graceful: bool = True) -> None:
        """Let all workers drain; a second signal has them cut what is left."""
        if self.reexec_pid:
            self._manager.succeeded(self.reexec_pid)
        else:
            self.veillink_board.tell(Fleet(self.num_workers, draining=True))
            self._manager.stopping("draining", self._settings.drain_timeout + LONGEST_CUT)
        self._end_workers(signal.SIGTERM if graceful else signal.SIGQUIT)
        remove_pid(self._settings.pidfile)

    def _end_workers(self, number: int) -> None:
        until = time.monotonic() + self.cfg.graceful_timeout + 1
        while self.WORKERS and time.monotonic() < until:
            self.kill_workers(number)  # again, since one may have been starting
            came = super().wait_for_signals(timeout=0.1)
            if {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT} & set(came):
                number = signal.SIGQUIT
            self._reap()
        self.kill_workers(signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(HaltServer):  # that is what happens
            self.reap_workers()
