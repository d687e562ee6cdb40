"""Show again what `scripts/bench --json` has printed: `python -m tools.bench.replay FOUND.json [PICTURE.svg]`."""

import json
import sys
from pathlib import Path

from .picture import draw
from .show import show

if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    show(found)
    if sys.argv[2:]:
        draw(found, Path(sys.argv[2]))
