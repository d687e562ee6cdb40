"""Everything that is shown of a process, as plain values that JSON has.

Rule: showing changes nothing, and costs the loop no more than a pass over the live connections.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol, cast

import gevent
from gevent.hub import get_hub

from veillink import __version__
from veillink.config.rows import Problem
from veillink.log import Log
from veillink.model import Address
from veillink.proxy.limiter import ConnectionLimiter
from veillink.stats.ledger import Ledger
from veillink.stats.snapshot import ConnectionState, Reload, RuleState, Status

_SAMPLE: Final = 0.5  # seconds from one look at the loop's lag and the counters to the next
_SAMPLES: Final = 20  # rates and lag are those of the last ten seconds


class Shown(Protocol):
    """What is shown to whoever asks."""

    def status(self) -> Status:
        """Return what ``/api/status`` shows."""

    def connections(self) -> Iterable[ConnectionState]:
        """Return what ``/api/connections`` lists."""

    def not_ready_reason(self) -> str:
        """Return why no more clients should be sent here, or nothing."""


class Forwarding(Protocol):
    """A server, as far as it is shown."""

    @property
    def ledger(self) -> Ledger:
        """The account of its connections."""

    @property
    def limiter(self) -> ConnectionLimiter:
        """How many it may hold."""

    @property
    def down(self) -> Mapping[Address, str]:
        """Where it cannot listen, and why."""

    def rules_down(self) -> list[str]:
        """Return the names of the rules that do not have all their ports."""

    def status(self) -> list[RuleState]:
        """Return the state of each rule."""


class ProcessStatus:
    """What runs, what it has done, and what became of the rules' file.

    Args:
        source: name of the rules' file.
        server: whose rules are shown.
        descriptors: how many the process may have.
        log: whose lost lines are counted.
    """

    def __init__(self, source: str, server: Forwarding, descriptors: int, log: Log) -> None:
        self.phase = "starting"
        """``starting``, ``running`` or ``draining``."""
        self._source = source
        self._server = server
        self._log = log
        self._descriptors = descriptors
        self._began = time.monotonic()
        self._last_reload: Reload = {"time": None, "result": None, "problems": []}
        self._reloads: Counter[str] = Counter(applied=0, refused=0)
        self._lags: deque[float] = deque(maxlen=_SAMPLES)
        self._moved: deque[tuple[float, int, int, int]] = deque(maxlen=_SAMPLES)

    def measure(self) -> None:
        """Begin to look at rates and lag: a pass over the live connections twice a second, so only where shown."""
        gevent.spawn(self._sample_forever)

    def count_reload(self, result: str, problems: tuple[Problem, ...]) -> None:
        """Note that the rules' file was read: ``applied`` or ``refused``, and what was wrong with it."""
        self._reloads[result] += 1
        self._last_reload = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "result": result,
            "problems": [problem.at(self._source) for problem in problems],
        }

    @property
    def reads(self) -> int:
        """How often the rules' file was read."""
        return self._reloads.total()

    def not_ready_reason(self) -> str:
        """Return why no more clients should be sent here, or nothing."""
        return not_ready_reason(self.phase, self._server.rules_down())

    def status(self) -> Status:
        """Return the state of the process and of every rule."""
        process: dict[str, float] = get_hub().threadpool.apply(_process)  # 20,000 descriptors take 10 ms to count
        return self._state(process)

    def _state(self, process: dict[str, float]) -> Status:
        bytes_in, bytes_out = self._server.ledger.moved()
        return {
            "version": __version__,
            "phase": self.phase,
            "uptime": round(time.monotonic() - self._began, 1),
            "process": process,
            "rates": self._rates(),
            "limits": {"connections": self._server.limiter.limit, "descriptors": self._descriptors},
            "totals": {
                "active": self._server.limiter.in_use,
                "connections": self._server.ledger.opened,
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
            },
            "last_reload": self._last_reload,
            "reloads": dict(self._reloads),
            "log_lines_dropped": self._log.dropped,
            "loop_lag_seconds": round(max(self._lags, default=0.0), 4),
            "rules": self._server.status(),
        }

    def connections(self) -> Iterator[ConnectionState]:
        """Yield every live connection, oldest first."""
        now = time.monotonic()
        for connection in tuple(self._server.ledger.live.values()):
            state: ConnectionState = {
                "id": connection.number,
                "rule": connection.rule,
                "client": str(connection.client),
                "target": str(connection.member.address) if connection.member else None,
                "age": round(now - connection.opened, 1),
                "bytes_in": connection.inbound.bytes,
                "bytes_out": connection.outbound.bytes,
            }
            if connection.proxied:
                state["via"] = str(connection.proxied.via)
            if connection.tls:
                state |= cast(ConnectionState, connection.tls.summary())
            yield state

    def dump(self) -> None:
        """Log what runs: each rule with its account, each target, each listener that is down, each connection."""
        log, status = self._log, self._state({})
        log.info(
            "state",
            connections=status["totals"]["active"],
            max_connections=status["limits"]["connections"],
            log_lines_dropped=status["log_lines_dropped"],
            config_problems=len(status["last_reload"]["problems"]),
        )
        for rule in log.paced(status["rules"]):
            log.info(
                "state of rule",
                rule=rule["name"],
                active=rule["active"],
                total=rule["total"],
                bytes_in=rule["bytes_in"],
                bytes_out=rule["bytes_out"],
                ends=",".join(f"{end}:{count}" for end, count in rule["ends"].items()),
            )
            for target in rule["targets"]:
                state = "up" if target["up"] else "down"
                of_target = {"target": target["target"], "state": state, "connections": target["active"]}
                log.info("state of target", rule=rule["name"], **of_target)
        for address, reason in self._server.down.items():
            log.info("state of listener", listen=address, down=reason)
        for connection in log.paced(tuple(self.connections())):
            log.info("state of connection", **connection)

    def _sample_forever(self) -> None:
        while True:
            due = time.monotonic() + _SAMPLE
            gevent.sleep(_SAMPLE)
            self._lags.append(max(0.0, time.monotonic() - due))
            self._moved.append((time.monotonic(), self._server.ledger.opened, *self._server.ledger.moved()))

    def _rates(self) -> dict[str, float]:
        names = ("connections_per_second", "bytes_in_per_second", "bytes_out_per_second")
        if len(self._moved) < 2:
            return dict.fromkeys(names, 0.0)
        (began, *first), (ended, *last) = self._moved[0], self._moved[-1]
        return {name: round((b - a) / (ended - began), 1) for name, a, b in zip(names, first, last, strict=True)}


def not_ready_reason(phase: str, down: Sequence[str]) -> str:
    """Return why no more clients should be sent to a process in this phase, with these rules down, or nothing."""
    if phase != "running":
        return phase
    return f"not listening: {', '.join(down)}" if down else ""


def _process() -> dict[str, float]:
    from veillink.admin.exposition import system_counts  # 6 MiB that forwarding does not need

    return system_counts()
