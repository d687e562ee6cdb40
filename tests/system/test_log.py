"""What the log says, whatever its reader does and whatever comes from outside."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Forward, Serve, Start
from .ends import Unready
from .harness import HOST, VeilLink, echo, eventually, exchange, free_port, listens, read_to_eof, reset
from .load import Load

KEYS = ["time", "rule", "id", "client", "listen", "target", "tried"]
KEYS += ["bytes_in", "bytes_out", "connect_ms", "duration_ms", "end"]
PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |$)')


def fields(line: str) -> dict[str, Any]:
    """Return the fields of an access line in text or JSON, in its order, every value as text or ``None``."""
    if line.startswith("{"):
        pairs = json.loads(line).items()
        return {key: value if value is None else str(value) for key, value in pairs}
    assert PAIR.sub("", line) == "", line
    words = {key: json.loads(word) if word[0] == '"' else word for key, word in PAIR.findall(line)}
    return {key: None if word == "-" else word for key, word in words.items()}


def access(veillink: VeilLink, count: int) -> list[dict[str, Any]]:
    """Return the fields of all access lines, in text or JSON, once there are so many."""

    def found() -> list[str]:
        return [line for line in tuple(veillink.lines) if "duration_ms" in line]

    eventually(lambda: len(found()) >= count, 10, f"{count} access lines in:\n{veillink.output}")
    return [fields(line) for line in found()]


@pytest.fixture(params=["text", "json"])
def text(request: pytest.FixtureRequest) -> bool:
    """Both formats, one after the other."""
    return bool(request.param == "text")


# --- lines that stay lines -------------------------------------------------------------------------------------------

ODD_NAMES = [
    "two words",
    'a "quoted" \\ name',
    "end=closed",
    "bücher → 本 😀",
    "%s%n$(id)`id`;'",
    "</td><script>",
    "{}",
    "x" * 100,
]


def test_rules_with_odd_names_are_logged_as_one_printable_line_and_read_back(
    start: Start, backend: Serve, text: bool
) -> None:
    ports = [free_port() for _ in ODD_NAMES]
    target = backend(echo).port
    cells = ["name={}".format(name.replace('"', '""')) for name in ODD_NAMES]
    rows = "".join(f'{HOST}:{port},{HOST},{target},"{cell}"\n' for port, cell in zip(ports, cells, strict=True))
    veillink = start(rows, text=text)
    for port in ports:
        with veillink.connect(port) as sock:
            exchange(sock)
    lines = access(veillink, len(ODD_NAMES))
    assert sorted(line["rule"] for line in lines) == sorted(ODD_NAMES)
    assert all(list(line) == KEYS and line["end"] == "closed" for line in lines)
    assert all(line.isascii() and line.isprintable() for line in veillink.lines)
    for line in () if text else veillink.lines:
        json.loads(line)


def test_whatever_stands_in_a_bad_row_its_problem_is_one_short_printable_line(start: Start, text: bool) -> None:
    hostile = [
        "\x1b[2J\x1b[31mred",
        "tab\tbell\a",
        "line\u2028paragraph\u2029",
        "\u202egnp.exe",
        "\x85\x9b",
        "y" * 10_000,
    ]
    veillink = start("".join(f'"{cell}",{HOST},1\n{HOST}:1,"{cell}!",1\n' for cell in hostile), text=text)
    problems = [line for line in veillink.lines if re.search(rf"{veillink.config}:\d+:\d+: ", line)]
    assert len(problems) == 2 * len(hostile)
    for line in veillink.lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 500
        if not text:
            json.loads(line)


def test_an_access_line_stays_short_however_much_was_tried(start: Start, text: bool) -> None:
    closed = free_port()
    rows = "".join(f"{HOST}:{{port}},127.0.1.{number},{closed}\n" for number in range(1, 101))
    veillink = start(rows, text=text)
    with pytest.raises(ConnectionResetError), veillink.connect() as sock:
        sock.recv(1)
    (line,) = access(veillink, 1)
    assert line["end"] == "connect_refused"
    assert line["tried"].startswith(f"127.0.1.1:{closed} ECONNREFUSED, 127.0.1.2:{closed} ECONNREFUSED, ")
    assert line["tried"].endswith("...")
    assert all(len(line) < 700 for line in veillink.lines)


# --- the words -------------------------------------------------------------------------------------------------------


def _reset_when_asked(sock: socket.socket) -> None:
    sock.recv(4)
    reset(sock)


def _half_close(sock: socket.socket) -> None:
    sock.sendall(sock.recv(4))
    sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionResetError):
        sock.recv(1)


def test_every_way_to_end_has_its_word_in_a_line_with_the_same_keys(start: Start, backend: Serve, text: bool) -> None:
    closed, echoing = free_port(), backend(echo).port
    with Unready() as unready:
        targets = {
            "closed": (HOST, echoing, ""),
            "client_reset": (HOST, echoing, ""),
            "target_reset": (HOST, backend(_reset_when_asked).port, ""),
            "connect_refused": (HOST, closed, ""),
            "connect_timeout": (HOST, unready.port, "connect_timeout=300ms"),
            "connect_failed": ("255.255.255.255", 80, ""),
            "name_not_found": ("no-such-host.invalid", 80, "connect_timeout=1m"),
            "no_target": (HOST, echoing, "weight=0"),
            "client_left": (HOST, unready.port, "connect_timeout=1m"),
            "idle_timeout": (HOST, echoing, "idle_timeout=300ms"),
            "half_close_timeout": (HOST, backend(_half_close).port, "half_close_timeout=300ms"),
            "max_lifetime": (HOST, echoing, "max_lifetime=300ms"),
            "drained": (HOST, echoing, ""),
        }
        ports = {end: free_port() for end in targets}
        rows = "".join(
            f"{HOST}:{ports[end]},{host},{port},name={end},{options}\n"
            for end, (host, port, options) in targets.items()
        )
        # the resolver of this machine may be silent
        veillink = start(rows, text=text, env={"RES_OPTIONS": "timeout:1 attempts:1"})
        with contextlib.ExitStack() as stack:
            socks = {end: stack.enter_context(veillink.connect(port)) for end, port in ports.items()}
            sources = {end: sock.getsockname()[1] for end, sock in socks.items()}
            connected = ["closed", "client_reset", "idle_timeout", "half_close_timeout", "max_lifetime", "drained"]
            for end in connected:
                exchange(socks[end])
            socks["closed"].close()
            reset(socks["client_reset"])
            socks["target_reset"].sendall(b"now!")
            eventually(unready.knocked_at, what="a connect under way")
            reset(socks["client_left"])
            access(veillink, len(targets) - 1)
            for _ in range(2):
                veillink.send(signal.SIGTERM)
                veillink.wait_for_line("stopping")
            assert veillink.child.wait(10) == 1
    lines = {line["rule"]: line for line in access(veillink, len(targets))}
    assert {rule: line["end"] for rule, line in lines.items()} == {end: end for end in targets}
    for end, line in lines.items():
        _, port, options = targets[end]
        assert list(line) == KEYS
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["client"] == f"{HOST}:{sources[end]}"
        assert line["listen"] == f"{HOST}:{ports[end]}"
        assert float(line["duration_ms"]) >= 300 or not options.endswith("300ms")
        if end in [*connected, "target_reset"]:
            assert line["target"] == f"{HOST}:{port}"
            assert line["tried"] is None
            assert 0 <= float(line["connect_ms"]) <= float(line["duration_ms"])
        else:
            assert (line["target"], line["connect_ms"], line["bytes_in"]) == (None, None, "0")
    for end, tried in {
        "connect_refused": f"{HOST}:{closed} ECONNREFUSED",
        "connect_timeout": f"{HOST}:{targets['connect_timeout'][1]} ETIMEDOUT",
        "connect_failed": "255.255.255.255:80 ENETUNREACH",
        "name_not_found": "no-such-host.invalid:80 name_not_found",
        "no_target": None,
        "client_left": None,
    }.items():
        assert lines[end]["tried"] == tried
    assert (lines["closed"]["bytes_in"], lines["closed"]["bytes_out"]) == ("4", "4")
    assert len({line["id"] for line in lines.values()}) == len(targets)


# --- how much is said ------------------------------------------------------------------------------------------------


def test_thousands_of_failures_make_a_few_warnings_that_account_for_all_of_them(start: Start) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{free_port()},name=dead\n", "--no-access-log", text=True)
    with Load() as load:
        seconds, outcomes = load.run([("wait", veillink.port)], 3000, 20)
    assert outcomes == {"wait ConnectionResetError": 3000}

    def accounted() -> int:
        single = re.findall(r" warning cannot reach a target rule=dead .* reason=ECONNREFUSED ", veillink.output)
        more = re.findall(r" warning cannot reach a target: (\d+) suppressed about=", veillink.output)
        return len(single) + sum(map(int, more))

    eventually(lambda: accounted() == 3000, 5, "a line for what was suppressed")
    assert len(re.findall(" warning cannot reach", veillink.output)) <= 2 * (seconds + 2)


def test_what_was_suppressed_in_the_last_second_is_told_before_it_ends(start: Start) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{free_port()},name=dead\n", "--no-access-log", text=True)
    with Load() as load:
        load.run([("wait", veillink.port)], 500, 20)
    assert veillink.stop() == 0
    single = re.findall(r" warning cannot reach a target rule=dead ", veillink.output)
    more = re.findall(r" warning cannot reach a target: (\d+) suppressed about=", veillink.output)
    assert len(single) + sum(map(int, more)) == 500


def test_without_access_lines_failures_are_still_told(start: Start, backend: Serve) -> None:
    good = free_port()
    veillink = start(
        f"{HOST}:{{port}},{HOST},{free_port()},name=dead\n{HOST}:{good},{HOST},{backend(echo).port}\n",
        "--no-access-log",
    )
    with veillink.connect(good) as sock:
        exchange(sock)
    with pytest.raises(ConnectionResetError), veillink.connect() as sock:
        sock.recv(1)
    line = json.loads(veillink.wait_for_line("cannot reach a target"))
    assert (line["level"], line["rule"], line["failure"], line["reason"]) == (
        "warning",
        "dead",
        "connect_refused",
        "ECONNREFUSED",
    )
    assert veillink.stop() == 0
    assert "duration_ms" not in veillink.output


def test_at_level_error_nothing_less_is_written(tmp_path: Path) -> None:
    veillink = VeilLink(
        f"{HOST}:{{port}},{HOST},{free_port()}\nno good,{HOST},1\n",
        "--log-level=error",
        folder=tmp_path,
        ready=False,
    )
    try:
        eventually(lambda: listens(veillink.port), 10, "a listener")
        with pytest.raises(ConnectionResetError), veillink.connect() as sock:
            sock.recv(1)
        assert veillink.stop() == 0
        (line,) = veillink.lines
        assert (json.loads(line)["level"], "no good" in line) == ("error", True)
    finally:
        veillink.kill()


def test_what_clients_and_targets_say_is_logged_at_no_level(start: Start, backend: Serve, text: bool) -> None:
    secret = b"password=hunter2-%d;"
    dead, breaking = free_port(), free_port()
    veillink = start(
        f"{HOST}:{{port}},{HOST},{backend(echo).port}\n"
        f"{HOST}:{breaking},{HOST},{backend(_reset_when_asked).port}\n"
        f"{HOST}:{dead},{HOST},{free_port()}\n",
        "--log-level=debug",
        text=text,
    )
    with veillink.connect() as sock:
        exchange(sock, secret * 5000)
    with veillink.connect() as sock:
        exchange(sock, secret)
        sock.sendall(secret * 5000)
        reset(sock)
    for port in (breaking, dead):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError), veillink.connect(port) as sock:
            sock.sendall(secret * 100)
            sock.recv(1)
    with veillink.connect() as sock:
        exchange(sock, secret)
        veillink.send(signal.SIGUSR1)
        veillink.wait_for_line("state of connection")
    access(veillink, 5)
    assert veillink.stop() == 0
    assert "hunter" not in veillink.output


# --- readers that do not read ----------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe; its ends are closed afterwards if they are still open."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@contextlib.contextmanager
def logging_to(descriptor: int, load: Load, folder: Path, *options: str) -> Iterator[VeilLink]:
    """A VeilLink in front of the load's backend whose log goes elsewhere."""
    veillink = VeilLink(load.rows(f"{HOST}:{{port}}"), *options, folder=folder, stdout=descriptor, ready=False)
    try:
        eventually(lambda: listens(veillink.port), 10, "a listener")
        yield veillink
    finally:
        veillink.kill()


