"""The admin on what runs: what it shows, to whom, and that asking costs forwarding nothing."""

import base64
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tls import certificate
from veillink.model import Address
from veillink.net.proxy_protocol import encode

from .admin_client import AdminClient
from .conftest import Forward, Serve, Start
from .harness import HOST, VEILLINK, VeilLink, echo, eventually, exchange, free_port, read_exactly, read_to_eof
from .load import Load
from .namespace import replacing

DEPLOY = Path(__file__).parents[2] / "deploy"
TOKEN = "s3cret:with=odd/characters"


def come_and_go(veillink: VeilLink, admin: AdminClient) -> None:
    """Be a client of the rule "web", and wait until its end is shown."""
    with veillink.connect() as sock:
        exchange(sock)
    eventually(lambda: admin.rule("web")["ends"], what="the end of the connection")


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_the_state_tells_of_live_and_ended_connections(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "name=web", admin.option)
    with veillink.connect() as done:
        done.sendall(b"12345")
        read_exactly(done, 5)
    eventually(lambda: admin.rule("web")["ends"] == {"closed": 1}, what="the end of the first connection")
    with veillink.connect() as live:
        live.sendall(b"123")
        read_exactly(live, 3)
        web = admin.rule("web")
        assert (web["active"], web["total"], web["bytes_in"], web["bytes_out"]) == (1, 2, 8, 8)
        assert web["listener_up"]
        (target,) = web["targets"]
        assert (target["up"], target["active"]) == (True, 1)
        (connection,) = admin.json("/api/connections")
        assert connection["client"] == "{}:{}".format(*live.getsockname())
        assert (connection["rule"], connection["target"], connection["bytes_in"]) == ("web", target["target"], 3)
    status = admin.json("/api/status")
    assert status["phase"] == "running"
    assert status["totals"]["connections"] == 2
    assert status["limits"]["connections"] > 0


def test_the_peer_of_a_client_and_who_is_not_let_in_are_shown(forward: Forward, admin: AdminClient) -> None:
    options = {"accept_proxy": "any", "deny": "192.0.2.0/24", "max_connections_per_client": "1"}
    row = ",".join(f"{name}={text}" for name, text in options.items())
    veillink = forward(echo, f"name=web,send_proxy=v2,{row}", admin.option)
    with contextlib.ExitStack() as stack:

        def come(first: bytes) -> socket.socket:
            client = stack.enter_context(veillink.connect())
            client.sendall(first)
            return client

        headers = [encode(1, Address(f"192.0.2.{last}", 4711), Address(HOST, 80)) for last in (1, 2)]
        ours = encode(1, Address("198.51.100.7", 4711), Address(HOST, 80))
        client = come(ours)
        assert client.recv(1)  # it is let in: it hears the target's echo of its header
        for first in (*headers, ours, b"junk"):
            come(first)
        refused = {"bad_proxy_header": 1, "denied": 2, "over_limit": 1}
        eventually(lambda: admin.rule("web")["ends"] == refused, what="four who are refused")
        web = admin.rule("web")
        assert web["options"] == options
        assert [target["send_proxy"] for target in web["targets"]] == ["v2"]
        (connection,) = admin.json("/api/connections")
        assert connection["client"] == "198.51.100.7:4711"
        assert connection["via"] == "{}:{}".format(*client.getsockname())
        veillink.send(signal.SIGUSR1)
        assert f'"via": "{connection["via"]}"' in veillink.wait_for_line("state of connection")


def test_metrics_move_during_a_connection_and_are_exact_after_it(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "name=web", admin.option)
    web = ("rule", "web")
    with veillink.connect() as sock:
        sock.sendall(b"12345")
        read_exactly(sock, 5)
        during = admin.metrics()
    assert during["veillink_bytes_total", (("direction", "in"), web)] == 5
    assert during["veillink_connections_active", (web,)] == 1
    assert during["veillink_connections_total", (web,)] == 1
    ended = ("veillink_connection_ends_total", (("end", "closed"), web))
    after = eventually(lambda: (m := admin.metrics()).get(ended) and m, what="the end of the connection")
    assert after["veillink_connections_active", (web,)] == 0
    assert after["veillink_bytes_total", (("direction", "out"), web)] == 5
    assert after["veillink_connect_seconds_count", (web,)] == 1
    assert after["veillink_connection_duration_seconds_bucket", (("le", "+Inf"), web)] == 1
    assert after["veillink_listener_up", (web,)] == 1
    assert after["veillink_config_last_reload_success", ()] == 1
    assert after["process_open_fds", ()] > 0


