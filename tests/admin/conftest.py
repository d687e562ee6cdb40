"""Fixtures for tests of the admin endpoint."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tests.admin.asking import MANY, Asker, Open
from tests.sockets import Journal, Sockets
from tests.system.harness import HOST, free_port
from veillink.admin.http import Slots
from veillink.admin.pages import Admin
from veillink.model import Address, RuleOptions
from veillink.net.listening import listen


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def fails() -> list[str]:
    """Names of the sources that raise."""
    return []


@pytest.fixture
def open_admin(port: int, journal: Journal, fails: list[str]) -> Iterator[Open]:
    """Open an admin endpoint that shows much: ``open_admin(names=["a.name"], token="s3cret", most=3)``."""
    opened: list[Admin] = []

    def source(name: str, answer: Any) -> Callable[[], Any]:
        def _source() -> Any:
            if name in fails:
                raise RuntimeError(f"{name} fails")
            return answer

        return _source

    def _open(names: Sequence[str] = (), token: str = "", most: int = 3, **patience: float) -> Admin:
        sources = SimpleNamespace(
            status=source("status", {}), connections=source("connections", MANY), not_ready_reason=source("reason", "")
        )
        listening = listen(Address(HOST, port), RuleOptions())
        opened.append(Admin([listening], names, token, Slots(most, **patience), sources, journal.log))
        return opened[-1]

    yield _open
    for admin in opened:
        admin.close()


@pytest.fixture
def admin(open_admin: Open) -> Admin:
    """An admin endpoint that is patient for half a second."""
    return open_admin(longest=0.5)


@pytest.fixture
def ask(sockets: Sockets, port: int) -> Asker:
    return Asker(sockets, port)
