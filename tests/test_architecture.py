"""Tests of what holds for the package as a whole (the layers are import contracts in ``pyproject.toml``)."""

import subprocess
import sys
from pathlib import Path

import pytest

import veillink

PACKAGE = Path(veillink.__file__).parent


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


def test_each_module_has_its_test_file() -> None:
    """The entry points are run by the tests in ``tests/system``; ``shared`` and ``snapshot`` are names and types."""
    without = {"__main__.py", "workers.py", "settings.py", "proxy/shared.py", "stats/snapshot.py"}
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    tests = Path(__file__).parent
    missing = {str(path) for path in modules if not (tests / path.with_name(f"test_{path.name}")).is_file()}
    assert missing == without