def test_the_series_of_a_removed_rule_go(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "name=web", admin.option)
    assert ("veillink_listener_up", (("rule", "web"),)) in admin.metrics()
    veillink.reload(f"{HOST}:{{port}},{HOST},1,name=other\n")
    labels = {dict(labels).get("rule") for _, labels in admin.metrics()}
    assert "web" not in labels
    assert "other" in labels


def test_a_target_that_is_down_is_shown(start: Start, backend: Serve, admin: AdminClient) -> None:
    dead, alive = free_port(), backend(echo).port
    start(
        f"{HOST}:{{port}},{HOST},{dead},name=web,health=tcp,health_interval=100ms\n{HOST}:{{port}},{HOST},{alive}\n",
        admin.option,
    )
    eventually(lambda: [target["up"] for target in admin.rule("web")["targets"]] == [False, True], 3, "one down")
    up = {
        dict(labels)["target"]: value
        for (name, labels), value in admin.metrics().items()
        if name == "veillink_target_up" and ("rule", "web") in labels
    }
    assert up == {f"{HOST}:{dead}": 0, f"{HOST}:{alive}": 1}


def test_a_refused_file_and_its_problems_are_shown_until_a_good_one_comes(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "", admin.option)
    good = veillink.config.read_text()
    veillink.reload("8080,127.0.0.1,70000\n", "^not reloaded")
    status = admin.json("/api/status")
    assert (status["last_reload"]["result"], status["reloads"]["refused"]) == ("refused", 1)
    assert ":2:3: port" in status["last_reload"]["problems"][0]
    assert admin.metrics()["veillink_config_last_reload_success", ()] == 0
    assert admin.metrics()["veillink_config_problems", ()] == 1
    veillink.config.write_text(good)
    veillink.send(signal.SIGHUP)
    eventually(lambda: admin.json("/api/status")["last_reload"]["result"] == "applied", what="a good reload")
    assert admin.json("/api/status")["last_reload"]["problems"] == []


def test_rows_that_were_skipped_at_the_start_stay_visible(start: Start, backend: Serve, admin: AdminClient) -> None:
    port = backend(echo).port
    veillink = start(f"{HOST}:{{port}},{HOST},{port}\n8081,db,70000\n8082,db,0\n", admin.option)
    metrics = admin.metrics()
    assert metrics["veillink_config_problems", ()] == 2
    assert metrics["veillink_config_last_reload_success", ()] == 1
    said = ask(admin.option).stdout
    assert "The rules' file has rows that do not run:\n" in said
    assert f"{veillink.config}:3:3: port" in said
    veillink.reload(f"{HOST}:{{port}},{HOST},{port}\n")
    assert admin.metrics()["veillink_config_problems", ()] == 0
    assert "rows" not in ask(admin.option).stdout


