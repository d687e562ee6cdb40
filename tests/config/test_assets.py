"""What stands in the files that rules name."""

from pathlib import Path

from veillink.config.networks import parse_networks
from veillink.config.source import open_source
from veillink.model import RuleOptions

DEFAULT = RuleOptions()


def test_the_networks_of_a_list_are_part_of_the_rule(tmp_path: Path) -> None:
    (tmp_path / "config.csv").write_text("8080,host,80,allow=10.0.0.1 @ours.txt\n8081,host,80\n")
    (tmp_path / "ours.txt").write_bytes(b"\xef\xbb\xbf192.0.2.0/24  # them\r\n")
    found = open_source(str(tmp_path / "config.csv"), DEFAULT).load()
    one, other = found.rules.rules
    assert found.problems == ()
    assert found.rules.files == ("ours.txt",)
    assert one.options.allow.all == parse_networks("10.0.0.1 192.0.2.0/24").networks
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
