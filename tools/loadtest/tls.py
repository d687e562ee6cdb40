"""The clients' end of TLS, as a socket that never blocks."""

import contextlib
import os
import socket
import ssl
from collections.abc import Generator
from typing import Any

_AT_ONCE = 1 << 16


class TlsSocket:
    """Behaves as a plain socket does where there is nothing to do yet, and where sending is finished.

    On memory: ``ssl.SSLSocket`` throws away what has come when it finishes sending.

    Args:
        sock: connected, and not blocking.
        context: of a client.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._received, self._to_send)
        self._unread = self._unsent = b""
        self._ended = False

    def shake_hands(self) -> Generator[None, int, None]:
        """Agree with the peer, as a part of a story."""
        while True:
            try:
                self._engine.do_handshake()
            except ssl.SSLWantReadError:
                self._push()
            except ssl.SSLError as error:  # whose errno is a number of OpenSSL's
                raise OSError(error.reason) from None
            else:
                return self._push()
            while not self._pull():
                yield

    def _push(self) -> None:
        """Send what is encrypted, as far as there is room."""
        self._unsent += self._to_send.read()
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]

    def _pull(self) -> bool:
        """Return whether something has come."""
        try:
            data = self._sock.recv(_AT_ONCE)
        except BlockingIOError:
            return False
        if not data:
            raise OSError("EOF")
        self._received.write(data)
        return True

    def _decrypt(self) -> None:
        """Decrypt all that has come."""
        try:
            while data := self._engine.read(_AT_ONCE):
                self._unread += data
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            raise OSError(error.reason) from None

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._sock.fileno()

    def send(self, data: Any) -> int:
        """Encrypt and send some of it."""
        self._push()
        if self._unsent:
            raise BlockingIOError
        count = self._engine.write(data[:_AT_ONCE])
        self._push()
        return count

    def recv_into(self, buffer: Any) -> int:
        """Receive all that there is room for: what stays behind would wake nobody."""
        self._push()
        view = memoryview(buffer)
        while len(self._unread) < len(view) and not self._ended and self._pull():
            self._decrypt()
        if not self._unread and not self._ended:
            raise BlockingIOError
        count = min(len(view), len(self._unread))
        view[:count] = self._unread[:count]
        self._unread = self._unread[count:]
        return count

    def shutdown(self, how: int) -> None:
        """Finish sending, in TLS and on TCP, once there is room for all that comes before."""
        self._push()
        if self._unsent:
            raise BlockingIOError
        self._decrypt()
        with contextlib.suppress(ssl.SSLError):  # the peer's end has not come yet
            self._engine.unwrap()
        self._push()
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close, in order where nothing is left to be sent."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_WR)
        self._sock.close()

    def __enter__(self) -> "TlsSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shake_hands(sock: socket.socket, context: ssl.SSLContext) -> Generator[None, int, TlsSocket]:
    """Agree on TLS over a socket that was connected, or not; return the one that speaks it."""
    try:
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        secure = TlsSocket(sock, context)
        yield from secure.shake_hands()
    except BaseException:
        sock.close()
        raise
    return secure
