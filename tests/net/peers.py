"""What tests of sockets do with them."""

import _socket
import os
import struct
from collections.abc import Callable

from gevent import socket

from tests.sockets import Sockets, address_of
from veillink.net import sockets as net
from veillink.net.socket_stream import SocketStream

TINY = 4096


def pattern(size: int) -> bytes:
    return b"".join(struct.pack("!I", n) for n in range(size // 4))


def accept_now(listener: socket.socket) -> "_socket.socket | None":
    try:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
    except BlockingIOError:
        return None
    return net.adopt(fd, listener.family)


def receive(stream: SocketStream, size: int = 100) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: stream.recv_into(memoryview(buffer))])


Closing = Callable[[SocketStream], None]


def heir_of(stream: SocketStream, end: Closing, sockets: Sockets) -> tuple[SocketStream, socket.socket]:
    """End a stream and return another one, and its peer, that has got the same descriptor number."""
    listener = sockets.listener()
    peer = sockets.client(address_of(listener))
    accepted = sockets.accept(listener)
    number = stream._fd
    end(stream)
    os.dup2(accepted.fileno(), number, inheritable=False)
    accepted.close()
    return SocketStream(net.adopt(number, socket.AF_INET)), peer


def finish_with(far: socket.socket, data: bytes) -> None:
    far.sendall(data)
    far.shutdown(socket.SHUT_WR)
