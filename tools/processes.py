"""Processes for a measure: which CPU they have, how they are started, and that none outlives its parent."""

import ctypes
import os
import platform
import resource
import signal
import subprocess
import time
from typing import BinaryIO

HOST = "127.0.0.1"
CPUS = sorted(os.sched_getaffinity(0))

clock = time.monotonic

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # here, since a forked child should load nothing


class ToolError(Exception):
    """A figure could not be had."""


def pin(cpu: int) -> None:
    """Keep this process on one of our CPUs, the last where there are fewer."""
    os.sched_setaffinity(0, {CPUS[min(cpu, len(CPUS) - 1)]})


def settle(cpu: int) -> None:
    """Keep this child on one CPU, and have the kernel kill it when its parent ends, however that ends."""
    pin(cpu)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command: list[str], folder: str, words: BinaryIO, cpu: int) -> subprocess.Popen[bytes]:
    """Start a program on a CPU.

    Args:
        command: its words.
        folder: where it runs.
        words: the file for all that it says.
        cpu: see ``pin``.
    """
    return subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=words,
        stderr=words,
        cwd=folder,
        env={key: value for key, value in os.environ.items() if not key.startswith("VEILLINK_")},
        start_new_session=True,  # Ctrl+C is for us alone, and what it forks can be ended with it
        preexec_fn=lambda: settle(cpu),
    )


def raise_fd_limit() -> int:
    """Allow this process as many descriptors as it may have, and return how many that are."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit


def system() -> dict[str, str]:
    """Return what the figures were taken with."""
    return {"kernel": f"{platform.system()} {platform.release()}", "python": platform.python_version()}
