"""Tests of what the service manager is told, and of the file with our number."""

import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.system import manager
from veillink.daemon.supervisor import ServiceNotifier

_LIMIT = resource.RLIMIT_NOFILE


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[manager.Manager]:
    listening = manager.Manager(str(tmp_path / "notify"))
    yield listening
    listening.close()


@pytest.fixture
def manage() -> Iterator[Callable[[dict[str, str]], ServiceNotifier]]:
    """Find a service manager as these variables tell."""
    with ExitStack() as stack:
        yield lambda environ: stack.enter_context(closing(ServiceNotifier(environ)))


Manage = Callable[[dict[str, str]], ServiceNotifier]


def test_a_sign_of_life_needs_no_free_descriptor(listening: manager.Manager, manage: Manage) -> None:
    told = manage(listening.env | {"WATCHDOG_USEC": "3000000"})
    soft, hard = resource.getrlimit(_LIMIT)
    resource.setrlimit(_LIMIT, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            socket.socket()
        for _ in range(2):
            told.alive()
    finally:
        resource.setrlimit(_LIMIT, (soft, hard))
    for _ in range(2):
        assert listening.told() == {"WATCHDOG": "1"}


def test_a_manager_that_comes_later_or_anew_is_told(manage: Manage, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    told = manage({"NOTIFY_SOCKET": str(path)})
    told.alive()
    for status in ("one", "two"):
        listening = manager.Manager(str(path))
        told.ready(status)
        told.alive()
        assert listening.told() == {"READY": "1", "STATUS": status}
        assert listening.told() == {"WATCHDOG": "1"}
        listening.close()
        path.unlink()
        told.alive()


def test_a_manager_that_does_not_listen_is_never_waited_for(listening: manager.Manager, manage: Manage) -> None:
    told = manage(listening.env)
    for _ in range(5000):  # more than its queue has room for
        told.alive()


def test_one_socket_is_all_it_takes(listening: manager.Manager, manage: Manage) -> None:
    told = manage(listening.env)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    told.ready("")
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
