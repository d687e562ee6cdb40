"""The targets of a rule, how to reach them, and what their connections say of them.

Rule: what this host lacks says nothing about a target.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from veillink.model import RuleOptions
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.unix_queue import UnixQueues
from veillink.proxy.pool import Member, Pool

# What this host lacks says nothing about the target.
_OURS: Final = frozenset({"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL", "EADDRINUSE"})


@dataclass(frozen=True, slots=True)
class Upstream:
    """The targets of a rule, and how to reach them.

    Args:
        pool: the targets.
        resolver: where their host names are resolved.
        unix_queues: of UNIX targets that are full.
        attempts: the descriptors for trying addresses and targets side by side.
        on_state_change: called when a target went out (with the reason) or came back (with nothing).
        on_down: called when a target's probes have taken it out.
        retry_interval: seconds after which to try again when no target could be connected; 0 never does.
    """

    pool: Pool
    resolver: Resolver
    unix_queues: UnixQueues
    attempts: Places
    on_state_change: Callable[[Member, str], None]
    on_down: Callable[[Member], None]
    retry_interval: float = 0.0

    def count_failure(self, member: Member, reason: str) -> None:
        """Count a failed connect, or one that was worth nothing."""
        if reason not in _OURS and self.pool.count_failure(member, time.monotonic()):
            self.on_state_change(member, reason)

    def count_success(self, member: Member) -> None:
        """Count a connection that has proved that its target serves."""
        if member.count_success():
            self.on_state_change(member, "")

    def count_probe(self, member: Member, failure: str, options: RuleOptions) -> None:
        """Count a probe, by what has failed, or nothing."""
        if failure in _OURS:
            return
        was_down = member.down
        if member.count_probe(good=not failure, rise=options.health_rise, fall=options.health_fall):
            self.on_state_change(member, failure)
        if member.down and not was_down:
            self.on_down(member)
