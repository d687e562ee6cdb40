"""A worker, as gunicorn has it."""

import pytest
from gunicorn.workers import base

from veillink.fleet.control import Heartbeat
from veillink.fleet.worker import Forwarder, Worker, app
from veillink.model import Settings


def test_its_sign_of_life_is_no_file() -> None:
    assert getattr(base, "WorkerTmp") is Heartbeat  # noqa: B009 - gunicorn's types have another one there
    assert issubclass(Worker, base.Worker)


def test_as_a_web_application_it_says_what_it_is() -> None:
    said: list[str] = []
    (body,) = app({}, lambda status, headers: said.append(status))
    assert said == ["501 Not Implemented"]
    assert b"veillink.workers.Worker" in body


def test_it_is_asked_for_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gunicorn", "--whatever"])
    monkeypatch.setenv("VEILLINK_CONFIG", "other.csv")
    found: Settings = app.settings()
    assert found.config == "other.csv"
    assert isinstance(app, Forwarder)
