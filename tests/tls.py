"""Certificates, and peers that speak TLS with full control over how they end it."""

import _ssl
import ctypes
import socket
import ssl
from collections.abc import Callable
from functools import cache

import trustme

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
NAME = "a.example"


@cache
def authority(which: str, /) -> trustme.CA:
    """Return a certificate authority; ``which`` tells several apart."""
    return trustme.CA()


@cache
def certificate(*names: str, of: str = "ours") -> trustme.LeafCert:
    """Return a certificate for these names."""
    return authority(of).issue_cert(*names or (NAME,))


def serving(cert: trustme.LeafCert | None = None, version: str = "") -> ssl.SSLContext:
    """Return a server's context, of the one version where that is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (cert or certificate()).configure_cert(context)
    return _only(context, version)


def asking(version: str = "", of: str = "ours") -> ssl.SSLContext:
    """Return the context of a client that verifies."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority(of).configure_trust(context)
    return _only(context, version)


def _only(context: ssl.SSLContext, version: str) -> ssl.SSLContext:
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


class TlsPeer:
    """A far end: unlike ``ssl.SSLSocket`` it can finish in TLS alone, on TCP alone, and go on receiving."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str = NAME) -> None:
        self.sock = sock
        if sock.family != socket.AF_UNIX:  # a close with tickets unread would lose what waits
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        serves = context.protocol is ssl.PROTOCOL_TLS_SERVER
        self.engine = context.wrap_bio(self._received, self._to_send, serves, None if serves else name)

    def shake_hands(self) -> "TlsPeer":
        while not self._tried(self.engine.do_handshake):
            self.pull()
        return self

    def _tried(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except ssl.SSLWantReadError:
            return False
        finally:
            self.push()
        return True

    def push(self) -> None:
        if self._to_send.pending:
            self.sock.sendall(self._to_send.read())

    def pull(self, most: int = 1 << 16) -> None:
        if data := self.sock.recv(most):
            self._received.write(data)
        else:
            self._received.write_eof()

    def sendall(self, data: bytes, record: int = 1 << 14) -> None:
        for start in range(0, len(data), record):
            self.engine.write(data[start : start + record])
            if self._to_send.pending > 1 << 16:
                self.push()
        self.push()

    def recv(self, most: int) -> bytes:
        """Return what comes next, nothing after a close_notify; raise ssl.SSLEOFError for a FIN without one."""
        while True:
            try:
                return self.engine.read(most)
            except ssl.SSLWantReadError:
                self.push()
                self.pull()
            except ssl.SSLZeroReturnError:
                return b""

    def read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.recv(count - len(data))
            assert part, f"finished after {len(data)} of {count} bytes"
            data += part
        return data

    def read_to_eof(self) -> bytes:
        data = bytearray()
        while part := self.recv(1 << 16):
            data += part
        return bytes(data)

    def update_keys(self) -> None:
        """Change keys, and ask the other side to do so too. Python cannot: OpenSSL's own object is behind its own."""
        lib = ctypes.CDLL(_ssl.__file__)
        lib.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
        behind = ctypes.c_void_p.from_address(id(self.engine._sslobj) + 24)  # type: ignore[attr-defined]
        assert lib.SSL_key_update(behind, 1) == 1
        self.engine.do_handshake()

    def finish(self) -> None:
        """Say that nothing more comes."""
        self._tried(self.engine.unwrap)

    def finish_with(self, data: bytes, record: int = 1 << 14) -> None:
        """Send this, and say that nothing more comes."""
        self.sendall(data, record)
        self.finish()

    def close(self) -> None:
        self.finish()
        self.sock.close()
