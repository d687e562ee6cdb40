"""The real program as a child process, and real peers on both sides of it.

Everything a test needs to speak of: a VeilLink, a backend that runs a function for each connection, a client socket.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

VEILLINK = Path(sys.executable).with_name("veillink")
HOST = "127.0.0.1"

Handler = Callable[[socket.socket], object]

# Each process of a run has its own part of the ports, since a free one is not taken before it is used. From 20,000 on
# tests with a network of their own take what they like.
_MATES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_FIRST = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) * (10_000 // _MATES)
_ports = itertools.count(os.getpid() * 20)


def free_port(host: str = HOST) -> int:
    """Return a port that nobody listens on, below the ephemeral range: no outgoing connection takes it meanwhile."""
    while True:
        port = 10_000 + _FIRST + next(_ports) % (10_000 // _MATES)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port


def listens(port: int) -> bool:
    """Return whether somebody listens on an IPv4 address with this port, without connecting (proc(5), tcp)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(line[3] == "0A" and line[1].endswith(f":{port:04X}") for line in lines)


def eventually(condition: Callable[[], Any], seconds: float = 5.0, what: str = "") -> Any:
    """Return the first true answer of ``condition``, asked again and again; fail when none came in time."""
    until = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < until, f"not within {seconds} s: {what or condition}"
        time.sleep(0.005)
    return answer


def open_in(pid: int) -> list[str]:
    """Return what each descriptor of a process leads to, but those that it closes meanwhile (proc(5), fd)."""
    found: list[str] = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(fd.readlink()))
    return found


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Return ``count`` bytes; fail when the peer finishes before."""
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(1 << 20, count - len(data)))
        assert part, f"finished after {len(data)} of {count} bytes"
        data += part
    return bytes(data)


def exchange(sock: socket.socket, data: bytes = b"ping") -> None:
    """Send something to an echo and get it back."""
    sock.sendall(data)
    assert read_exactly(sock, len(data)) == data


def read_to_eof(sock: socket.socket) -> bytes:
    """Return everything until the peer has finished (OSError when it resets)."""
    data = bytearray()
    while part := sock.recv(1 << 20):
        data += part
    return bytes(data)


def echo(sock: socket.socket) -> None:
    """Send everything back; finish when the peer has."""
    with contextlib.suppress(OSError):
        while data := sock.recv(1 << 16):
            sock.sendall(data)


def saying(word: bytes) -> Handler:
    """Return a handler that says its word and waits for the peer to finish."""

    def handler(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(word)
            sock.recv(1)

    return handler


def failing(call: str, error: str, count: int, trace: Path) -> tuple[str, ...]:
    """Return what goes before a command whose first system calls of one kind are to fail; the trace tells them."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    fault = f"inject={call}:error={error}:when=1..{count}"
    return ("strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", fault)


