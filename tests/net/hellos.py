"""ClientHellos, made by hand and by OpenSSL."""

import contextlib
import ssl
from collections.abc import Iterable

NAME = "a.example"
TLS_1_2 = ssl.TLSVersion.TLSv1_2
TLS_1_3 = ssl.TLSVersion.TLSv1_3
GREASE = b"\x0a\x0a"
OTHER_GREASE = b"\xda\xda"


class Maker:
    """Makes hellos, of which one length may be wrong.

    Args:
        wrong: which one, counted in the order of making.
        off: by how much.
    """

    def __init__(self, wrong: int = -1, off: int = 0) -> None:
        self.lengths = 0
        self._wrong = wrong
        self._off = off

    def vector(self, data: bytes, width: int = 2) -> bytes:
        """Return some bytes with their length before them."""
        length = len(data) + self._off * (self.lengths == self._wrong)
        self.lengths += 1
        return (length % (1 << 8 * width)).to_bytes(width) + data

    def extension(self, kind: int, data: bytes) -> bytes:
        return kind.to_bytes(2) + self.vector(data)

    def server_name(self, name: str | bytes, kind: bytes = b"\0") -> bytes:
        """Return the extension for one name."""
        text = name if isinstance(name, bytes) else name.encode()
        return self.extension(0, self.vector(kind + self.vector(text)))

    def alpn(self, *protocols: bytes) -> bytes:
        return self.extension(16, self.vector(b"".join(self.vector(protocol, 1) for protocol in protocols)))

    def message(
        self,
        *extensions: bytes,
        kind: int = 1,
        session_id: bytes = bytes(32),
        ciphers: bytes = b"\x13\x01\x13\x02",
        compressions: bytes = b"\0",
    ) -> bytes:
        """Return the handshake message of a hello."""
        body = b"\x03\x03" + bytes(range(32))
        body += self.vector(session_id, 1) + self.vector(ciphers) + self.vector(compressions, 1)
        return bytes([kind]) + self.vector(body + self.vector(b"".join(extensions)), 3)

    def record(self, data: bytes, minor: int = 1) -> bytes:
        return bytes([22, 3, minor]) + self.vector(data)


def hello(*extensions: bytes) -> bytes:
    """Return a hello in one record."""
    return Maker().record(Maker().message(*extensions))


def named(name: str | bytes) -> bytes:
    """Return a hello with a name."""
    return hello(Maker().server_name(name))


def in_records(message: bytes, size: int) -> bytes:
    """Return a message cut into records that hold so many bytes."""
    return b"".join(Maker().record(message[at : at + size]) for at in range(0, len(message), size))


def like_chromium(name: str = NAME) -> bytes:
    """Return a hello of 1.8 kB with all that Chromium puts into one, a post-quantum key share (1216 bytes) among it."""
    make = Maker()
    shares = GREASE + make.vector(b"\0") + b"\x11\xec" + make.vector(bytes(1216)) + b"\0\x1d" + make.vector(bytes(32))
    ciphers = (0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8, 0xC013, 0xC014, 0x9C, 0x9D)
    extensions = [
        GREASE + make.vector(b""),
        make.server_name(name),
        make.extension(23, b""),
        make.extension(0xFF01, b"\0"),
        make.extension(10, make.vector(GREASE + b"\x11\xec\0\x1d\0\x17\0\x18")),
        make.extension(11, make.vector(b"\0", 1)),
        make.extension(35, b""),
        make.alpn(b"h2", b"http/1.1"),
        make.extension(5, b"\x01\0\0\0\0"),
        make.extension(13, make.vector(bytes.fromhex("0403080404010503080505010806 0601"))),
        make.extension(18, b""),
        make.extension(51, make.vector(shares)),
        make.extension(45, make.vector(b"\x01", 1)),
        make.extension(43, make.vector(GREASE + b"\x03\x04\x03\x03", 1)),
        make.extension(27, make.vector(b"\0\x02", 1)),
        make.extension(0x44CD, make.vector(make.vector(b"h2", 1))),
        make.extension(0xFE0D, b"\0\0\x01\0\x01\x05" + make.vector(bytes(32)) + make.vector(bytes(176))),
        OTHER_GREASE + make.vector(b"\0"),
    ]
    return make.record(make.message(*extensions, ciphers=GREASE + b"".join(c.to_bytes(2) for c in ciphers)))


def by_openssl(
    name: str | None = NAME,
    least: ssl.TLSVersion = TLS_1_2,
    most: ssl.TLSVersion = TLS_1_3,
    alpn: Iterable[str] = (),
) -> bytes:
    """Return what a client of the standard library sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version, context.maximum_version = least, most
    if alpn:
        context.set_alpn_protocols(list(alpn))
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("a handshake needs an answer")


def name_by_openssl(data: bytes) -> str | None:
    """Return the name that a server of the standard library finds in a hello, if it gets there."""
    found: list[str | None] = []

    def note(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
        found.append(name)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = note
    received = ssl.MemoryBIO()
    received.write(data)
    with contextlib.suppress(ssl.SSLError):  # it has no certificate
        context.wrap_bio(received, ssl.MemoryBIO(), server_side=True).do_handshake()
    return found[0] if found else None
