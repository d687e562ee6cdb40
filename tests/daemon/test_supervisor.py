"""Tests of what the service manager is told, and of the sockets that it hands over."""

import os
import resource
import socket
import subprocess
import sys
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


# --- sockets that are handed over ------------------------------------------------------------------------------------

TAKE = """
import os, sys
from veillink.daemon.supervisor import inherited
environ = {"LISTEN_PID": sys.argv[1] or str(os.getpid()), "LISTEN_FDS": sys.argv[2]}
found = inherited(environ)
print([str(address) for address in found], os.get_inheritable(3), os.path.exists("/proc/self/fd/4"))
"""


def taken(descriptors: list[int], pid: str, count: str) -> str:
    """Return what a process takes that has these descriptors from 3 on."""
    moves = " ".join(f"{number}<&{descriptor}" for number, descriptor in enumerate(descriptors, 3))
    command = ["bash", "-c", f'exec "$@" {moves}', "-", sys.executable, "-c", TAKE, pid, count]
    kept = tuple(descriptors)
    done = subprocess.run(command, pass_fds=kept, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("pid", "count", "takes"),
    [("", "4", True), ("", "9", True), ("1", "4", False), ("", "", False), ("", "-1", False), ("", "\u00b3", False)],
)
def test_listening_sockets_are_taken_from_who_means_this_process_and_all_else_is_left(
    pid: str, count: str, takes: bool, tmp_path: Path
) -> None:
    with (
        socket.socket() as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        (tmp_path / "file").open("w") as file,
    ):
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        found = [f"127.0.0.1:{tcp.getsockname()[1]}", f"unix:{tmp_path}/socket"] if takes else []
        assert taken([each.fileno() for each in (tcp, udp, unix, file)], pid, count) == f"{found} {not takes} True"
