"""Everything that is shown of a process, as plain values that JSON has.

Rule: showing changes nothing, and costs the loop no more than a pass over the live connections.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import gevent

from . import __version__
from .ledger import Ledger
from .limits import Descriptors, Gate
from .log import Log
from .rules import Problem

_SAMPLE: Final = 0.5  # seconds from one look at the loop's lag and the counters to the next
_SAMPLES: Final = 20  # rates and lag are those of the last ten seconds


class Shown(Protocol):
    """A server, as far as it is shown."""

    @property
    def ledger(self) -> Ledger:
        """The account of its connections."""

    @property
    def gate(self) -> Gate:
        """How many it may hold."""

    def rules_down(self) -> list[str]:
        """Return the names of the rules that do not have all their ports."""

    def status(self) -> list[dict[str, Any]]:
        """Return the state of each rule."""


class Report:
    """What runs, what it has done, and what became of the rules' file.

    Args:
        source: name of the rules' file.
        server: whose rules are shown.
        descriptors: of the process.
        log: whose lost lines are counted.
    """

    def __init__(self, source: str, server: Shown, descriptors: Descriptors, log: Log) -> None:
        self.phase = "starting"
        """``starting``, ``running`` or ``draining``."""
        self._source = source
        self._server = server
        self._log = log
        self._descriptors = descriptors
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

    def obstacle(self) -> str:
        """Return why no more clients should be sent here, or nothing."""
        if self.phase != "running":
            return self.phase
        down = self._server.rules_down()
        return f"not listening: {', '.join(down)}" if down else ""

    def status(self) -> dict[str, Any]:
        """Return the state of the process and of every rule."""
        bytes_in, bytes_out = self._server.ledger.moved()
        return {
            "version": __version__,
            "phase": self.phase,
            "uptime": round(time.monotonic() - self._began, 1),
            "rates": self._rates(),
            "limits": {"connections": self._server.gate.limit, "descriptors": self._descriptors.limit},
            "totals": {
                "active": self._server.gate.taken,
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
