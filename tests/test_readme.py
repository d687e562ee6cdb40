"""The README says what the program does."""

from pathlib import Path

import pytest

from tests.fleet.test_merge import state
from veillink.admin import exposition as metrics
from veillink.config.options import OPTIONS
from veillink.config.settings import parser
from veillink.model import End

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")


def test_the_option_table_is_the_one_in_the_code() -> None:
    rows = [
        line for line in README.splitlines() if line.startswith("| `") and line.split(" | ")[1] in ("rule", "target")
    ]
    assert rows == [
        f"| `{option.name}` | {option.scope} | {f'`{option.default}`' if option.default else ''} | {option.help} |"
        for option in OPTIONS
    ]


@pytest.mark.parametrize("end", End)
def test_every_ending_is_explained(end: End) -> None:
    assert f"| `{end}` |" in README


@pytest.mark.parametrize("option", [o for action in parser()._actions for o in action.option_strings if o[:2] == "--"])
def test_every_option_is_named(option: str) -> None:
    assert option in README


def test_every_metric_is_in_the_table() -> None:
    helped = [line.split()[2] for line in metrics.text(state()).decode().splitlines() if line.startswith("# HELP ")]
    table = "".join(line for line in README.splitlines() if line.startswith("| `veillink_"))
    assert helped
    assert [name for name in helped if f"`{name}`" not in table and not name.startswith("process_")] == []
