"""Run a program until it listens, and end it with all that it has started."""

import contextlib
import itertools
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from string import Template

from ..processes import HOST, ToolError, clock, start
from ..tls import certificate
from .installed import PATIENCE, fill, stream_module
from .programs import Program


def _free_ports() -> Iterator[int]:
    """Give ports that nobody has and that no outgoing connection is given, each once."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(10_000, low) if low > 20_000 else range(10_000, 30_000)
    for port in random.sample(candidates, len(candidates)):
        with socket.socket() as sock:
            try:
                sock.bind((HOST, port))
            except OSError:
                continue
        yield port
    raise ToolError("no port is free")


PORTS = _free_ports()


def _listens(port: int) -> bool:
    """Tell whether somebody listens on the port, without a connection that would be forwarded."""
    with Path("/proc/net/tcp").open() as lines:
        next(lines)
        fields = map(str.split, lines)  # those who listen come first
        return any(words[1].endswith(f":{port:04X}") for words in itertools.takewhile(lambda w: w[3] == "0A", fields))


@contextlib.contextmanager
def running(program: Program, cpu: int, target: int = 0, key: str = "") -> Iterator[tuple[int, int]]:
    """Run a program; give the port where it listens, and its pid.

    Args:
        program: it.
        cpu: see ``pin``.
        target: the port that it forwards to.
        key: of the certificate with which it terminates TLS, as ``tls.KEYS`` has them; nothing: without TLS.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Path(folder, "words").open("w+b") as words:
        config, port = Path(folder, "config"), next(PORTS)
        text = Template(program.tls if key else program.config)
        if key:
            Path(folder, "tls.pem").write_bytes(certificate(key))
            Path(folder, "tls.pem").chmod(0o600)
        config.write_text(text.substitute(folder=folder, port=port, target=target, module=stream_module()))
        command = fill(program.command, folder=folder, port=port, target=target, config=config)
        process = start(command, folder, words, cpu)
        try:
            deadline = clock() + PATIENCE
            while not _listens(port):
                if process.poll() is not None or clock() > deadline:
                    raise ToolError("does not listen")
                time.sleep(0.02)
            yield port, process.pid
            if process.poll() is not None:
                raise ToolError("has ended by itself")
        except (ToolError, OSError) as error:
            words.seek(0)
            last = words.read().decode(errors="replace").split("\n")[-2:-1]
            raise ToolError("; its last words: ".join([str(error), *last])) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