def test_a_full_disk_costs_log_lines_and_nothing_else(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with Load() as load, logging_to(full, load, tmp_path) as veillink:
            _, outcomes = load.run([("echo", veillink.port)], 2000, 20)
            assert outcomes == {"echo ok": 2000}
            veillink.send(signal.SIGUSR1)
            veillink.send(signal.SIGHUP)
            veillink.assert_healthy()
            assert veillink.stop() == 0
    finally:
        os.close(full)


def test_a_reader_that_has_gone_costs_log_lines_and_nothing_else(tmp_path: Path, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    with Load() as load, logging_to(writing, load, tmp_path) as veillink:
        os.close(writing)
        os.close(reading)
        _, outcomes = load.run([("echo", veillink.port)], 2000, 20)
        assert outcomes == {"echo ok": 2000}
        veillink.send(signal.SIGUSR1)
        veillink.send(signal.SIGHUP)
        veillink.assert_healthy()
        assert veillink.stop() == 0


def test_a_reader_that_stops_reading_delays_nobody_and_is_told_later_what_it_missed(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    with Load() as load, logging_to(writing, load, tmp_path) as veillink:
        os.close(writing)
        _, outcomes = load.run([("echo", veillink.port)], 5000, 20)
        assert outcomes == {"echo ok": 5000}
        before = veillink.rss()
        _, outcomes = load.run([("echo", veillink.port)], 10_000, 20)
        assert outcomes == {"echo ok": 10_000}
        assert veillink.rss() - before < 8 << 20  # 10,000 lines wait at most
        before = veillink.rss()
        _, outcomes = load.run([("echo", veillink.port)], 5000, 20)
        assert outcomes == {"echo ok": 5000}
        assert veillink.rss() - before < 1 << 20
        veillink.assert_healthy()

        output: list[bytes] = []

        def read() -> None:
            while data := os.read(reading, 1 << 16):
                output.append(data)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        eventually(lambda: b"dropped" in b"".join(output), 10, "a notice")
        with veillink.connect() as sock:
            exchange(sock)
        assert veillink.stop() == 0
        reader.join(10)
    lines = [json.loads(line) for line in b"".join(output).splitlines()]
    connections = [line for line in lines if "duration_ms" in line]
    dropped = [re.match(r"(\d+) log lines dropped", line.get("message", "")) for line in lines]
    missed = sum(int(match[1]) for match in dropped if match)
    assert connections[-1]["bytes_in"] == 4
    assert len(connections) + missed == connections[-1]["id"]  # ids count connections from 1
    assert missed > 5000
    assert lines[-1]["message"] == "stopped"


def test_a_reader_that_stopped_reading_does_not_keep_it_from_ending(tmp_path: Path, pipe: tuple[int, int]) -> None:
    with Load() as load, logging_to(pipe[1], load, tmp_path) as veillink:
        _, outcomes = load.run([("echo", veillink.port)], 2000, 20)
        assert outcomes == {"echo ok": 2000}
        start = time.monotonic()
        assert veillink.stop() == 0
        assert time.monotonic() - start < 3


def test_access_lines_come_while_it_runs_and_in_the_order_of_the_endings(forward: Forward) -> None:
    veillink = forward(echo)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(veillink.connect()) for _ in range(5)]
        for sock in socks:
            exchange(sock)
        for count, sock in enumerate(reversed(socks), 1):
            sock.shutdown(socket.SHUT_WR)
            assert read_to_eof(sock) == b""
            veillink.access(count, seconds=1)
    assert [line["id"] for line in veillink.access(5)] == [5, 4, 3, 2, 1]
