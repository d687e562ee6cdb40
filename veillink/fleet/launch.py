"""Start the master of ``--workers``, unless another one is at work here.

Rule: whatever stops the start is said in one line, before anything is forked.
"""

import contextlib
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from gunicorn.app.base import BaseApplication

from veillink.config.source import open_source
from veillink.daemon.pidfile import check_pid, remove_pid
from veillink.daemon.process import LONGEST_CUT
from veillink.daemon.supervisor import ServiceNotifier, inherited
from veillink.fleet.hooks import nworkers_changed, on_exit, on_starting, pre_fork, signals_held
from veillink.fleet.journal import Journal
from veillink.fleet.master import STOPS, Master
from veillink.fleet.scoreboard import Scoreboard
from veillink.fleet.worker import Forwarder, Worker
from veillink.model import Address, StartupError
from veillink.net.listening import is_shared
from veillink.net.sockets import raise_fd_limit
from veillink.settings import Settings


def run_workers(settings: Settings) -> int:
    """Be the master until told to stop.

    Returns:
        The exit code: 0 all workers have drained, 1 none could start, or connections had to be cut.
    """
    if settings.admin is not None:
        from veillink.admin import pages  # noqa: F401 - once for all workers
    own, journal = os.getpid(), Journal(settings)
    notifier, listening = ServiceNotifier(os.environ), inherited(os.environ)
    raise_fd_limit()
    _take_name(os.environ.get("GUNICORN_PID", "self"))
    for number in STOPS:  # until the arbiter heeds them
        signal.signal(number, lambda *_: sys.exit(0))
    scoreboard: Scoreboard | None = None
    try:
        if "GUNICORN_PID" not in os.environ:  # else the other one is the master whose place this one takes
            _check_listeners(settings, listening)
            check_pid(settings.pidfile)
        scoreboard = _make_scoreboard()
        app = FleetApplication(settings)
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS"):
            os.environ.pop(name, None)  # gunicorn would say READY before any worker is
        gc.collect()
        gc.freeze()  # what workers never free they share with the master
        Master(app, settings, scoreboard, journal, notifier, listening).run()
    except StartupError as why:
        journal.write("error", f"not started: {why}")
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        if os.getpid() == own:  # and not a worker, which comes by here at its end
            remove_pid(settings.pidfile)
            if scoreboard is not None:
                scoreboard.remove()
    return 0


def _take_name(pid: str) -> None:
    """Be called as the process whose place this one takes; it was started as Python, and not by its script's name."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(Path(f"/proc/{pid}/comm").read_text().strip())


def _make_scoreboard() -> Scoreboard:
    try:
        with signals_held(STOPS):
            return Scoreboard.make()
    except OSError as error:
        raise StartupError(f"workers cannot share memory (memfd_create): {error.strerror}") from None


def _check_listeners(settings: Settings, listening: Mapping[Address, socket.socket]) -> None:
    """See that no workers of another master listen where ours are to.

    Raises:
        StartupError: they do.
    """
    rules = open_source(settings.config, settings.defaults).load().rules.rules
    wanted = [address for rule in rules for address, _ in rule.listens()]
    if settings.admin is not None:
        wanted += settings.admin.addresses
    for address in wanted:
        if address not in listening and is_shared(address):
            raise StartupError(f"{address} is another VeilLink's, which would share its clients; stop it first")


class FleetApplication(BaseApplication):
    """What gunicorn's arbiter is to run, and how.

    Args:
        settings: of all workers.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's settings; none comes from its own command line or files."""
        drain = self._settings.drain_timeout + LONGEST_CUT
        for name, value in {
            "bind": [],
            "reuse_port": True,
            "control_socket_disable": True,
            "worker_class": Worker,
            "workers": self._settings.workers,
            "timeout": math.ceil(self._settings.worker_timeout),
            "graceful_timeout": math.ceil(drain),
            "pre_fork": pre_fork,
            "pre_exec": Master.hand_over,
            "child_exit": Master.worker_ended,
            "nworkers_changed": nworkers_changed,
            "on_starting": on_starting,
            "on_exit": on_exit,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Forwarder:
        """Return what the workers run."""
        return Forwarder(lambda: self._settings)
