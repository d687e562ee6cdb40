"""Options, environment and settings file; what is said about the rules; exit codes."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import veillink

from .conftest import Forward, Serve, Start
from .harness import HOST, VEILLINK, VeilLink, echo, eventually, free_port, listens, read_exactly, read_to_eof

# What should take 0.2 s may take longer on a busy machine; what hangs takes for ever.
SOON = 10.0


def run(
    *arguments: str | bytes,
    before: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    program: tuple[str, ...] = (str(VEILLINK),),
) -> subprocess.CompletedProcess[str]:
    """Run VeilLink to its end, which has to come soon and without a traceback."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VEILLINK_")}
    done = subprocess.run(
        [*before, *program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SOON,
        encoding="utf-8",
        errors="surrogateescape",
        env=clean | (env or {}),
        cwd=cwd,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on: a rule for it can be read, but not started."""
    with socket.create_server((HOST, 0)) as other:
        yield other.getsockname()[1]


@pytest.fixture
def rules(tmp_path: Path, taken: int) -> Path:
    """A good rules' file whose only rule cannot be started."""
    path = tmp_path / "rules.csv"
    path.write_text(f"{HOST}:{taken},backend.example,80\n")
    return path


# --- --check ---------------------------------------------------------------------------------------------------------


def test_check_shows_the_rules_as_they_are_understood_and_binds_nothing(tmp_path: Path, taken: int) -> None:
    path = tmp_path / "rules.csv"
    path.write_text(
        f"{HOST}:{taken},Backend.Example,80,name=web,idle_timeout=90s\n"
        f"{HOST}:{taken},::1,81,weight=3\n"
        f"{HOST}:{taken},10.0.0.9,82,backup=yes\n"
        "# the port of the first rule is in use: only who binds it would notice\n"
        "[::1]:8000-8010,10.0.0.1,9000-9010\n"
    )
    done = run("--config", str(path), "--check")
    assert done.stdout.splitlines() == [
        f"web: {HOST}:{taken} -> backend.example:80, [::1]:81 weight=3, 10.0.0.9:82 backup idle_timeout=90s",
        "[::1]:8000-8010: [::1]:8000-8010 -> 10.0.0.1:9000-9010",
        f"{path}: 2 rules, 0 problems",
    ]
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_each_problem_with_file_line_and_column_and_exits_1(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text('8080,10.0.0.1,80\n70000,10.0.0.1,80\n8081,10.0.0.1\n8082,-x-,80,colour=red\n8083,a.b,1"\n')
    done = run("--config", str(path), "--check")
    problems = [line for line in done.stdout.splitlines() if line.startswith(f"{path}:")]
    assert [line.removeprefix(str(path)).split(": ")[0] for line in problems[:-1]] == [
        ":2:1",
        ":3:2",
        ":4:2",
        ":4:4",
        ":5:3",
    ]
    assert problems[0].endswith('port "70000" is not between 1 and 65535')
    assert done.stdout.splitlines()[-1] == f"{path}: 1 rules, 5 problems"
    assert done.returncode == 1


def test_check_calls_a_file_without_any_rule_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("# nothing here yet\n")
    done = run("--config", str(path), "--check")
    assert "no rule" in done.stdout
    assert done.returncode == 1


@pytest.mark.alone
def test_check_of_ten_thousand_rows_takes_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("".join(f"{port},backend-{port}.example,80,weight=2\n" for port in range(10_001, 20_001)))
    start = time.monotonic()
    done = run("--config", str(path), "--check")
    assert time.monotonic() - start < 4  # 0.6 s on a quiet machine
    assert done.stdout.endswith(": 10000 rules, 0 problems\n")
    assert len(done.stdout.splitlines()) == 10_001


def test_check_into_a_reader_that_has_seen_enough_ends_quietly(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("".join(f"{port},10.0.0.1,80\n" for port in range(10_001, 18_001)))
    done = run("-c", f'"{VEILLINK}" --check --config "{path}" | head -n 1', program=("sh",))
    assert (done.stdout, done.stderr) == ("10001: *:10001 -> 10.0.0.1:80\n", "")


def test_check_onto_a_full_disk_fails_in_one_line(rules: Path) -> None:
    done = run("-c", f'exec "{VEILLINK}" --check --config "{rules}" >/dev/full', program=("sh",))
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_check_shows_a_name_that_the_terminal_cannot(tmp_path: Path, taken: int, encoding: str) -> None:
    path = tmp_path / "rules.csv"
    path.write_text(f"{HOST}:{taken},10.0.0.1,80,name=bücher → 本\n", encoding="utf-8")
    done = run("--config", str(path), "--check", env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2


def test_check_writes_one_printable_line_whatever_the_file_is_called(tmp_path: Path) -> None:
    done = run("--check", "--config", os.fsencode(tmp_path) + b"/new\nline\x1b[31m\xff.csv")
    assert [line.isprintable() for line in done.stdout.splitlines()] == [True, True]
    assert done.returncode == 1


# --- rules that cannot be read ---------------------------------------------------------------------------------------


def _missing(_path: Path) -> str:
    return "No such file or directory"


def _fifo(path: Path) -> str:
    os.mkfifo(path)
    return "it is no regular file"


def _directory(path: Path) -> str:
    path.mkdir()
    return "it is a directory"


def _endless(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "it is no regular file"


def _seventeen_mebibytes(path: Path) -> str:
    path.write_bytes(b"8080,10.0.0.1,80\n" * (1 << 20))
    return "the file is larger than 16 MiB"


def _sparse_gibibyte(path: Path) -> str:
    with path.open("wb") as file:
        file.truncate(1 << 30)
    return "the file is larger than 16 MiB"


def _unreadable(path: Path) -> str:
    path.write_text("8080,10.0.0.1,80\n")
    path.chmod(0)
    return "Permission denied"


def _without_override() -> tuple[str, ...]:
    """Return what takes from root the right to read every file."""
    if os.geteuid() != 0:
        return ()
    rights = "-dac_override,-dac_read_search"
    return ("setpriv", "--bounding-set", rights, "--inh-caps", rights)


@pytest.mark.parametrize("how", ["started", "checked", "strict"])
@pytest.mark.parametrize(
    "make", [_missing, _fifo, _directory, _endless, _seventeen_mebibytes, _sparse_gibibyte, _unreadable]
)
def test_a_file_that_is_no_rules_file_is_refused_with_its_reason(
    tmp_path: Path, make: Callable[[Path], str], how: str
) -> None:
    path = tmp_path / "rules.csv"
    reason = make(path)
    before = (*_without_override(), "prlimit", "--as=500000000")  # half a gibibyte: it must not be read whole
    options = {"started": (), "checked": ("--check",), "strict": ("--strict",)}[how]
    done = run("--config", str(path), *options, before=before)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if reason in line]
    assert re.search(rf"(^|error ){re.escape(str(path))}: ", line), line
    assert len(line) < 300
    assert len(done.stdout.splitlines()) <= 3
    assert done.stderr == ""


# --- bad rows and warnings -------------------------------------------------------------------------------------------

BAD_ROWS = "99999,10.0.0.1,80\n{host}:{taken},10.0.0.1,0\n{host}:{taken},10.0.0.1,80,idle_timeout=soon\n\n"


def test_bad_rows_are_skipped_and_reported_and_the_others_run(start: Start, backend: Serve) -> None:
    port = backend(echo).port
    veillink = start(BAD_ROWS.format(host=HOST, taken=free_port()) + f"{HOST}:{{port}},{HOST},{port}\n", text=True)
    with veillink.connect() as sock:
        sock.sendall(b"good row")
        assert read_exactly(sock, 8) == b"good row"
    places = re.findall(rf" error {re.escape(str(veillink.config))}:(\d+:\d+): \S", veillink.output)
    assert places == ["2:1", "3:3", "4:4"]


def test_strict_does_not_start_while_any_row_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    port = free_port()
    path.write_text(BAD_ROWS.format(host=HOST, taken=port) + f"{HOST}:{port},10.0.0.1,80\n")
    done = run("--config", str(path), "--strict")
    assert done.returncode == 1
    assert re.findall(rf" error {re.escape(str(path))}:(\d+:\d+): \S", done.stdout) == ["1:1", "2:3", "3:4"]
    assert "--strict" in done.stdout.splitlines()[-1]


def test_strict_starts_good_rules(start: Start, backend: Serve) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", "--strict")
    with veillink.connect() as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"


def test_thousands_of_problems_are_all_reported_and_the_last_word_too(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("".join(f"{HOST}:{port},10.0.0.1,0\n" for port in range(10_001, 19_001)))
    done = run("--config", str(path))
    assert done.returncode == 1
    assert "dropped" not in done.stdout
    assert done.stdout.count('port "0" is not between 1 and 65535') == 9000
    assert "not started: " in done.stdout.splitlines()[-1]


@pytest.mark.unmeasured
def test_every_one_of_twelve_thousand_rules_is_named_at_start(start: Start) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 13_000:
        pytest.skip("needs 13,000 file descriptors: ulimit -n")
    listens = (f"127.9.{number // 250}.{number % 250 + 1}:{{port}}" for number in range(12_000))
    veillink = start("".join(f"{listen},10.0.0.1,80\n" for listen in listens), text=True)
    assert "dropped" not in veillink.output
    assert len(re.findall(r"^\S+ info rule ", veillink.output, re.MULTILINE)) == 12_001


def test_a_rules_file_that_anybody_may_change_is_warned_of(rules: Path) -> None:
    assert "everybody on this host may change it" not in run("--config", str(rules)).stdout
    rules.chmod(0o646)
    (line,) = [line for line in run("--config", str(rules)).stdout.splitlines() if " warning " in line]
    assert f"{rules}: everybody on this host may change it" in line


# --- where options come from -----------------------------------------------------------------------------------------


def test_the_command_line_goes_before_the_environment_the_settings_file_and_the_default(
    rules: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "veillink.settings"
    settings.write_text("# limits\nidle-timeout = 7s\n")
    from_file = ("--settings", str(settings))
    environment = {"VEILLINK_IDLE_TIMEOUT": "8s"}

    def shown(*options: str, env: dict[str, str] | None = None) -> str:
        done = run("--config", str(rules), "--check", *options, env=env)
        assert done.returncode == 0
        return done.stdout.splitlines()[0].partition("backend.example:80")[2]

    assert shown() == ""
    assert shown(*from_file) == " idle_timeout=7s"
    assert shown(*from_file, env=environment) == " idle_timeout=8s"
    assert shown(*from_file, "--idle-timeout=9s", env=environment) == " idle_timeout=9s"
    assert shown(env=environment) == " idle_timeout=8s"
    assert shown(env={"VEILLINK_SETTINGS": str(settings)}) == " idle_timeout=7s"


def test_every_kind_of_option_can_stand_in_the_settings_file(forward: Forward, tmp_path: Path) -> None:
    settings = tmp_path / "veillink.settings"
    settings.write_text("drain-timeout = 650ms\naccess-log = false\nlog-format = text\nmax-connections = 7\n")
    veillink = forward(echo, "", "--settings", str(settings), text=True)
    assert "max_connections=7" in veillink.wait_for_line(r"\bready\b")
    _exchange_once(veillink)
    assert veillink.stop() == 0
    assert "drain_timeout=0.65" in veillink.output
    assert "duration_ms" not in veillink.output


@pytest.mark.parametrize(("value", "lines"), [("false", 0), ("true", 1)])
def test_the_environment_sets_options_too(forward: Forward, value: str, lines: int) -> None:
    veillink = forward(echo, env={"VEILLINK_DRAIN_TIMEOUT": "650ms", "VEILLINK_ACCESS_LOG": value})
    _exchange_once(veillink)
    assert veillink.stop() == 0
    assert '"drain_timeout": 0.65' in veillink.output
    assert veillink.output.count('"duration_ms"') == lines


def test_check_can_be_asked_for_in_the_environment(rules: Path) -> None:
    done = run(env={"VEILLINK_CHECK": "true", "VEILLINK_CONFIG": str(rules)})
    assert done.stdout.endswith("1 rules, 0 problems\n")
    assert "not started" in run(env={"VEILLINK_CHECK": "false", "VEILLINK_CONFIG": str(rules)}).stdout


def test_a_row_overrides_the_rule_default_of_the_command_line(start: Start, backend: Serve) -> None:
    port, other = backend(echo).port, free_port()
    veillink = start(
        f"{HOST}:{{port}},{HOST},{port},name=impatient\n{HOST}:{other},{HOST},{port},name=patient,idle_timeout=0\n",
        "--idle-timeout=300ms",
    )
    with veillink.connect(other) as patient, veillink.connect() as impatient:
        for sock in (patient, impatient):
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
        with pytest.raises(ConnectionResetError):
            impatient.recv(1)
        (line,) = veillink.access()
        assert (line["rule"], line["end"]) == ("impatient", "idle_timeout")
        patient.sendall(b"y")
        assert read_exactly(patient, 1) == b"y"


def test_without_any_option_config_csv_of_the_folder_is_used(rules: Path, tmp_path: Path) -> None:
    rules.rename(tmp_path / "config.csv")
    assert run("--check", cwd=tmp_path).stdout.endswith("config.csv: 1 rules, 0 problems\n")


# --- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "named"),
    [
        (["--colour"], {}, "--colour"),
        (["8080,10.0.0.1,80"], {}, "8080,10.0.0.1,80"),
        (["--drain", "5s"], {}, "--drain"),
        (["--drain-timeout", "soon"], {}, "--drain-timeout"),
        (["--keepalive", "500ms"], {}, "--keepalive"),
        (["--max-connections", "-1"], {}, "--max-connections"),
        (["--max-connections", "８"], {}, "--max-connections"),
        (["--log-format", "xml"], {}, "--log-format"),
        (["--config"], {}, "--config"),
        (["--settings", "no-such-file"], {}, "no-such-file"),
        ([], {"VEILLINK_SETTINGS": "no-such-file"}, "no-such-file"),
        ([], {"VEILLINK_DRAIN_TIMEOUT": "soon"}, "--drain-timeout"),
        ([], {"VEILLINK_ACCESS_LOG": "perhaps"}, "VEILLINK_ACCESS_LOG"),
    ],
)
def test_wrong_usage_is_said_in_one_line_and_exits_2(
    rules: Path, tmp_path: Path, arguments: list[str], env: dict[str, str], named: str
) -> None:
    done = run(*arguments, env={"VEILLINK_CONFIG": str(rules)} | env, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("veillink: error: ")
    assert named in line
    assert done.stdout == ""


def _unknown_key(path: Path) -> None:
    path.write_text("drain-timeout = 5s\ncolour = red\n")


def _bad_value(path: Path) -> None:
    path.write_text("drain-timeout = soon\n")


def _not_text(path: Path) -> None:
    path.write_bytes(b"\xfe\xff\0d\0r\0a\0i\0n" * 100)


def _nul_in_the_path_of_the_rules(path: Path) -> None:
    path.write_bytes(b"config = rules\0.csv\n")


@pytest.mark.parametrize(
    "make", [_unknown_key, _bad_value, _not_text, _nul_in_the_path_of_the_rules, _fifo, _directory, _endless]
)
def test_a_settings_file_that_is_none_is_refused_at_once_in_one_line(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    settings = tmp_path / "veillink.settings"
    make(settings)
    done = run("--check", "--settings", str(settings), before=("prlimit", "--as=500000000"), cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert len((done.stdout + done.stderr).splitlines()) <= 2


def test_wrong_usage_exits_2_also_when_nobody_can_be_told() -> None:
    assert run("-c", f'exec "{VEILLINK}" --colour 2>&-', program=("sh",)).returncode == 2


# --- how it is started -----------------------------------------------------------------------------------------------


def test_version_and_help_are_told_without_any_rules(tmp_path: Path) -> None:
    version = run("--version", cwd=tmp_path)
    assert (version.returncode, version.stdout) == (0, f"veillink {veillink.__version__}\n")
    helped = run("--help", cwd=tmp_path)
    assert helped.returncode == 0
    for option in ("--config", "--check", "--drain-timeout", "--settings", "--idle-timeout"):
        assert option in helped.stdout


def test_python_m_veillink_is_the_same_program(rules: Path, tmp_path: Path) -> None:
    as_module = (sys.executable, "-m", "veillink")
    assert run("--version", program=as_module, cwd=tmp_path).stdout == run("--version").stdout
    arguments = ("--config", str(rules), "--check")
    assert run(*arguments, program=as_module, cwd=tmp_path).stdout == run(*arguments).stdout
    assert run("--colour", program=as_module, cwd=tmp_path).stderr == run("--colour").stderr
    rules.write_text(f"{HOST}:{free_port()},{HOST},80\n")
    with subprocess.Popen([*as_module, "--config", rules], stdout=subprocess.PIPE, cwd=tmp_path, text=True) as child:
        assert child.stdout is not None
        try:
            assert any(" ready " in line for line in child.stdout)
            child.send_signal(signal.SIGTERM)
            assert child.wait(SOON) == 0
        finally:
            child.kill()


def test_importing_the_package_changes_nothing_in_the_importing_program(tmp_path: Path) -> None:
    code = (
        "import signal, socket, sys, threading, time\n"
        "before = [socket.socket, time.sleep, threading.Thread.start, signal.getsignal(signal.SIGINT)]\n"
        "import veillink.daemon.process, veillink.cli\n"
        "print(before == [socket.socket, time.sleep, threading.Thread.start, signal.getsignal(signal.SIGINT)])\n"
        "print(threading.active_count())\n"
    )
    assert run("-c", code, program=(sys.executable,), cwd=tmp_path).stdout == "True\n1\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_not_let_the_log_into_a_clients_connection(
    tmp_path: Path, backend: Serve, closed: str
) -> None:
    veillink = VeilLink(
        f"{HOST}:{{port}},{HOST},{backend(echo).port}\n",
        folder=tmp_path,
        before=("sh", "-c", f'exec "$@" {closed}', "sh"),
        ready=False,
    )
    try:
        eventually(lambda: listens(veillink.port), 10, "listening")
        with veillink.connect() as sock:
            sock.settimeout(10)
            veillink.send(signal.SIGHUP)  # makes log lines while the connection is there
            for _ in range(20):
                _exchange_once(veillink)
            sock.sendall(b"only this")
            sock.shutdown(socket.SHUT_WR)
            assert read_to_eof(sock) == b"only this"
        for number, sign in enumerate(("<&-", ">&-", "2>&-")):
            where = os.readlink(f"/proc/{veillink.pid}/fd/{number}")  # noqa: PTH115 - a pipe's is no path
            assert where == "/dev/null" if sign in closed.split() else not where.startswith("socket:")
        assert veillink.stop() == 0
    finally:
        veillink.kill()


def _exchange_once(veillink: VeilLink) -> None:
    with veillink.connect() as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        sock.shutdown(socket.SHUT_WR)
        assert read_to_eof(sock) == b""


# --- the file with its number ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_second_start_by_mistake_leaves_the_first_ones_number_alone(
    workers: str, start: Start, tmp_path: Path
) -> None:
    """Neither one that has no port to listen at takes it away, nor does one that has replace it."""
    options = ("--workers", workers, "--pidfile", str(tmp_path / "pid"))
    first = start(f"{HOST}:{{port}},{HOST},1\n", *options)
    eventually((tmp_path / "pid").exists)
    other = tmp_path / "other.csv"
    other.write_text(f"{HOST}:{free_port()},{HOST},1\n")
    for config in (first.config, other):
        done = run("--config", str(config), *options)
        assert done.returncode == 1
        assert "not started: " in done.stdout.splitlines()[-1]
        assert (tmp_path / "pid").read_text() == f"{first.pid}\n"
    assert f"has the number of process {first.pid}, which runs" in done.stdout
