"""The nouns of what the command line asks for."""

from dataclasses import dataclass

from veillink.model import Address, RuleOptions


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """Where the state is shown over HTTP.

    Args:
        shown: as it was asked for.
        addresses: all that this is: numeric ones, or one UNIX socket.
        names: the host names it may be called by without a token.
        token: what has to be shown, or nothing.
    """

    shown: str
    addresses: tuple[Address, ...]
    names: frozenset[str]
    token: str

    @property
    def is_unix(self) -> bool:
        """Whether it is a UNIX socket."""
        return self.addresses[0].is_unix


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for; the fields are its options.

    Args:
        warnings: what else is to be said of how they were given.
    """

    config: str
    strict: bool
    watch: bool
    drain_timeout: float
    max_connections: int
    relay: str
    workers: int
    worker_timeout: float
    pidfile: str
    log_format: str
    log_level: str
    access_log: bool
    admin: AdminSettings | None
    defaults: RuleOptions
    warnings: tuple[str, ...] = ()
