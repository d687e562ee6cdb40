"""Read and write PROXY headers: what a proxy says of a connection's ends (haproxy's proxy-protocol.txt).

Rule: ``parse`` returns, or raises ``Ended``, and nothing else, whatever the bytes are.
"""

import re
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, NamedTuple

from veillink.model import Address, End, Ended


class Header(NamedTuple):
    """The ends that a header names; nothing where the connection's own pair is to be kept.

    Args:
        source: the client.
        destination: where the client has connected to.
    """

    source: Address | None = None
    destination: Address | None = None


_OWN_PAIR: Final = Header()

_LONGEST_LINE: Final = 107  # bytes with the line's end: all that the specification asks for
_STARTS: Final = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r\n")
_OF_ADDRESSES: Final = b"0123456789abcdefABCDEF:. "
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16  # bytes: signature, command, family, and the length of what follows
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPEC: Final = (0x00, 0x01)
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_LAYOUTS: Final = {_TCP4: Struct(">4s4sHH"), _TCP6: Struct(">16s16sHH")}
_MOST_TLVS: Final = 4096  # bytes
_CRC32C: Final = 0x03

LIMIT: Final = _FIXED + _LAYOUTS[_TCP6].size + _MOST_TLVS
"""The bytes of the longest header: with so many, ``parse`` never asks for more."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
_GROUPS: Final = Struct(">8H")
_EIGHT_GROUPS: Final = (":" + "{:x}:" * 8).format
_ZEROS: Final = tuple(":" + "0:" * length for length in range(8, 1, -1))


def _bad(detail: str) -> Ended:
    return Ended(End.BAD_PROXY_HEADER, detail)


def parse(data: bytes) -> tuple[Header, int] | None:
    """Return the header that some bytes begin with and its length, or nothing while it is not whole.

    Args:
        data: all that has come so far. The answer to it is the answer to whatever begins with it.

    Raises:
        Ended: no header can begin so; the detail says what is wrong.
    """
    if _SIGNATURE.startswith(data[: len(_SIGNATURE)]):
        return _parse_binary(data)
    if data.startswith(_STARTS) or any(start.startswith(data) for start in _STARTS):
        return _parse_line(data)
    raise _bad("no header")


# --- version 1 -------------------------------------------------------------------------------------------------------


def _parse_line(data: bytes) -> tuple[Header, int] | None:
    end = data.find(b"\r\n", 0, _LONGEST_LINE)
    line = data[:end] if end >= 0 else data[:_LONGEST_LINE].removesuffix(b"\r")
    is_unknown = line.startswith(b"PROXY U")
    if not is_unknown and line[len(_STARTS[0]) :].translate(None, _OF_ADDRESSES):
        raise _bad("bad line")  # at once, and not only when it gets too long: its end may never come
    if end < 0:
        if len(data) >= _LONGEST_LINE:
            raise _bad("line too long")
        return None
    if is_unknown:
        return _OWN_PAIR, end + 2
    words = line.decode("ascii").split(" ")
    if len(words) != 6:
        raise _bad("bad line")
    _, family, source, destination, source_port, destination_port = words
    return (
        Header(
            _address(_line_host(source, family), _line_port(source_port)),
            _address(_line_host(destination, family), _line_port(destination_port)),
        ),
        end + 2,
    )


def _line_host(text: str, family: str) -> bytes:
    try:
        packed = _packed(text)
    except ValueError:
        raise _bad("bad address") from None
    if (len(packed) == 16) != (family == "TCP6"):
        raise _bad("address of another family")
    return packed


def _line_port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise _bad("bad port")
    return int(text)


# --- version 2 -------------------------------------------------------------------------------------------------------


def _parse_binary(data: bytes) -> tuple[Header, int] | None:
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise _bad("unknown version" if data[12] >> 4 != 2 else "unknown command")
    if len(data) < 14:
        return None
    layout = _LAYOUTS.get(data[13]) if data[12] == _PROXY else None
    if not layout and data[12] == _PROXY and data[13] not in _UNSPEC:
        raise _bad("unsupported family")
    if len(data) < _FIXED:
        return None
    length = data[14] << 8 | data[15]
    if layout and length < layout.size:
        raise _bad("too short for its family")
    # A block that is skipped may hold addresses of either family.
    if length > (layout or _LAYOUTS[_TCP6]).size + _MOST_TLVS:
        raise _bad("too long")
    used = _FIXED + length
    if len(data) < used:
        return None
    if not layout:
        return _OWN_PAIR, used
    _check_tlvs(data[:used], _FIXED + layout.size)
    source, destination, source_port, destination_port = layout.unpack_from(data, _FIXED)
    return Header(_address(source, source_port), _address(destination, destination_port)), used


def _check_tlvs(header: bytes, at: int) -> None:
    checksum_at = 0
    while at < len(header):
        value_at = at + 3
        if value_at > len(header):
            raise _bad("bytes after the last TLV")
        length = header[at + 1] << 8 | header[at + 2]
        if value_at + length > len(header):
            raise _bad("TLV too long")
        if header[at] == _CRC32C:
            # A second one has no defined meaning, and a thousand of them would cost a second.
            if length != 4 or checksum_at:
                raise _bad("bad checksum TLV")
            checksum_at = value_at
        at = value_at + length
    if checksum_at:
        end = checksum_at + 4
        if _crc32c(header[:checksum_at] + bytes(4) + header[end:]) != int.from_bytes(header[checksum_at:end]):
            raise _bad("wrong checksum")


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C_TABLE: Final = _crc32c_table()


def _crc32c(data: bytes) -> int:
    """Return the checksum of RFC 9260 appendix A (another polynomial than zlib's)."""
    table, crc = _CRC32C_TABLE, 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(version: int, source: Address | None, destination: Address | None) -> bytes:
    """Return the header that says who has connected to where.

    IPv4 addresses in IPv6 form are IPv4; where only one of the two is, it goes out in IPv6 form.

    Args:
        version: 1 or 2.
        source: the client, numeric.
        destination: where it has connected to, numeric. If either is a UNIX socket or is not known, the header says
            that the ends are unknown (v1 UNKNOWN, v2 UNSPEC).

    Raises:
        ValueError: a host is not numeric.
    """
    if source is None or destination is None or source.is_unix or destination.is_unix:
        return b"PROXY UNKNOWN\r\n" if version == 1 else _fixed(_PROXY, _UNSPEC[0], 0)
    ends = [_unmapped(_packed(end.host)) for end in (source, destination)]
    if len(ends[0]) != len(ends[1]):
        ends = [end if len(end) == 16 else _MAPPED + end for end in ends]
    is_ipv4 = len(ends[0]) == 4
    if version == 1:
        hosts = f"{_shown(ends[0])} {_shown(ends[1])}"
        return f"PROXY TCP{4 if is_ipv4 else 6} {hosts} {source.port} {destination.port}\r\n".encode()
    family = _TCP4 if is_ipv4 else _TCP6
    layout = _LAYOUTS[family]
    return _fixed(_PROXY, family, layout.size) + layout.pack(*ends, source.port, destination.port)


def encode_local(version: int, source: Address | None, destination: Address | None) -> bytes:
    """Return the header of a connection that is our own, such as a health probe's.

    Args:
        version: 1, which has no word for that and says who we are (receivers may refuse UNKNOWN), or 2.
        source: our end.
        destination: the peer's.

    Raises:
        ValueError: a host is not numeric.
    """
    return encode(version, source, destination) if version == 1 else _fixed(_LOCAL, _UNSPEC[0], 0)


def _fixed(command: int, family: int, length: int) -> bytes:
    return _SIGNATURE + bytes((command, family, *length.to_bytes(2)))


# --- addresses -------------------------------------------------------------------------------------------------------


def _packed(text: str) -> bytes:
    if ":" not in text:
        return IPv4Address(text).packed
    if "." in text or "%" in text:
        return IPv6Address(text).packed
    # By hand in a third of IPv6Address's time: a header has two.
    head, gap, tail = text.partition("::")
    groups, last = head.split(":") if head else [], tail.split(":") if tail else []
    if gap:
        groups += ["0"] * max(8 - len(groups) - len(last), 1)
    groups += last
    digits = "".join([group.zfill(4) for group in groups])
    if len(groups) != 8 or len(digits) != 32 or "" in groups:
        raise ValueError(text)
    return bytes.fromhex(digits)


def _address(packed: bytes, port: int) -> Address:
    return Address(_shown(_unmapped(packed)), port)


def _unmapped(packed: bytes) -> bytes:
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _shown(packed: bytes) -> str:
    """Return an address as RFC 5952 writes it (``IPv6Address`` takes three times as long)."""
    if len(packed) == 4:
        return ".".join(map(str, packed))
    text = _EIGHT_GROUPS(*_GROUPS.unpack(packed))
    for zeros in _ZEROS:
        if zeros in text:
            text = text.replace(zeros, "::", 1)
            break
    return text[not text.startswith("::") : None if text.endswith("::") else -1]
