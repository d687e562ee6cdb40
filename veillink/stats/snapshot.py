"""What is shown of a process, as JSON and marshal have it: the names of everything under ``/api``.

Rule: plain values, so that it can be handed from process to process and to whoever asks.
"""

from typing import NotRequired, TypedDict


class Times(TypedDict):
    """A histogram as Prometheus has it.

    ``le``: the bounds in seconds. ``counts``: how many were up to each of them, and of all. ``sum``: in seconds.
    """

    le: list[float]
    counts: list[int]
    sum: float


class Account(TypedDict):
    """What the connections of a rule add up to, live ones in all but ``ends`` and times."""

    active: int
    total: int
    bytes_in: int
    bytes_out: int
    ends: dict[str, int]
    connect_seconds: Times
    duration_seconds: Times
    handshakes: dict[str, int]
    handshake_seconds: Times


class TargetState(TypedDict):
    """A target of a rule; ``send_proxy`` and ``sni`` as the rules' file has them."""

    target: str
    sni: str
    send_proxy: str
    up: bool
    active: int


class CertificateState(TypedDict):
    """A certificate that a rule shows to clients or targets; ``not_after`` in Unix seconds, 0 where nobody knows."""

    file: str
    names: list[str]
    issuer: str
    not_after: float
    doubts: list[str]


class RuleState(Account):
    """A rule with its account; what a worker leaves has nothing but that and the name.

    ``options``: those that ask something of clients, as the rules' file has them.
    """

    name: str
    listen: str
    options: dict[str, str]
    certificates: list[CertificateState]
    listener_up: bool
    targets: list[TargetState]


class Totals(TypedDict):
    """Of all rules."""

    active: int
    connections: int
    bytes_in: int
    bytes_out: int


class Limits(TypedDict):
    """The most at a time."""

    connections: float
    descriptors: int


class Reload(TypedDict):
    """What became of the rules' file when it was last read.

    ``time``: in ISO 8601. ``result``: ``applied`` or ``refused``.
    """

    time: str | None
    result: str | None
    problems: list[str]


class WorkerState(TypedDict):
    """A worker; ``age`` is that of its state, in seconds."""

    worker: int
    pid: int
    phase: str
    active: int
    age: float


class Status(TypedDict):
    """A process, or all of a fleet as if they were one (then with ``workers``).

    ``process``: what the system counts of it, by the names of the metrics.
    """

    version: str
    phase: str
    uptime: float
    process: dict[str, float]
    rates: dict[str, float]
    limits: Limits
    totals: Totals
    last_reload: Reload
    reloads: dict[str, int]
    log_lines_dropped: int
    loop_lag_seconds: float
    rules: list[RuleState]
    workers: NotRequired[list[WorkerState]]


class WorkerSnapshot(Status):
    """The state of a worker, and who it is.

    ``published``: when, in monotonic seconds.
    """

    worker: int
    pid: int
    published: float


class Remains(TypedDict):
    """What workers that have ended leave: counters never go down."""

    process: dict[str, float]
    totals: Totals
    reloads: dict[str, int]
    log_lines_dropped: int
    rules: list[RuleState]


class ConnectionState(TypedDict):
    """A live connection; ``age`` in seconds, ``via`` the peer where it names another one as the client.

    ``tls`` (the version), ``sni``, ``alpn`` and ``client_cert``: what its client has said and shown in TLS, if it has.
    """

    id: int
    rule: str
    client: str
    via: NotRequired[str]
    target: str | None
    age: float
    bytes_in: int
    bytes_out: int
    tls: NotRequired[str]
    sni: NotRequired[str]
    alpn: NotRequired[str]
    client_cert: NotRequired[str]
