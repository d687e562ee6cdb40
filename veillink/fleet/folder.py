"""Keep files in a temporary folder of our own, which the next program removes when nobody holds it any more.

Rule: it is opened by descriptor, and used only while it is ours alone; no link is ever followed.
"""

import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What is the file's fault, and no lack of descriptors.
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EPERM, errno.EACCES)


class Folder:
    """A folder whose files have one writer each, and are replaced whole.

    Args:
        path: where it is, or is to be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = -1
        self._removed = False
        self._lock = threading.Lock()

    def keep(self) -> None:
        """Make it, unless it is there, and hold it: what nobody holds is removed.

        The lock lasts until the last process that has inherited it ends (flock(2)).

        Raises:
            OSError: it is not ours alone, or there is no place for it.
        """
        with self._lock:
            if self._removed:
                raise FileNotFoundError(errno.ENOENT, "it was removed")
            if self._held >= 0 and _is(self.path, self._held):
                return
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            fd = _opened(self.path)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise
            before, self._held = self._held, fd
            if before >= 0:
                os.close(before)

    def names(self) -> list[str]:
        """Return what is in it.

        Raises:
            OSError: no descriptor is left.
        """
        try:
            with self._inside() as folder:
                return os.listdir(folder)  # noqa: PTH208
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return []

    def read(self, name: str) -> bytes:
        """Return what is in a file, or nothing.

        Raises:
            OSError: no descriptor is left.
        """
        try:
            with self._inside() as folder, os.fdopen(os.open(name, os.O_RDONLY | _FILE, dir_fd=folder), "rb") as file:
                return file.read()
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return b""

    def write(self, name: str, data: bytes) -> None:
        """Replace a file, and make the folder again where somebody has removed it (RemoveIPC in logind.conf(5)).

        Raises:
            OSError: there is no place for it, or no descriptor is left; what it held before is gone then, too.
        """
        self.keep()
        try:
            self._replace(name, data)
        except OSError as error:
            self.unlink(name)
            if error.errno != errno.ENOSPC:
                raise
            self._replace(name, data)  # there may be room for one of them

    def _replace(self, name: str, data: bytes) -> None:
        part = f"{name}.new"
        with self._inside() as folder:
            try:
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FILE, 0o600, dir_fd=folder)
                with os.fdopen(descriptor, "wb", 0) as file:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[file.write(rest) :]
                os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=folder)
                raise

    def changed(self, name: str) -> float:
        """Return when a file was written, in seconds of the clock, or 0."""
        with contextlib.suppress(OSError), self._inside() as folder:
            return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
        return 0.0

    def unlink(self, name: str) -> None:
        """Remove a file."""
        with contextlib.suppress(OSError), self._inside() as folder:
            os.unlink(name, dir_fd=folder)

    def remove(self) -> None:
        """Remove the folder for good, with all that is in it."""
        with self._lock, contextlib.suppress(OSError):
            self._removed = True
            _remove(self.path, lock=False)

    @contextmanager
    def _inside(self) -> Iterator[int]:
        folder = _opened(self.path)
        try:
            yield folder
        finally:
            os.close(folder)


def remove_unheld(home: Path, pattern: str) -> None:
    """Remove folders of ours that no process holds any more, since all of theirs were killed."""
    for path in home.glob(pattern):
        with contextlib.suppress(OSError):
            _remove(path, lock=True)


def _remove(path: Path, *, lock: bool) -> None:
    folder = _opened(path)
    try:
        if lock:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(folder):  # noqa: PTH208
            os.unlink(name, dir_fd=folder)
        path.rmdir()
    finally:
        os.close(folder)


def _opened(path: Path) -> int:
    """Return a descriptor of a folder.

    Raises:
        OSError: it is no folder, or not ours alone.
    """
    folder = os.open(path, _DIRECTORY)
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(folder)
        raise PermissionError(errno.EPERM, "it is not ours alone")
    return folder


def _is(path: Path, folder: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(folder))
    except OSError:
        return False
