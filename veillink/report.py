"""Everything that is shown of a process, as plain values that JSON has.

Rule: showing changes nothing, and costs the loop no more than a pass over the live connections.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

import gevent
from gevent.hub import get_hub
from gevent.lock import BoundedSemaphore

from . import __version__
from .ledger import Ledger
from .limits import ConnectionLimiter, FdBudget
from .log import Log
from .model import Address
from .rows import Problem
from .scoreboard import Seat

_SAMPLE: Final = 0.5  # seconds from one look at the loop's lag and the counters to the next
_SAMPLES: Final = 20  # rates and lag are those of the last ten seconds


# Seconds from one publication to the next: 3,000 rules take 15 ms.
_PUBLISH: Final = 0.5
# How long to wait for other workers to tell their connections, and how old these may be, in seconds.
_TELLING: Final = 1.5
_FRESH: Final = 1.0

_T = TypeVar("_T")


class Shown(Protocol):
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

    def status(self) -> list[dict[str, Any]]:
        """Return the state of each rule."""


class Report:
    """What runs, what it has done, and what became of the rules' file.

    Args:
        source: name of the rules' file.
        server: whose rules are shown.
        fd_budget: of the process.
        log: whose lost lines are counted.
    """

    def __init__(self, source: str, server: Shown, fd_budget: FdBudget, log: Log) -> None:
        self.phase = "starting"
        """``starting``, ``running`` or ``draining``."""
        self._source = source
        self._server = server
        self._log = log
        self._fd_budget = fd_budget
        self._began = time.monotonic()
        self._last_reload: dict[str, Any] = {"time": None, "result": None, "problems": []}
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

    def obstacle(self) -> str:
        """Return why no more clients should be sent here, or nothing."""
        return _obstacle(self.phase, self._server.rules_down())

    def status(self) -> dict[str, Any]:
        """Return the state of the process and of every rule."""
        process = get_hub().threadpool.apply(_process)  # 20,000 descriptors take 10 ms to count
        return self._state() | {"process": process}

    def _state(self) -> dict[str, Any]:
        bytes_in, bytes_out = self._server.ledger.moved()
        return {
            "version": __version__,
            "phase": self.phase,
            "uptime": round(time.monotonic() - self._began, 1),
            "rates": self._rates(),
            "limits": {"connections": self._server.limiter.limit, "descriptors": self._fd_budget.limit},
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

    def connections(self) -> Iterator[dict[str, Any]]:
        """Yield every live connection, oldest first."""
        now = time.monotonic()
        for entry in tuple(self._server.ledger.live.values()):
            yield {
                "id": entry.number,
                "rule": entry.rule,
                "client": str(entry.client),
                "target": str(entry.member.address) if entry.member else None,
                "age": round(now - entry.opened, 1),
                "bytes_in": entry.inbound.bytes,
                "bytes_out": entry.outbound.bytes,
            }

    def dump(self) -> None:
        """Log what runs: each rule with its account, each target, each listener that is down, each connection."""
        log, status = self._log, self._state()
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


def _obstacle(phase: str, down: Sequence[str]) -> str:
    if phase != "running":
        return phase
    return f"not listening: {', '.join(down)}" if down else ""


def _process() -> dict[str, float]:
    from .metrics import of_process  # 6 MiB that forwarding does not need

    return of_process()


def _aside(ask: Callable[..., _T], *what: object) -> _T:
    """Return what is found in a thread; the loop would print a traceback of what leaves one by itself.

    Raises:
        OSError: as it does.
    """

    def answer() -> _T | OSError:
        try:
            return ask(*what)
        except OSError as error:
            return error

    found: _T | OSError = get_hub().threadpool.apply(answer)
    if isinstance(found, OSError):
        raise found
    return found


class FleetReport:
    """What all workers show, from any of them.

    Each answers from what was published, for itself too: counters that are ahead of it would fall in the next answer,
    which comes from another worker.

    Args:
        report: of this worker.
        seat: of this worker.
        log: told when it cannot be published.
    """

    def __init__(self, report: Report, seat: Seat, log: Log) -> None:
        self._report = report
        self._seat = seat
        self._log = log
        self._turn = BoundedSemaphore(1)
        self._hidden = False

    def publish(self) -> None:
        """Show the others the state of this worker; one at a time, so that an older one never replaces a newer."""
        with self._turn:
            self._publish(self._seat.publish, self._report.status())

    def publish_forever(self) -> None:
        """Do it again and again."""
        while True:
            self.publish()
            gevent.sleep(_PUBLISH)

    def publish_connections_forever(self) -> None:
        """Show the others the live connections of this worker, as long as somebody asks for them."""
        while True:
            if self._seat.board.is_asked_for_connections():
                self._publish(self._seat.publish_connections, list(self._report.connections()))
            gevent.sleep(_PUBLISH)

    def _publish(self, publish: Callable[[Any], None], what: object) -> None:
        reason = ""
        try:
            _aside(publish, what)
        except OSError as error:
            reason = error.strerror or str(error)
        if reason and not self._hidden:  # said once, and not twice a second
            self._log.limited("the other workers cannot show this one", reason, reason=reason)
        self._hidden = bool(reason)

    def status(self) -> dict[str, Any]:
        """Return the state of all workers as if they were one, or of this one when what they share is gone."""
        status: dict[str, Any] | None = _aside(self._seat.board.status)
        return status or self._report.status()

    def connections(self) -> list[dict[str, Any]]:
        """Return every live connection of every worker; of one that does not tell them in time, what it last told."""
        board = self._seat.board
        board.ask_for_connections()
        now = time.monotonic()
        while time.monotonic() < now + _TELLING:
            found: list[dict[str, Any]] | None = _aside(board.connections, now - _FRESH)
            if found is not None:
                return found
            gevent.sleep(_PUBLISH / 8)
        return _aside(board.connections, 0.0) or []

    def obstacle(self) -> str:
        """Return why no more clients should be sent here, or nothing."""
        status = self.status()
        return _obstacle(status["phase"], [rule["name"] for rule in status["rules"] if not rule["listener_up"]])
