"""Tests of what holds for the package as a whole (the layers are import contracts in ``pyproject.toml``)."""

import subprocess
import sys
from dataclasses import Field, fields
from pathlib import Path

import pytest

import veillink
from veillink.config.options import OPTIONS
from veillink.config.settings import parser
from veillink.model import RuleOptions, Target

PACKAGE = Path(veillink.__file__).parent
OF_TARGETS = {"weight", "backup"}


def test_importing_the_package_changes_nothing_in_the_importing_process() -> None:
    code = """
import importlib, pkgutil, signal, socket, ssl, threading, time, veillink
watched = {module: dict(vars(module)) for module in (socket, ssl, threading, time)}
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
for module in pkgutil.walk_packages(veillink.__path__, "veillink."):
    importlib.import_module(module.name)
assert socket.socket.__module__ == "socket", socket.socket
assert all(vars(module)[name] is value for module, before in watched.items() for name, value in before.items())
assert handlers == {number: signal.getsignal(number) for number in signal.valid_signals()}
from gevent import monkey
assert not monkey.saved, monkey.saved
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_is_monkey_patched(path: Path) -> None:
    assert "monkey" not in path.read_text()


@pytest.mark.parametrize("field", fields(RuleOptions), ids=lambda field: field.name)
def test_every_limit_is_an_option_of_a_row_and_of_the_command_line_with_one_default(field: Field[float]) -> None:
    (option,) = [option for option in OPTIONS if option.name == field.name]
    assert option.scope == "rule"
    assert option.parse(option.default) == field.default
    assert getattr(parser().parse_args([]), field.name) == field.default


def test_every_option_of_a_row_sets_something() -> None:
    assert {option.name for option in OPTIONS} == {"name"} | OF_TARGETS | {field.name for field in fields(RuleOptions)}


@pytest.mark.parametrize("name", sorted(OF_TARGETS))
def test_the_options_of_a_target_have_its_defaults(name: str) -> None:
    (option,) = [option for option in OPTIONS if option.name == name]
    (default,) = [field.default for field in fields(Target) if field.name == name]
    assert option.scope == "target"
    assert option.parse(option.default) == default


def test_the_command_line_explains_every_option_of_a_rule_as_the_table_does() -> None:
    shown = {action.dest: action.help for action in parser()._actions}
    for option in OPTIONS:
        if option.scope == "rule" and option.name not in ("name", "max_connections"):  # --max-connections is for all
            assert option.help in (shown[option.name] or "")
