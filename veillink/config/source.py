"""Read the rules' file.

Rule: nothing but a regular file is ever read, and one that cannot be read is a problem like any other.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final

from veillink.config.rows import MAX_FILE, Problem
from veillink.config.rules import Parsed, parse
from veillink.model import RuleOptions

# Errors that stay until the file or its path is another one, which is seen; any other may pass by itself.
_LASTING: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
)


def read_rules(path: str, defaults: RuleOptions) -> Parsed:
    """Read and parse the rules' file. A file that cannot be read is a problem like any other.

    Args:
        path: of a regular file of at most ``rows.MAX_FILE`` bytes.
        defaults: for what the file leaves open.
    """
    try:
        return load(path, defaults)
    except (OSError, ValueError) as error:
        return unreadable(error)


def load(path: str, defaults: RuleOptions) -> Parsed:
    """Read and parse the rules' file.

    Raises:
        OSError: it cannot be read, or is not regular.
        ValueError: the path holds a NUL.
    """
    found = parse(read_regular(path, MAX_FILE + 1), defaults, path)
    if not (found.rules.rules or found.problems):
        return found._replace(problems=(Problem(0, 0, "has no rule"),))
    return found


def unreadable(error: Exception) -> Parsed:
    """Return what a file says that cannot be read."""
    return Parsed(problems=(Problem(0, 0, f"cannot be read: {getattr(error, 'strerror', None) or error}"),))


def may_pass(error: Exception) -> bool:
    """Return whether the same file may be read later, for all that is known."""
    return not (isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _LASTING))


def read_regular(path: str, most: int) -> bytes:
    """Return the first ``most`` bytes of a regular file. A FIFO, a device or a directory is refused, never waited for.

    Raises:
        OSError: it cannot be read, or is not regular.
        ValueError: the path holds a NUL.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for its writer
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
        data = bytearray()
        while len(data) < most and (part := os.read(descriptor, most - len(data))):
            data += part
        return bytes(data)
    finally:
        os.close(descriptor)


def anybody_may_write(path: str) -> bool:
    """Return whether everybody on this host may change the file."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IWOTH)


Signature = tuple[int, ...] | None


def signature(path: str) -> Signature:
    """Return what differs once another file is at the path or this one has been written; ``None`` when there is none.

    ``cp -p`` and tar leave size and time of modification as they were; the time of change cannot be set.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_dev, found.st_ino
