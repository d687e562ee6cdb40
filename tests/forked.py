"""Processes that are forked from the test, as workers are from their master."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Cfg:
    """gunicorn's configuration, as far as a worker's heartbeat looks at it."""

    def __init__(self, timeout: float = 30) -> None:
        self.timeout = timeout


class Forked:
    """A process that does what it is told, one thing after the other, and says what came of it."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        told, self._tell = os.pipe()
        self._hear, said = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                own = os.getpid()
                for step in steps:
                    os.read(told, 1)
                    outcome = _outcome(step)
                    if os.getpid() != own:  # it was forked in that step, and has come back from it
                        break
                    os.write(said, f"{outcome}\n".encode())
                else:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(told)
        os.close(said)

    def begin(self) -> None:
        """Have it take its next step."""
        os.write(self._tell, b".")

    def end(self) -> str:
        """Wait for the end of that step, and return what came of it."""
        return os.read(self._hear, 1000).decode().rstrip("\n")

    def does(self) -> str:
        """Have it take its next step, and return what came of it."""
        self.begin()
        return self.end()

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._tell)
        os.close(self._hear)


def _outcome(step: Callable[[], object]) -> object:
    try:
        return step()
    except OSError as error:
        return error.strerror


@contextmanager
def forked(*steps: Callable[[], object]) -> Iterator[Forked]:
    """Fork a process for the time of a block."""
    process = Forked(*steps)
    try:
        yield process
    finally:
        process.kill()
