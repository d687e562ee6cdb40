"""Sink, source and echoes in a child process: what a VeilLink, or nothing, is put in front of."""

import contextlib
import math
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator

from ..processes import HOST, settle
from .blocks import BLOCK, Blocks, send_block
from .lane import Address
from .loop import IN, LOST, OUT, Loop, Task

ECHOES = 4  # echo ports, so that VeilLink, which connects from one address, has ports enough as well


def _serve_echo(loop: Loop, sock: socket.socket, buffer: memoryview) -> Task:
    """Send back what comes."""
    while True:
        yield
        if not (count := sock.recv_into(buffer)):
            return
        sent = sock.send(buffer[:count])
        if sent < count:
            rest = bytes(buffer[sent:count])  # the buffer is everybody's
            loop.watch(sock, OUT)
            while rest:
                yield
                rest = rest[sock.send(rest) :]
            loop.watch(sock, IN)


def _serve_sink(_loop: Loop, sock: socket.socket, _buffer: memoryview) -> Task:
    """Take what comes; our own end says that all of it was right."""
    blocks = Blocks(sock)
    yield
    while blocks.read():
        yield


def _serve_source(loop: Loop, sock: socket.socket, _buffer: memoryview) -> Task:
    """Send until the peer has finished, then on to the end of the BLOCK."""
    sent, finished = 0, False
    loop.watch(sock, IN | OUT)
    while not finished or sent % len(BLOCK):
        events = yield
        if events & IN and not finished:
            finished = True
            loop.watch(sock, OUT)
        elif events & (OUT | LOST):
            sent += send_block(sock, sent)


_Service = Callable[[Loop, socket.socket, memoryview], Task]


def _accept(loop: Loop, listener: socket.socket, service: _Service, buffer: memoryview) -> Task:
    """Give every connection to the service; one that breaks is reset, alone."""

    def serve(sock: socket.socket) -> Task:
        with sock:
            try:
                loop.watch(sock, IN)
                yield from service(loop, sock, buffer)
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    loop.watch(listener, IN)
    while True:
        yield
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                loop.spawn(serve(sock))


@contextlib.contextmanager
def backend() -> Iterator[list[Address]]:
    """Run sink, source and echoes in a child process."""
    services: list[_Service] = [_serve_sink, _serve_source, *[_serve_echo] * ECHOES]
    listeners = [socket.create_server((HOST, 0), backlog=4096) for _ in services]
    pid = os.fork()
    if not pid:
        try:
            settle(2)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            loop, buffer = Loop(), memoryview(bytearray(64 << 10))
            for listener, service in zip(listeners, services, strict=True):
                listener.setblocking(False)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                loop.spawn(_accept(loop, listener, service, buffer))
            loop.run(math.inf)
        finally:
            os._exit(1)
    try:
        addresses = [listener.getsockname() for listener in listeners]
        for listener in listeners:
            listener.close()
        yield addresses
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
