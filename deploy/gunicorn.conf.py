"""VeilLink under gunicorn's own command, for those who run everything with it.

    VEILLINK_CONFIG=/etc/veillink/config.csv gunicorn -c deploy/gunicorn.conf.py -w 4 veillink.workers:app

`veillink --workers 4` does more: there HUP reads the rules again in place, and a second TERM cuts what still drains.
Here HUP starts new workers and has the old ones drain, and gunicorn heeds nothing else until they have or
graceful_timeout is over. The file is watched, as everywhere, so there is seldom a reason for HUP.

Every option is a variable: VEILLINK_ADMIN, VEILLINK_DRAIN_TIMEOUT, … (see veillink --help).
"""

import math

from veillink.workers import (
    Worker,
    child_exit,
    from_environment,
    nworkers_changed,
    on_exit,
    on_starting,
    pre_exec,
    pre_fork,
)

__all__ = ["child_exit", "nworkers_changed", "on_exit", "on_starting", "pre_exec", "pre_fork"]

_settings = from_environment()

worker_class = Worker
workers = _settings.workers or 1
timeout = math.ceil(_settings.worker_timeout)
graceful_timeout = math.ceil(_settings.drain_timeout) + 5

# Each worker opens its own listeners, those of the rules.
bind: list[str] = []
reuse_port = True
control_socket_disable = True
