"""The environment that the scripts run in: .venv of this clone, made where it is missing.

Rule: any Python 3 can import this module, since it runs before there is .venv.
"""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]

_AGAIN = "TOOLS_AGAIN"


def enter() -> None:
    """Go on in .venv, by running this script again with its Python where that is not the one that runs.

    Raises:
        SystemExit: .venv could not be made.
    """
    if Path(sys.prefix).resolve() != (REPO / ".venv").resolve():
        made = [str(REPO / "scripts/venv"), "dev"]
        if os.environ.get(_AGAIN) or subprocess.run(made, stdout=sys.stderr, check=False).returncode:  # noqa: S603
            sys.exit(f"{Path(sys.argv[0]).name}: scripts/venv could not make .venv")
        os.environ[_AGAIN] = "1"  # once has to be enough
        python = str(REPO / ".venv/bin/python")
        os.execv(python, [python, *sys.argv])  # noqa: S606
    os.environ.pop(_AGAIN, None)
