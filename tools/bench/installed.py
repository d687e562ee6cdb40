"""What of the programs is here, in which version, and how their commands are filled in."""

import functools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

from ..environment import REPO
from .programs import Program

PATIENCE = 10.0  # seconds for anything that should take none

_PEERS = Path(__file__).parent / "peers"


def fill(command: str, **values: object) -> list[str]:
    """Give the words of a command."""
    fixed = {"veillink": REPO / ".venv/bin/veillink", "python": sys.executable, "peers": _PEERS}
    return [Template(word).substitute(fixed, **values) for word in shlex.split(command)]


def _output(command: list[str]) -> str:
    """Give all that a command says about itself; exit codes tell little there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


@functools.cache
def stream_module() -> str | None:
    """Give the line that has nginx load its stream module: none where it is built in, None where it is missing."""
    built = _output(["nginx", "-V"])
    if re.search(r"--with-stream(?!\S)", built):
        return ""
    folder = re.search(r"--modules-path=(\S+)", built)
    file = Path(folder[1] if folder else "", "ngx_stream_module.so")
    return f"load_module {file};" if folder and file.exists() else None


def is_installed(program: Program) -> bool:
    """Tell whether the program can be run here."""
    there = shutil.which(fill(program.version)[0]) is not None
    return there and not ("$module" in program.config and stream_module() is None)


def version(program: Program) -> str:
    """Give the program's version."""
    found = re.search(r"(?<![\w.])\d+(\.\d+)*[\w.+-]*", _output(fill(program.version)).removeprefix("wrk debian/"))
    return found[0] if found else "?"
