"""UNIX sockets on either side: what is said of TCP holds for them, as far as they can do it.

They know no RST: who is cut sees what the kernel makes of close(), which is EOF, or ECONNRESET where bytes are unread.
"""

import errno
import os
import random
import re
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .conftest import Serve, Start
from .ends import (
    MIB,
    SIDES,
    Ends,
    Side,
    Upload,
    digest_to_eof,
    most_in_the_kernel,
    push,
    read_to_any_end,
    read_to_reset,
    wait_until_received,
)
from .harness import (
    HOST,
    VEILLINK,
    Backend,
    Handler,
    echo,
    eventually,
    read_exactly,
    read_to_eof,
    reset,
    saying,
)
from .test_programs import output, program

KINDS = ("tcp-unix", "unix-tcp", "unix-unix")
SECOND = 1.0

all_kinds = pytest.mark.parametrize("kind", KINDS)

# As somebody who is not root, but may read the files of a test and of a checkout, which only root may.
AS_NOBODY = (
    *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


def listening(path: Path, backlog: int = 512, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket at the path; one of streams listens."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    if kind == socket.SOCK_STREAM:
        sock.settimeout(20)
        sock.listen(backlog)
    return sock


def dial(path: Path, name: bytes = b"") -> socket.socket:
    """Return a client's socket, connected to the path, with a name of its own where one is given."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(20)
        if name:
            sock.bind(name)
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def heard(path: Path) -> bytes:
    """Return what a new client that sends nothing is told."""
    with dial(path) as sock:
        sock.shutdown(socket.SHUT_WR)
        return read_to_eof(sock)


def listens(path: Path) -> bool:
    """Return whether somebody listens there."""
    try:
        dial(path).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def inode(path: Path) -> int:
    """Return which file is there; 0 for none."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return path.stat().st_mode & 0o777


def echoes(sock: socket.socket) -> None:
    """Fail unless what is sent comes back."""
    sock.sendall(b"to and fro")
    assert read_exactly(sock, 10) == b"to and fro"


class UnixBackend(Backend):
    """A backend that listens on a UNIX socket."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._listening = listening(path)
        self._listening.settimeout(None)
        self._handler = handler
        self.accepted = 0
        self.errors = []
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()


class UnixEnds(Ends):
    """A VeilLink with a UNIX socket on one side or both, of whose connections the test holds both ends."""

    def __init__(self, start: Start, folder: Path, kind: str, row: str = "", **more: Any) -> None:
        client, target = kind.split("-")
        self._receive_buffer = 0
        self.listen = folder / "listen" if client == "unix" else None
        if target == "unix":
            self._listening = listening(folder / "target")
            host = f"unix:{folder}/target,"
        else:
            self._listening = socket.create_server((HOST, 0), backlog=512)
            self._listening.settimeout(20)
            host = f"{HOST},{self._listening.getsockname()[1]}"
        self._held = [self._listening]
        try:
            cell = f"unix:{self.listen}" if self.listen else f"{HOST}:{{port}}"
            self.veillink = start(f"{cell},{host},{row}\n", **more)
        except BaseException:
            self.close()
            raise

    def connect(self) -> socket.socket:
        """Return a client's socket."""
        if self.listen is None:
            return super().connect()
        client = dial(self.listen)
        self._held.append(client)
        return client


Between = Callable[..., UnixEnds]
ServeUnix = Callable[..., Path]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: 107 bytes are all that the path of a socket may have."""
    with tempfile.TemporaryDirectory(prefix="vl-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def between(start: Start, folder: Path) -> Iterator[Between]:
    """Start a VeilLink and hold both ends of its connections: ``between("tcp-unix", "idle_timeout=4s")``."""
    with ExitStack() as stack:

        def _between(kind: str, row: str = "", **more: Any) -> UnixEnds:
            return stack.enter_context(UnixEnds(start, folder, kind, row, **more))

        yield _between


@pytest.fixture
def unix(folder: Path) -> Iterator[ServeUnix]:
    """Start a backend on a UNIX socket and return its path."""
    with ExitStack() as stack:

        def _unix(handler: Handler = echo, name: str = "target") -> Path:
            stack.enter_context(UnixBackend(folder / name, handler))
            return folder / name

        yield _unix


@pytest.fixture
def full(folder: Path) -> Iterator[tuple[socket.socket, int]]:
    """A socket ``full`` that listens and whose queue has no room left, and how many are in the queue."""
    with ExitStack() as stack:
        server = stack.enter_context(listening(folder / "full", backlog=0))
        ahead = 0
        while True:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            code = sock.connect_ex(str(folder / "full"))
            if code == errno.EAGAIN:
                break
            assert code == 0
            ahead += 1
        yield server, ahead


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("relay")
@all_kinds
def test_both_sides_can_send_64_mebibytes_at_once_and_all_arrive_unchanged(between: Between, kind: str) -> None:
    ends = between(kind)
    client, target = ends.pair()
    uploads = [Upload(client, 64 * MIB, seed=1), Upload(target, 64 * MIB, seed=2)]
    with ThreadPoolExecutor(1) as thread:
        at_target = thread.submit(digest_to_eof, target)
        at_client = digest_to_eof(client)
        assert [at_target.result(), at_client] == [upload.digest() for upload in uploads]
    (line,) = ends.veillink.access()
    assert (line["bytes_in"], line["bytes_out"], line["end"]) == (64 * MIB, 64 * MIB, "closed")


@all_kinds
def test_who_has_finished_still_gets_the_answer(between: Between, kind: str) -> None:
    ends = between(kind)
    for side in SIDES:
        near, far = ends.pair(side)
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert read_to_eof(far) == b"question"
        far.sendall(b"answer")
        far.close()
        assert read_to_eof(near) == b"answer"
        near.close()
    assert [line["end"] for line in ends.veillink.access(2)] == ["closed", "closed"]


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize(("kind", "side"), [("tcp-unix", "client"), ("unix-tcp", "target")])
def test_a_side_that_does_not_read_stalls_the_sender_and_costs_no_memory(
    between: Between, kind: str, side: Side
) -> None:
    ends = between(kind)
    near, _ = ends.pair(side)
    before = ends.veillink.rss()
    limit = most_in_the_kernel() + 2 * MIB
    assert len(push(near, limit + MIB)) <= limit
    assert ends.veillink.rss() - before < 2 * MIB


@pytest.mark.usefixtures("relay")
@all_kinds
def test_what_was_under_way_arrives_after_the_sender_has_closed(between: Between, kind: str) -> None:
    ends = between(kind)
    for side in SIDES:
        near, far = ends.pair(side)
        taken = push(near, 64 * MIB, quiet=0.1)
        near.close()
        assert read_to_eof(far) == taken
        far.close()
    assert [line["end"] for line in ends.veillink.access(2)] == ["closed", "closed"]


def test_urgent_data_of_a_client_stays_in_line(between: Between) -> None:
    client, target = between("unix-tcp").pair()
    client.sendall(b"ab")
    try:
        client.send(b"!", socket.MSG_OOB)
    except OSError as error:
        pytest.skip(f"UNIX sockets of this kernel know no urgent data: {error}")
    client.sendall(b"cd")
    client.shutdown(socket.SHUT_WR)
    assert read_to_eof(target) == b"ab!cd"


def test_descriptors_that_a_client_sends_along_are_not_kept(between: Between) -> None:
    ends = between("unix-unix")
    client, target = ends.pair()
    before = ends.veillink.fds()
    for _ in range(20):
        socket.send_fds(client, [b"x"], [client.fileno(), target.fileno()])
        assert read_exactly(target, 1) == b"x"
    assert ends.veillink.fds() == before


def test_two_thousand_short_connections_leave_nothing_behind(start: Start, unix: ServeUnix, folder: Path) -> None:
    veillink = start(f"unix:{folder}/listen,unix:{unix()},\n")

    def connect_often(count: int) -> None:
        for _ in range(count):
            with dial(folder / "listen") as sock:
                echoes(sock)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(connect_often, [500] * 4))
    assert {line["end"] for line in veillink.access(2000)} == {"closed"}
    veillink.settle()


# --- endings ---------------------------------------------------------------------------------------------------------


@all_kinds
def test_a_side_that_leaves_is_known_to_the_other_within_a_second(between: Between, kind: str) -> None:
    ends = between(kind)
    for side in SIDES:
        near, far = ends.pair(side)
        near.sendall(b"bye")
        near.close()
        far.settimeout(SECOND)
        assert read_to_eof(far) == b"bye"
        far.close()
    assert [line["end"] for line in ends.veillink.access(2)] == ["closed", "closed"]


@pytest.mark.parametrize(("kind", "side"), [("tcp-unix", "client"), ("unix-tcp", "target")])
def test_a_unix_socket_sees_the_end_within_a_second_when_tcp_is_reset(between: Between, kind: str, side: Side) -> None:
    ends = between(kind)
    near, far = ends.pair(side)
    near.sendall(b"last words")
    assert read_exactly(far, 10) == b"last words"
    reset(near)
    assert read_to_any_end(far, SECOND) == b""
    assert ends.end() == f"{side}_reset"


@pytest.mark.parametrize(("kind", "side"), [("tcp-unix", "client"), ("unix-tcp", "target")])
def test_a_unix_socket_that_has_not_read_yet_is_closed_within_a_second_when_tcp_is_reset(
    between: Between, kind: str, side: Side
) -> None:
    ends = between(kind)
    near, far = ends.pair(side)
    near.sendall(b"unread")
    wait_until_received(far, b"unread")
    reset(near)
    hang_up = select.poll()
    hang_up.register(far, 0)
    assert hang_up.poll(SECOND * 1000)
    assert read_to_any_end(far, SECOND) == b"unread"


@pytest.mark.parametrize(("kind", "side"), [("tcp-unix", "target"), ("unix-tcp", "client")])
def test_tcp_is_reset_when_a_unix_socket_is_closed_with_bytes_unread(between: Between, kind: str, side: Side) -> None:
    ends = between(kind)
    near, far = ends.pair(side)
    far.sendall(b"unread")
    wait_until_received(near, b"unread")
    near.sendall(b"last words")
    near.close()
    assert read_to_reset(far, SECOND) == b"last words"
    assert ends.end() == f"{side}_reset"


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize(("kind", "side"), [("tcp-unix", "client"), ("unix-tcp", "target")])
def test_a_stalled_sender_is_reset_when_the_unix_socket_that_does_not_read_is_closed(
    between: Between, kind: str, side: Side
) -> None:
    ends = between(kind)
    near, far = ends.pair(side)
    push(near, 64 * MIB, quiet=0.2)
    far.close()
    assert read_to_reset(near, SECOND) == b""
    assert ends.end() == ("target_reset" if side == "client" else "client_reset")


@pytest.mark.parametrize("side", SIDES)
def test_between_unix_sockets_the_end_of_one_that_has_bytes_unread_is_the_end_of_the_other(
    between: Between, side: Side
) -> None:
    ends = between("unix-unix")
    near, far = ends.pair(side)
    far.sendall(b"unread")
    wait_until_received(near, b"unread")
    near.close()
    assert read_to_any_end(far, SECOND) == b""
    assert ends.end() == f"{side}_reset"


@all_kinds
def test_silence_for_idle_timeout_ends_a_connection(between: Between, kind: str) -> None:
    ends = between(kind, "idle_timeout=400ms")
    client, target = ends.pair()
    client.sendall(b"x")
    assert read_exactly(target, 1) == b"x"
    began = time.monotonic()
    assert (read_to_any_end(client), read_to_any_end(target)) == (b"", b"")
    assert 0.3 < time.monotonic() - began < 5
    assert ends.end() == "idle_timeout"


def test_a_slow_reader_of_a_unix_socket_is_not_silence(between: Between) -> None:
    client, target = between("tcp-unix", "idle_timeout=500ms").pair()
    target.settimeout(SECOND)
    taken = push(client, 64 * MIB, quiet=0.1)
    received = b""
    until = time.monotonic() + 2
    while time.monotonic() < until:  # so slowly that the kernel has no room for more for over half a second
        received += read_exactly(target, 10 << 10)
        time.sleep(0.05)
    client.shutdown(socket.SHUT_WR)
    assert received + read_to_eof(target) == taken


@pytest.mark.parametrize(("kind", "side"), [("tcp-unix", "client"), ("unix-tcp", "target")])
def test_silence_takes_nothing_from_a_unix_socket_and_ends_with_a_reset_for_its_tcp_peer(
    between: Between, kind: str, side: Side
) -> None:
    ends = between(kind, "idle_timeout=400ms")
    near, far = ends.pair(side)
    near.sendall(b"delivered")
    wait_until_received(far, b"delivered")
    assert read_to_reset(near) == b""
    assert read_to_eof(far) == b"delivered"
    assert ends.end() == "idle_timeout"


def test_a_drain_removes_the_file_at_once_and_lets_connections_finish(between: Between) -> None:
    ends = between("unix-unix")
    assert ends.listen
    client, target = ends.pair()
    ends.veillink.send(signal.SIGTERM)
    eventually(lambda: ends.listen and not inode(ends.listen), what="the file is gone")
    client.sendall(b"still there?")
    assert read_exactly(target, 12) == b"still there?"
    client.close()
    target.close()
    assert ends.veillink.child.wait(5) == 0
    assert ends.end() == "closed"


# --- programs --------------------------------------------------------------------------------------------------------


def test_redis_on_a_unix_socket_answers_the_same_through_tcp(start: Start, folder: Path, tmp_path: Path) -> None:
    server, cli = program("redis-server", "redis-server"), program("redis-cli", "redis-tools")
    path = folder / "redis"
    options = ("--save", "", "--appendonly", "no", "--dir", str(tmp_path), "--loglevel", "warning")
    with subprocess.Popen(
        [server, "--port", "0", "--unixsocket", str(path), *options], stdout=subprocess.PIPE
    ) as child:
        try:
            eventually(lambda: listens(path), 10, "Redis listening")
            veillink = start(f"{HOST}:{{port}},unix:{path},\n")

            def answers(*where: str) -> list[bytes]:
                pipeline = b"".join(b"SET key-%d %d\r\n" % (n, n) for n in range(20_000))
                return [
                    output(cli, *where, "FLUSHALL"),
                    output(cli, *where, "-x", "SET", "binary", stdin=b"\x00\r\n\xff*3\r\n" * 50_000),
                    output(cli, *where, "GET", "binary"),
                    output(cli, *where, "--pipe", stdin=pipeline),
                    output(cli, *where, "DBSIZE"),
                ]

            direct = answers("-s", str(path))
            assert direct[-1] == b"20001\n"
            assert answers("-h", HOST, "-p", str(veillink.port)) == direct
        finally:
            child.kill()


class _File(BaseHTTPRequestHandler):
    """Gives one file."""

    protocol_version = "HTTP/1.1"
    file = random.Random(3).randbytes(8 * MIB)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.file)))
        self.end_headers()
        self.wfile.write(self.file)

    def log_message(self, *_: Any) -> None:
        pass


def test_curl_fetches_from_a_web_server_through_a_unix_socket(start: Start, folder: Path) -> None:
    curl = program("curl", "curl")
    with ThreadingHTTPServer((HOST, 0), _File) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            veillink = start(f"unix:{folder}/listen,{HOST},{server.server_port}\n")
            url = "http://localhost/file"
            options = ("--silent", "--show-error", "--fail", "--unix-socket", f"{folder}/listen")
            assert output(curl, *options, url, url) == _File.file * 2
        finally:
            server.shutdown()
            thread.join()
    (line,) = veillink.access()
    assert (line["bytes_out"] > 16 * MIB, line["end"]) == (True, "closed")


# --- the access line -------------------------------------------------------------------------------------------------


def test_the_access_line_names_the_sockets(start: Start, unix: ServeUnix, backend: Serve, folder: Path) -> None:
    served = backend(saying(b"tcp"))
    rows = f"unix:{folder}/listen,{HOST},{served.port}\n{HOST}:{{port}},unix:{unix(saying(b'unix'))},,name=in\n"
    veillink = start(rows)
    assert heard(folder / "listen") == b"tcp"
    with dial(folder / "listen", name=bytes(folder / "client")) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_to_eof(sock) == b"tcp"
    for line, client in zip(veillink.access(2), ("unix:", f"unix:{folder}/client"), strict=True):
        assert (line["rule"], line["client"]) == (f"unix:{folder}/listen", client)
        assert (line["listen"], line["target"]) == (f"unix:{folder}/listen", f"{HOST}:{served.port}")
    assert veillink.heard() == b"unix"
    (line,) = veillink.access(rule="in")
    assert (line["listen"], line["target"]) == (f"{HOST}:{veillink.port}", f"unix:{folder}/target")
    assert re.fullmatch(r"127\.0\.0\.1:[0-9]+", line["client"])


def odd_names(folder: Path) -> list[bytes]:
    """Return names that a client's socket may have: abstract, with a line's end, and one that is no UTF-8."""
    abstract = b"\0veillink-%d\n=" % os.getpid()
    return [abstract, bytes(folder / "a\nb c=d"), bytes(folder / "umlaut") + b"\xfc"]


def test_whatever_the_name_of_a_client_it_is_one_line_of_text(start: Start, unix: ServeUnix, folder: Path) -> None:
    veillink = start(f"unix:{folder}/listen,unix:{unix()},,name=odd\n", text=True)
    for name in odd_names(folder):
        with dial(folder / "listen", name) as sock:
            echoes(sock)
    veillink.wait_for_line("rule=odd .*duration_ms=", count=3)
    lines = [line for line in veillink.lines if "rule=odd" in line]
    assert [line.count(" end=closed") for line in lines] == [1, 1, 1]
    assert all('client="unix:' in line and line.isascii() and line.isprintable() for line in lines), lines


def test_whatever_the_name_of_a_client_it_gets_a_target_by_its_source(
    start: Start, unix: ServeUnix, folder: Path
) -> None:
    rows = [f"unix:{folder}/listen,unix:{unix(name=name)},,balance=source\n" for name in ("one", "two")]
    veillink = start("".join(rows))
    for name in odd_names(folder):
        with dial(folder / "listen", name) as sock:
            echoes(sock)
    assert [line["end"] for line in veillink.access(3)] == ["closed"] * 3


# --- targets that cannot be had --------------------------------------------------------------------------------------


def test_a_target_that_cannot_be_had_is_told_with_its_errno_and_the_client_is_reset(start: Start, folder: Path) -> None:
    (folder / "plain").write_text("no socket")
    listening(folder / "stale").close()
    expected = {
        "missing": ("connect_failed", "ENOENT"),
        "plain": ("connect_refused", "ECONNREFUSED"),
        "stale": ("connect_refused", "ECONNREFUSED"),
        "datagrams": ("connect_failed", "EPROTOTYPE"),
        "plain/inside": ("connect_failed", "ENOTDIR"),
    }
    rows = "".join(f"127.0.0.{n}:{{port}},unix:{folder}/{name},,name={name}\n" for n, name in enumerate(expected, 1))
    with listening(folder / "datagrams", kind=socket.SOCK_DGRAM):
        veillink = start(rows)
        for n, (name, (end, error)) in enumerate(expected.items(), 1):
            with pytest.raises(ConnectionResetError):
                veillink.heard(host=f"127.0.0.{n}")
            (line,) = veillink.access(rule=name)
            assert (line["end"], line["tried"]) == (end, f"unix:{folder}/{name} {error}")
            (warning,) = (line for line in veillink.logged("cannot reach") if line["rule"] == name)
            assert warning["reason"] == error


@needs_root
def test_a_target_without_permission_is_told_with_its_errno(start: Start, folder: Path) -> None:
    folder.chmod(0o755)
    with listening(folder / "target"):
        (folder / "target").chmod(0o600)
        veillink = start(f"{HOST}:{{port}},unix:{folder}/target,\n", before=AS_NOBODY)
        with pytest.raises(ConnectionResetError):
            veillink.heard()
        (line,) = veillink.access()
    assert (line["end"], line["tried"]) == ("connect_failed", f"unix:{folder}/target EACCES")


def test_a_client_is_served_when_a_full_queue_has_room_again(
    start: Start, folder: Path, full: tuple[socket.socket, int]
) -> None:
    server, ahead = full
    veillink = start(f"{HOST}:{{port}},unix:{folder}/full,,connect_timeout=10s\n")
    with veillink.connect() as client:
        client.sendall(b"hello")
        assert not select.select([client], [], [], 0.3)[0]
        for _ in range(ahead):
            server.accept()[0].close()
        target, _ = server.accept()
        with target:
            assert read_exactly(target, 5) == b"hello"
    (line,) = veillink.access()
    assert (line["end"], line["tried"]) == ("closed", None)
    assert 250 < line["connect_ms"] < 5000


@pytest.mark.usefixtures("full")
def test_a_queue_that_stays_full_ends_in_connect_timeout(start: Start, folder: Path) -> None:
    veillink = start(f"{HOST}:{{port}},unix:{folder}/full,,connect_timeout=300ms\n")
    busy = veillink.cpu()
    with veillink.connect() as client:
        assert read_to_reset(client) == b""
    assert veillink.cpu() - busy < 0.1
    (line,) = veillink.access()
    assert (line["end"], line["tried"]) == ("connect_timeout", f"unix:{folder}/full EAGAIN")
    assert 300 <= line["duration_ms"] < 5000


@pytest.mark.usefixtures("full")
def test_a_client_that_is_reset_while_a_queue_is_full_is_let_go_at_once(start: Start, folder: Path) -> None:
    veillink = start(f"{HOST}:{{port}},unix:{folder}/full,,connect_timeout=1m\n")
    client = veillink.connect()
    eventually(lambda: veillink.fds() > veillink.first_fds, what="it has been accepted")
    reset(client)
    (line,) = veillink.access(seconds=SECOND)
    assert line["end"] == "client_left"


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(("target", "error"), [("missing", "ENOENT"), ("full", "EAGAIN")])
def test_another_target_of_the_rule_takes_over(
    start: Start, backend: Serve, folder: Path, target: str, error: str
) -> None:
    other = backend(saying(b"other"))
    rows = [
        f"unix:{folder}/listen,unix:{folder}/{target},,connect_timeout=600ms\n",
        f"unix:{folder}/listen,{HOST},{other.port},backup=yes\n",
    ]
    veillink = start("".join(rows))
    assert heard(folder / "listen") == b"other"
    (line,) = veillink.access()
    assert line["tried"] == f"unix:{folder}/{target} {error}"
    assert (line["target"], line["end"]) == (f"{HOST}:{other.port}", "closed")


def test_two_rows_with_the_same_socket_are_one_rule_with_two_targets(
    start: Start, unix: ServeUnix, backend: Serve, folder: Path
) -> None:
    port, path = backend(saying(b"tcp")).port, unix(saying(b"unix"))
    veillink = start(f"unix:{folder}/listen,{HOST},{port}\nunix:{folder}/listen,unix:{path},\n")
    assert sorted(heard(folder / "listen") for _ in range(4)) == [b"tcp", b"tcp", b"unix", b"unix"]
    assert not veillink.logged("cannot listen")


def test_probes_notice_a_unix_socket_that_goes_and_comes(start: Start, folder: Path) -> None:
    options = "health=tcp,health_interval=100ms,health_fall=1,health_rise=1"
    veillink = start(f"{HOST}:{{port}},unix:{folder}/target,,{options}\n")
    assert eventually(lambda: veillink.logged("target down"))[0]["reason"] == "ENOENT"
    with listening(folder / "target"):
        assert eventually(lambda: veillink.logged("target up"))[0]["target"] == f"unix:{folder}/target"
    eventually(lambda: [line["reason"] for line in veillink.logged("target down")] == ["ENOENT", "ECONNREFUSED"])


# --- the listener's file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", ["0000", "0777"])
def test_the_permissions_are_those_of_socket_mode_whatever_the_umask(start: Start, folder: Path, umask: str) -> None:
    modes = {"": 0o660, "socket_mode=0600": 0o600, "socket_mode=666": 0o666}
    rows = "".join(f"unix:{folder}/{mode:o},{HOST},1,{option}\n" for option, mode in modes.items())
    command = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    veillink = start(rows, before=command, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert {path.name: f"{mode(path):o}" for path in folder.iterdir()} == {
        f"{mode:o}": f"{mode:o}" for mode in modes.values()
    }
    assert f"Umask:\t{umask}\n" in Path(f"/proc/{veillink.pid}/status").read_text()


def test_a_path_longer_than_107_bytes_is_reported_with_its_place_and_the_other_rules_run(
    start: Start, unix: ServeUnix, folder: Path
) -> None:
    longest = f"{folder}/".ljust(107, "x")
    too_long = "/".ljust(108, "y")
    served = unix(saying(b"hello"))
    veillink = start(f"unix:{longest},unix:{served},\nunix:{too_long},{HOST},1\n{HOST}:{{port}},unix:{too_long},\n")
    assert heard(Path(longest)) == b"hello"
    problems = [line["message"] for line in veillink.logged("longer than 107 bytes")]
    assert [problem.partition(": ")[0] for problem in problems] == [f"{veillink.config}:3:1", f"{veillink.config}:4:2"]


def test_a_path_may_hold_blanks_commas_and_umlauts(start: Start, unix: ServeUnix, folder: Path) -> None:
    path, served = folder / 'a b,"ü".sock', unix(saying(b"hello"), "x, y.ß")
    cells = [f"unix:{place}".replace('"', '""') for place in (path, served)]
    veillink = start(",".join(f'"{cell}"' for cell in cells) + ",\n")
    assert heard(path) == b"hello"
    (line,) = veillink.access()
    assert (line["listen"], line["target"]) == (f"unix:{path}", f"unix:{served}")


def not_ours(path: Path, kind: str) -> bytes:
    """Put something else there, and return what it holds."""
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "folder":
        path.mkdir()
    else:
        listening(path.with_name("elsewhere")).close()
        path.symlink_to("elsewhere")
    return path.read_bytes() if kind == "file" else b""


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_reported_and_never_removed(
    start: Start, unix: ServeUnix, folder: Path, kind: str
) -> None:
    served, path = unix(saying(b"hello")), folder / "listen"
    held = not_ours(path, kind)
    before = inode(path)
    veillink = start(f"unix:{path},unix:{served},\n{HOST}:{{port}},unix:{served},\n")
    (error,) = veillink.logged("cannot listen")
    assert f"{veillink.config}:2: cannot listen on unix:{path}: " in error["message"]
    assert "no socket" in error["message"]
    assert veillink.heard() == b"hello"
    assert veillink.stop() == 0
    assert inode(path) == before
    assert kind != "file" or path.read_bytes() == held


def test_a_rule_whose_place_was_taken_runs_as_soon_as_it_is_free(start: Start, unix: ServeUnix, folder: Path) -> None:
    served, path = unix(saying(b"hello")), folder / "listen"
    path.write_text("in the way")
    veillink = start(f"unix:{path},unix:{served},\n")
    path.unlink()
    eventually(lambda: veillink.logged("listening at last"), 3)
    assert heard(path) == b"hello"
    veillink.first_fds += 1  # the listener that came late


@needs_root
def test_a_folder_without_permission_is_reported_for_what_it_is(start: Start, folder: Path) -> None:
    veillink = start(f"unix:{folder}/listen,{HOST},1\n", before=AS_NOBODY)
    (error,) = veillink.logged("cannot listen")
    assert f"{veillink.config}:2: cannot listen on unix:{folder}/listen: " in error["message"]
    assert "EACCES" in error["message"]
    assert "ports below" not in error["message"]


def test_after_a_kill_the_next_one_replaces_the_file(start: Start, unix: ServeUnix, folder: Path) -> None:
    path = folder / "listen"
    rows = f"unix:{path},unix:{unix(saying(b'hello'))},\n"
    start(rows).kill()
    assert inode(path)
    veillink = start(rows)
    assert not veillink.logged("cannot listen")
    assert heard(path) == b"hello"
    assert veillink.stop() == 0
    assert not inode(path)


def test_a_second_one_does_not_take_the_socket_away(start: Start, unix: ServeUnix, folder: Path) -> None:
    path = folder / "listen"
    first = start(f"unix:{path},unix:{unix(saying(b'first'), 'one')},\n")
    before = inode(path)
    second = start(f"unix:{path},unix:{unix(saying(b'second'), 'two')},\n")
    (error,) = second.logged("cannot listen")
    assert f"{second.config}:2: cannot listen on unix:{path}: " in error["message"]
    assert "EADDRINUSE" in error["message"]
    assert heard(path) == b"first"
    assert second.stop() == 0
    assert inode(path) == before
    assert heard(path) == b"first"
    first.assert_healthy()


def test_a_second_one_listens_when_the_first_has_gone(start: Start, unix: ServeUnix, folder: Path) -> None:
    path = folder / "listen"
    first = start(f"unix:{path},unix:{unix(saying(b'first'), 'one')},\n")
    second = start(f"unix:{path},unix:{unix(saying(b'second'), 'two')},\n")
    assert first.stop() == 0
    eventually(lambda: second.logged("listening at last"), 5)
    assert heard(path) == b"second"
    second.first_fds += 1  # the listener that came late


def test_a_reload_adds_and_removes_unix_sockets_and_leaves_the_others_alone(
    start: Start, unix: ServeUnix, folder: Path
) -> None:
    one, two, stays = folder / "one", folder / "two", folder / "stays"
    served, other = unix(echo), unix(saying(b"other"), "other")
    veillink = start(f"unix:{stays},unix:{served},\nunix:{one},unix:{served},\n")
    before = inode(stays)
    with dial(one) as sock:
        echoes(sock)
        veillink.reload(f"unix:{stays},unix:{other},\nunix:{two},unix:{other},\n")
        assert (inode(one), inode(stays)) == (0, before)
        assert heard(stays) == heard(two) == b"other"
        echoes(sock)
    assert veillink.stop() == 0
    assert not inode(stays)
    assert not inode(two)


def test_a_reload_that_changes_socket_mode_changes_the_permissions(start: Start, folder: Path) -> None:
    path = folder / "listen"
    veillink = start(f"unix:{path},{HOST},1,socket_mode=0666\n")
    assert mode(path) == 0o666
    veillink.reload(f"unix:{path},{HOST},1,socket_mode=0600\n")
    assert f"{mode(path):o}" == "600"


def in_our_place(path: Path, stack: ExitStack) -> None:
    path.unlink()
    stack.enter_context(listening(path))


@pytest.mark.parametrize("leaves", ["exit", "reload"])
def test_what_somebody_else_has_put_in_our_place_stays(start: Start, folder: Path, leaves: str) -> None:
    path, file = folder / "listen", folder / "file"
    veillink = start(f"unix:{path},{HOST},1\nunix:{file},{HOST},1\n")
    with ExitStack() as stack:
        in_our_place(path, stack)
        file.unlink()
        file.write_text("precious")
        before = inode(path)
        if leaves == "exit":
            assert veillink.stop() == 0
        else:
            veillink.reload(f"{HOST}:{{port}},{HOST},1\n")
        assert inode(path) == before
        assert file.read_text() == "precious"
        dial(path).close()


def test_a_check_touches_no_file(start: Start, folder: Path, tmp_path: Path) -> None:
    stale = folder / "stale"
    listening(stale).close()
    before = inode(stale)
    rules = tmp_path / "rules.csv"
    rules.write_text(f"unix:{stale},{HOST},1\nunix:{folder}/new,{HOST},1\n")
    printed = output(str(VEILLINK), "--check", "--config", str(rules)).decode()
    assert f"unix:{folder}/new" in printed
    assert [path.name for path in folder.iterdir()] == ["stale"]
    assert inode(stale) == before
