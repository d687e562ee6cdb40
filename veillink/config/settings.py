"""The options: on the command line, as ``VEILLINK_…`` in the environment, in a settings file.

Rule: everything that can be said of an option's value is said here, in one line, before anything is opened.
"""

import errno
import io
import os
import re
import socket
import sys
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Any, Final, NoReturn, TextIO

import configargparse

from veillink import __version__
from veillink.config.files import read_regular
from veillink.config.options import OPTIONS
from veillink.config.values import number, parse_admin, parse_duration, parse_names, parse_token
from veillink.log import LEVELS
from veillink.model import Address, RuleOptions
from veillink.net.cgroup import usable_cpus
from veillink.settings import AdminSettings, Settings
from veillink.text import printable

_LARGEST_SETTINGS: Final = 1 << 20
_MOST_WORKERS: Final = 256
# Of a variable that is compared with the known ones, and how much alike they have to be: all begin with VEILLINK_.
_LONGEST_NAME: Final = 40
_ALIKE: Final = 0.85

_DESCRIPTION: Final = """\
Forward TCP connections as the rules in a CSV file say, one line for each:

  listen,host,port[,option=value ...]     8080,192.0.2.10,80,name=web
"""

_EPILOG: Final = """\
Every option is also an environment variable (VEILLINK_DRAIN_TIMEOUT=30s) and a line of the
settings file (drain-timeout = 30s); one without a value is set with true. The command line
goes before the environment, and that before the settings file. An empty variable is unset.

signals:
  TERM, INT   stop accepting, let connections finish for --drain-timeout, then cut them;
              a second one cuts at once
  HUP         read the rules again
  USR1        write the state to the log
  TTIN, TTOU  with --workers: a worker more, a worker less
  USR2        with --workers: start the program anew; the old one drains once that one serves

exit codes:
  0           stopped, every connection had finished; --check: no problem; --status: answered
  1           not started, or connections had to be cut; --check: a problem; --status: no answer
  2           wrong usage

examples:
  veillink --config config.csv --check                what would be done, what is wrong
  veillink --config config.csv --admin 127.0.0.1:8079 show what runs: http://127.0.0.1:8079
  veillink --status --admin 127.0.0.1:8079            the same on the terminal
  veillink --config config.csv --workers auto         on all cores
"""