def test_nothing_from_outside_becomes_a_label(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, '"name=<script>""b\\"', admin.option)
    with veillink.connect() as sock:
        sock.sendall(b"x")
        read_exactly(sock, 1)
        assert str(sock.getsockname()[1]) not in admin.get("/metrics")[2].decode()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_prometheus_finds_nothing_wrong(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "name=web", admin.option)
    come_and_go(veillink, admin)
    metrics = admin.get("/metrics")[2]
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_every_alert_fires_on_what_prometheus_has_scraped() -> None:
    cases = Path(__file__).parents[1] / "alerts.yml"
    done = subprocess.run(["promtool", "test", "rules", cases], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yml").read_text())
    assert alerts
    assert set(alerts) == set(re.findall(r"- alertname: (\w+)", cases.read_text()))


def test_alerts_and_dashboard_ask_for_metrics_that_there_are(
    start: Start, backend: Serve, admin: AdminClient, tmp_path: Path
) -> None:
    (tmp_path / "web.pem").write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
    port = backend(echo).port
    rows = f"{HOST}:{{port}},{HOST},{port},name=web\n{HOST}:{free_port()},{HOST},{port},tls=web.pem\n"
    veillink = start(rows, admin.option)
    come_and_go(veillink, admin)
    there = {name for name, _ in admin.metrics()}
    for file in ("alerts.yml", "grafana.json"):
        asked = set(re.findall(r"\b(?:veillink|process)_[a-z_]+\b", (DEPLOY / file).read_text()))
        assert asked
        assert asked <= there


# --- whether it is ready ---------------------------------------------------------------------------------------------


def test_a_listener_that_is_down_is_not_ready_but_alive(start: Start, backend: Serve, admin: AdminClient) -> None:
    with socket.create_server((HOST, 0)) as taken:
        rows = f"{HOST}:{{port}},{HOST},{backend(echo).port}\n{HOST}:{taken.getsockname()[1]},{HOST},1,name=late\n"
        veillink = start(rows, admin.option)
        assert admin.get("/healthz")[0] == 200
        status, _, body = admin.get("/readyz")
        assert (status, b"late" in body) == (503, True)
        assert not admin.rule("late")["listener_up"]
        veillink.reload(f"{HOST}:{{port}},{HOST},1\n")
    assert admin.get("/readyz")[0] == 200


def test_while_it_drains_it_is_alive_but_not_ready(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "", admin.option)
    with veillink.connect() as sock:
        sock.sendall(b"x")
        read_exactly(sock, 1)
        veillink.send(signal.SIGTERM)
        eventually(lambda: admin.get("/readyz")[0] == 503, what="not ready")
        assert admin.get("/healthz")[0] == 200
        assert len(admin.json("/api/connections")) == 1
    assert veillink.child.wait(5) == 0


# --- to whom ---------------------------------------------------------------------------------------------------------


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{token}".encode()).decode()


def test_a_token_is_asked_for_by_all_but_the_health_checks(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "", admin.option, f"--admin-token={TOKEN}")
    for path in ("/", "/metrics", "/api/status", "/nowhere"):
        for wrong in ("", "Bearer", "Bearer wrong", basic("wrong"), "Basic ünicode!", f"Digest {TOKEN}"):
            status, headers, _ = admin.get(path, Authorization=wrong.encode().decode("latin-1"))
            assert status == 401
            assert headers["WWW-Authenticate"].startswith("Basic ")
    assert admin.get("/healthz")[0] == admin.get("/readyz")[0] == 200
    for right in (f"Bearer {TOKEN}".encode().decode("latin-1"), basic(TOKEN)):
        assert admin.get("/api/status", Authorization=right)[0] == 200
    assert TOKEN not in veillink.output


def test_beyond_loopback_nothing_is_shown_without_a_token(tmp_path: Path) -> None:
    for address in (f"0.0.0.0:{free_port()}", f"{free_port()}", f"[::]:{free_port()}"):
        done = subprocess.run(
            [VEILLINK, "--admin", address, "--config", str(tmp_path / "none")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "--admin-token" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("host", [HOST, "127.0.0.1:80", "[::1]:9", "[::1]", "localhost", "LOCALHOST:1", "10.1.2.3", ""])
def test_every_literal_address_may_be_its_name(host: str, forward: Forward, admin: AdminClient) -> None:
    forward(echo, "", admin.option)
    assert admin.raw(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "::1x"])
def test_a_name_that_somebody_else_points_here_is_refused(host: str, forward: Forward, admin: AdminClient) -> None:
    forward(echo, "", admin.option)
    assert admin.raw(f"GET /api/status HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_it_only_shows(method: str, forward: Forward, admin: AdminClient) -> None:
    forward(echo, "", admin.option)
    status, headers, _ = admin.get("/api/status", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert admin.get("/nowhere")[0] == 404
    assert admin.get("/api/status", "HEAD")[::2] == (200, b"")


def test_a_browser_is_told_to_be_careful(forward: Forward, admin: AdminClient) -> None:
    forward(echo, "", admin.option)
    for path in ("/healthz", "/api/status", "/nowhere"):
        headers = admin.get(path)[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


# --- what is thrown at it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_clear_request_is_refused_and_the_connection_closed(
    request_: bytes, forward: Forward, admin: AdminClient
) -> None:
    veillink = forward(echo, "", admin.option)
    with contextlib.suppress(ConnectionResetError):
        assert admin.raw(request_ + b"GET /healthz HTTP/1.1\r\n\r\n").startswith((b"HTTP/1.1 4", b""))
        assert b"alive" not in admin.raw(request_ + b"GET /healthz HTTP/1.1\r\n\r\n")
    assert admin.get("/healthz")[0] == 200
    assert "Traceback" not in veillink.output


def test_a_second_request_on_a_connection_is_not_answered(forward: Forward, admin: AdminClient) -> None:
    forward(echo, "", admin.option)
    answer = admin.raw(b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\n\r\n" * 2)
    assert answer.count(b"HTTP/1.1 200") == 1


def test_those_who_dawdle_are_cut_in_the_end_and_hold_nobody_up(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "", admin.option)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.create_connection((HOST, admin.port)))
            sock.sendall(b"GET /api/status HT")
        began = time.monotonic()
        assert admin.get("/healthz")[0] == 200
        assert time.monotonic() - began < 2.5  # after three seconds they would have gone
    veillink.settle()


@pytest.mark.parametrize("connections", [2000])
def test_a_look_at_thousands_of_connections_holds_nobody_up(
    connections: int, forward: Forward, admin: AdminClient
) -> None:
    veillink = forward(echo, "name=web", admin.option, "--no-access-log")
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(veillink.connect())
        eventually(lambda: admin.rule("web")["active"] == connections, what="all of them")
        probe = stack.enter_context(veillink.connect())
        # a machine that is busy with other things stalls some of the looks, a loop that is held up stalls each
        assert min(_stall_of_a_look(admin, probe) for _ in range(5)) < 0.1
        assert len(admin.json("/api/connections")) == connections + 1


def _stall_of_a_look(admin: AdminClient, probe: socket.socket) -> float:
    """Return the longest that an exchange on ``probe`` took while everything was looked at, in seconds."""
    slowest, stop = 0.0, threading.Event()

    def talk() -> None:
        nonlocal slowest
        while not stop.is_set():
            began = time.monotonic()
            probe.sendall(b"x")
            read_exactly(probe, 1)
            slowest = max(slowest, time.monotonic() - began)

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        for path in ("/metrics", "/api/status", "/api/connections"):
            assert admin.get(path)[0] == 200
    finally:
        stop.set()
        talker.join()
    return slowest


@pytest.mark.parametrize("workers", [(), ("--workers=3",)], ids=["alone", "three workers"])
def test_after_ten_thousand_connections_of_all_kinds_the_account_is_exact(
    workers: tuple[str, ...], start: Start, admin: AdminClient
) -> None:
    refused = free_port()
    with Load() as load:
        rows = load.rows(f"{HOST}:{{port}}", "name=web") + f"{HOST}:{refused},{HOST},{free_port()},name=dead\n"
        veillink = start(rows, admin.option, "--no-access-log", *workers)
        good = veillink.port
        stories = [("echo", good), ("reset", good), ("wait", refused), ("echo_last", good), ("echo", good)]
        load.begin(stories, 10_000, 100)
        seen = []
        loading = threading.Thread(target=lambda: seen.append(load.end()))
        loading.start()
        active: set[float] = set()
        while loading.is_alive():
            samples = admin.metrics()
            active |= {samples["veillink_connections_active", (("rule", name),)] for name in ("web", "dead")}
        loading.join()
        assert sum(seen[0][1].values()) == 10_000
        eventually(lambda: admin.json("/api/status")["totals"]["active"] == 0, what="none is left")
        assert min(active) >= 0
        assert max(active) > 0
        for name, count in (("web", 8000), ("dead", 2000)):
            rule = admin.rule(name)
            assert (rule["active"], rule["total"], sum(rule["ends"].values())) == (0, count, count)


# --- UNIX sockets and the command line -------------------------------------------------------------------------------


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for the 107 bytes of a UNIX socket's path."""
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        yield Path(folder)


def ask(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([VEILLINK, "--status", *arguments], capture_output=True, text=True, check=False, timeout=20)


def test_a_unix_socket_shows_it_to_those_who_may_open_it(forward: Forward, short: Path) -> None:
    forward(echo, "name=web", f"--admin=unix:{short}/admin")
    assert (short / "admin").stat().st_mode & 0o777 == 0o660
    done = subprocess.run(
        ["curl", "-s", "--unix-socket", f"{short}/admin", "http://any.name/healthz"], capture_output=True, check=True
    )
    assert done.stdout == b"alive\n"
    assert "web" in ask(f"--admin=unix:{short}/admin").stdout


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and unshare (Debian)")
@pytest.mark.parametrize("workers", [(), ("--workers=2",)], ids=["alone", "two workers"])
def test_a_name_with_two_addresses_is_shown_at_both(
    workers: tuple[str, ...], start: Start, backend: Serve, tmp_path: Path
) -> None:
    hosts, port = tmp_path / "hosts", free_port()
    hosts.write_text("::1 both.example\n127.0.0.1 both.example\n")
    switch = tmp_path / "nsswitch.conf"
    switch.write_text("hosts: files\n")
    known = replacing({"/etc/hosts": hosts, "/etc/nsswitch.conf": switch})
    option = f"--admin=both.example:{port}"
    start(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n", option, *workers, before=known)
    eventually(lambda: answers("::1", port) and answers(HOST, port), 10, "answers at both")
    hosts.write_text("127.0.0.77 both.example\n127.0.0.1 both.example\n")  # nobody is at the first one
    done = subprocess.run([*known, VEILLINK, "--status", option], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "web" in done.stdout


def answers(host: str, port: int) -> bool:
    """Return whether a admin there says that it lives."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 5) as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        return read_to_eof(sock).endswith(b"alive\n")
    return False


def test_the_status_shows_rules_targets_and_connections_as_text(forward: Forward, admin: AdminClient) -> None:
    veillink = forward(echo, "name=web", admin.option)
    with veillink.connect() as sock:
        sock.sendall(b"x" * 2048)
        read_exactly(sock, 2048)
        done = ask(admin.option)
        client = "{}:{}".format(*sock.getsockname())
    assert done.returncode == 0
    assert client in done.stdout
    (rule,) = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["web"]]
    assert rule[1:3] == [f"{HOST}:{veillink.port}", "up"]
    assert rule[-6:] == ["1", "1", "2.0", "KiB", "2.0", "KiB"]
    assert "\x1b" not in done.stdout


def test_the_status_is_also_json(forward: Forward, admin: AdminClient) -> None:
    forward(echo, "name=web", admin.option)
    status = json.loads(ask(admin.option, "--json").stdout)
    assert {rule["name"] for rule in status["rules"]} >= {"web"}
    assert status["live"] == []


POSIX = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("env", [{"LC_ALL": "C.UTF-8"}, POSIX, {"PYTHONIOENCODING": "cp437"}])
def test_every_terminal_is_shown_the_status(env: dict[str, str], forward: Forward, admin: AdminClient) -> None:
    forward(echo, "name=straße", admin.option)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        child = subprocess.Popen(
            [VEILLINK, "--status", admin.option], stdout=theirs, stderr=subprocess.STDOUT,
            env={key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"} | env,
        )  # fmt: skip
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # EIO: the last one there has gone
            while part := screen.read(65536):
                text += part
        assert child.wait(20) == 0, text
    assert b"canary" in text
    assert b"Traceback" not in text


@pytest.mark.parametrize(
    ("sink", "code", "said"), [("| head -1", 0, ""), ("> /dev/full", 1, "cannot write"), (">&-", 0, "")]
)
@pytest.mark.parametrize("how", [(), ("--json",)], ids=["tables", "json"])
def test_a_status_that_nobody_takes_is_no_traceback(
    how: tuple[str, ...], sink: str, code: int, said: str, forward: Forward, admin: AdminClient
) -> None:
    forward(echo, "", admin.option)
    script = f'set -o pipefail; "$0" "$@" {sink}'
    done = subprocess.run(
        ["bash", "-c", script, VEILLINK, "--status", admin.option, *how],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == code


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "--status needs --admin"),
        ([f"--admin={HOST}:1"], 1, "no answer at"),
        (["--admin=x y:1"], 2, "host name"),
    ],
)
def test_a_status_that_cannot_be_had_is_one_clear_line(arguments: list[str], code: int, said: str) -> None:
    done = ask(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_status_asked_with_the_wrong_token_says_so(forward: Forward, admin: AdminClient) -> None:
    forward(echo, "", admin.option, "--admin-token=right")
    assert "another token" in ask(admin.option, "--admin-token=wrong").stderr
    assert ask(admin.option, "--admin-token=right").returncode == 0


@pytest.mark.parametrize("token", ["with blank", "ключ", "line\n"])
def test_a_token_that_cannot_be_sent_is_refused(token: str) -> None:
    done = ask("--admin=127.0.0.1:1", f"--admin-token={token}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "printable ASCII" in done.stderr


def test_what_a_client_is_called_does_no_harm_to_the_terminal(
    start: Start, backend: Serve, admin: AdminClient, short: Path
) -> None:
    start(f"unix:{short}/listen,{HOST},{backend(echo).port}\n", admin.option)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fsencode(short) + b"/\x1b[31m\xff")
        sock.connect(f"{short}/listen")
        eventually(lambda: admin.json("/api/connections"), what="the client")
        done = subprocess.run(
            [VEILLINK, "--status", admin.option], capture_output=True, check=False,
            env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout


def test_an_admin_endpoint_that_cannot_be_opened_is_told_and_nothing_is_started(tmp_path: Path) -> None:
    (tmp_path / "rules.csv").write_text(f"{HOST}:{free_port()},{HOST},1\n")
    with socket.create_server((HOST, 0)) as taken:
        arguments = ["--config", str(tmp_path / "rules.csv"), f"--admin={HOST}:{taken.getsockname()[1]}"]
        done = subprocess.run([VEILLINK, *arguments], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert "EADDRINUSE" in done.stdout.splitlines()[-1]
