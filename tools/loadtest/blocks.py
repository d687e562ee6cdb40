"""Bulk data: a known block again and again, so that each byte that arrives can be compared."""

import os
import socket

from .tls import TlsSocket

BLOCK = os.urandom(131_071)  # a prime, so that no lost buffer goes unseen


class Blocks:
    """Reads a stream of BLOCKs and compares every byte."""

    def __init__(self, sock: socket.socket | TlsSocket) -> None:
        self.sock, self.block, self.total = sock, bytearray(len(BLOCK)), 0

    def read(self) -> int:
        """Read once: how many bytes came, 0 at the end."""
        at = self.total % len(BLOCK)
        count = self.sock.recv_into(memoryview(self.block)[at:])
        self.total += count
        if at and not count:
            raise OSError("CUT_SHORT")
        if count and at + count == len(BLOCK) and self.block != BLOCK:
            raise OSError("CORRUPT")
        return count


def send_block(sock: socket.socket | TlsSocket, sent: int) -> int:
    """Send the rest of the BLOCK that is under way, or what the kernel takes of it."""
    return sock.send(memoryview(BLOCK)[sent % len(BLOCK) :])
