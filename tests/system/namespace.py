"""Networks and system files of a test's own, so that what happens there touches nobody else. They need root."""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import pytest

_CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _open_here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _make() -> int:
    _checked(_libc.unshare(_CLONE_NEWNET))
    return _open_here()


class Network:
    """A network namespace with its loopback up. It lives as long as its descriptor and what runs in it: there is
    nothing to remove afterwards."""

    def __init__(self) -> None:
        if os.geteuid():
            pytest.skip("needs root, for a network of its own")
        if shutil.which("ip") is None:
            pytest.skip("needs ip (iproute2)")
        with ThreadPoolExecutor(1) as thread:
            try:
                self._fd = thread.submit(_make).result()
            except PermissionError:
                pytest.skip("needs CAP_SYS_ADMIN, for a network of its own")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """What ``ip link set … netns`` takes."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Make the sockets and start the processes of this thread in the namespace."""
        home = _open_here()
        try:
            _checked(_libc.setns(self._fd, _CLONE_NEWNET))
            try:
                yield
            finally:
                _checked(_libc.setns(home, _CLONE_NEWNET))
        finally:
            os.close(home)

    def run(self, *command: str) -> None:
        """Run a command inside; it must succeed."""
        with self.inside():
            subprocess.run(command, check=True)

    def set(self, name: str, value: str) -> None:
        """Set one of the namespace's own ``/proc/sys/net`` values."""
        with self.inside():
            Path("/proc/sys/net", name).write_text(value)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def replacing(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Return what to put before a command that is to find these files in the place of the system's."""
    mounts = [f"mount --bind {new} {old}" for old, new in files.items()]
    return ("unshare", "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh")
