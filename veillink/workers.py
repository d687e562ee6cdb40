"""The name by which gunicorn's own command finds the workers: ``gunicorn veillink.workers:app``."""

from veillink.config.settings import from_environment
from veillink.fleet.hooks import child_exit, nworkers_changed, on_exit, on_starting, pre_exec, pre_fork
from veillink.fleet.worker import Worker, app

__all__ = [
    "Worker",
    "app",
    "child_exit",
    "from_environment",
    "nworkers_changed",
    "on_exit",
    "on_starting",
    "pre_exec",
    "pre_fork",
]
