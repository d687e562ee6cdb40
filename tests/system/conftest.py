"""Fixtures for tests that run the real program."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .admin_client import AdminClient
from .ends import Ends
from .harness import HOST, Backend, Handler, VeilLink, running
from .manager import Manager
from .namespace import Network
from .tls_ends import Pem, TlsEnds

Start = Callable[..., VeilLink]
Serve = Callable[..., Backend]
Forward = Callable[..., VeilLink]
Hold = Callable[..., Ends]
HoldTls = Callable[..., TlsEnds]


@pytest.fixture
def network() -> Iterator[Network]:
    """Run the test, its VeilLink and its peers in a network of their own. It has to be asked for before ``start``."""
    with Network() as network, network.inside():
        yield network


@pytest.fixture(params=["auto", "copy"])
def relay(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test twice: bulk goes by splice, and it is copied."""
    monkeypatch.setenv("VEILLINK_RELAY", request.param)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., VeilLink]]:
    """Start a VeilLink with these rows and options; afterwards it is checked and stopped (see ``harness.running``)."""
    with ExitStack() as stack:

        def _start(rows: str, *options: str, **more: Any) -> VeilLink:
            return stack.enter_context(running(rows, *options, folder=tmp_path, **more))

        yield _start


@pytest.fixture
def backend() -> Iterator[Callable[..., Backend]]:
    """Start a backend; afterwards its handlers must not have failed."""
    with ExitStack() as stack:

        def _backend(handler: Handler, **more: Any) -> Backend:
            return stack.enter_context(Backend(handler, **more))

        yield _backend


@pytest.fixture
def forward(start: Callable[..., VeilLink], backend: Callable[..., Backend]) -> Forward:
    """Start a VeilLink whose ``port`` forwards to a backend with this handler.

    ``forward(handler, "idle_timeout=4s", "--drain-timeout=1s")``: options of the row, then of the command line.
    """

    def _forward(handler: Handler, row: str = "", *options: str, **more: Any) -> VeilLink:
        port = backend(handler).port
        return start(f"{HOST}:{{port}},{HOST},{port},{row}\n", *options, **more)

    return _forward


@pytest.fixture
def hold(start: Callable[..., VeilLink]) -> Iterator[Hold]:
    """Start a VeilLink of whose connections the test holds both ends: ``hold("idle_timeout=4s")``."""
    with ExitStack() as stack:

        def _hold(row: str = "", **more: Any) -> Ends:
            return stack.enter_context(Ends(start, row, **more))

        yield _hold


@pytest.fixture
def pem(tmp_path: Path) -> Pem:
    """Write certificates beside the rules' file; ``ca.pem`` and ``cert.pem`` are there."""
    return Pem(tmp_path)


@pytest.fixture
def hold_tls(start: Start, pem: Pem) -> Iterator[HoldTls]:
    """Like ``hold``, with ends that speak TLS: ``hold_tls("tls=cert.pem")``."""
    with ExitStack() as stack:

        def _hold(row: str, **more: Any) -> TlsEnds:
            return stack.enter_context(TlsEnds(start, row, **more))

        yield _hold


@pytest.fixture
def admin() -> AdminClient:
    """Choose a place for a admin; its ``option`` opens it."""
    return AdminClient()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    """Be the service manager; its ``env`` lets a program find it."""
    with tempfile.TemporaryDirectory(prefix="vl") as folder:  # a name that leaves room for a path of 107 bytes
        manager = Manager(f"@veillink-test-{os.getpid()}" if request.param == "abstract" else f"{folder}/notify")
        yield manager
        manager.close()
