"""Be the master of ``--workers``: gunicorn's arbiter, which reloads in place and tells the service manager the truth.

Rule: the master forwards nothing and starts no loop, and no error of its own costs a connection: what it cannot do now
it does later.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from veillink import __version__
from veillink.daemon.pidfile import write_pid
from veillink.daemon.process import LONGEST_CUT, Outcome
from veillink.daemon.supervisor import ServiceNotifier
from veillink.fleet.control import Fleet
from veillink.fleet.hooks import child_exit, pre_exec, signals_held
from veillink.fleet.journal import Journal, MasterLog
from veillink.fleet.reload import FleetReload
from veillink.fleet.scoreboard import Scoreboard
from veillink.fleet.worker import Worker
from veillink.model import Address, StartupError
from veillink.net.ticker import lived
from veillink.settings import Settings

_LOOK: Final = 0.05  # seconds, while workers are waited for
_START_PAUSE: Final = 1.0  # after a worker that could not start
STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# How the program that takes this one's place says that it serves: people and terminals send the others.
_SERVES: Final = signal.SIGRTMIN


class Master(Arbiter):
    """Reloads in place, stops as one process does, and hands over to a new program once that one serves.

    Args:
        app: what gunicorn runs.
        settings: of all workers.
        scoreboard: that they share.
        journal: the log of the master.
        notifier: tells the service manager how all of them fare.
        listening: sockets that the master was handed over.
        clock: returns monotonic seconds.
    """

    SIGNALS: ClassVar[list[int]] = [*Arbiter.SIGNALS, _SERVES]

    def __init__(
        self,
        app: BaseApplication,
        settings: Settings,
        scoreboard: Scoreboard,
        journal: Journal,
        notifier: ServiceNotifier,
        listening: Mapping[Address, socket.socket],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.veillink_scoreboard = scoreboard
        self.listening = listening
        self._settings = settings
        self._journal = journal
        self._notifier = notifier
        self._clock = clock
        self._ready = False
        self._reload = FleetReload()
        self._not_before = 0.0
        self._leaving: set[int] = set()
        self._stopping = False
        self._handed_over = False
        self._cut_short = False
        super().__init__(app)
        self.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]  # gunicorn's own forgets -m

    def setup(self, app: Any) -> None:
        """Log among our own lines."""
        self.log = self.log or MasterLog(app.cfg, self._journal)
        super().setup(app)

    # --- looking after workers ---

    def wait_for_signals(self, timeout: float | None = 1.0) -> list[int]:
        """Look after the workers, wait, and return the signals that came."""
        self._look_after()
        if self._reload.is_under_way or not self._ready:
            timeout = _LOOK
        elif self._notifier.watchdog:
            timeout = min(1.0, self._notifier.watchdog / 3)
        came = super().wait_for_signals(timeout)
        for number, each in enumerate(came, 1):
            if each in STOPS:  # the loop ends with it, and would drop those behind it: the second one cuts
                for later in came[number:]:
                    self.SIG_QUEUE.put(later)
                return came[:number]
        return came

    def _look_after(self) -> None:
        self._journal.flush()
        if self._notifier.watchdog:
            self._notifier.alive()
        self.veillink_scoreboard.keep()
        if not self._ready and len(self._reads()) >= self.num_workers:
            self._ready = True
            self._announce()
        if self._reload.is_under_way and self._reload.ends(self._reads(), self._clock()):
            self._notifier.ready(self._summary())

    def _announce(self) -> None:
        try:
            write_pid(self._settings.pidfile, instead_of=self.master_pid)
        except StartupError as why:
            self._journal.write("error", str(why))
        self._journal.write("info", f"VeilLink {__version__} is ready", pid=os.getpid(), workers=self.num_workers)
        self._notifier.ready(self._summary())
        if self.master_pid and self.master_pid == os.getppid():
            os.kill(self.master_pid, _SERVES)

    def _summary(self) -> str:
        return f"{self.num_workers} workers"

    def staying(self) -> dict[int, int]:
        """Return the numbers of the workers that are not to leave, by pid, the oldest first."""
        ages = {pid: worker.age for pid, worker in self.WORKERS.items() if worker.age not in self._leaving}
        return dict(sorted(ages.items(), key=lambda item: item[1]))

    def _reads(self) -> dict[int, int]:
        """Return how often each of them that runs has read the rules' file, by its number."""
        staying: list[Any] = [worker for worker in self.WORKERS.values() if worker.age not in self._leaving]
        states = {worker.age: worker.tmp.state for worker in staying}
        return {age: state.reads for age, state in states.items() if state.phase == "running"}

    def manage_workers(self) -> None:
        """Start or end as many as are missing or too many; gunicorn's would count those that still drain."""
        staying = self.staying()
        for _ in range(self.num_workers - len(staying)):
            if self._clock() >= self._not_before:
                self.spawn_worker()
        for pid, age in tuple(staying.items())[: max(0, len(staying) - self.num_workers)]:
            self._leaving.add(age)
            self.kill_worker(pid, signal.SIGTERM)

    def spawn_worker(self) -> Any:
        """Start a worker, or try again later."""
        own = os.getpid()
        try:
            with signals_held(self.SIGNALS):
                return super().spawn_worker()
        except (OSError, RuntimeError) as error:
            if os.getpid() != own:
                raise
            self._not_before = self._clock() + _START_PAUSE
            self._journal.write("error", f"no worker can be started now: {error}")
            return None

    def worker_ended(self, worker: Worker) -> None:
        """Keep its account, and start no other one in its place at once when it could not start."""
        phase = worker.tmp.state.phase
        if phase == "starting":
            self._not_before = self._clock() + _START_PAUSE
        self._leaving.discard(worker.age)
        self._cut_short = self._cut_short or (self._stopping and phase not in ("starting", Outcome.DRAINED.value))
        child_exit(self, worker)

    def reload(self) -> None:
        """Have every worker read the rules again, in place."""
        if not self._ready:  # the manager hears nothing before that; who starts later reads them as they are then
            self.kill_workers(signal.SIGHUP)
            return
        self._notifier.reloading()
        self._reload.begin(self._reads(), self._clock())
        self.kill_workers(signal.SIGHUP)
        if not self._reload.is_under_way:  # all of them are just being replaced
            self._notifier.ready(self._summary())

    # --- a new program ---

    def reexec(self) -> None:
        """Start the program anew, which says when it serves."""
        own = os.getpid()
        try:
            with signals_held(self.SIGNALS):
                super().reexec()
        except OSError as error:
            self._journal.write("error", f"the new program cannot be started: {error}")
            if os.getpid() != own:
                os._exit(1)  # it would go on as a second master of the same workers

    def hand_over(self) -> None:
        """Leave to the new program what this one was handed over, as if it had come from the service manager."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL if number in STOPS else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        pre_exec(self)
        for sock in self.listening.values():
            sock.set_inheritable(True)
        for name in ("LISTEN_PID", "WATCHDOG_PID"):
            if name in self.cfg.env_orig:
                self.cfg.env_orig[name] = str(os.getpid())

    def reap_workers(self) -> None:
        """Heed the ends of workers, and of a new program."""
        upgrade = self.reexec_pid
        super().reap_workers()
        if upgrade and not self.reexec_pid and not self._stopping:
            self._journal.write("error", "the new program has ended: this one goes on", pid=upgrade)

    def handle_rtmin(self) -> None:
        """The new program serves: leave it the field."""
        if self.reexec_pid:
            self._handed_over = True
            raise StopIteration

    def maybe_promote_master(self) -> None:
        """Tell the service manager once the program before this one has gone."""
        before = self.master_pid
        super().maybe_promote_master()
        if before and not self.master_pid and self._ready:
            self._notifier.ready(self._summary())  # nobody listened to this process before

    # --- the end ---

    def handle_int(self) -> None:
        """Stop as TERM does: the second one cuts."""
        raise StopIteration

    def stop(self, graceful: bool = True) -> None:
        """Let all workers drain; a second signal has them cut what is left, also after USR2, where the drain began by
        itself. A new program that does not serve yet ends as well: it was not to go on."""
        self._stopping = True
        if self._handed_over:
            self._notifier.succeeded(self.reexec_pid)
        else:
            if self.reexec_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.reexec_pid, signal.SIGTERM)
            self.veillink_scoreboard.control.publish_fleet(Fleet(self.num_workers, draining=True))
            self._notifier.stopping("draining", self._settings.drain_timeout + LONGEST_CUT)
        self._end_workers(signal.SIGTERM if graceful else signal.SIGQUIT)

    def _end_workers(self, number: int) -> None:
        stops = 0 if self._handed_over else 1
        for _ in lived(self.cfg.graceful_timeout + 1.0):
            if not self.WORKERS:
                break
            self.kill_workers(number)  # again, since one may have been starting
            if self._notifier.watchdog and not self._handed_over:
                self._notifier.alive()
            came = super().wait_for_signals(timeout=0.1)
            stops += sum(each in STOPS for each in came)
            if stops > 1:
                number = signal.SIGQUIT
            self._reap()
        self._cut_short = self._cut_short or bool(self.WORKERS)
        self.kill_workers(signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(HaltServer):  # that is what happens
            self.reap_workers()

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop, and exit as one process would: 1 when none could start, or connections had to be cut."""
        try:
            super().halt(reason, exit_status)
        except SystemExit:
            sys.exit(1 if exit_status or self._cut_short else 0)
