"""Where rules come from: the seam that a process and its fleet know.

Rule: whatever is found there, the answer is rules and problems; nothing is raised.
"""

from collections.abc import Callable
from typing import Protocol

from veillink.config.file_source import FileSource
from veillink.config.rules import Parsed
from veillink.model import RuleOptions


class Source(Protocol):
    """Where rules come from."""

    def load(self) -> Parsed:
        """Read the rules, and wait for them. No loop is needed: a master has none."""

    def follow(self, on_read: Callable[[Parsed], None], log: Callable[..., None], *, watch: bool) -> None:
        """Begin to read the rules in the background: now, and again whenever it has to be.

        Args:
            on_read: gets what was read, each time.
            log: gets level, message and fields of what is to be said meanwhile.
            watch: whether to look for changes; without that they are read when it is asked for.
        """

    def refresh_soon(self) -> None:
        """Read them once more, changed or not."""

    def retry_later(self) -> None:
        """Read them once more in a while: they could not be applied, and not for what is in them."""

    def close(self) -> None:
        """End that."""


def open_source(config: str, defaults: RuleOptions) -> Source:
    """Return where the rules are that ``--config`` names.

    Args:
        config: path of a file.
        defaults: for what the rules leave open.
    """
    return FileSource(config, defaults)
