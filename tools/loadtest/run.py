"""Take the measures on every lane, and sum them up."""

import argparse
import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..processes import CPUS, pin, raise_fd_limit, system
from ..tls import context
from .backend import ECHOES, backend
from .lane import PORTS, Address, Lane
from .measures import MEASURES
from .result import Result
from .veillink import veillink

PARALLEL = {"idle": 3000, "connect": 50, "echo": 100, "bulk": 1}


@contextlib.contextmanager
def _lanes(target: Address | None, *, tls: bool) -> Iterator[list[Lane]]:
    """Give the way to the target, or those through a VeilLink of our own and directly to our own backend."""
    secure = context() if tls else None
    if target:
        yield [Lane("target", [target], {"both": target}, tls=secure)]
        return
    pin(1)
    with backend() as behind, veillink(behind, tls=tls) as (front, pid):
        yield [
            Lane("veillink", front[2:], {"up": front[0], "down": front[1]}, pid, secure),
            # begins with the second source address: VeilLink connects to the backend from the first
            Lane("direct", behind[2:], {"up": behind[0], "down": behind[1]}, dialled=PORTS * ECHOES),
        ]


def _take(options: argparse.Namespace, names: list[str], lanes: list[Lane], fits: int) -> dict[str, Any]:
    """Take the measures on every lane, with no more connections than descriptors allow."""
    found: dict[str, Any] = {}
    screen = Console(stderr=True)
    with Progress(console=screen, refresh_per_second=4, transient=True, disable=not screen.is_terminal) as bar:
        step = bar.add_task("", total=len(names) * len(lanes))
        for name in names:
            asked = (options.connections if name != "bulk" or len(names) == 1 else None) or PARALLEL[name]
            found[name] = {"asked": asked, "connections": min(asked, fits)}
            for lane in lanes:
                bar.update(step, description=f"{name}, {lane.name}")
                result = Result(lane)
                MEASURES[name](result, min(asked, fits), options.seconds, options.size)
                bar.advance(step)
                errors = +result.errors
                found[name][lane.name] = {**result.figures, "failures": errors.total(), "errors": errors}
            if len(lanes) > 1:
                mine, base = (found[name][lane.name] for lane in lanes)
                found[name]["ratio"] = {key: mine[key] / base[key] for key in mine if key != "errors" and base.get(key)}
    return found


def run(options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Take the measures of these names, and return all that was found.

    Raises:
        ToolError: our own VeilLink did not start, or ended.
    """
    limit = raise_fd_limit()
    fits = limit - 64 if options.target else (limit - 512) // 2  # VeilLink needs two for each connection
    with _lanes(options.target, tls=options.tls) as lanes:
        found = _take(options, names, lanes, fits)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": len(CPUS), **system(), "fd_limit": limit},
        "lanes": [lane.name for lane in lanes],
        "target": options.target and list(options.target[:2]),
        "seconds": options.seconds,
        "size": options.size,
        "tls": options.tls,
        "failures": sum(found[name][lane.name]["failures"] for name in names for lane in lanes),
        "measures": found,
    }
