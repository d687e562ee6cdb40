"""Apply a change of the rules while they run.

Rule: what has any problem is refused whole, and what runs goes on: a typo never takes a rule away.
"""

from collections.abc import Callable

from veillink.admin.status import ProcessStatus
from veillink.config.rows import Problem
from veillink.config.rules import Parsed
from veillink.daemon.announcements import Announcements, summary
from veillink.daemon.membership import Membership
from veillink.daemon.supervisor import ServiceNotifier
from veillink.model import RuleSet, StartupError
from veillink.server.fd_budget import FdBudget
from veillink.server.server import Server


class Reloader:
    """Brings a server to what was read.

    Args:
        server: whose rules change.
        fd_budget: what its process may have.
        status: counts what became of each reload.
        member: lets the fleet know.
        notifier: lets the service manager know.
        announcements: lets the operator know.
    """

    def __init__(
        self,
        server: Server,
        fd_budget: FdBudget,
        status: ProcessStatus,
        member: Membership,
        notifier: ServiceNotifier,
        announcements: Announcements,
    ) -> None:
        self._server = server
        self._fd_budget = fd_budget
        self._status = status
        self._member = member
        self._notifier = notifier
        self._announcements = announcements

    def reload(self, found: Parsed, retry_later: Callable[[], None]) -> None:
        """Apply what was read, and say that it was done or why not.

        Args:
            found: what was read.
            retry_later: called when it could not be applied, and not for what is in it.
        """
        self._notifier.reloading()
        try:
            refused = self._apply(found)
        except Exception as error:  # what runs goes on
            self._announcements.log_unforeseen()
            refused = self._refuse(f"{type(error).__name__}: {error}")
            retry_later()
        self._notifier.ready(summary(self._server) + (f"; the last reload was refused: {refused}" if refused else ""))

    def _apply(self, found: Parsed) -> str:
        """Apply it, or return why not."""
        self._announcements.log_remarks(found)
        if found.problems:
            return self._refuse(f"{self._announcements.shown_config} has problems", found.problems)
        try:
            check_descriptors(self._fd_budget, found.rules)
        except StartupError as why:
            return self._refuse(str(why))
        self._announcements.log_certificates(found.rules, self._server.rules)
        changes = self._server.apply(found.rules)
        self._status.count_reload("applied", ())
        self._member.publish()
        self._announcements.log_reloaded(changes, len(self._server.listeners))
        return ""

    def _refuse(self, why: str, problems: tuple[Problem, ...] = ()) -> str:
        self._announcements.log_refused(why)
        self._status.count_reload("refused", problems or (Problem(0, 0, why),))
        self._member.publish()
        return why


def check_descriptors(fd_budget: FdBudget, rules: RuleSet) -> None:
    """See that these rules can be run at all.

    Raises:
        StartupError: not with so few descriptors.
    """
    listeners = sum(rule.ports for rule in rules.rules)
    if fd_budget.connections(listeners) <= 0:
        limit, needed = fd_budget.limit, fd_budget.needed(listeners)
        raise StartupError(f"{needed} file descriptors are needed at least, not {limit}; raise the limit (ulimit -n)")
