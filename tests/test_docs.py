"""README.md and docs/ say what the program does.

A fenced block is tried by its language: ``csv`` is a rules' file without a problem, ``ini`` a settings file, ``sh`` is
shell, ``json`` a line of the log each. Of ``console run`` every command is run, and prints what is shown.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.fleet.test_merge import state
from veillink.admin import exposition as metrics
from veillink.config.rules import parse
from veillink.config.settings import parser, unknown_variables
from veillink.model import End, RuleOptions

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTIONS = {option for action in parser()._actions for option in action.option_strings}


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(kind: str) -> list[object]:
    """Return the fenced blocks of a kind, each with its page's name, without what a list indents them by."""
    return [
        pytest.param(re.sub(rf"^{indent}", "", text, flags=re.MULTILINE), id=f"{file.name}:{number}")
        for file in PAGES
        for number, (indent, info, text) in enumerate(FENCE.findall(page(str(file))), 1)
        if info == kind
    ]


def anchors(text: str) -> set[str]:
    """Return where a link into a page may lead, as GitHub names it."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_generated_tables_are_those_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/docs", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_table_that_is_not_the_codes_is_seen_and_written_anew(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "docs").mkdir()
    script = tmp_path / "scripts/docs"
    script.write_bytes((ROOT / "scripts/docs").read_bytes())
    stale = tmp_path / "docs/rules.md"
    stale.write_text(page("docs/rules.md").replace("| `weight` |", "| `wait` |"), encoding="utf-8")
    assert subprocess.run([sys.executable, script, "--check"], stdout=subprocess.DEVNULL, check=False).returncode == 1
    subprocess.run([sys.executable, script], stdout=subprocess.DEVNULL, check=True)
    assert stale.read_text(encoding="utf-8") == page("docs/rules.md")


def test_the_readme_is_short() -> None:
    assert len(page("README.md").splitlines()) <= 150


@pytest.mark.parametrize("end", End)
def test_every_ending_is_explained(end: End) -> None:
    assert f"| `{end}` |" in page("docs/logs.md")


@pytest.mark.parametrize("option", sorted(option for option in OPTIONS if option.startswith("--")))
def test_every_option_is_named(option: str) -> None:
    assert re.search(rf"`{option}\b", page("docs/command-line.md"))


def test_every_metric_is_in_the_table() -> None:
    helped = [line.split()[2] for line in metrics.text(state()).decode().splitlines() if line.startswith("# HELP ")]
    assert helped
    missing = [name for name in helped if f"| `{name}` |" not in page("docs/admin.md")]
    assert [name for name in missing if not name.startswith("process_")] == []


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_every_link_leads_somewhere(file: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page(str(file)))):
        path, _, anchor = link.partition("#")
        if not path.startswith(("http://", "https://")):
            target = file.parent / unquote(path) if path else file
            assert target.exists(), link
            assert not anchor or anchor in anchors(page(str(target))), link


@pytest.mark.parametrize("name", sorted(page.name for page in PAGES if page.parent != ROOT))
def test_every_page_can_be_found(name: str) -> None:
    assert f"docs/{name}" in page("README.md")


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_every_file_of_the_repository_that_is_named_exists(file: Path) -> None:
    named = re.findall(r"(?:^|[\s`])((?:deploy|scripts|tests|docs)/[\w./-]*\w)", page(str(file)))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_every_variable_that_is_named_is_an_option(file: Path) -> None:
    text = re.sub(r"^```console run\n.*?^```$", "", page(str(file)), flags=re.MULTILINE | re.DOTALL)
    assert unknown_variables(dict.fromkeys(re.findall(r"\bVEILLINK_[A-Z_]+\b", text), "x")) == ()


@pytest.mark.parametrize("text", blocks("csv"))
def test_rules_that_are_shown_have_no_problem(text: str) -> None:
    found = parse(text.encode(), RuleOptions())
    assert found.problems == ()
    assert found.rules.rules


@pytest.mark.parametrize("text", blocks("ini"))
def test_settings_that_are_shown_are_understood(text: str, tmp_path: Path) -> None:
    (tmp_path / "veillink.conf").write_text(text)
    _, unknown = parser().parse_known_args(["--settings", str(tmp_path / "veillink.conf")])
    assert unknown == []


@pytest.mark.parametrize("text", blocks("json"))
def test_lines_that_are_shown_are_json(text: str) -> None:
    assert all(json.loads(line)["time"] for line in text.splitlines())


@pytest.mark.parametrize("text", [*blocks("sh"), *blocks("console")])
def test_commands_that_are_shown_are_shell_and_use_options_that_exist(text: str) -> None:
    shown = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    script = "\n".join(shown) or text
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    of_veillink = [line for line in script.splitlines() if re.search(r"(^|/)veillink --", line)]
    assert {word for line in of_veillink for word in re.findall(r"(?<!\S)--[a-z-]+", line)} <= OPTIONS


@pytest.mark.parametrize("text", blocks("console run"))
def test_what_is_run_prints_what_is_shown(text: str, tmp_path: Path) -> None:
    printed = ""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for line in text.splitlines():
        if line.startswith("$ "):
            done = subprocess.run(
                ["bash", "-c", line[2:]], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=False
            )
            assert done.stderr == ""
            printed += f"{line}\n{done.stdout}"
    assert printed == text


@pytest.mark.parametrize("kind", ["csv", "ini", "json", "sh", "console", "console run"])
def test_there_are_examples_of_each_kind(kind: str) -> None:
    assert blocks(kind)