class Backend:
    """A server whose every connection is handled by a function in a thread; it closes the socket when it returns.

    ``errors`` collects what handlers raised (assertions too): a test that ends with any has failed.
    """

    def __init__(self, handler: Handler = echo, host: str = HOST, port: int = 0, backlog: int = 512) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server((host, port), family=family, backlog=backlog)
        self._handler = handler
        self.host = host
        self.port: int = self._listening.getsockname()[1]
        self.accepted = 0
        self.errors: list[BaseException] = []
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self.accepted += 1
                self.sockets.append(sock)
                threading.Thread(target=self._handle, args=(sock,), daemon=True).start()

    def _handle(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(60)
            self._handler(sock)
        except BaseException as error:
            self.errors.append(error)
        finally:
            sock.close()

    def close(self) -> None:
        """Stop listening and close every connection."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._listening.close()
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __enter__(self) -> "Backend":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if kind is None:
            assert not self.errors, self.errors


class VeilLink:
    """A running ``veillink``.

    Args:
        rows: the rules' file; ``{port}`` is a free port, the same in all rows: ``self.port``. A first rule of the
            harness's own, to its own echo backend, is added unless ``canary`` is false.
        options: of the command line.
        folder: where the rules' file is written.
        before: put before the command, such as ``("strace", "-f", …)`` or ``("prlimit", "--nofile=64")``.
        env: added to the environment.
        ready: wait until it says that it is ready.
        text: log in text and not in JSON.
        stdout: given to the child instead of a pipe that is read here.
    """

    def __init__(
        self,
        rows: str,
        *options: str,
        folder: Path,
        canary: bool = True,
        before: Sequence[str] = (),
        env: dict[str, str] | None = None,
        ready: bool = True,
        text: bool = False,
        stdout: int | None = None,
    ) -> None:
        self.port = free_port()
        self.echo_port = free_port()
        self._canary = Backend() if canary else None
        self.config = folder / f"rules-{self.port}.csv"
        self.write(rows)
        self.lines: list[str] = []
        command = [*before, str(VEILLINK), "--config", str(self.config), *options]
        if not text:
            command.append("--log-format=json")
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.STDOUT,
            # Behind a program that takes something from it, it has no coverage measured, which needs it as well:
            # the right to write into this folder, a working directory.
            env=os.environ | ({"COVERAGE_PROCESS_CONFIG": ""} if before else {}) | (env or {}),
        )
        self._reader: threading.Thread | None = None
        if self.child.stdout is not None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        if ready:
            try:
                self.wait_for_line(r"\bready\b")
            except BaseException:
                self.kill()
                raise
            self.first_fds = self.fds()

    def write(self, rows: str) -> None:
        """Replace the rules' file (HUP is the test's to send)."""
        rows = rows.replace("{port}", str(self.port))
        if self._canary is not None:
            rows = f"{HOST}:{self.echo_port},{HOST},{self._canary.port},name=canary\n{rows}"
        part = self.config.with_suffix(".part")
        part.write_text(rows, encoding="utf-8")
        part.replace(self.config)

    def reload(self, rows: str, said: str = "^reloaded") -> None:
        """Replace the rules' file, send HUP and wait until it has said what became of it."""
        before = len(self.logged(said))
        self.write(rows)
        self.send(signal.SIGHUP)
        eventually(lambda: len(self.logged(said)) > before, what=f"{said!r} in:\n{self.output}")

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))

    @property
    def output(self) -> str:
        """Everything it has written so far."""
        return "\n".join(self.lines)

    @property
    def pid(self) -> int:
        """VeilLink's own pid, also behind strace."""
        if Path(f"/proc/{self.child.pid}/exe").resolve().name.startswith("python"):
            return self.child.pid
        return int(Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()[0])

    def wait_for_line(self, pattern: str, seconds: float = 10.0, count: int = 1) -> str:
        """Return the ``count``-th line that the pattern is found in."""

        def find() -> str | None:
            found = [line for line in tuple(self.lines) if re.search(pattern, line)]
            if len(found) < count and self.child.poll() is not None:
                assert self._reader is not None
                self._reader.join(5)
                found = [line for line in self.lines if re.search(pattern, line)]
                assert len(found) >= count, f"it ended without a line with {pattern!r}:\n{self.output}"
            return found[count - 1] if len(found) >= count else None

        line: str = eventually(find, seconds, f"a line with {pattern!r} in:\n{self.output}")
        return line

    def logged(self, message: str) -> list[dict[str, Any]]:
        """Return the lines so far whose message the pattern is found in."""
        parsed = [json.loads(line) for line in tuple(self.lines) if '"message"' in line]
        return [line for line in parsed if re.search(message, line["message"])]

    def access(self, count: int = 1, rule: str | None = None, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Return the access lines of all rules but the canary (or of one rule), once there are ``count``."""

        def lines() -> list[dict[str, Any]]:
            parsed = [json.loads(line) for line in tuple(self.lines) if '"duration_ms"' in line]
            return [line for line in parsed if (line["rule"] == rule if rule else line["rule"] != "canary")]

        eventually(lambda: len(lines()) >= count, seconds, f"{count} access lines in:\n{self.output}")
        return lines()

    def connect(self, port: int = 0, host: str = HOST, timeout: float = 20.0) -> socket.socket:
        """Return a client's socket, connected to the listener."""
        return socket.create_connection((host, port or self.port), timeout=timeout)

    def heard(self, port: int = 0, host: str = HOST) -> bytes:
        """Return what a new client that sends nothing is told; ConnectionResetError when it is reset."""
        with self.connect(port, host) as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:  # ENOTCONN: it is gone already
                raise ConnectionResetError(*error.args) from None
            return read_to_eof(sock)

    def seconds_to_echo(self, port: int = 0) -> float:
        """Return how long a new client waits for its first byte to come back."""
        begun = time.monotonic()
        with self.connect(port) as sock:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
        return time.monotonic() - begun

    def assert_healthy(self) -> None:
        """Fail unless a plain connection echoes at once."""
        with self.connect(self.echo_port, timeout=5) as sock:
            sock.sendall(b"still there?")
            assert read_exactly(sock, 12) == b"still there?"

    def fds(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208

    def rss(self) -> int:
        """Return its resident memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Return the seconds of CPU it has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def settle(self, seconds: float = 8.0) -> None:
        """Wait until it holds no more descriptors than when it was ready."""
        eventually(lambda: self.fds() <= self.first_fds, seconds, f"{self.first_fds} descriptors")

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 10.0) -> int:
        """End it with a signal and return its exit code."""
        if self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
                self.send(number)
        code = self.child.wait(seconds)
        self.close()
        return code

    def kill(self) -> None:
        """End it at once, whatever it does."""
        if self.child.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                os.kill(self.pid, signal.SIGKILL)
            self.child.kill()
        self.child.wait(10)
        self.close()

    def close(self) -> None:
        """Let go of what the harness holds beside the child."""
        if self._canary is not None:
            self._canary.close()
        if self._reader is not None:
            self._reader.join(5)
            assert not self._reader.is_alive(), "a process that it has started has not ended"
        if self.child.stdout is not None:
            self.child.stdout.close()


@contextlib.contextmanager
def running(rows: str, *options: str, folder: Path, **more: Any) -> Iterator[VeilLink]:
    """A VeilLink for the time of a test. After the test's body it must be as it was: healthy, with no descriptor more
    than before, without a traceback, and stopping with 0 once it is told to."""
    veillink = VeilLink(rows, *options, folder=folder, **more)
    try:
        yield veillink
        if veillink.child.poll() is None:
            veillink.settle()
            if more.get("canary", True):
                veillink.assert_healthy()
            assert veillink.stop() == 0
        assert "Traceback" not in veillink.output, veillink.output
    finally:
        veillink.kill()


def nobody_listens(veillink: VeilLink, port: int) -> bool:
    """Return whether a connect to a port of its host is refused."""
    try:
        veillink.connect(port).close()
    except ConnectionRefusedError:
        return True
    return False
