"""The options of the process: command line, environment, settings file."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from veillink.cli import main
from veillink.config.networks import parse_networks
from veillink.config.settings import admin_settings, defaults, parser, unknown_variables
from veillink.limits import EVERYBODY, ByteRate, Per, Rate
from veillink.model import Address, RuleOptions

OPTIONS: list[tuple[str, str, str, Any]] = [
    ("--config=other.csv", "VEILLINK_CONFIG=other.csv", "config = other.csv", "other.csv"),
    ("--check", "VEILLINK_CHECK=true", "check = true", True),
    ("--strict", "VEILLINK_STRICT=true", "strict = true", True),
    ("--no-watch", "VEILLINK_WATCH=false", "watch = false", False),
    ("--drain-timeout=2m", "VEILLINK_DRAIN_TIMEOUT=2m", "drain-timeout = 2m", 120.0),
    ("--max-connections=7", "VEILLINK_MAX_CONNECTIONS=7", "max-connections = 7", 7),
    ("--relay=copy", "VEILLINK_RELAY=copy", "relay = copy", "copy"),
    ("--log-format=json", "VEILLINK_LOG_FORMAT=json", "log-format = json", "json"),
    ("--log-level=debug", "VEILLINK_LOG_LEVEL=debug", "log-level = debug", "debug"),
    ("--no-access-log", "VEILLINK_ACCESS_LOG=false", "access-log = false", False),
    ("--workers=3", "VEILLINK_WORKERS=3", "workers = 3", 3),
    ("--worker-timeout=5s", "VEILLINK_WORKER_TIMEOUT=5s", "worker-timeout = 5s", 5.0),
    ("--pidfile=p", "VEILLINK_PIDFILE=p", "pidfile = p", "p"),
    ("--admin=127.0.0.1:9", "VEILLINK_ADMIN=127.0.0.1:9", "admin = 127.0.0.1:9", (Address("127.0.0.1", 9), "")),
    ("--admin-token=x", "VEILLINK_ADMIN_TOKEN=x", "admin-token = x", "x"),
    ("--admin-host=A.example b", "VEILLINK_ADMIN_HOST=a.example,b", "admin-host = a.example b", [("a.example", "b")]),
    ("--status", "VEILLINK_STATUS=true", "status = true", True),
    ("--json", "VEILLINK_JSON=true", "json = true", True),
    ("--connect-timeout=250ms", "VEILLINK_CONNECT_TIMEOUT=250ms", "connect-timeout = 250ms", 0.25),
    ("--idle-timeout=1h", "VEILLINK_IDLE_TIMEOUT=1h", "idle-timeout = 1h", 3600.0),
    ("--half-close-timeout=0", "VEILLINK_HALF_CLOSE_TIMEOUT=0", "half-close-timeout = 0", 0.0),
    ("--max-lifetime=1h", "VEILLINK_MAX_LIFETIME=1h", "max-lifetime = 1h", 3600.0),
    ("--keepalive=10s", "VEILLINK_KEEPALIVE=10s", "keepalive = 10s", 10.0),
    ("--dns-refresh=5s", "VEILLINK_DNS_REFRESH=5s", "dns-refresh = 5s", 5.0),
    ("--socket-mode=0600", "VEILLINK_SOCKET_MODE=0600", "socket-mode = 0600", 0o600),
    ("--balance=source", "VEILLINK_BALANCE=source", "balance = source", "source"),
    ("--retries=2", "VEILLINK_RETRIES=2", "retries = 2", 2),
    ("--retry-interval=1s", "VEILLINK_RETRY_INTERVAL=1s", "retry-interval = 1s", 1.0),
    ("--max-fails=1", "VEILLINK_MAX_FAILS=1", "max-fails = 1", 1),
    ("--fail-timeout=5s", "VEILLINK_FAIL_TIMEOUT=5s", "fail-timeout = 5s", 5.0),
    ("--health=tcp", "VEILLINK_HEALTH=tcp", "health = tcp", "tcp"),
    ("--health-interval=5s", "VEILLINK_HEALTH_INTERVAL=5s", "health-interval = 5s", 5.0),
    ("--health-timeout=5s", "VEILLINK_HEALTH_TIMEOUT=5s", "health-timeout = 5s", 5.0),
    ("--health-rise=4", "VEILLINK_HEALTH_RISE=4", "health-rise = 4", 4),
    ("--health-fall=4", "VEILLINK_HEALTH_FALL=4", "health-fall = 4", 4),
    ("--on-down=reset", "VEILLINK_ON_DOWN=reset", "on-down = reset", "reset"),
    ("--accept-proxy=any", "VEILLINK_ACCEPT_PROXY=any", "accept-proxy = any", EVERYBODY),
    ("--proxy-timeout=9s", "VEILLINK_PROXY_TIMEOUT=9s", "proxy-timeout = 9s", 9.0),
    ("--allow=::1", "VEILLINK_ALLOW=::1", "allow = ::1", parse_networks("::1")),
    ("--deny=::1", "VEILLINK_DENY=::1", "deny = ::1", parse_networks("::1")),
    (
        "--max-connections-per-client=4",
        "VEILLINK_MAX_CONNECTIONS_PER_CLIENT=4",
        "max-connections-per-client = 4",
        4,
    ),
    ("--connection-rate=6/m", "VEILLINK_CONNECTION_RATE=6/m", "connection-rate = 6/m", Rate(6, 60)),
    (
        "--connection-rate-per-client=5/s",
        "VEILLINK_CONNECTION_RATE_PER_CLIENT=5/s",
        "connection-rate-per-client = 5/s",
        Rate(5),
    ),
    ("--upload-rate=1M", "VEILLINK_UPLOAD_RATE=1M", "upload-rate = 1M", ByteRate(1 << 20)),
    (
        "--download-rate=1K/client",
        "VEILLINK_DOWNLOAD_RATE=1K/client",
        "download-rate = 1K/client",
        ByteRate(1024, Per.CLIENT),
    ),
    ("--tls-min=1.3", "VEILLINK_TLS_MIN=1.3", "tls-min = 1.3", "1.3"),
    ("--tls-timeout=3s", "VEILLINK_TLS_TIMEOUT=3s", "tls-timeout = 3s", 3.0),
]


def test_nothing_needs_to_be_given() -> None:
    options = parser().parse_args([])
    assert options.config == "config.csv"
    assert options.check is options.strict is False
    assert options.access_log is True
    assert (options.drain_timeout, options.max_connections) == (30.0, 0)
    assert (options.log_format, options.log_level) == ("text", "info")
    assert defaults(options) == RuleOptions()


@pytest.mark.parametrize(("argument", "variable", "setting", "value"), OPTIONS)
def test_every_option_is_an_argument_a_variable_and_a_setting(
    argument: str, variable: str, setting: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = setting.partition(" ")[0].replace("-", "_")
    assert getattr(parser().parse_args([argument]), name) == value
    (tmp_path / "settings").write_text(setting + "\n")
    assert getattr(parser().parse_args([f"--settings={tmp_path / 'settings'}"]), name) == value
    monkeypatch.setenv(*variable.split("="))
    assert getattr(parser().parse_args([]), name) == value


@pytest.mark.parametrize(("argument", "variable", "setting", "value"), OPTIONS)
def test_an_empty_variable_is_an_unset_one(
    argument: str, variable: str, setting: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = setting.partition(" ")[0].replace("-", "_")
    default = getattr(parser().parse_args([]), name)
    monkeypatch.setenv(variable.partition("=")[0], "")
    monkeypatch.setenv("VEILLINK_SETTINGS", "")
    assert getattr(parser().parse_args([]), name) == default
    (tmp_path / "settings").write_text(setting + "\n")
    assert getattr(parser().parse_args([f"--settings={tmp_path / 'settings'}"]), name) == value
    assert unknown_variables(os.environ) == ()


@pytest.mark.parametrize("name", ["watch", "access-log"])
@pytest.mark.parametrize(("value", "on"), [("1", True), ("true", True), ("yes", True), ("0", False), ("off", False)])
def test_a_switch_has_a_variable_and_a_setting_for_either_way(
    name: str, value: str, on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = name.replace("-", "_")
    for prefix, expected in (("", on), ("no-", not on)):
        (tmp_path / "settings").write_text(f"{prefix}{name} = {value}\n")
        assert getattr(parser().parse_args([f"--settings={tmp_path / 'settings'}"]), key) is expected
        variable = f"VEILLINK_{prefix}{name}".upper().replace("-", "_")
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert getattr(parser().parse_args([]), key) is expected
            assert getattr(parser().parse_args([f"--{name}"]), key) is True
            assert unknown_variables(os.environ) == ()


def test_the_window_is_named_as_the_log_shows_it() -> None:
    for address in (Address("", 9), Address("127.0.0.1", 9), Address("::1", 9)):
        assert parser().parse_args([f"--admin={address}"]).admin == (address, "")


def test_a_switch_with_another_value_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEILLINK_NO_WATCH", "maybe")
    with pytest.raises(SystemExit):
        parser().parse_args([])
    assert "VEILLINK_NO_WATCH: 'maybe'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("VEILLINK_NO_WACH", "VEILLINK_NO_WACH is no option; did you mean VEILLINK_NO_WATCH?"),
        ("VEILLINK_DRAIN_TIME_OUT", "VEILLINK_DRAIN_TIME_OUT is no option; did you mean VEILLINK_DRAIN_TIMEOUT?"),
        ("VEILLINK_ADMIN_TOKEN_FILE", "VEILLINK_ADMIN_TOKEN_FILE is no option; did you mean VEILLINK_ADMIN_TOKEN?"),
        ("VEILLINK_COLOUR", "VEILLINK_COLOUR is no option"),
        ("VEILLINK_" + "X" * 100_000, "VEILLINK_" + "X" * 100_000 + " is no option"),
        ("VEILLINK_\n", "'VEILLINK_\\n' is no option"),
        ("VEILLINK", ""),
        ("VEILLINK_PORT", ""),
        ("VEILLINK_SERVICE_HOST", ""),
        ("VEILLINK_SERVICE_PORT", ""),
        ("VEILLINK_SERVICE_PORT_POSTGRES", ""),
        ("VEILLINK_PORT_5432_TCP", ""),
        ("VEILLINK_PORT_5432_TCP_PROTO", ""),
        ("VEILLINK_PORT_5432_TCP_PORT", ""),
        ("VEILLINK_PORT_5432_TCP_ADDR", ""),
        ("VEILLINK_ADMIN_SERVICE_PORT_HTTP", ""),
    ],
)
def test_a_variable_that_is_no_option_is_named(name: str, said: str) -> None:
    assert unknown_variables({name: "1"}) == ((said,) if said else ())


def test_every_option_is_in_the_table_of_this_test() -> None:
    options = {action.dest for action in parser()._actions} - {"help", "version", "settings"}
    assert options == {setting.partition(" ")[0].replace("-", "_") for _, _, setting, _ in OPTIONS}


def test_the_command_line_goes_before_the_environment_and_that_before_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings").write_text("drain-timeout = 1s\nkeepalive = 1s\nidle-timeout = 1s\n")
    monkeypatch.setenv("VEILLINK_SETTINGS", str(tmp_path / "settings"))
    monkeypatch.setenv("VEILLINK_KEEPALIVE", "2s")
    monkeypatch.setenv("VEILLINK_IDLE_TIMEOUT", "2s")
    options = parser().parse_args(["--idle-timeout=3s"])
    assert (options.drain_timeout, options.keepalive, options.idle_timeout) == (1.0, 2.0, 3.0)
    assert options.connect_timeout == 5.0


def test_a_name_for_the_window_is_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [*both, *both])
    shown = admin_settings(parser().parse_args(["--admin=localhost:9", "--admin-host", "a.example", "b,c"]))
    assert shown is not None
    assert shown.addresses == (Address("::1", 9), Address("127.0.0.1", 9))
    assert shown.names == {"localhost", "a.example", "b", "c"}
    elsewhere = [*both, (socket.AF_INET, 1, 6, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: elsewhere)
    with pytest.raises(SystemExit):
        admin_settings(parser().parse_args(["--admin=localhost:9"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--admin-host=a.example", "--admin-host=b/c"], "host name"),
        (["--nonsense"], "--nonsense"),
        (["rules.csv"], "rules.csv"),
        (["--conf=x"], "--conf"),
        (["--idle-timeout=5"], '--idle-timeout: "5" is not a duration: write 250ms, 5s, 2m, 1h or 0'),
        (["--idle-timeout=-5s"], "is not a duration"),
        (["--keepalive=10h"], "is not between 1s and 9h"),
        (["--dns-refresh=0"], "is less than 1s"),
        (["--max-connections=-1"], "is not a whole number"),
        (["--max-connections=８"], "is not a whole number"),
        (["--max-connections=1e3"], "is not a whole number"),
        (["--log-level=loud"], "loud"),
        (["--log-format=xml"], "xml"),
        (["--settings=/nonexistent"], "/nonexistent"),
    ],
)
def test_wrong_usage_is_told_in_one_line_and_ends_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("veillink: error: ")
    assert message in last


@pytest.mark.parametrize(
    ("variable", "value"), [("VEILLINK_IDLE_TIMEOUT", "soon"), ("VEILLINK_MAX_CONNECTIONS", "many")]
)
def test_a_wrong_variable_is_wrong_usage_too(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2


def test_an_unknown_setting_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings").write_text("idle-timeot = 5s\n")
    with pytest.raises(SystemExit) as exit_:
        main([f"--settings={tmp_path / 'settings'}"])
    assert exit_.value.code == 2
    assert "idle-timeot" in capsys.readouterr().err