def _as_argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return ``parse`` with its messages kept: argparse shows only those of ArgumentTypeError."""

    def converted(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return converted


_DURATION: Final = _as_argument(parse_duration)


_PREFIX: Final = "VEILLINK_"
# What Kubernetes tells every pod of a Service called veillink, or veillink-something.
_OF_KUBERNETES: Final = re.compile(
    rf"{_PREFIX}(?:[A-Z0-9_]+_)?(?:SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)?)"
)


def _variable(option: str) -> str:
    return _PREFIX + option.strip("-").replace("-", "_").upper()


class _Parser(configargparse.ArgumentParser):  # type: ignore[misc]  # it has no type hints
    def parse_known_args(self, *args: Any, env_vars: Mapping[str, str] = os.environ, **more: Any) -> Any:
        """Take an empty variable for one that is not set, and heed ``VEILLINK_NO_WATCH`` as ``VEILLINK_WATCH``."""
        given = {name: value for name, value in env_vars.items() if value}
        switches: list[Any] = [action for action in self._actions if isinstance(action, BooleanOptionalAction)]
        for switch in switches:
            switch.env_var = max(map(_variable, switch.option_strings), key=given.__contains__)
        return super().parse_known_args(*args, env_vars=given, **more)

    def convert_item_to_command_line_arg(self, action: Any, key: str, value: Any) -> Any:
        """Heed also ``no-watch = true``, which the library takes for ``watch = true``."""
        converted = super().convert_item_to_command_line_arg(action, key, value)
        if isinstance(action, BooleanOptionalAction) and key.removeprefix(_PREFIX).lower().startswith(("no-", "no_")):
            return [option for option in action.option_strings if option not in converted]
        return converted

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
        usage="veillink [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        auto_env_var_prefix=_PREFIX,
        add_env_var_help=False,
        add_config_file_help=False,
        allow_abbrev=False,
        config_file_open_func=_open_settings,
    )
    _add_rules(parser.add_argument)
    _add_processes(parser.add_argument)
    _add_log(parser.add_argument)
    _add_admin(parser)
    _add_rule_defaults(parser)
    parser.add_argument(
        "--settings",
        is_config_file=True,
        env_var=_variable("--settings"),
        metavar="PATH",
        help="file with these options as 'drain-timeout = 30s'",
    )
    parser.add_argument("--version", action="version", version=f"veillink {__version__}")
    return parser


def _add_rules(add: Callable[..., object]) -> None:
    add("--config", default="config.csv", metavar="PATH", help="the rules (default: %(default)s)")
    add("--check", action="store_true", help="print the rules as understood and every problem, and exit")
    add("--strict", action="store_true", help="do not start while the rules have any problem")
    add("--watch", action=BooleanOptionalAction, default=True, help="apply changes of the rules' file by itself")
    add(
        "--drain-timeout",
        type=_DURATION,
        default="30s",
        metavar="TIME",
        help="how long connections may go on after the first stop signal (default: %(default)s)",
    )
    add(
        "--max-connections",
        type=_as_argument(number(0, 1_000_000)),
        default=0,
        metavar="N",
        help="hold at most so many at a time, in all; 0: as many as descriptors and memory allow (default)",
    )
    add(
        "--relay",
        choices=("auto", "copy"),
        default="auto",
        help="auto: bulk streams go past Python by splice(2) where the system can; copy: never (default: %(default)s)",
    )


def _add_processes(add: Callable[..., object]) -> None:
    add(
        "--workers",
        type=_as_argument(_workers),
        default=0,
        metavar="N|auto",
        help="be so many processes; auto: one for each core that it may use; 0: a single one (default)",
    )
    add(
        "--worker-timeout",
        type=_DURATION,
        default="30s",
        metavar="TIME",
        help="a worker that gives no sign of life for so long is replaced (default: %(default)s)",
    )
    add(
        "--pidfile",
        default="",
        metavar="PATH",
        help="write the process's number there once it listens; removed at exit",
    )


def _add_log(add: Callable[..., object]) -> None:
    add("--log-format", choices=("text", "json"), default="text", help="of every line (default: %(default)s)")
    add("--log-level", choices=LEVELS, default="info", help="least level that is written (default: %(default)s)")
    add("--access-log", action=BooleanOptionalAction, default=True, help="a line for each connection when it ends")


def _add_admin(parser: configargparse.ArgumentParser) -> None:
    add = parser.add_argument_group("admin endpoint").add_argument
    add(
        "--admin",
        type=_as_argument(parse_admin),
        metavar="ADDR:PORT",
        help="show health, metrics and state over HTTP here, or at unix:/PATH; beyond loopback only with a token",
    )
    add(
        "--admin-token",
        type=_as_argument(parse_token),
        default="",
        metavar="TOKEN",
        help="what has to be shown there (Bearer, or Basic's password)",
    )
    add(
        "--admin-host",
        type=_as_argument(parse_names),
        nargs="+",
        default=[],
        metavar="NAME",
        help="host names by which it is shown without a token, beside localhost and addresses",
    )
    add("--status", action="store_true", help="ask the VeilLink that --admin names what it does, and exit")
    add("--json", action="store_true", help="with --status: everything, as JSON")


def _add_rule_defaults(parser: configargparse.ArgumentParser) -> None:
    defaults = parser.add_argument_group("defaults for rules; a row's option of the same name goes before")
    for option in OPTIONS:
        if option.on_command_line:
            defaults.add_argument(
                f"--{option.name.replace('_', '-')}",
                type=_as_argument(option.parse),
                default=option.default,
                metavar="VALUE",
                help=f"{option.help} (default: %(default)s)",
            )


def _workers(text: str) -> int:
    return min(_MOST_WORKERS, usable_cpus()) if text == "auto" else number(0, _MOST_WORKERS)(text)


def admin_settings(options: Namespace) -> AdminSettings | None:
    """Return where the state is shown, if anywhere.

    Raises:
        SystemExit: it could be reached from elsewhere, without a token.
    """
    if options.admin is None:
        return None
    address, name = options.admin
    addresses = _addresses(address) if name else (address,)
    if not (all(map(_is_local, addresses)) or options.admin_token or options.status):
        parser().error(f"--admin {address} can be reached from elsewhere: give --admin-token too, or use 127.0.0.1")
    names = frozenset(each for given in options.admin_host for each in given) | ({name} if name else set())
    return AdminSettings(str(address), addresses, names, options.admin_token)


def _addresses(named: Address) -> tuple[Address, ...]:
    """Return all addresses of a name: where ``::1`` is localhost's first, somebody may still ask at 127.0.0.1."""
    try:
        found = socket.getaddrinfo(named.host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        parser().error(f"--admin {named.host}: {error.strerror}")
    return tuple(dict.fromkeys(Address(str(place[0]), named.port) for *_, place in found))


def _is_local(address: Address) -> bool:
    return address.is_unix or (address.host != "" and ip_address(address.host.partition("%")[0]).is_loopback)


def defaults(options: Namespace) -> RuleOptions:
    """Return what a rule has where its rows say nothing."""
    return RuleOptions(**{each.name: getattr(options, each.name) for each in OPTIONS if each.on_command_line})


def settings(options: Namespace) -> Settings:
    """Return what a process has to know.

    Raises:
        SystemExit: options contradict each other.
    """
    own = {field.name for field in fields(Settings)} - {"admin", "defaults", "warnings"}
    given = {name: getattr(options, name) for name in own}
    return Settings(
        admin=admin_settings(options), defaults=defaults(options), warnings=unknown_variables(os.environ), **given
    )


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return a line for each ``VEILLINK_…`` in the environment that is no option: most often a slip."""
    options = {option for action in parser()._actions for option in action.option_strings if option.startswith("--")}
    known = set(map(_variable, options - {"--help", "--version"}))
    found = []
    for name in sorted(name for name, value in environ.items() if value and name.startswith(_PREFIX)):
        if name not in known and not _OF_KUBERNETES.fullmatch(name):
            near = get_close_matches(name[: len(_PREFIX) + _LONGEST_NAME], known, 1, _ALIKE)
            found.append(f"{printable(name)} is no option" + (f"; did you mean {near[0]}?" if near else ""))
    return tuple(found)


def from_environment() -> Settings:
    """Return what ``VEILLINK_…`` in the environment ask for, where somebody else has read the command line.

    Raises:
        SystemExit: they are wrong.
    """
    return settings(parser().parse_args([]))
