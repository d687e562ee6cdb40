"""Tests of the command line: options and where they come from, --check, exit codes."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
import pytest

import veillink
from veillink import cli
from veillink.cli import main
from veillink.config.settings import from_environment
from veillink.log import LEVELS, Log
from veillink.model import RuleOptions
from veillink.settings import Settings

from .sockets import Sockets, address_of, eventually
from .system.harness import HOST, free_port
from .tls import authority, certificate


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without options from outside."""
    for name in [name for name in os.environ if name.startswith("VEILLINK_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.csv"
    path.write_text("8080,db,5432\n")
    return path


# --- options ---------------------------------------------------------------------------------------------------------


def test_check_names_a_variable_that_is_no_option(
    rules_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEILLINK_NO_WACH", "1")
    assert main(["--check", f"--config={rules_file}"]) == 0
    assert capfd.readouterr().err.startswith("veillink: warning: VEILLINK_NO_WACH is no option; did you mean")


@pytest.mark.parametrize(
    ("argument", "shown"),
    [("--version", f"veillink {veillink.__version__}\n"), ("--help", "--half-close-timeout VALUE")],
)
def test_questions_about_the_program_are_answered_with_0(
    argument: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([argument])
    assert exit_.value.code == 0
    assert shown in capsys.readouterr().out


# --- --check ---------------------------------------------------------------------------------------------------------


def test_check_shows_the_rules_as_understood(rules_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rules_file.write_text("8080,db,5432\n[::1]:8081,::1,80,name=web\n[::1]:8081,::2,80,weight=3\n")
    assert main(["--check", f"--config={rules_file}"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "8080: *:8080 -> db:5432",
        "web: [::1]:8081 -> [::1]:80, [::2]:80 weight=3",
        f"{rules_file}: 2 rules, 0 problems",
    ]


def test_check_says_how_the_file_was_understood(rules_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rules_file.write_text("Port No.;Host;Port\n8080;db;5432\n")
    assert main(["--check", "--strict", f"--config={rules_file}"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"{rules_file}:1: cells are separated by semicolons",
        f"{rules_file}:1: taken as a header",
        "8080: *:8080 -> db:5432",
        f"{rules_file}: 1 rules, 0 problems",
    ]


def test_check_shows_every_problem_and_ends_with_1(rules_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rules_file.write_text("8080,db,5432\n8081,db,0\n8082,-,80\n")
    assert main(["--check", f"--config={rules_file}"]) == 1
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "8080: *:8080 -> db:5432"
    assert [line.split(" ")[0] for line in out[1:3]] == [f"{rules_file}:2:3:", f"{rules_file}:3:2:"]
    assert out[3] == f"{rules_file}: 1 rules, 2 problems"


def test_check_shows_the_certificates_and_what_is_wrong_with_their_files(
    rules_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = datetime(2020, 1, 31, 12, tzinfo=UTC)
    old = authority("ours").issue_cert("old.example", not_after=ends)
    for name, leaf in (("a.pem", certificate("a.example", "*.b.example")), ("old.pem", old)):
        (rules_file.parent / name).write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
        (rules_file.parent / name).chmod(0o600)
    (rules_file.parent / "bad.pem").write_bytes(b"")
    rules_file.write_text(
        "443,db,1,tls=a.pem\n444,db,1,tls=a.pem,target_tls=insecure,target_cert=old.pem\n445,db,1,tls=bad.pem\n"
    )
    assert main(["--check", f"--config={rules_file}"]) == 1
    out = capfd.readouterr().out.splitlines()
    assert out[:2] == [
        "443: *:443 -> db:1 tls=a.pem",
        "444: *:444 -> db:1 target_tls=insecure target_cert=old.pem tls=a.pem",
    ]
    assert out[2].startswith("a.pem: for a.example *.b.example, issued by trustme")
    assert out[3].startswith("old.pem: for old.example, issued by trustme")
    assert out[3].endswith(", until 2020-01-31")
    assert out[4:] == [
        "old.pem: warning: expired on 2020-01-31",
        "bad.pem: holds no certificate",
        f"{rules_file}: 2 rules, 1 problems",
    ]


def test_check_of_a_file_that_is_not_there_is_a_problem(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", f"--config={tmp_path / 'missing'}"]) == 1
    assert capfd.readouterr().out.startswith(f"{tmp_path / 'missing'}: cannot be read: No such file")


def test_check_listens_nowhere(rules_file: Path, sockets: Sockets) -> None:
    taken = address_of(sockets.listener())
    rules_file.write_text(f"{taken},db,5432\n")
    assert main(["--check", f"--config={rules_file}"]) == 0


def test_check_takes_the_defaults_of_the_command_line(rules_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rules_file.write_text("8080,db,5432\n8081,db,5432,idle_timeout=0\n")
    assert main(["--check", f"--config={rules_file}", "--idle-timeout=90s", "--max-lifetime=2h"]) == 0
    assert capfd.readouterr().out.splitlines()[:2] == [
        "8080: *:8080 -> db:5432 idle_timeout=90s max_lifetime=7200s",
        "8081: *:8081 -> db:5432 max_lifetime=7200s",
    ]


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, Log]]:
    """Note what the daemon would be given, and let it end with 7."""
    notes: list[tuple[Settings, Log]] = []

    def run(*given: Any) -> int:
        notes.append(given)
        return 7

    monkeypatch.setattr(cli, "run", run)
    return notes


def test_the_options_reach_the_daemon(rules_file: Path, given: list[tuple[Settings, Log]]) -> None:
    arguments = "--strict --no-watch --drain-timeout=1s --max-connections=9 --relay=copy --keepalive=3s"
    assert main([f"--config={rules_file}", *arguments.split()]) == 7
    assert [settings for settings, _ in given] == [
        Settings(
            config=str(rules_file),
            strict=True,
            watch=False,
            drain_timeout=1.0,
            max_connections=9,
            relay="copy",
            workers=0,
            worker_timeout=30.0,
            pidfile="",
            log_format="text",
            log_level="info",
            access_log=True,
            admin=None,
            defaults=RuleOptions(keepalive=3),
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "json_lines", "level", "access"),
    [
        ([], False, "info", True),
        (["--log-format=json", "--log-level=debug"], True, "debug", True),
        (["--no-access-log"], False, "info", False),
        (["--log-level=warning"], False, "warning", False),
    ],
)
def test_the_options_reach_the_log(
    arguments: list[str], json_lines: bool, level: str, access: bool, given: list[tuple[Settings, Log]]
) -> None:
    assert main(arguments) == 7
    ((_, log),) = given
    assert (log._lines._json, LEVELS[log._lines._level], log.access_lines) == (json_lines, level, access)


def test_a_variable_that_is_no_option_reaches_the_log(
    given: list[tuple[Settings, Log]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEILLINK_COLOUR", "red")
    assert main([]) == 7
    ((settings, _),) = given
    assert settings.warnings == from_environment().warnings == ("VEILLINK_COLOUR is no option",)


def test_a_daemon_that_is_told_to_stop_ends_with_0(
    rules_file: Path, signals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    rules_file.write_text(f"{HOST}:{free_port()},{HOST},1\n")
    running = gevent.spawn(main, [f"--config={rules_file}"])
    out = ""

    def ready() -> bool:
        nonlocal out
        out += capfd.readouterr().out
        return " ready " in out

    eventually(ready)
    os.kill(os.getpid(), signal.SIGTERM)
    assert running.get() == 0
    assert capfd.readouterr().out.endswith(" info stopped\n")


@pytest.mark.parametrize(
    ("text", "arguments"), [("", []), ("8080,db,0\n", []), ("8080,db,80\n8081,db,0\n", ["--strict"])]
)
def test_a_daemon_that_cannot_start_ends_with_1(
    text: str, arguments: list[str], rules_file: Path, signals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    rules_file.write_text(text)
    assert main([f"--config={rules_file}", *arguments]) == 1
    assert "not started: " in capfd.readouterr().out


# --- as a program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "veillink"], [str(Path(sys.executable).with_name("veillink"))]]
)
def test_it_is_a_module_and_a_command(command: list[str], rules_file: Path) -> None:
    done = subprocess.run(
        [*command, "--check", f"--config={rules_file}"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("8080: *:8080 -> db:5432\n")


def test_descriptors_that_the_parent_has_closed_are_opened() -> None:
    code = "import os; from veillink import cli; os.closerange(0, 3); cli.main(['--check', '--config=/']); "
    done = subprocess.run([sys.executable, "-c", code + "os._exit(os.dup(1))"], timeout=30, check=False)
    assert done.returncode >= 3  # else a socket might have become descriptor 1


def test_a_reader_that_leaves_early_gets_no_traceback(rules_file: Path) -> None:
    rules_file.write_text("".join(f"{port},db,5432\n" for port in range(10_000, 13_000)))  # more than a pipe holds
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "veillink", "--check", f"--config={rules_file}"]
    with os.fdopen(writer) as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
