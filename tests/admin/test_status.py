"""The state of a process, as plain values."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.sockets import Journal
from veillink.admin.status import ProcessStatus, not_ready_reason
from veillink.config.rows import Problem
from veillink.model import Address
from veillink.stats.ledger import Ledger, TlsFacts


@pytest.fixture
def status(journal: Journal) -> ProcessStatus:
    server = SimpleNamespace(
        ledger=Ledger(), limiter=SimpleNamespace(limit=7, in_use=0), down={}, rules_down=list, status=list
    )
    return ProcessStatus("config.csv", server, 1024, journal.log)


def test_it_is_what_json_has(status: ProcessStatus) -> None:
    found = json.loads(json.dumps(status.status()))
    assert found["phase"] == "starting"
    assert found["limits"] == {"connections": 7, "descriptors": 1024}
    assert found["last_reload"] == {"time": None, "result": None, "problems": []}
    assert found["process"]["process_open_fds"] > 0


def test_what_became_of_the_file_is_told_with_its_problems(status: ProcessStatus) -> None:
    status.count_reload("applied", ())
    status.count_reload("refused", (Problem(3, 2, "is wrong"),))
    found = status.status()
    assert status.reads == 2
    assert found["reloads"] == {"applied": 1, "refused": 1}
    assert found["last_reload"]["problems"] == ["config.csv:3:2: is wrong"]


def test_what_a_client_has_said_in_tls_is_told_where_it_has(status: ProcessStatus) -> None:
    ledger = status._server.ledger
    first, second = (ledger.open("web", Address("192.0.2.1", 7), Address("", 80), 0.0, Mock()) for _ in range(2))
    first.tls = TlsFacts("TLSv1.3", "a.example", "", "me")
    told, plain = status.connections()
    assert told == plain | {"id": first.number, "tls": "TLSv1.3", "sni": "a.example", "client_cert": "me"}
    assert plain["id"] == second.number
    assert not plain.keys() & {"tls", "sni", "alpn", "client_cert"}


@pytest.mark.parametrize(
    ("phase", "down", "reason"),
    [("running", [], ""), ("running", ["web", "db"], "not listening: web, db"), ("draining", ["web"], "draining")],
)
def test_why_no_more_clients_should_come(phase: str, down: list[str], reason: str) -> None:
    assert not_ready_reason(phase, down) == reason
