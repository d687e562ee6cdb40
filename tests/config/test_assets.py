"""What stands in the files that rules name."""

from pathlib import Path

import pytest

from veillink.config import assets as module
from veillink.config.assets import Assets
from veillink.config.file_source import read
from veillink.config.files import read_regular
from veillink.config.networks import parse_networks
from veillink.config.source import open_source
from veillink.limits import Ranges
from veillink.model import RuleOptions

DEFAULT = RuleOptions()


def test_the_networks_of_a_list_are_part_of_the_rule(tmp_path: Path) -> None:
    (tmp_path / "config.csv").write_text("8080,host,80,allow=10.0.0.1 @ours.txt\n8081,host,80\n")
    (tmp_path / "ours.txt").write_bytes(b"\xef\xbb\xbf192.0.2.0/24  # them\r\n")
    found = open_source(str(tmp_path / "config.csv"), DEFAULT).load()
    one, other = found.rules.rules
    assert found.problems == ()
    assert found.rules.files == ("ours.txt",)
    assert one.options.allow.networks == parse_networks("10.0.0.1").networks
    assert one.options.allow.listed == (Ranges(parse_networks("192.0.2.0/24").networks),)
    assert str(one.options.allow) == "10.0.0.1 @ours.txt"
    assert not other.options.allow
    (tmp_path / "ours.txt").write_text("192.0.2.0/25\n")
    assert open_source(str(tmp_path / "config.csv"), DEFAULT).load().rules.rules[0] != one


def test_a_bad_list_takes_its_rules_away_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "config.csv").write_text("8080,host,80,deny=@bad.txt\n8081,host,80,deny=@gone.txt\n8082,host,80\n")
    (tmp_path / "bad.txt").write_text("10.0.0.0/8\n10.0.0.1/8\nnonsense\n")
    found = open_source(str(tmp_path / "config.csv"), DEFAULT).load()
    assert [rule.name for rule in found.rules.rules] == ["8082"]
    shown = [problem.at("config.csv") for problem in found.problems]
    assert [line.partition(": ")[0] for line in shown] == ["bad.txt:2", "bad.txt:3", "gone.txt"]
    assert "10.0.0.0/8" in shown[0]
    assert found.rules.files == ("bad.txt", "gone.txt")


def test_a_list_that_was_not_written_is_not_read_again_and_one_with_the_same_bytes_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.csv").write_text("8080,host,80,allow=@a.txt\n8081,host,80,deny=@a.txt @b.txt\n")
    (tmp_path / "a.txt").write_text("10.0.0.0/8\n")
    (tmp_path / "b.txt").write_text("nonsense\n")
    reads: list[str] = []

    def counted(path: str, most: int) -> bytes:
        reads.append(Path(path).name)
        return read_regular(path, most)

    monkeypatch.setattr(module, "read_regular", counted)
    assets = Assets()

    def ranges() -> Ranges:
        found = read(str(tmp_path / "config.csv"), DEFAULT, assets)
        assert [problem.file for problem in found.problems] == ["b.txt"]
        return found.rules.rules[0].options.allow.listed[0]

    first = ranges()
    assert ranges() is first
    assert reads == ["a.txt", "b.txt"]
    (tmp_path / "part").write_text("10.0.0.0/8\n")
    (tmp_path / "part").rename(tmp_path / "a.txt")
    assert ranges() is first
    assert reads == ["a.txt", "b.txt", "a.txt"]
    (tmp_path / "a.txt").write_text("10.0.0.0/9\n")
    assert ranges() != first


def test_a_list_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "config.csv").write_text("8080,host,80,allow=@a.txt\n")
    assets = Assets()
    for text in (None, "10.0.0.0/8\n", None):
        (tmp_path / "a.txt").unlink(missing_ok=True)
        if text:
            (tmp_path / "a.txt").write_text(text)
        found = read(str(tmp_path / "config.csv"), DEFAULT, assets)
        assert bool(found.rules.rules) is bool(text)
        assert bool(found.problems) is not bool(text)
