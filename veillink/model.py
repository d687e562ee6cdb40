"""The nouns: frozen values that every other module speaks of, with every default in one place."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from veillink.credentials import Certificate, ClientTls, ServerTls, TargetTls
from veillink.limits import ByteRate, Networks, Rate


class End(StrEnum):
    """Why a connection ended: the word in the access log, the label in metrics, the assertion in tests."""

    CLOSED = "closed"
    CLIENT_RESET = "client_reset"
    TARGET_RESET = "target_reset"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_FAILED = "connect_failed"
    NAME_NOT_FOUND = "name_not_found"
    NO_TARGET = "no_target"
    CLIENT_LEFT = "client_left"
    BAD_PROXY_HEADER = "bad_proxy_header"
    DENIED = "denied"
    OVER_LIMIT = "over_limit"
    BAD_TLS = "bad_tls"
    NO_ROUTE = "no_route"
    TARGET_TLS = "target_tls"
    CLIENT_TRUNCATED = "client_truncated"
    TARGET_TRUNCATED = "target_truncated"
    LOOP = "loop"
    IDLE_TIMEOUT = "idle_timeout"
    HALF_CLOSE_TIMEOUT = "half_close_timeout"
    MAX_LIFETIME = "max_lifetime"
    DRAINED = "drained"
    INTERNAL = "internal"


CONNECT_FAILURES: Final = frozenset(
    {End.CONNECT_REFUSED, End.CONNECT_TIMEOUT, End.CONNECT_FAILED, End.NAME_NOT_FOUND, End.NO_TARGET, End.TARGET_TLS}
)
"""The endings that say that a target could not be reached."""

REFUSALS: Final = (End.BAD_PROXY_HEADER, End.DENIED, End.OVER_LIMIT, End.BAD_TLS, End.NO_ROUTE)
"""The endings that say that a client was not let in."""


class Ended(Exception):  # noqa: N818 - an ending is not an error
    """A connection has come to a foreseen end.

    Args:
        end: why.
        detail: the operating system's word for it (``ECONNRESET``), or nothing.
    """

    def __init__(self, end: End, detail: str = "") -> None:
        super().__init__(end, detail)
        self.end = end
        self.detail = detail


class StartupError(Exception):
    """VeilLink cannot start; the message says why, and what to do."""


_UNIX: Final = "unix:"
_NO_NETWORKS: Final = Networks()
_NO_RATE: Final = Rate()
_NO_BYTE_RATE: Final = ByteRate()


class Address(NamedTuple):
    """A place to listen on or to connect to (a tuple: a frozen dataclass costs each connection 2 µs more).

    Args:
        host: an IPv4 or IPv6 literal without brackets, a host name, nothing for every address, or ``unix:`` and the
            path of a UNIX socket (nothing for a client that has no path).
        port: 1 to 65535; 0 asks the kernel for a free one, and is that of UNIX sockets.
    """

    host: str
    port: int

    def __str__(self) -> str:
        if self.is_unix:
            return self.host
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"{self.host or '*'}:{self.port}"

    @property
    def is_unix(self) -> bool:
        """Whether it is a UNIX socket."""
        return self.host.startswith(_UNIX)

    @property
    def path(self) -> str:
        """The path of a UNIX socket."""
        return self.host.removeprefix(_UNIX)

    @property
    def is_name(self) -> bool:
        """Whether the host has to be resolved (a name's last label is never all digits: rules sees to it)."""
        return ":" not in self.host and not self.host.rpartition(".")[2].isdigit()


class Balance(StrEnum):
    """How a rule's targets share the new connections."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    RANDOM = "random"
    SOURCE = "source"


class Health(StrEnum):
    """How targets are probed."""

    OFF = "off"
    TCP = "tcp"
    TLS = "tls"


class SendProxy(StrEnum):
    """Which PROXY header a target is sent."""

    OFF = "off"
    V1 = "v1"
    V2 = "v2"


class OnDown(StrEnum):
    """What becomes of the connections of a target that does not answer its probes."""

    KEEP = "keep"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """What rows and the command line may set for a rule. Times are seconds; 0 is off.

    Args:
        connect_timeout: from accept to a connected target, with the name look-up and every try.
        idle_timeout: no byte moved in either direction.
        half_close_timeout: one side has finished, and no byte moved in the other direction.
        max_lifetime: from accept to the end, whatever moves.
        keepalive: silence after which TCP asks a peer whether it is still there.
        dns_refresh: the age at which the addresses of a host name are looked up again.
        max_connections: the most at a time; 0 is no limit of the rule's own.
        socket_mode: the permissions of the listener's UNIX socket.
        balance: who gets the next connection.
        retries: how many further targets a client may try.
        retry_interval: after which a client tries again when none of them could be connected.
        max_fails: failed connects within ``fail_timeout`` that take a target out for as long; 0 never does.
        fail_timeout: see there.
        health: how targets are probed.
        health_interval: between two probes of a target.
        health_timeout: for one probe.
        health_rise: successful probes in a row that bring a target back.
        health_fall: failed probes in a row that take one out.
        on_down: what becomes of its connections then.
        accept_proxy: who has to send a PROXY header before anything else.
        proxy_timeout: from accept to the whole header.
        allow: who may come in; everybody where it is off.
        deny: who may not, whatever ``allow`` says.
        max_connections_per_client: the most at a time; 0 is no limit.
        connection_rate: at which clients are accepted; others wait.
        connection_rate_per_client: at which one client is served; one more is reset.
        upload_rate: at which bytes of clients go to the targets.
        download_rate: at which bytes of the targets go to clients.
        tls: the files of the certificates that it shows; without any it speaks no TLS with clients.
        tls_key: the files of their keys, where these are in files of their own.
        tls_client_ca: the file of those who have to have signed a client's certificate, or nothing.
        tls_client_names: patterns of the names that such a certificate has to hold one of.
        tls_min: the lowest version of TLS.
        alpn: the protocols that it speaks inside TLS, the best one first; ``pass`` alone: those of the target.
        tls_timeout: for all that comes before a client's first byte inside TLS.
    """

    connect_timeout: float = 5.0
    idle_timeout: float = 0.0
    half_close_timeout: float = 300.0
    max_lifetime: float = 0.0
    keepalive: float = 60.0
    dns_refresh: float = 30.0
    max_connections: int = 0
    socket_mode: int = 0o660
    balance: Balance = Balance.ROUND_ROBIN
    retries: int = 1000
    retry_interval: float = 0.0
    max_fails: int = 3
    fail_timeout: float = 10.0
    health: Health = Health.OFF
    health_interval: float = 2.0
    health_timeout: float = 1.0
    health_rise: int = 2
    health_fall: int = 3
    on_down: OnDown = OnDown.KEEP
    accept_proxy: Networks = _NO_NETWORKS
    proxy_timeout: float = 5.0
    allow: Networks = _NO_NETWORKS
    deny: Networks = _NO_NETWORKS
    max_connections_per_client: int = 0
    connection_rate: Rate = _NO_RATE
    connection_rate_per_client: Rate = _NO_RATE
    upload_rate: ByteRate = _NO_BYTE_RATE
    download_rate: ByteRate = _NO_BYTE_RATE
    tls: tuple[str, ...] = ()
    tls_key: tuple[str, ...] = ()
    tls_client_ca: str = ""
    tls_client_names: tuple[str, ...] = ()
    tls_min: str = "1.2"
    alpn: tuple[str, ...] = ()
    tls_timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where a rule forwards to.

    Args:
        address: of the first port, where the rule listens on a range.
        weight: its share of the new connections; 0 takes none.
        backup: used only when no other target can be.
        fixed: every listener of a range leads to this one address, not each to a port of its own.
        send_proxy: the version of the PROXY header that it is sent before anything else.
        sni: patterns of the names whose clients it is for; without any it is for all others.
        target_tls: whether it is spoken to in TLS, and has to prove who it is.
        target_ca: the file of those who may have signed for that, or of its certificate; nothing: the system's.
        target_name: that it is asked for and has to prove; nothing: its host.
        target_cert: the file of our own certificate for it, or nothing.
        target_key: the file of that one's key, where this is in a file of its own.
        tls: all of that, made from the files.
    """

    address: Address
    weight: int = 1
    backup: bool = False
    fixed: bool = False
    send_proxy: SendProxy = SendProxy.OFF
    sni: tuple[str, ...] = ()
    target_tls: TargetTls = TargetTls.OFF
    target_ca: str = ""
    target_name: str = ""
    target_cert: str = ""
    target_key: str = ""
    tls: ClientTls | None = None

    def at(self, offset: int) -> Address:
        """Return the address for the listener ``offset`` ports into the range."""
        return self.address if self.fixed else Address(self.address.host, self.address.port + offset)


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``listen`` cell and all the rows that share it.

    Args:
        name: its label in logs: the option ``name``, or the ``listen`` cell as written.
        listen: the first address it listens on.
        ports: how many ports it listens on, counted from there.
        targets: at least one, in the order of their rows.
        options: what applies to each of its connections.
        tls: how it speaks TLS with clients, made from the files that the options name.
        origin: where its first row stands, as ``config.csv:12``. Two rules that differ only here are equal.
    """

    name: str
    listen: Address
    ports: int
    targets: tuple[Target, ...]
    options: RuleOptions = RuleOptions()
    tls: ServerTls | None = None
    origin: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[Address, int]:
        """What makes two rules forms of one: where they listen."""
        return self.listen, self.ports

    @property
    def certificates(self) -> Iterator[Certificate]:
        """The certificates that it shows to clients and to targets."""
        if self.tls is not None:
            yield from self.tls.certificates
        for target in self.targets:
            if target.tls is not None and target.tls.certificate is not None:
                yield target.tls.certificate

    @property
    def shown_listen(self) -> str:
        """Where it listens, as ``*:8000-8010``."""
        return f"{self.listen}" + (f"-{self.listen.port + self.ports - 1}" if self.ports > 1 else "")

    def listens_at(self, address: Address) -> bool:
        """Return whether it listens on an address."""
        return address.host == self.listen.host and 0 <= address.port - self.listen.port < self.ports

    def listens(self) -> Iterator[tuple[Address, int]]:
        """Yield every address the rule listens on, with its offset in the range."""
        for offset in range(self.ports):
            yield Address(self.listen.host, self.listen.port + offset), offset


@dataclass(frozen=True, slots=True)
class Diff:
    """How one set of rules differs from an older one; rules are the same by their ``key``.

    Args:
        added: rules that are only in the new set.
        removed: rules that are only in the old set.
        changed: the new form of rules that are in both and differ.
        same: the new form of rules that are in both and do not differ.
    """

    added: tuple[Rule, ...]
    removed: tuple[Rule, ...]
    changed: tuple[Rule, ...]
    same: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Everything one configuration file asks for.

    Args:
        rules: their listen addresses do not overlap.
        files: the names of the files that they name, also of rules that are left out because of them.
    """

    rules: tuple[Rule, ...] = ()
    files: tuple[str, ...] = field(default=(), compare=False)

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """The certificates of all of them, each once."""
        return tuple(dict.fromkeys(each for rule in self.rules for each in rule.certificates))

    def diff(self, new: "RuleSet", paced: Callable[[Iterable[Rule]], Iterable[Rule]] = iter) -> Diff:
        """Return how a newer set differs, each part in its own set's order.

        Args:
            new: the newer one.
            paced: goes over thousands of rules and lets others work in between.
        """
        removed = {rule.key: rule for rule in paced(self.rules)}
        added: list[Rule] = []
        changed: list[Rule] = []
        same: list[Rule] = []
        for rule in paced(new.rules):
            was = removed.pop(rule.key, None)
            (added if was is None else same if was == rule else changed).append(rule)
        return Diff(tuple(added), tuple(removed.values()), tuple(changed), tuple(same))
