"""The command line: options, wiring, exit codes."""

import errno
import io
import json
import os
import socket
import sys
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from ipaddress import ip_address
from typing import Any, Final, NoReturn, TextIO

import configargparse

from . import __version__
from .cells import OPTIONS, number, parse_duration, parse_token, parse_window, printable
from .daemon import Settings, Window, run
from .log import LEVELS, Log
from .model import Address, Rule, RuleOptions, Target
from .rules_file import read_regular, read_rules

_LARGEST_SETTINGS: Final = 1 << 20

_EPILOG: Final = (
    "Exit codes: 0 stopped and drained, or --check found no problem; 1 a problem, nothing could be started, or the "
    "drain was cut short; 2 wrong usage. Signals: TERM and INT drain and stop, a second one cuts at once; HUP reads "
    "the rules again; USR1 writes the state to the log."
)


def _as_argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return ``parse`` with its messages kept: argparse shows only those of ArgumentTypeError."""

    def converted(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return converted


class _Parser(configargparse.ArgumentParser):  # type: ignore[misc]  # it has no type hints
    def error(self, message: str) -> NoReturn:
        """Say it in one line: the usage of twenty options would hide it."""
        self._print_message(f"veillink: error: {printable(' '.join(message.split()))}\n", sys.stderr)
        sys.exit(2)


def _open_settings(path: str, mode: str = "r") -> TextIO:
    try:
        return io.StringIO(read_regular(path, _LARGEST_SETTINGS).decode())
    except ValueError:
        raise OSError(errno.EINVAL, "it is no text in UTF-8") from None


def parser() -> _Parser:
    """Return the parser of the command line, of ``VEILLINK_…`` in the environment and of the settings file."""
    parser = _Parser(
        prog="veillink",
        description="Forward TCP connections as the rules in a CSV file say.",
        epilog=_EPILOG,
        auto_env_var_prefix="VEILLINK_",
        add_env_var_help=False,
        add_config_file_help=False,
        allow_abbrev=False,
        config_file_open_func=_open_settings,
    )
    duration = _as_argument(parse_duration)
    add = parser.add_argument
    add("--config", default="config.csv", metavar="PATH", help="the rules (default: %(default)s)")
    add("--check", action="store_true", help="print the rules as understood and every problem, and exit")
    add("--strict", action="store_true", help="do not start while the rules have any problem")
    add("--watch", action=BooleanOptionalAction, default=True, help="apply changes of the rules' file by itself")
    add("--drain-timeout", type=duration, default="30s", metavar="TIME", help="for stopping (default: %(default)s)")
    add(
        "--max-connections",
        type=_as_argument(number(0, 1_000_000)),
        default=0,
        metavar="N",
        help="hold at most so many at a time; 0 as many as descriptors allow (default)",
    )
    add(
        "--relay",
        choices=("auto", "copy"),
        default="auto",
        help="auto: bulk streams are spliced, past Python, where the system can; copy: never (default: %(default)s)",
    )
    add("--pidfile", default="", metavar="PATH", help="write the process's number there; removed at exit")
    add("--log-format", choices=("text", "json"), default="text", help="of every line (default: %(default)s)")
    add("--log-level", choices=LEVELS, default="info", help="least level that is written (default: %(default)s)")
    add("--access-log", action=BooleanOptionalAction, default=True, help="a line for each connection when it ends")
    _add_window(parser)
    _add_rule_defaults(parser)
    add(
        "--settings",
        is_config_file=True,
        env_var="VEILLINK_SETTINGS",
        metavar="PATH",
        help="file with these options as 'drain-timeout = 30s'",
    )
    add("--version", action="version", version=f"veillink {__version__}")
    return parser


def _add_window(parser: configargparse.ArgumentParser) -> None:
    window = parser.add_argument_group("the window on what runs").add_argument
    window(
        "--admin",
        type=_as_argument(parse_window),
        metavar="ADDR:PORT",
        help="show health, metrics and state over HTTP here, or at unix:/PATH; beyond loopback only with a token",
    )
    window(
        "--admin-token",
        type=_as_argument(parse_token),
        default="",
        metavar="TOKEN",
        help="what has to be shown there (Bearer, or Basic's password)",
    )
    window("--status", action="store_true", help="ask the VeilLink that --admin names what it does, and exit")
    window("--json", action="store_true", help="with --status: everything, as JSON")


def _add_rule_defaults(parser: configargparse.ArgumentParser) -> None:
    defaults = parser.add_argument_group("defaults for rules; a row's option of the same name goes before")
    for option in OPTIONS:
        if option.name in _default_names():
            defaults.add_argument(
                f"--{option.name.replace('_', '-')}",
                type=_as_argument(option.parse),
                default=option.default,
                metavar="VALUE",
                help=f"{option.help} (default: %(default)s)",
            )


def _default_names() -> frozenset[str]:
    """Return the rule options that the command line may set for all rules (its --max-connections is the process's)."""
    return frozenset(field.name for field in fields(RuleOptions)) - {"max_connections"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run VeilLink and return its exit code.

    Args:
        arguments: of the command line, without the program's name.

    Raises:
        SystemExit: 2 for wrong usage, 0 after ``--help`` and ``--version``.
    """
    _open_standard_streams()
    options = parser().parse_args(arguments)
    defaults = RuleOptions(**{name: getattr(options, name) for name in _default_names()})
    if options.check:
        return _check(options.config, defaults)
    window = _window(options)
    if options.status:
        if window is None:
            parser().error("--status needs --admin, the address of the VeilLink to ask")
        return _status(window, as_json=options.json)
    return _run(options, window, defaults)


def _window(options: Namespace) -> Window | None:
    if options.admin is None:
        return None
    address, name = options.admin
    if name:
        try:
            address = Address(str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]), address.port)
        except OSError as error:
            parser().error(f"--admin {name}: {error.strerror}")
    local = address.is_unix or (address.host and ip_address(address.host.partition("%")[0]).is_loopback)
    if not (local or options.admin_token or options.status):
        parser().error(f"--admin {address} can be reached from elsewhere: give --admin-token too, or use 127.0.0.1")
    return Window(address, name, options.admin_token)


def _status(window: Window, *, as_json: bool) -> int:
    from .console import NoAnswer, ask, show  # 0.1 s and 10 MiB that forwarding does not need

    try:
        status, connections = (ask(window.address, window.token, f"/api/{what}") for what in ("status", "connections"))
    except NoAnswer as why:
        print(f"veillink: error: {printable(str(why))}", file=sys.stderr)
        return 1
    if as_json:
        return 0 if _say([json.dumps(status | {"live": connections}, indent=2)]) else 1
    show(status, connections)
    return 0


def _run(options: Namespace, window: Window | None, defaults: RuleOptions) -> int:
    settings = Settings(
        config=options.config,
        strict=options.strict,
        watch=options.watch,
        drain_timeout=options.drain_timeout,
        max_connections=options.max_connections,
        relay=options.relay,
        pidfile=options.pidfile,
        admin=window,
        defaults=defaults,
    )
    log = Log(json_lines=options.log_format == "json", level=options.log_level, access=options.access_log)
    try:
        return run(settings, log)
    finally:
        log.close()


def _check(path: str, defaults: RuleOptions) -> int:
    rules, problems = read_rules(path, defaults)
    lines = [_describe(rule) for rule in rules.rules] + [problem.at(path) for problem in problems]
    said = _say([*lines, f"{printable(path)}: {len(rules.rules)} rules, {len(problems)} problems"])
    return 0 if said and not problems else 1


def _say(lines: Sequence[str]) -> bool:
    """Write to stdout past Python's buffer, which would report a failure a second time at exit; return if it worked."""
    encoding = sys.stdout.encoding if sys.stdout else "utf-8"
    data = "".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:  # as with head(1), which has seen enough
        return True
    except OSError as error:
        print(f"veillink: error: cannot write: {error.strerror}", file=sys.stderr)
        return False
    return True


def _describe(rule: Rule) -> str:
    targets = ", ".join(_describe_target(target, rule.ports) for target in rule.targets)
    limits = [
        f"{field.name}={_shown(field, getattr(rule.options, field.name))}"
        for field in fields(RuleOptions)
        if getattr(rule.options, field.name) != field.default
    ]
    return " ".join([f"{rule.name}: {rule.shown_listen} -> {targets}", *limits])


def _describe_target(target: Target, ports: int) -> str:
    last = f"-{target.at(ports - 1).port}" if target.at(ports - 1) != target.address else ""
    weight = f" weight={target.weight}" if target.weight != 1 else ""
    return f"{target.address}{last}{weight}" + (" backup" if target.backup else "")


def _shown(field: Field[Any], value: Any) -> str:
    if isinstance(field.default, float):
        return f"{value:g}s" if value else "0"
    return f"{value:04o}" if field.name == "socket_mode" else str(value)


def _open_standard_streams() -> None:
    """Open what the parent has closed: otherwise a socket becomes descriptor 1 and gets the log."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
