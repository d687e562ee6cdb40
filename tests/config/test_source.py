"""Where rules come from."""

from pathlib import Path

from tests.sockets import eventually
from veillink.config.rules import Parsed
from veillink.config.source import open_source
from veillink.model import RuleOptions


def log(level: str, message: str, **fields: object) -> None:
    raise AssertionError(message)


def test_what_the_command_line_names_is_loaded_and_followed(hub: None, tmp_path: Path) -> None:
    path, followed = tmp_path / "rules.csv", list[Parsed]()
    path.write_text("8080,db,5432\n")
    source = open_source(str(path), RuleOptions(idle_timeout=7))
    source.follow(followed.append, log, watch=False)
    eventually(lambda: followed)
    assert followed == [source.load()]
    assert followed[0].rules.rules[0].options.idle_timeout == 7
    path.write_text("8080,db,5432\n8081,db,5432\n")
    source.refresh_soon()
    eventually(lambda: followed[1:])
    assert followed[1:] == [source.load()]
    source.close()


def test_what_is_not_followed_is_closed_as_well(tmp_path: Path) -> None:
    source = open_source(str(tmp_path / "none"), RuleOptions())
    assert source.load().problems
    source.close()
