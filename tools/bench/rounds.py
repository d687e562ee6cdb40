"""Rounds of every measure of every proxy, and what they sum up to."""

import argparse
import datetime
import itertools
import os
import platform
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..processes import CPUS, ToolError, system
from .installed import is_installed, version
from .measures import Figures
from .programs import BASE, DIRECT, PROXIES, Program
from .works import BURST, WORKS, Work, take

_CONNECTS = 2000  # in the tight loop


@dataclass
class Tally:
    """What the rounds have found for one proxy at one work."""

    rounds: list[Figures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def take(self, program: Program, work: Work, *arguments: Any, seconds: float) -> None:
        """Take a measure; should it fail, keep the reason."""
        try:
            figures = take(program, work, arguments, seconds)
        except (ToolError, OSError) as error:
            self.failures.append(str(error))
            return
        if errors := figures.pop("errors", 0):
            self.failures.append(f"{errors:.0f} errors")
        if program is DIRECT:
            del figures["cost"], figures["busy"]
        self.rounds.append(figures)

    def sum_up(self, base: "Tally | None") -> dict[str, Any]:
        """Give medians with minimum and maximum, and the ratio to the base's median cost."""
        found: dict[str, Any] = {
            key: {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}
            for key in (self.rounds[0] if self.rounds else ())
            for values in [[figures[key] for figures in self.rounds]]
        }
        reference = statistics.median(figures["cost"] for figures in base.rounds) if base and base.rounds else 0
        ratio = found["cost"]["median"] / reference if reference and "cost" in found else None
        return found | {"ratio": ratio, "failures": self.failures}


Tallies = dict[tuple[str, str], Tally]


def _machine() -> dict[str, Any]:
    """Describe the machine."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(CPUS),
        **system(),
        "load": os.getloadavg()[0],
    }


def _take_rounds(options: argparse.Namespace, works: dict[str, Work], lanes: dict[str, Program]) -> Tallies:
    """Take every measure of every proxy, again and again."""
    tallies = {(work, name): Tally() for work, what in works.items() for name, lane in lanes.items()
               if not lane.why_not(work, tls=bool(what.key))}  # fmt: skip
    screen = Console(stderr=True)
    with Progress(console=screen, auto_refresh=False, transient=True, disable=not screen.is_terminal) as bar:
        step = bar.add_task("", total=options.rounds * len(tallies))
        for turn, work in itertools.product(range(options.rounds), works):
            first = turn % len(lanes)  # so that nobody always comes first
            for name in [*lanes][first:] + [*lanes][:first]:
                if tally := tallies.get((work, name)):
                    bar.update(step, description=f"round {turn + 1}, {work}, {name}", refresh=True)
                    arguments = works[work].arguments or (options.idle,)
                    tally.take(lanes[name], works[work], *arguments, seconds=options.seconds)
                    bar.advance(step)
    return tallies


def _row(work: Work, name: str, lanes: dict[str, Program], tallies: Tallies) -> dict[str, Any]:
    """Return what was found at one work."""
    return {
        "title": work.title,
        "unit": work.unit,
        "rate_unit": work.rate,
        "proxies": {
            lane: tallies[name, lane].sum_up(tallies.get((name, BASE)))
            if (name, lane) in tallies
            else {"skipped": program.why_not(name, tls=bool(work.key))}
            for lane, program in lanes.items()
        },
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Take all measures that can be taken here, and sum them up."""
    here = _machine()
    needed = {name: PROXIES[name] for name in options.proxies}
    needed |= {tool.title: tool for name in options.work for tool in WORKS[name].needs}
    missing = {name: program.install for name, program in needed.items() if not is_installed(program)}
    works = {name: work for name, work in WORKS.items() if name in options.work}
    works = {name: work for name, work in works.items() if not any(tool.title in missing for tool in work.needs)}
    lanes = {name: PROXIES[name] for name in options.proxies if name not in missing} | {"direct": DIRECT}
    tallies = _take_rounds(options, works, lanes)
    tight = Tally()
    if "idle" in works and "veillink" in lanes:
        tight.take(lanes["veillink"], BURST, min(_CONNECTS, options.most), seconds=0)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": here,
        "versions": {name: version(program) for name, program in needed.items() if name not in missing},
        "missing": missing,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "idle": options.idle,
        "titles": {name: program.title for name, program in lanes.items()},
        "works": {name: _row(work, name, lanes, tallies) for name, work in works.items()},
        "burst": tight.rounds[0] if tight.rounds else None,
        "failures": [reason for lane in ("veillink", "direct") for name in works if (name, lane) in tallies
                     for reason in tallies[name, lane].failures] + tight.failures,
    }  # fmt: skip
