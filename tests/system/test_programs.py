"""Real programs through VeilLink: they see and do the same as without it."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from .conftest import Serve, Start
from .harness import HOST, VeilLink, eventually, free_port, listens, read_to_eof

MIB = 1 << 20

Through = Callable[[int], VeilLink]


def program(name: str, package: str) -> str:
    """Return the path of a program, or do not run the test: where every test has to run, that is a failure."""
    path = shutil.which(name)
    if path is None:
        message = f"there is no {name}: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def output(*command: str, stdin: bytes = b"", seconds: float = 60) -> bytes:
    """Run a program, which must succeed, and return what it prints."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=seconds, check=False)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@contextlib.contextmanager
def serving(port: int, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A server program, from when it listens on the port."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            eventually(lambda: listens(port) or child.poll() is not None, 10, f"{command[0]} listening")
            yield child
        finally:
            child.kill()


@pytest.fixture
def through(start: Start) -> Through:
    """Start a VeilLink that leads to a port."""
    return lambda port: start(f"{HOST}:{{port}},{HOST},{port}\n")


# --- nc --------------------------------------------------------------------------------------------------------------


def test_nc_sends_a_file_and_gets_the_answer_that_comes_after_it(through: Through, backend: Serve) -> None:
    nc = program("nc", "netcat-openbsd")
    question, answer = random.Random(1).randbytes(5 * MIB), random.Random(2).randbytes(3 * MIB)

    def answering(sock: socket.socket) -> None:
        assert read_to_eof(sock) == question
        sock.sendall(answer)

    direct = backend(answering).port
    veillink = through(direct)
    for port in (direct, veillink.port):
        assert output(nc, "-N", HOST, str(port), stdin=question) == answer
    (line,) = veillink.access()
    assert (line["bytes_in"], line["bytes_out"], line["end"]) == (5 * MIB, 3 * MIB, "closed")


def test_nc_receives_what_another_nc_sends(through: Through) -> None:
    nc = program("nc", "netcat-openbsd")
    file = random.Random(6).randbytes(5 * MIB)
    direct = free_port()
    veillink = through(direct)
    for port in (direct, veillink.port):
        with serving(direct, nc, "-l", HOST, str(direct)) as far, ThreadPoolExecutor(1) as thread:
            there = thread.submit(far.communicate, timeout=30)
            assert output(nc, "-N", HOST, str(port), stdin=file) == b""
            assert there.result()[0] == file
            assert far.returncode == 0


# --- curl ------------------------------------------------------------------------------------------------------------


class _Files(BaseHTTPRequestHandler):
    """Gives one file and answers an upload with its hash."""

    protocol_version = "HTTP/1.1"
    file = random.Random(3).randbytes(20 * MIB)

    def do_GET(self) -> None:
        self._answer(self.file)

    def do_PUT(self) -> None:
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            data = self.rfile.read(min(left, 1 << 16))
            assert data, f"the upload was cut {left} bytes early"
            left -= len(data)
            digest.update(data)
        self._answer(digest.hexdigest().encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def files() -> Iterator[int]:
    """The port of a web server."""
    with ThreadingHTTPServer((HOST, 0), _Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_curl_downloads_and_uploads_twenty_mebibytes_unchanged(through: Through, files: int, tmp_path: Path) -> None:
    curl = program("curl", "curl")
    veillink = through(files)
    upload = random.Random(4).randbytes(20 * MIB)
    (tmp_path / "upload").write_bytes(upload)

    def fetch(port: int, *options: str) -> bytes:
        return output(curl, "--silent", "--show-error", "--fail", *options, f"http://{HOST}:{port}/file")

    for port in (files, veillink.port):
        assert hashlib.sha256(fetch(port)).digest() == hashlib.sha256(_Files.file).digest()
        assert fetch(port, "--upload-file", str(tmp_path / "upload")).decode() == hashlib.sha256(upload).hexdigest()
        again = f"http://{HOST}:{port}/file"
        assert len(fetch(port, again, again)) == 3 * 20 * MIB
    down, up, thrice = veillink.access(3)  # the last one has carried all three
    assert [line["bytes_out"] // MIB for line in (down, up, thrice)] == [20, 0, 60]
    assert up["bytes_in"] // MIB == 20


# --- WebSocket -------------------------------------------------------------------------------------------------------


def _converse(server: ServerConnection) -> None:
    for message in server:
        if message == "bye":
            server.close(4001, "as you wish")
        elif message == "ping me":
            server.send("ponged" if server.ping(b"are you there?").wait(10) else "no pong")
        elif message == "in parts":
            server.send(iter(["part one, ", "part two, ", "part three"]))
        else:
            server.send(message)


@pytest.fixture
def websocket() -> Iterator[int]:
    """The port of a WebSocket server that answers."""
    with serve(_converse, HOST, 0, max_size=4 * MIB) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


def test_a_websocket_conversation_is_the_same(through: Through, websocket: int) -> None:
    veillink = through(websocket)
    large = random.Random(5).randbytes(MIB)
    for port in (websocket, veillink.port):
        url = f"ws://{HOST}:{port}/chat"
        with connect(url, max_size=4 * MIB) as client:
            client.send("grüße")
            assert client.recv(10) == "grüße"
            client.send(large)
            assert client.recv(10) == large
            client.send([large[:1000], large[1000:70_000], b"", large[70_000:]])
            assert client.recv(10) == large
            client.send("in parts")
            assert [part for part in client.recv_streaming() if part] == ["part one, ", "part two, ", "part three"]
            assert client.ping(b"hello?").wait(10)
            client.send("ping me")
            assert client.recv(10) == "ponged"
            client.close(4999, "client's own")
            assert (client.close_code, client.close_reason) == (4999, "client's own")
        with connect(url) as client:
            client.send("bye")
            with pytest.raises(ConnectionClosed):
                client.recv(10)
            assert (client.close_code, client.close_reason) == (4001, "as you wish")
    assert [line["end"] for line in veillink.access(2)] == ["closed", "closed"]


# --- redis -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[int]:
    """The port of an empty Redis."""
    server = program("redis-server", "redis-server")
    port = free_port()
    options = ("--bind", HOST, "--save", "", "--appendonly", "no", "--dir", str(tmp_path), "--loglevel", "warning")
    with serving(port, server, "--port", str(port), *options):
        yield port


COMMANDS: list[tuple[bytes, list[str]]] = [
    (b"", ["FLUSHALL"]),
    (b"", ["PING", "hello through"]),
    (b"\x00\r\n\xff*3\r\n" * 50_000, ["-x", "SET", "binary"]),
    (b"", ["STRLEN", "binary"]),
    (b"", ["GET", "binary"]),
    (b"", ["INCRBYFLOAT", "number", "1.5"]),
    (b"", ["RPUSH", "list", *map(str, range(1000))]),
    (b"", ["LRANGE", "list", "0", "-1"]),
    (b"", ["EVAL", "return {1, {2, 'three'}, redis.call('GET', KEYS[1])}", "1", "number"]),
    (b"", ["NO-SUCH-COMMAND"]),
    (b"MULTI\nINCR number2\nINCR number2\nEXEC\nDBSIZE\n", []),
    (b"".join(b"SET key-%d %d\r\n" % (n, n) for n in range(20_000)), ["--pipe"]),
    (b"", ["DBSIZE"]),
    (b"", ["--scan", "--pattern", "key-1234*", "--count", "30000"]),
]


def test_redis_answers_the_same(through: Through, redis: int) -> None:
    cli = program("redis-cli", "redis-tools")
    veillink = through(redis)

    def answers(port: int) -> list[bytes]:
        found = []
        for stdin, command in COMMANDS:
            done = subprocess.run(
                [cli, "-h", HOST, "-p", str(port), *command], input=stdin, capture_output=True, timeout=60, check=False
            )
            found.append(b"%d " % done.returncode + done.stdout + done.stderr)
        return found

    direct = answers(redis)
    assert answers(veillink.port) == direct
    assert b"errors: 0, replies: 20000" in direct[11]
    assert direct[12] == b"0 20004\n"


@pytest.mark.parametrize("pipelined", [(), ("-P", "16")])
def test_redis_benchmark_finishes_every_test(through: Through, redis: int, pipelined: tuple[str, ...]) -> None:
    benchmark = program("redis-benchmark", "redis-tools")
    veillink = through(redis)
    wanted = "ping_inline,ping_mbulk,set,get,lpush,lrange_100,mset"
    command = (benchmark, "-h", HOST, "-n", "3000", "-c", "50", "-t", wanted, "--csv", *pipelined)

    def tests(port: int) -> list[bytes]:
        return [line.split(b",")[0] for line in output(*command, "-p", str(port)).splitlines()]

    assert tests(veillink.port) == tests(redis)
    assert len(tests(redis)) >= 8


# --- iperf3 ----------------------------------------------------------------------------------------------------------


def test_iperf3_sends_both_ways_at_once(through: Through) -> None:
    iperf = program("iperf3", "iperf3")
    port = free_port()
    veillink = through(port)
    with serving(port, iperf, "--server", "--one-off", "--bind", HOST, "--port", str(port)) as server:
        options = ("--bidir", "--time", "1", "--parallel", "2", "--json")
        report = json.loads(output(iperf, "--client", HOST, "--port", str(veillink.port), *options))
        server.communicate(timeout=10)
        assert server.returncode == 0
    assert "error" not in report
    sums = report["end"]
    for direction in ("", "_bidir_reverse"):
        sent, received = sums[f"sum_sent{direction}"], sums[f"sum_received{direction}"]
        print(direction, f"{received['bits_per_second'] / 1e9:.1f} Gbit/s", sent.get("retransmits"), "retransmits")
        assert 10 * MIB < received["bytes"] <= sent["bytes"]
    assert len(veillink.access(5)) == 5


@pytest.mark.parametrize(("rate", "in_all"), [("8M", 8), ("8M/client", 8), ("2M/connection", 8)])
def test_parallel_downloads_have_the_rate_together_or_each(rate: str, in_all: int, start: Start) -> None:
    iperf = program("iperf3", "iperf3")
    port = free_port()
    veillink = start(f"{HOST}:{{port}},{HOST},{port},download_rate={rate}\n")
    with serving(port, iperf, "--server", "--one-off", "--bind", HOST, "--port", str(port)):
        options = ("--reverse", "--time", "2", "--omit", "1", "--parallel", "4", "--json")
        report = json.loads(output(iperf, "--client", HOST, "--port", str(veillink.port), *options))
    got = report["end"]["sum_received"]["bits_per_second"] / 8
    print(
        rate, f"{got / MIB:.2f} MiB/s", [f"{each['receiver']['bytes'] / MIB:.1f}" for each in report["end"]["streams"]]
    )
    assert got == pytest.approx(in_all * MIB, rel=0.05)
