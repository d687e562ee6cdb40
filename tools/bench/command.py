"""The command scripts/bench."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import bench
from ..command import bound, parser_of, stop_after
from ..environment import REPO
from ..processes import CPUS, ToolError, pin, raise_fd_limit
from .installed import PATIENCE, is_installed
from .picture import draw
from .programs import BASE, PROXIES
from .rounds import run
from .show import show
from .works import WORKS


def _chosen(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    """Return what reads names that are separated by commas, and gives them in the order in which they are known."""

    def names(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}")
        return [name for name in known if name in text.split(",")]

    return names


def _parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(bench.__doc__)
    add = parser.add_argument
    for name, known in (("work", WORKS), ("proxies", PROXIES)):
        names = f"of {', '.join(known)} (default: all)"
        add(f"--{name}", type=_chosen(known), default=[*known], metavar="A,B", help=names)
    add("--rounds", type=int, default=3, metavar="N", help="up to 50 (default: %(default)s)")
    add("--seconds", type=float, default=3, metavar="S", help="a figure, up to 60 (default: 3; for HTTP rounded)")
    add("--idle", type=int, default=1000, metavar="N", help="idle connections, up to 10000 (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios to HAProxy, as .svg or .png")
    options = parser.parse_args()
    bound(parser, options, rounds=50, seconds=60, idle=10_000)
    if options.plot and (options.plot.suffix not in (".svg", ".png") or BASE not in options.proxies):
        parser.error("--plot takes an .svg or .png, and HAProxy to compare with")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare this process, and take the measures.

    Raises:
        KeyboardInterrupt: it was stopped, or took too long.
        ToolError, ImportError: there is not what --plot needs.
    """
    takes = options.rounds * len(options.work) * (len(options.proxies) + 1)
    stop_after(math.ceil(120 + takes * (options.seconds + 3 * PATIENCE)))
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(REPO / ".venv/bin")])
    options.most = (raise_fd_limit() - 256) // 2  # both ends are ours
    options.idle = min(options.idle, options.most)
    if len(CPUS) < 2:
        print("bench: there is one CPU: the proxy shares it with the load", file=sys.stderr)
    pin(1)
    if options.plot:
        import matplotlib  # noqa: F401  # it has to be there at the end

        if not is_installed(PROXIES[BASE]):
            raise ToolError(f"--plot needs {BASE}: {PROXIES[BASE].install}")
    return run(options)


def main() -> int:
    """Measure, print, and tell by the exit code whether all went well with VeilLink."""
    options = _parse()
    try:
        found = _measure(options)
    except (KeyboardInterrupt, ToolError, ImportError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    for name, install in found["missing"].items():
        print(f"bench: {name} is not there: {install}", file=sys.stderr)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    if options.plot:
        draw(found, options.plot)
    return 1 if found["failures"] else 0
