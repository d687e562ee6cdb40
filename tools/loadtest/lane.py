"""The ways to the backend that are compared."""

import errno
import os
import resource
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .loop import Loop

Address = tuple[Any, ...]

PORTS = 10_000  # connections from one address to one port: looking for a free port is slow after 14,000 of 28,000
_IP_BIND_ADDRESS_NO_PORT = 24  # Python 3.11 does not name it


@dataclass
class Lane:
    """A way to the backend: through VeilLink (whose pid this is), direct, or to --target; and whether in TLS."""

    name: str
    echo: list[Address]
    bulk: dict[str, Address]
    pid: int = 0
    tls: ssl.SSLContext | None = None
    dialled: int = 0

    def dial(self, loop: Loop, address: Address | None = None, *events: int) -> socket.socket:
        """Begin to connect (to an echo); the story wakes when that is done, and its first send tells how it went."""
        address = address or self.echo[self.dialled % len(self.echo)]
        family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            turn = self.dialled // (PORTS * len(self.echo)) % 250
            if turn and address[0].startswith("127."):
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((f"127.0.0.{1 + turn}", 0))
            self.dialled += 1
            code = sock.connect_ex(address)
            if sock.getsockname() == address:  # a closed local port can be connected to itself, and would echo
                code = errno.ECONNREFUSED
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            loop.watch(sock, *events)
        except OSError:
            sock.close()
            raise
        return sock

    def usage(self) -> tuple[float, float]:
        """Tell our VeilLink's CPU seconds so far and its resident memory in KiB."""
        if not self.pid:
            return 0, 0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
        return ticks / os.sysconf("SC_CLK_TCK"), pages * resource.getpagesize() / 1024
