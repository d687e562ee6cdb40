"""What processes cost, as the kernel counts it: CPU time, memory, and listen queues that overflowed."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> Iterator[int]:
    """Give a process and all below it, parents first."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def cpu_seconds(pid: int) -> float:
    """Give the CPU time of a process tree, children that have ended included."""
    total = 0.0
    for each in _tree(pid) if pid else ():
        with contextlib.suppress(OSError):
            user, system, *reaped = map(int, Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:15])
            tasks = [int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{each}/task").iterdir()]
            # The kernel's nanoseconds are of threads that live; its ticks have those too that have ended.
            total += sum(reaped) / _TICKS + max(sum(tasks) / 1e9, (user + system) / _TICKS)
    return total


def memory_kib(pid: int) -> Counter[str]:
    """Give the resident memory of a process tree; in Pss what processes share is split between them."""
    total: Counter[str] = Counter()
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            total.update({name: int(size) for name, size in re.findall(r"^(Rss|Pss): +(\d+)", text, re.MULTILINE)})
    return total


def overflows() -> int:
    """Give how often a listen queue was full since this machine started."""
    names, values = (
        line.split() for line in Path("/proc/net/netstat").read_text().splitlines() if line.startswith("TcpExt:")
    )
    return int(dict(zip(names, values, strict=True))["ListenOverflows"])
