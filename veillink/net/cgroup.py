"""What the kernel lets this process have: the memory and the CPU time of its control group, and of those above it.

Rule: whatever cannot be read is no limit.

Source: cgroups(7); cgroup-v2.rst ("CPU Interface Files", "Memory Interface Files") and sched-bwc.rst of the kernel's
documentation; sched_setaffinity(2).
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_OWN: Final = Path("/proc/self/cgroup")
_ROOT: Final = Path("/sys/fs/cgroup")


def memory_limit(own: Path = _OWN, root: Path = _ROOT) -> int:
    """Return how many bytes the process and its siblings may have together; 0 is no limit.

    Args:
        own: names the groups of the process.
        root: where control groups are mounted.
    """
    files = (group / ("memory.max" if v2 else "memory.limit_in_bytes") for group, v2 in _groups("memory", own, root))
    return min((limit for file in files if (limit := _number(_text(file)))), default=0)


def usable_cpus() -> int:
    """Return how many cores this process may run on, or as many as its quota of CPU time is worth, if that is less."""
    cores = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(cores, cpu_quota())))


def cpu_quota(own: Path = _OWN, root: Path = _ROOT) -> float:
    """Return the quota of CPU time, in cores; infinite without one.

    Args:
        own: names the groups of the process.
        root: where control groups are mounted.
    """
    return min((_quota(group, v2=v2) for group, v2 in _groups("cpu", own, root)), default=math.inf)


def _groups(controller: str, own: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the groups that may limit this process, from its own up, and whether they are version 2's.

    In a container without a namespace of its own the process's path is not there, and the files at the root are those
    of its group.
    """
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for top in {root / controllers, root / controller} if controllers else {root}:
            yield from ((top / part, not controllers) for part in (group, *group.parents))


def _quota(group: Path, *, v2: bool) -> float:
    if v2:
        quota, _, period = _text(group / "cpu.max").partition(" ")
    else:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    cores = _number(quota) / (_number(period) or 1)
    return cores if cores > 0 else math.inf


def _number(text: str) -> int:
    with contextlib.suppress(ValueError):  # "max" is a word
        return int(text)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
