"""Fixtures for tests of a fleet."""

from collections.abc import Iterator

import pytest

from tests.fleet.boards import in_memory
from veillink.fleet.scoreboard import Scoreboard


@pytest.fixture
def scoreboard() -> Iterator[Scoreboard]:
    scoreboard = in_memory()
    yield scoreboard
    scoreboard.remove()
    assert not scoreboard.folder.exists()
