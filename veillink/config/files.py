"""Read files, and see that they have changed.

Rule: nothing but a regular file is ever read.
"""

import errno
import os
import stat
from pathlib import Path


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
    return _anybody_may(stat.S_IWOTH, path)


def anybody_may_read(path: str) -> bool:
    """Return whether everybody on this host may read the file."""
    return _anybody_may(stat.S_IROTH, path)


def _anybody_may(bit: int, path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) and bool(mode & bit)


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
