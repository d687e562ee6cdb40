"""How many cores this process may use.

Source: sched_setaffinity(2); cgroup-v2.rst ("CPU Interface Files") and sched-bwc.rst of the kernel's documentation.
"""

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Return how many cores this process may run on, or as many as its quota of CPU time is worth, if that is less."""
    cores = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(cores, cpu_quota())))


def cpu_quota(groups: Path = _GROUPS, own: Path = _OWN) -> float:
    """Return the least quota of the process's control group and those above it, in cores; infinite without one.

    Args:
        groups: where control groups are mounted.
        own: which of them this process is in (cgroups(7)).
    """
    quota = math.inf
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            quota = min(quota, _least(groups, path, _of_v2))
        elif "cpu" in controllers.split(","):
            quota = min(quota, _least(groups / controllers, path, _of_v1), _least(groups / "cpu", path, _of_v1))
    return quota


def _least(mounted: Path, path: str, quota_of: Callable[[Path], float]) -> float:
    """Return the least from a group up to the root. In a container, what is mounted may begin at the group itself."""
    inside = mounted / path.lstrip("/")
    above = [inside, *inside.parents]
    return min((quota_of(group) for group in above if group == mounted or mounted in group.parents), default=math.inf)


def _of_v2(group: Path) -> float:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    return _cores(quota, period)


def _of_v1(group: Path) -> float:
    return _cores(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> float:
    with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", or no such file
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
