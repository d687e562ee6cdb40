"""The command line: options, wiring, exit codes."""

import json
import os
import sys
import time
from collections.abc import Sequence

from veillink.config.describe import describe, describe_certificate
from veillink.config.settings import admin_settings, defaults, parser, settings, unknown_variables
from veillink.config.source import open_source
from veillink.daemon.process import run
from veillink.log import opened
from veillink.model import RuleOptions
from veillink.settings import AdminSettings, Settings
from veillink.text import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run VeilLink and return its exit code.

    Args:
        arguments: of the command line, without the program's name.

    Raises:
        SystemExit: 2 for wrong usage, 0 after ``--help`` and ``--version``.
    """
    _open_standard_streams()
    options = parser().parse_args(arguments)
    if options.check or options.status:
        for warning in unknown_variables(os.environ):
            print(f"veillink: warning: {warning}", file=sys.stderr)
    if options.check:
        return _check(options.config, defaults(options))
    if options.status:
        asked = admin_settings(options)
        if asked is None:
            parser().error("--status needs --admin, the address of the VeilLink to ask")
        return _status(asked, as_json=options.json)
    return _run(settings(options))


def _status(admin: AdminSettings, *, as_json: bool) -> int:
    from veillink.admin.console import NoAnswer, ask, tables  # 0.1 s and 10 MiB that forwarding does not need

    try:
        status, connections = ask(admin)
    except NoAnswer as why:
        print(f"veillink: error: {printable(str(why))}", file=sys.stderr)
        return 1
    if as_json:
        return 0 if _write_stdout([json.dumps(status | {"live": connections}, indent=2)]) else 1
    return 0 if _write(tables(status, connections, sys.stdout)) else 1


def _run(settings: Settings) -> int:
    if not settings.workers:
        with opened(settings) as log:
            return run(settings, log)
    os.environ.pop("WEB_CONCURRENCY", None)  # gunicorn reads it when it is imported, and wants a number
    try:
        os.getcwd()  # noqa: PTH109 - as gunicorn does then, too
    except FileNotFoundError:
        print("veillink: error: --workers needs a working directory, and this one was removed", file=sys.stderr)
        return 1
    try:
        from veillink.fleet.launch import run_workers  # gunicorn is an extra
    except ModuleNotFoundError as error:
        print(f"veillink: error: --workers needs {error.name}: pip install 'gunicorn>=27,<28'", file=sys.stderr)
        return 2
    return run_workers(settings)


def _check(path: str, defaults: RuleOptions) -> int:
    rules, problems, notices, _ = open_source(path, defaults).load()
    lines = [notice.at(path) for notice in notices]
    lines += map(describe, rules.rules)
    lines += [line for each in rules.certificates for line in describe_certificate(each, time.time())]
    lines += [problem.at(path) for problem in problems]
    written = _write_stdout([*lines, f"{printable(path)}: {len(rules.rules)} rules, {len(problems)} problems"])
    return 0 if written and not problems else 1


def _write_stdout(lines: Sequence[str]) -> bool:
    encoding = sys.stdout.encoding if sys.stdout else "utf-8"
    return _write("".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace"))


def _write(data: bytes) -> bool:
    """Write to stdout past Python's buffer, which would report a failure a second time at exit; return if it worked."""
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:  # as with head(1), which has seen enough
        return True
    except OSError as error:
        print(f"veillink: error: cannot write: {error.strerror}", file=sys.stderr)
        return False
    return True


def _open_standard_streams() -> None:
    """Open what the parent has closed: otherwise a socket becomes descriptor 1 and gets the log."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
