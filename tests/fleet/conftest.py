"""Fixtures for tests of a fleet."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from veillink.fleet.control import Control
from veillink.fleet.scoreboard import Scoreboard


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def scoreboard(home: Path) -> Iterator[Scoreboard]:
    scoreboard = Scoreboard([home], Control())
    scoreboard.keep()
    yield scoreboard
    scoreboard.remove()
    assert list(home.iterdir()) == []


@pytest.fixture
def folder(home: Path, scoreboard: Scoreboard) -> Path:
    """Return the folder of that scoreboard."""
    (folder,) = home.iterdir()
    return folder
