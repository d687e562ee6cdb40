"""Open the admin endpoint, where it is asked for.

Rule: of workers that cannot share an address the one that leads has it.
"""

import socket
from collections.abc import Sequence
from typing import Protocol

from veillink.admin.status import Shown
from veillink.daemon.membership import Membership
from veillink.log import Log
from veillink.model import StartupError
from veillink.net.sockets import error_name
from veillink.settings import AdminSettings


class _Closable(Protocol):
    def close(self) -> None: ...


class AdminEndpoint:
    """The admin endpoint of one process.

    Args:
        asked: where it is to be, if anywhere.
        most: connections at a time.
        member: of which fleet the process is.
        log: gets faults of our own.
    """

    def __init__(self, asked: AdminSettings | None, most: int, member: Membership, log: Log) -> None:
        self._asked = asked
        self._most = most
        self._member = member
        self._log = log
        self._open: _Closable | None = None

    def is_missing(self) -> bool:
        """Return whether it is asked for, and not open."""
        return self._asked is not None and self._open is None

    def open(self, shown: Shown) -> bool:
        """Begin to show the state, if it is asked for and not shown yet; return whether that has begun now.

        Raises:
            StartupError: it cannot be shown there.
        """
        asked = self._asked
        if asked is None or self._open is not None or (asked.is_unix and not self._member.leads):
            return False
        from veillink.admin.http import listen_at_all  # 6 MiB that forwarding does not need

        try:
            socks = listen_at_all(asked.addresses, self._member.listen)
        except OSError as error:
            if asked.is_unix and self._member.number:
                return False  # the program before this one has not let go yet: it is tried again
            raise StartupError(
                f"cannot show the state at {asked.shown}: {error.strerror} ({error_name(error)})"
            ) from None
        self._open = self._show(asked, socks, shown)
        return True

    def _show(self, asked: AdminSettings, socks: Sequence[socket.socket], shown: Shown) -> _Closable:
        from veillink.admin.http import Slots
        from veillink.admin.pages import Admin

        return Admin(socks, asked.names, asked.token, Slots(self._most), shown, self._log)

    def close(self) -> None:
        """Show it no more."""
        if self._open is not None:
            self._open.close()
