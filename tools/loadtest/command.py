"""The command scripts/loadtest."""

import argparse
import ipaddress
import json
import math
import socket
import sys

from .. import loadtest
from ..command import bound, parser_of, stop_after
from ..processes import ToolError
from .lane import Address
from .measures import GRACE, MEASURES, OPENED_PER_S
from .run import PARALLEL, run
from .show import show


def _address(parser: argparse.ArgumentParser, target: str, *, anywhere: bool) -> Address:
    """Return what --target leads to; end with a complaint where load must not go."""
    try:
        host, _, port = target.rpartition(":")
        if not (host and 0 < int(port) < 65536):
            raise ValueError("not a HOST:PORT")
        address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0][4]
    except (OSError, ValueError) as error:
        parser.error(f"--target {target}: {error}")
    if not (anywhere or ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback):
        parser.error(f"--target {target} is not loopback: load goes there only with --anywhere")
    return address


def _parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; return the measures' names too."""
    parser = parser_of(loadtest.__doc__)
    usual = ", ".join(f"{name} {number}" for name, number in PARALLEL.items())
    add = parser.add_argument
    add("measure", nargs="?", choices=[*MEASURES, "all"], default="all", help="what to measure (default: all)")
    add("--target", metavar="HOST:PORT", help="measure what listens there; it must forward to an echo server")
    add("--anywhere", action="store_true", help="allow a --target that is not loopback")
    add("--tls", action="store_true", help="speak TLS to VeilLink or --target, whatever certificate it shows")
    add("--connections", type=int, metavar="N", help=f"at once, up to 20000 (default: {usual}; all: bulk stays at 1)")
    add("--seconds", type=float, metavar="S", help="for each figure, up to 300 (default: 5; all: 2)")
    add("--size", type=int, default=64, metavar="BYTES", help="of echo's messages, up to 16 MiB (default: 64)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    bound(parser, options, connections=20_000, seconds=300, size=16 << 20)
    if options.target:
        options.target = _address(parser, options.target, anywhere=options.anywhere)
    names = list(MEASURES) if options.measure == "all" else [options.measure]
    options.seconds = options.seconds or (5 if len(names) == 1 else 2)
    return options, names


def main() -> int:
    """Measure, print, and tell by the exit code whether all went well."""
    options, names = _parse()
    longest = 2 * options.seconds + 4 * GRACE + (options.connections or PARALLEL["idle"]) / OPENED_PER_S
    stop_after(math.ceil(60 + 2 * len(names) * longest))
    try:
        found = run(options, names)
    except (KeyboardInterrupt, ToolError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 1 if found["failures"] else 0
