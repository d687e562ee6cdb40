"""What a process says of its start, and of its rules.

Rule: what all workers would say is said by the one that leads, and by the others for whoever debugs.
"""

import os
import time
import traceback
from dataclasses import fields
from typing import Final

from veillink import __version__
from veillink.config.rules import Parsed
from veillink.credentials import Certificate, ending
from veillink.daemon.membership import Membership
from veillink.log import Log
from veillink.model import Diff, Rule, RuleSet
from veillink.net.greenlets import unhurried
from veillink.server.fd_budget import FdBudget
from veillink.server.server import Server
from veillink.settings import Settings
from veillink.text import printable

_NO_RULES: Final = RuleSet()


class Announcements:
    """The lines of a process.

    Args:
        settings: what the command line asks for.
        member: its part in its fleet.
        log: where the lines go.
    """

    def __init__(self, settings: Settings, member: Membership, log: Log) -> None:
        self.shown_config = printable(settings.config)
        """Where the rules are, as people see it."""
        self._settings = settings
        self._member = member
        self._log = log

    def log_as_leader(self, level: str, message: str, **fields: object) -> None:
        """Log what all workers would log: one of them does."""
        getattr(self._log, level if self._member.leads else "debug")(message, **fields)

    def log_warnings(self, found: Parsed) -> None:
        """Log slips in the settings, and what has to be said of where the rules are."""
        for warning in (*self._settings.warnings, *found.warnings):
            self.log_as_leader("warning", warning)

    def log_remarks(self, found: Parsed) -> None:
        """Log how the rules were understood, and what is wrong with them."""
        for notice in found.notices:
            self.log_as_leader("info", notice.at(self._settings.config))
        for problem in self._log.paced(found.problems):
            self.log_as_leader("error", problem.at(self._settings.config))

    def log_certificates(self, rules: RuleSet, before: RuleSet = _NO_RULES) -> None:
        """Log what is wrong with the certificates of rules, but for those that the rules before had."""
        known = set(before.certificates)
        for certificate in self._log.paced(each for each in rules.certificates if each not in known):
            now = time.time()
            ends = ending(certificate.not_after, now)  # of which there is a warning each day
            for warning in certificate.doubts if ends else certificate.warnings(now):
                self.log_as_leader("warning", f"{printable(certificate.file)}: {warning}")

    def log_start(self, rules: RuleSet) -> None:
        """Log that these rules are about to be opened."""
        config = self._settings.config
        self._log.info(f"VeilLink {__version__} starts", pid=os.getpid(), config=config, rules=len(rules.rules))

    def log_ready(self, server: Server, fd_budget: FdBudget, memory: int) -> None:
        """Log what runs from now on, and what limits it.

        Args:
            server: that runs it.
            fd_budget: what its process may have.
            memory: bytes that all processes may have together; 0 is no limit.
        """
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

    def log_reloaded(self, changes: Diff, listeners: int) -> None:
        """Log what a reload has changed."""
        counts = {field.name: len(getattr(changes, field.name)) for field in fields(changes)}
        self.log_as_leader("info", "reloaded", config=self._settings.config, listeners=listeners, **counts)

    def log_ending(self, rule: Rule, certificate: Certificate, how: str) -> None:
        """Log that a certificate ends soon or has expired."""
        fields = {"file": certificate.file, "until": certificate.until, "rule": rule.name}
        self.log_as_leader("warning", f"a certificate {how}", **fields)

    def log_refused(self, why: str) -> None:
        """Log why a reload has changed nothing."""
        self.log_as_leader("error", f"not reloaded, the rules stay as they were: {why}")

    def log_unforeseen(self) -> None:
        """Log the exception that is being handled, and that nobody has foreseen."""
        self._log.error("unforeseen error", traceback=traceback.format_exc())


def summary(server: Server) -> str:
    """Return what the service manager shows of a process that serves."""
    return f"{len(server.rules.rules)} rules, {len(server.listeners)} listeners"
