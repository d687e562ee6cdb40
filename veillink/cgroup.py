"""Read what the kernel lets the process's control group have (cgroups(7)).

Rule: whatever cannot be read is no limit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/proc/self/cgroup")
_ROOT: Final = Path("/sys/fs/cgroup")


def memory_limit(groups: Path = _GROUPS, root: Path = _ROOT) -> int:
    """Return how many bytes the process and its siblings may have together; 0 is no limit.

    Args:
        groups: names the groups of the process.
        root: where their files are. In a container without a namespace of its own the process's path is not there, and
            the files at the root are those of its group; so every folder on the way up is looked at.
    """
    return min((limit for file in _files(groups, root) if (limit := _number(file))), default=0)


def _files(groups: Path, root: Path) -> Iterator[Path]:
    try:
        lines = groups.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        folder = Path(path.lstrip("/"))
        for part in (folder, *folder.parents):
            yield top / part / name


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max" is a word
        return 0
