"""Open the window on what runs, where it is asked for.

Rule: of workers that cannot share a place the one that leads has it.
"""

import socket
from collections.abc import Callable
from typing import Any, Protocol

from .log import Log
from .member import Membership
from .model import Address, RuleOptions, Window
from .net import error_name


class _Closable(Protocol):
    def close(self) -> None: ...


class AdminWindow:
    """The window of one process.

    Args:
        asked: where it is to be, if anywhere.
        most: connections at a time.
        member: of which fleet the process is, and what is shown.
        open_at: opens a listening socket.
        log: told of faults of our own.
    """

    def __init__(
        self,
        asked: Window | None,
        most: int,
        member: Membership,
        open_at: Callable[[Address, RuleOptions], socket.socket],
        log: Log,
    ) -> None:
        self._asked = asked
        self._most = most
        self._member = member
        self._open_at = open_at
        self._log = log
        self._admin: _Closable | None = None

    def is_missing(self) -> bool:
        """Return whether it is asked for, and not open."""
        return self._asked is not None and self._admin is None

    def open(self) -> str:
        """Begin to show the state, unless it is shown; return why not, if it cannot be done."""
        asked = self._asked
        if asked is None or self._admin is not None or (asked.is_unix and not self._member.leads):
            return ""
        from .webserver import listen_at_all  # 6 MiB that forwarding does not need

        try:
            socks = listen_at_all(asked.addresses, self._open_at)
        except OSError as error:
            if asked.is_unix and not self._member.is_alone:
                return ""  # the program before this one has not let go yet: it is tried again
            return f"cannot show the state at {asked.shown}: {error.strerror} ({error_name(error)})"
        self._admin = self._show(asked, socks)
        self._member.say("info", "showing the state", admin=asked.shown)
        return ""

    def _show(self, asked: Window, socks: list[Any]) -> _Closable:
        from .admin import Admin, Sources

        shown = self._member.shown
        sources = Sources(shown.status, shown.connections, shown.obstacle)
        return Admin(socks, asked.names, asked.token, self._most, sources, self._log)

    def close(self) -> None:
        """Show it no more."""
        if self._admin is not None:
            self._admin.close()
