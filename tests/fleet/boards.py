"""Scoreboards in the test process."""

from pathlib import Path

from veillink.fleet.control import Control
from veillink.fleet.scoreboard import Scoreboard


def in_memory() -> Scoreboard:
    scoreboard = Scoreboard([Path("/dev/shm")], Control())
    scoreboard.keep()
    return scoreboard
