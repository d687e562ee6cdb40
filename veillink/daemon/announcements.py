"""What a process says of its start, and of the rules' file.

Rule: what all workers would say is said by the one that leads, and by the others for whoever debugs.
"""

from collections.abc import Iterable

from veillink.config.rows import Notice, Problem
from veillink.daemon.membership import Membership
from veillink.log import Log
from veillink.model import Settings
from veillink.net.greenlets import unhurried
from veillink.server.fd_budget import FdBudget
from veillink.server.server import Server


class Announcements:
    """The lines of a process.

    Args:
        settings: what the command line asks for.
        member: its part in its fleet.
        log: where the lines go.
    """

    def __init__(self, settings: Settings, member: Membership, log: Log) -> None:
        self._settings = settings
        self._member = member
        self._log = log

    def log_as_leader(self, level: str, message: str, **fields: object) -> None:
        """Log what all workers would log: one of them does."""
        getattr(self._log, level if self._member.leads else "debug")(message, **fields)

    def tell_remarks(self, problems: Iterable[Problem], notices: Iterable[Notice]) -> None:
        """Tell how the rules' file was understood, and what is wrong with it."""
        for notice in notices:
            self.log_as_leader("info", notice.at(self._settings.config))
        for problem in self._log.paced(problems):
            self.log_as_leader("error", problem.at(self._settings.config))

    def tell_start(self, server: Server, fd_budget: FdBudget, memory: int) -> None:
        """Tell what runs from now on, and what limits it."""
        log = self._log
        for rule in unhurried(log.paced(server.rules.rules)):
            targets = ",".join(str(target.address) for target in rule.targets)
            self.log_as_leader("info", "rule", name=rule.name, listen=rule.shown_listen, targets=targets)
        off = [name for name in ("idle_timeout", "max_lifetime") if not getattr(self._settings.defaults, name)]
        if off:
            limits = ", ".join(off)
            self.log_as_leader(
                "warning", f"by default these limits are off: {limits}; a silent connection may stay for ever"
            )
        listeners = len(server.listeners)
        self.log_as_leader("info", "file descriptors", limit=fd_budget.limit, **fd_budget.breakdown(listeners))
        if server.fits_memory < fd_budget.connections(listeners):
            self.log_as_leader("info", "memory", limit=memory, connections=server.fits_memory)
        log.info("ready", listeners=listeners, max_connections=server.limiter.limit)


def summary(server: Server) -> str:
    """Return what the service manager shows of a process that serves."""
    return f"{len(server.rules.rules)} rules, {len(server.listeners)} listeners"
