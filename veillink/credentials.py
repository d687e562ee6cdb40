"""The nouns of TLS: what rules show and ask for, and what certificates say of themselves.

Rule: two values are equal if they were made of the same settings and of files with the same bytes; nothing of a key is
in what they show.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

# Seconds before its end from when on a certificate is spoken of; those of Let's Encrypt are renewed 30 days before.
_SOON: Final = 14 * 86_400.0
PASS: Final = ("pass",)
"""The ``alpn`` of a rule whose target decides on the protocol."""


class TargetTls(StrEnum):
    """Whether a target is spoken to in TLS."""

    OFF = "off"
    VERIFY = "verify"
    INSECURE = "insecure"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says of itself.

    Args:
        file: where it is.
        names: the names and addresses that it is for.
        issuer: who has signed it.
        not_before: Unix seconds; 0 where it could not be read.
        not_after: the same.
        doubts: why some peers will refuse it, or somebody could steal its key.
    """

    file: str
    names: tuple[str, ...] = ()
    issuer: str = ""
    not_before: float = 0.0
    not_after: float = 0.0
    doubts: tuple[str, ...] = ()

    @property
    def until(self) -> str:
        """The day that it ends, in UTC, or nothing where that could not be read."""
        return _day(self.not_after) if self.not_after else ""

    def warnings(self, now: float) -> tuple[str, ...]:
        """Return why some peers refuse it, or somebody could steal its key.

        Args:
            now: Unix seconds.
        """
        if self.not_after and self.not_after < now:
            return (f"expired on {self.until}", *self.doubts)
        if self.not_before > now:
            return (f"not valid before {_day(self.not_before)}", *self.doubts)
        return self.doubts


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def ending(not_after: float, now: float) -> str:
    """Return what is to be said of when a certificate ends, or nothing.

    Args:
        not_after: when, in Unix seconds; 0 where nobody knows.
        now: the same.
    """
    if not not_after or not_after > now + _SOON:
        return ""
    return "ends soon" if not_after > now else "has expired"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a rule speaks TLS with its clients.

    Args:
        digest: of the settings and the files.
        certificates: one or more; clients that name none of theirs get the first.
        client_names: patterns of the names that a client's certificate has to hold one of; none: any.
        contexts: an ``ssl.SSLContext`` for each certificate.
    """

    digest: bytes
    certificates: tuple[Certificate, ...]
    client_names: tuple[str, ...] = ()
    contexts: tuple[Any, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a rule speaks TLS with a target.

    Args:
        digest: of the settings and the files.
        name: that it is asked for, and has to prove where that is verified: its host, if the row says no other;
            nothing: it is asked for none.
        certificate: our own, if it has one.
        context: an ``ssl.SSLContext``.
    """

    digest: bytes
    name: str = ""
    certificate: Certificate | None = None
    context: Any = field(default=None, compare=False, repr=False)
