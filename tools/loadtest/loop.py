"""A loop on epoll that costs little beside what it measures."""

import contextlib
import errno
import select
from collections.abc import Generator
from typing import Any, Protocol

from ..processes import clock


class HasFileno(Protocol):
    """A socket."""

    def fileno(self) -> int:
        """Return its descriptor."""


Task = Generator[None, int, Any]
IN, OUT, LOST = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP


class Loop:
    """Runs stories: generators that yield to wait for an event on the socket they watch.

    An event on a socket that another story has left open can wake a story for nothing.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.by_fd: dict[int, Task] = {}
        self.alive: set[Task] = set()
        self.running: Task

    def watch(self, sock: HasFileno, events: int = IN | OUT | select.EPOLLET) -> None:
        """Wake the running story when one of these events comes up on the socket."""
        self.by_fd[sock.fileno()] = self.running
        try:
            self.epoll.register(sock, events)
        except FileExistsError:
            self.epoll.modify(sock, events)

    def spawn(self, task: Task) -> None:
        """Begin a story."""
        self.alive.add(task)
        self.running = task
        if next(task, self) is self:
            self.alive.discard(task)

    def run(self, deadline: float) -> None:
        """Run until every story has ended; those that have not at the deadline get ETIMEDOUT."""
        by_fd, alive, poll = self.by_fd, self.alive, self.epoll.poll
        while alive and (left := deadline - clock()) > 0:
            for fd, events in poll(min(left, 1.0)):
                self.running = task = by_fd[fd]
                try:
                    task.send(events)
                except StopIteration:
                    alive.discard(task)
        for task in alive:
            with contextlib.suppress(StopIteration):
                task.throw(OSError(errno.ETIMEDOUT, "out of time"))
            task.close()
