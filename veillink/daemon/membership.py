"""A process's part in its fleet, as far as the process knows of it; here that of one that has none.

Rule: a process that is alone leads, and publishes nothing.
"""

import socket
from collections.abc import Callable
from typing import Protocol

from veillink.admin.status import ProcessStatus, Shown
from veillink.model import Address, RuleOptions
from veillink.net.listening import listen
from veillink.server.server import Server


class Membership(Protocol):
    """A process's part in its fleet."""

    @property
    def number(self) -> int:
        """Its number among several that listen at the same addresses; 0: it is alone."""

    @property
    def leads(self) -> bool:
        """Whether this process does what only one may do."""

    @property
    def others_go_on(self) -> bool:
        """Whether there are others, that do not stop now."""

    def listen(self, address: Address, options: RuleOptions, *, ahead: bool = False) -> socket.socket:
        """Return a listening socket; see ``net.listening.listen``.

        Raises:
            OSError: the address cannot be had.
        """

    def join(self, server: Server, own: ProcessStatus, on_leading: Callable[[], None]) -> Shown:
        """Take part from now on, and return what is to be shown to whoever asks.

        Args:
            server: learns among how many it is, and whether it leads from the start.
            own: the state of the process.
            on_leading: called again and again while this process leads others.
        """

    def publish(self) -> None:
        """Let the others know how far this process is."""

    def resign(self) -> None:
        """Let another one lead."""


class Alone:
    """The membership of a process that is alone."""

    number = 0
    leads = True
    others_go_on = False
    listen = staticmethod(listen)

    def join(self, server: Server, own: ProcessStatus, on_leading: Callable[[], None]) -> ProcessStatus:
        """Show the one that there is."""
        return own

    def publish(self) -> None:
        """Do nothing: nobody looks."""

    def resign(self) -> None:
        """Go on leading: nobody else can."""
