"""A VeilLink of our own for the time of the measures."""

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..environment import REPO
from ..processes import HOST, ToolError, clock, start
from ..tls import certificate
from .lane import Address

_PATIENCE = 20.0  # seconds for all rules to accept


@contextlib.contextmanager
def veillink(targets: list[Address], *, tls: bool) -> Iterator[tuple[list[Address], int]]:
    """Run a VeilLink in front of these targets, which may end TLS (P-256); give its addresses and pid."""
    with contextlib.ExitStack() as held:
        listeners = [held.enter_context(socket.create_server((HOST, 0))) for _ in targets]
        ports: list[Address] = [listener.getsockname() for listener in listeners]
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder, Path(folder, "log").open("w+b") as log:
        options = ",tls=tls.pem" if tls else ""
        rows = (
            f"127.0.0.1:{mine[1]},127.0.0.1,{theirs[1]}{options}\n" for mine, theirs in zip(ports, targets, strict=True)
        )
        rules = Path(folder, "rules.csv")
        rules.write_text("".join(rows))
        if tls:
            Path(folder, "tls.pem").write_bytes(certificate("p256"))
        command = [str(REPO / ".venv/bin/veillink"), "--config", str(rules), "--no-access-log"]
        process = start(command, folder, log, cpu=0)
        try:
            _wait_until_ready(process, ports)
            yield ports, process.pid
            if process.poll() is not None:
                raise ToolError("VeilLink ended by itself")
        except ToolError as error:
            log.seek(0)
            raise ToolError(f"{error}; its last words:\n{log.read()[-2000:].decode(errors='replace')}") from None
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], ports: list[Address]) -> None:
    """Wait until every rule accepts."""
    deadline = clock() + _PATIENCE
    for address in ports:
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(address) == 0 and sock.getsockname() != address:
                    break
            if process.poll() is not None or clock() > deadline:
                raise ToolError("VeilLink did not start")
            time.sleep(0.02)
