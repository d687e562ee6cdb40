"""Keep the process's number in a file.

Rule: a file of somebody else who runs is never touched.
"""

import contextlib
import errno
import os
import stat
import time
from pathlib import Path
from typing import Final

from veillink.model import StartupError

_LONGEST_NUMBER: Final = 20
_STARTTIME: Final = 22 - 3  # the field of proc_pid_stat(5), counted behind the name
_ROUNDING: Final = 2.0  # seconds that clocks and files' times may differ by


def check_pid(path: str, instead_of: int = 0) -> None:
    """See that this process's number may be written to a file, if one is asked for.

    Args:
        path: of the file; it may be missing.
        instead_of: the process whose place this one takes.

    Raises:
        StartupError: it must not, or cannot.
    """
    if not path:
        return
    try:
        Path(path).parent.stat()
        number, written = _read_pid(path)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None
    if number not in (0, instead_of, os.getpid()) and _may_have_written(number, written):
        raise StartupError(f"{path} has the number of process {number}, which runs: stop it first, or remove the file")


def write_pid(path: str, instead_of: int = 0) -> None:
    """Write this process's number to a file, if one is asked for; see ``check_pid``.

    It is a new file, renamed over the one that may be there: nobody reads half of it.

    Raises:
        StartupError: it must not, or cannot.
    """
    check_pid(path, instead_of)
    if not path:
        return
    part = Path(f"{path}.{os.getpid()}")
    try:
        part.unlink(missing_ok=True)
        with part.open("x") as file:
            file.write(f"{os.getpid()}\n")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise _cannot_write(path, error) from None


def remove_pid(path: str) -> None:
    """Remove that file, unless somebody else's number is in it by now."""
    if path:
        with contextlib.suppress(OSError, ValueError):
            if _read_pid(path)[0] == os.getpid():
                Path(path).unlink()


def _cannot_write(path: str, error: Exception) -> StartupError:
    return StartupError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def _read_pid(path: str) -> tuple[int, float]:
    """Return the number in a file and when it was written, or nothing where there is no number.

    Raises:
        OSError: it is no regular file, and neither waited for nor followed, or cannot be read.
        ValueError: the path holds a NUL.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return 0, 0.0
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    text = Path(path).read_bytes()[:_LONGEST_NUMBER].strip()
    return int(text) if text.isdigit() else 0, found.st_mtime


def _may_have_written(number: int, written: float) -> bool:
    """Return whether a process runs that may have written a file then: not one that has begun since."""
    try:
        os.kill(number, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    with contextlib.suppress(OSError, ValueError, IndexError):
        began = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[_STARTTIME])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
        return age > time.time() - written - _ROUNDING
    return True
