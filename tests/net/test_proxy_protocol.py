"""Tests of PROXY headers: what is read, what is refused and when, and what is written."""

import timeit
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veillink.model import Address, End, Ended
from veillink.net.proxy_protocol import LIMIT, Header, encode, encode_local, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
OWN_PAIR = Header(None, None)
FOUR = Header(Address("192.0.2.1", 56324), Address("198.51.100.7", 443))
SIX = Header(Address("2001:db8::1", 56324), Address("2001:db8:0:1::7", 443))
FOUR_BLOCK = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + b"\xdc\x04\x01\xbb"
SIX_BLOCK = b"".join(IPv6Address(end.host).packed for end in SIX if end) + b"\xdc\x04\x01\xbb"
MOST_TLVS = 4096
DATA = b"HELLO"

type_crc, type_noop = b"\x03", b"\x04"


def binary(family: int, block: bytes, command: int = 0x21, length: int | None = None) -> bytes:
    """Return a header of version 2."""
    return SIGNATURE + bytes([command, family]) + (len(block) if length is None else length).to_bytes(2) + block


def tlv(kind: bytes, value: bytes) -> bytes:
    """Return one TLV."""
    return kind + len(value).to_bytes(2) + value


def crc32c(data: bytes) -> int:
    """Return the checksum, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def summed(family: int, block: bytes, after: bytes = b"", wrong: int = 0) -> bytes:
    """Return a header of version 2 with a checksum between its block and what comes after."""
    zero = binary(family, block + tlv(type_crc, bytes(4)) + after)
    at = 16 + len(block) + 3
    return zero[:at] + (crc32c(zero) ^ wrong).to_bytes(4) + zero[at + 4 :]


def mapped(host: str, port: int) -> bytes:
    """Return the block of an IPv4 address in IPv6 form, as source and destination."""
    return (bytes(10) + b"\xff\xff" + IPv4Address(host).packed) * 2 + port.to_bytes(2) * 2


def end(host: str, port: int) -> Header:
    """Return a header with one address as source and destination."""
    return Header(Address(host, port), Address(host, port))


READ = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n", FOUR),
    "v1 TCP4, the longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        end("255.255.255.255", 65535),
    ),
    "v1 TCP4, zeros": (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", end("0.0.0.0", 0)),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::1 2001:db8:0:1::7 56324 443\r\n", SIX),
    "v1 TCP6, in capitals and in full": (
        b"PROXY TCP6 2001:0DB8:0000:0000:0000:0000:0000:0001 2001:DB8:0:1:0:0:0:7 56324 443\r\n",
        SIX,
    ),
    "v1 TCP6, the longest": (
        b"PROXY TCP6 " + b":".join([b"ffff"] * 8) + b" " + b":".join([b"ffff"] * 8) + b" 65535 65535\r\n",
        end("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
    ),
    "v1 TCP6, nothing but zeros": (b"PROXY TCP6 :: :: 1 1\r\n", end("::", 1)),
    "v1 TCP6, a gap of one group": (b"PROXY TCP6 1:2:3:4:5:6:7:: 1:2:3:4:5:6:7:: 1 1\r\n", end("1:2:3:4:5:6:7:0", 1)),
    "v1 TCP6, IPv4 in IPv6 form": (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:201 1 1\r\n", end("192.0.2.1", 1)),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", OWN_PAIR),
    "v1 UNKNOWN and a blank": (b"PROXY UNKNOWN \r\n", OWN_PAIR),
    "v1 UNKNOWN and addresses": (b"PROXY UNKNOWN 192.0.2.1 198.51.100.7 56324 443\r\n", OWN_PAIR),
    "v1 UNKNOWN and anything": (b"PROXY UNKNOWN \0\xff\r \n\x1b[0m\r\r\n", OWN_PAIR),
    "v1 UNKNOWN, the longest": (b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n", OWN_PAIR),
    "v2 TCP4": (binary(0x11, FOUR_BLOCK), FOUR),
    "v2 TCP6": (binary(0x21, SIX_BLOCK), SIX),
    "v2 TCP4, zeros": (binary(0x11, bytes(12)), end("0.0.0.0", 0)),
    "v2 TCP6, IPv4 in IPv6 form": (binary(0x21, mapped("192.0.2.1", 7)), end("192.0.2.1", 7)),
    "v2 LOCAL": (binary(0x00, b"", 0x20), OWN_PAIR),
    "v2 LOCAL with addresses": (binary(0x11, FOUR_BLOCK, 0x20), OWN_PAIR),
    "v2 LOCAL with addresses and TLVs": (binary(0x21, SIX_BLOCK + tlv(type_noop, b"abc"), 0x20), OWN_PAIR),
    "v2 LOCAL with what would be wrong elsewhere": (binary(0xFF, b"x", 0x20), OWN_PAIR),
    "v2 LOCAL with most TLVs": (binary(0x21, SIX_BLOCK + bytes(MOST_TLVS), 0x20), OWN_PAIR),
    "v2 UNSPEC": (binary(0x00, b""), OWN_PAIR),
    "v2 UNSPEC, of a stream, with addresses": (binary(0x01, FOUR_BLOCK), OWN_PAIR),
    "v2 UNSPEC with TLVs": (binary(0x00, tlv(type_noop, b"abc")), OWN_PAIR),
    "v2 with TLVs": (binary(0x11, FOUR_BLOCK + tlv(b"\x01", b"h2") + tlv(b"\x02", b"a.example") + b"\xee\0\0"), FOUR),
    "v2 with most TLVs": (binary(0x11, FOUR_BLOCK + tlv(type_noop, bytes(MOST_TLVS - 3))), FOUR),
    "v2 with a checksum": (summed(0x11, FOUR_BLOCK), FOUR),
    "v2 with a checksum among others": (
        summed(0x21, SIX_BLOCK + tlv(b"\x02", b"a.example"), tlv(type_noop, b"abc")),
        SIX,
    ),
    "v2 with a checksum over most TLVs": (summed(0x21, SIX_BLOCK, tlv(type_noop, bytes(MOST_TLVS - 10))), SIX),
}

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
V1_SIX = b"PROXY TCP6 2001:db8::1 2001:db8:0:1::7 56324 443\r\n"
# Each is refused as soon as what stands before the bar has come.
REFUSED = {
    "other bytes": (b"G|ET / HTTP/1.1\r\n\r\n", "no header"),
    "TLS": (b"\x16|\x03\x01\x02\x00", "no header"),
    "almost the word": (b"PROXZ| TCP4 192.0.2.1 198.51.100.7 56324 443\r\n", "no header"),
    "almost the signature": (b"\r\n\r\n\0\r\nQUIT\r|", "no header"),
    "v1 in lower case": (b"p|roxy tcp4 192.0.2.1 198.51.100.7 56324 443\r\n", "no header"),
    "v1 family in lower case": (b"PROXY t|cp4 192.0.2.1 198.51.100.7 56324 443\r\n", "no header"),
    "v1 UDP4": (b"PROXY UD|P4 192.0.2.1 198.51.100.7 56324 443\r\n", "no header"),
    "v1 TCP5": (b"PROXY TCP5| 192.0.2.1 198.51.100.7 56324 443\r\n", "no header"),
    "v1 nothing": (b"PROXY \r|\n", "no header"),
    "v1 TCP4 alone": (b"PROXY TCP4\r|\n", "no header"),
    "v1 UNKNOWN with LF only": (b"PROXY UNKNOWN\n|", "no header"),
    "v1 more than UNKNOWN": (b"PROXY UNKNOWNS|\r\n", "no header"),
    "v1 two blanks before": (b"PROXY  |TCP4 192.0.2.1 198.51.100.7 56324 443\r\n", "no header"),
    "v1 LF only": (V1[:-2] + b"\n|", "bad line"),
    "v1 CR only": (V1[:-2] + b"\rH|", "bad line"),
    "v1 a tab": (b"PROXY TCP4 192.0.2.1\t| 198.51.100.7 56324 443\r\n", "bad line"),
    "v1 a NUL": (b"PROXY TCP4 192.0.2.1\0| 198.51.100.7 56324 443\r\n", "bad line"),
    "v1 a zone": (b"PROXY TCP6 fe80::1%|1 fe80::2 56324 443\r\n", "bad line"),
    "v1 a sign": (b"PROXY TCP4 192.0.2.1 198.51.100.7 +|56324 443\r\n", "bad line"),
    "v1 not ASCII": (b"PROXY TCP4 192.0.2.\xd9|\xa1 198.51.100.7 56324 443\r\n", "bad line"),
    "v1 two blanks": (V1.replace(b" 443", b"  443") + b"|", "bad line"),
    "v1 a blank at the end": (V1.replace(b"\r", b" \r") + b"|", "bad line"),
    "v1 one port": (V1.replace(b" 443", b"") + b"|", "bad line"),
    "v1 no ports": (V1.replace(b" 56324 443", b"") + b"|", "bad line"),
    "v1 more after the ports": (V1.replace(b"443", b"443 80") + b"|", "bad line"),
    "v1 no end": (b"PROXY UNKNOWN ".ljust(107, b"x") + b"|" + bytes(1000), "line too long"),
    "v1 an end that is late": (b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r|\n", "line too long"),
    "v1 addresses without an end": (b"PROXY TCP4 ".ljust(107, b"1") + b"|" + b"1" * 1000, "line too long"),
    "v1 port 65536": (V1.replace(b"56324", b"65536") + b"|", "bad port"),
    "v1 port 65536 of the destination": (V1.replace(b"443", b"65536") + b"|", "bad port"),
    "v1 a port of six digits": (V1.replace(b"443", b"100443") + b"|", "bad port"),
    "v1 a port with a leading zero": (V1.replace(b"443", b"0443") + b"|", "bad port"),
    "v1 a port in hexadecimal": (V1.replace(b"443", b"1bb") + b"|", "bad port"),
    "v1 192.0.2.256": (V1.replace(b"192.0.2.1", b"192.0.2.256") + b"|", "bad address"),
    "v1 destination 192.0.2.256": (V1.replace(b"198.51.100.7", b"192.0.2.256") + b"|", "bad address"),
    "v1 three numbers": (V1.replace(b"192.0.2.1", b"192.0.2") + b"|", "bad address"),
    "v1 five numbers": (V1.replace(b"192.0.2.1", b"192.0.2.1.1") + b"|", "bad address"),
    "v1 a number with a leading zero": (V1.replace(b"192.0.2.1", b"192.0.2.01") + b"|", "bad address"),
    "v1 a number in hexadecimal": (V1.replace(b"192.0.2.1", b"192.0.2.a") + b"|", "bad address"),
    "v1 a number without dots": (V1.replace(b"192.0.2.1", b"3221225985") + b"|", "bad address"),
    "v1 TCP4 with IPv6": (V1_SIX.replace(b"TCP6", b"TCP4") + b"|", "address of another family"),
    "v1 TCP4 with IPv4 in IPv6 form": (V1.replace(b"192", b"::ffff:192") + b"|", "address of another family"),
    "v1 TCP6 with IPv4": (V1.replace(b"TCP4", b"TCP6") + b"|", "address of another family"),
    "v1 TCP6 with one IPv4": (V1_SIX.replace(b"2001:db8::1", b"192.0.2.1") + b"|", "address of another family"),
    **{
        f"v1 TCP6 {address}": (V1_SIX.replace(b"2001:db8::1", address.encode()) + b"|", "bad address")
        for address in (
            "1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7:8:9",
            "1:2:3:4:5:6:7::8",
            "1::2::3",
            ":::",
            ":1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7:",
            "::1:",
            "12345::1",
            "::00001",
            "::000001",
            "00010002:3:4:5:6:7:8",
            "::1.2.3.4:5",
            "::ffff:1.2.3.256",
            "::ffff:1.2.3.04",
        )
    },
    "v2 version 1": (SIGNATURE + b"\x11|\x11\0\x0c" + FOUR_BLOCK, "unknown version"),
    "v2 version 3": (SIGNATURE + b"\x31|\x11\0\x0c" + FOUR_BLOCK, "unknown version"),
    "v2 an unknown command": (SIGNATURE + b"\x22|\x11\0\x0c" + FOUR_BLOCK, "unknown command"),
    **{
        f"v2 family {family:02x}": (SIGNATURE + bytes([0x21, family]) + b"|\0\xd8" + bytes(216), "unsupported family")
        for family in (0x02, 0x03, 0x10, 0x12, 0x13, 0x20, 0x22, 0x31, 0x32, 0x41, 0xF1, 0xFF)
    },
    "v2 too short for TCP4": (binary(0x11, b"", length=11) + b"|" + bytes(11), "too short for its family"),
    "v2 too short for TCP6": (binary(0x21, b"", length=35) + b"|" + bytes(35), "too short for its family"),
    "v2 of no length": (binary(0x11, b"") + b"|", "too short for its family"),
    "v2 65535": (binary(0x11, b"", length=65535) + b"|", "too long"),
    "v2 over 4 KiB of TLVs": (binary(0x11, b"", length=12 + MOST_TLVS + 1) + b"|", "too long"),
    "v2 over 4 KiB of TLVs, TCP6": (binary(0x21, b"", length=36 + MOST_TLVS + 1) + b"|", "too long"),
    "v2 LOCAL 65535": (binary(0x00, b"", 0x20, length=65535) + b"|", "too long"),
    "v2 UNSPEC 65535": (binary(0x00, b"", length=65535) + b"|", "too long"),
    "v2 a TLV that overruns": (binary(0x11, FOUR_BLOCK + type_noop + b"\0\x04abc") + b"|", "TLV too long"),
    "v2 a TLV that overruns far": (binary(0x11, FOUR_BLOCK + type_noop + b"\xff\xff") + b"|", "TLV too long"),
    "v2 one byte left": (binary(0x11, FOUR_BLOCK + tlv(type_noop, b"") + b"\0") + b"|", "bytes after the last TLV"),
    "v2 two bytes left": (binary(0x21, SIX_BLOCK + b"\x04\0") + b"|", "bytes after the last TLV"),
    "v2 a wrong checksum": (summed(0x11, FOUR_BLOCK, wrong=1) + b"|", "wrong checksum"),
    "v2 a checksum of nothing": (binary(0x11, FOUR_BLOCK + tlv(type_crc, bytes(4))) + b"|", "wrong checksum"),
    "v2 a checksum and a changed address": (
        summed(0x11, FOUR_BLOCK).replace(b"\xc0\0\x02\x01", b"\xc0\0\x02\x02") + b"|",
        "wrong checksum",
    ),
    **{
        f"v2 a checksum of {length} bytes": (
            binary(0x11, FOUR_BLOCK + tlv(type_crc, bytes(length))) + b"|",
            "bad checksum TLV",
        )
        for length in (0, 3, 5)
    },
    "v2 two checksums": (summed(0x11, FOUR_BLOCK, tlv(type_crc, bytes(4))) + b"|", "bad checksum TLV"),
}

read = pytest.mark.parametrize(("header", "value"), READ.values(), ids=READ)
refused = pytest.mark.parametrize(("cut", "detail"), REFUSED.values(), ids=REFUSED)


def refusal(data: bytes) -> str | None:
    """Return why some bytes are refused, or nothing."""
    try:
        parse(data)
    except Ended as ended:
        return ended.detail if ended.end is End.BAD_PROXY_HEADER else pytest.fail(f"another end: {ended}")
    return None


# --- reading ---------------------------------------------------------------------------------------------------------


@read
def test_a_header_is_read_and_what_follows_is_data(header: bytes, value: Header) -> None:
    assert parse(header) == (value, len(header))
    for data in (DATA, header, b"\r\n", b"\0", bytes(100_000)):
        assert parse(header + data) == (value, len(header))


@read
def test_a_header_may_come_in_any_two_pieces_and_byte_by_byte(header: bytes, value: Header) -> None:
    assert [length for length in range(len(header)) if parse(header[:length]) is not None] == []


@refused
def test_what_is_no_header_is_refused_at_the_byte_that_makes_it_none(cut: bytes, detail: str) -> None:
    before, _, after = cut.rpartition(b"|")
    assert refusal(before) == detail
    assert [length for length in range(len(before)) if parse(before[:length]) is not None] == []
    assert [refusal(before + (after + DATA)[:length]) for length in range(len(after + DATA) + 1)] == (
        [detail] * (len(after + DATA) + 1)
    )


def test_the_checksum_is_that_of_the_specification() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


@given(st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\0"]))
@settings(max_examples=2000, deadline=None)
def test_any_bytes_have_an_answer(data: bytes, start: bytes) -> None:
    final(start + data)


@given(st.sampled_from(sorted(header for header, _ in READ.values() if len(header) < 300)), st.data())
@settings(max_examples=2000, deadline=None)
def test_any_mutilated_header_has_an_answer(header: bytes, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(header)))
        there = data.draw(st.integers(at, min(at + 4, len(header))))
        header = header[:at] + data.draw(st.binary(max_size=4)) + header[there:]
    final(header + DATA)


@given(st.text("0123456789abcdef:. TCP46\r\n", max_size=100))
@settings(max_examples=2000, deadline=None)
def test_any_line_has_an_answer(text: str) -> None:
    final(b"PROXY TCP6 " + text.encode() + b"\r\n")


def final(data: bytes) -> None:
    """Check that an answer, once it is there, stays the same whatever comes after, and that there is one in time."""
    answers = []
    for length in range(len(data) + 1):
        why = refusal(data[:length])
        answer = None if why else parse(data[:length])
        assert answer is None or answer[1] <= length
        answers.append(why or answer)
    known = [answer for answer in answers if answer is not None]
    assert answers[len(answers) - len(known) :] == known
    assert all(answer == known[0] for answer in known)
    if not known:
        filled = data + bytes(LIMIT - len(data))
        assert refusal(filled) or parse(filled)


@given(st.text("0123456789abcdef:.", max_size=45))
@settings(max_examples=2000, deadline=None)
def test_an_address_is_one_when_the_standard_library_says_so(text: str) -> None:
    line = f"PROXY TCP6 {text} ::1 1 2\r\n".encode()
    try:
        address = IPv6Address(text)
    except ValueError:
        assert refusal(line)
    else:
        assert parse(line) == (Header(Address(str(address.ipv4_mapped or address), 1), Address("::1", 2)), len(line))


GROUPS = st.lists(st.sampled_from([0, 0, 0, 1, 0x10, 0xFFFF]), min_size=8, max_size=8)


@given(GROUPS, st.integers(0, 8))
@settings(max_examples=2000, deadline=None)
def test_an_address_is_shown_in_its_one_spelling(groups: list[int], gap: int) -> None:
    address = IPv6Address(b"".join(group.to_bytes(2) for group in groups))
    shown = str(address.ipv4_mapped or address)
    binary_header = binary(0x21, address.packed * 2 + bytes(4))
    assert parse(binary_header) == (end(shown, 0), len(binary_header))
    for spelling in (address.exploded, ":".join(f"{group:X}" for group in groups), str(address)):
        line = f"PROXY TCP6 {spelling} :: 0 0\r\n".encode()
        assert parse(line) == (Header(Address(shown, 0), Address("::", 0)), len(line))


# --- writing ---------------------------------------------------------------------------------------------------------

A4, B4 = FOUR
A6, B6 = SIX
UNIX = Address("unix:/run/x", 0)


@pytest.mark.parametrize(
    ("source", "destination", "line", "block"),
    [
        (A4, B4, V1, binary(0x11, FOUR_BLOCK)),
        (A6, B6, V1_SIX, binary(0x21, SIX_BLOCK)),
        (Address("::ffff:192.0.2.1", 56324), B4, V1, binary(0x11, FOUR_BLOCK)),
        (Address("::ffff:192.0.2.1", 56324), Address("::ffff:c633:6407", 443), V1, binary(0x11, FOUR_BLOCK)),
        (Address("fe80::1%eth0.5", 1), Address("fe80::1%2", 1), b"PROXY TCP6 fe80::1 fe80::1 1 1\r\n", None),
        (A4, B6, b"PROXY TCP6 ::ffff:c000:201 2001:db8:0:1::7 56324 443\r\n", None),
        (A6, B4, b"PROXY TCP6 2001:db8::1 ::ffff:c633:6407 56324 443\r\n", None),
        (None, None, b"PROXY UNKNOWN\r\n", binary(0x00, b"")),
        (A4, None, b"PROXY UNKNOWN\r\n", binary(0x00, b"")),
        (None, B4, b"PROXY UNKNOWN\r\n", binary(0x00, b"")),
        (UNIX, UNIX, b"PROXY UNKNOWN\r\n", binary(0x00, b"")),
        (Address("unix:", 0), B4, b"PROXY UNKNOWN\r\n", binary(0x00, b"")),
        (A4, UNIX, b"PROXY UNKNOWN\r\n", binary(0x00, b"")),
    ],
)
def test_what_is_written(source: Address | None, destination: Address | None, line: bytes, block: bytes | None) -> None:
    assert encode(1, source, destination) == line
    assert block is None or encode(2, source, destination) == block
    value, as_binary = parse(line), encode(2, source, destination)
    assert value is not None
    assert parse(as_binary) == (value[0], len(as_binary))


def test_where_one_end_is_ipv4_it_goes_out_in_ipv6_form() -> None:
    in_ipv6_form = bytes(10) + b"\xff\xff"
    assert encode(2, A4, B6)[16:52] == in_ipv6_form + FOUR_BLOCK[:4] + SIX_BLOCK[16:]
    assert encode(2, A6, B4)[16:52] == SIX_BLOCK[:16] + in_ipv6_form + FOUR_BLOCK[4:]


def test_a_connection_of_our_own() -> None:
    assert encode_local(1, A4, B4) == V1
    assert encode_local(2, A4, B4) == encode_local(2, UNIX, UNIX) == binary(0x00, b"", 0x20)
    assert encode_local(1, UNIX, UNIX) == b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize("host", ["", "a.example", "1.2.3", "1:2", "[::1]"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_name_is_not_written(host: str, version: int) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        encode(version, Address(host, 1), A4)


HOSTS = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda value: str(IPv4Address(value))),
    st.integers(0, 2**128 - 1).map(lambda value: str(IPv6Address(value))),
    GROUPS.map(lambda groups: str(IPv6Address(b"".join(group.to_bytes(2) for group in groups)))),
).map(lambda host: str(IPv6Address(host).ipv4_mapped or host) if ":" in host else host)
ENDS = st.builds(Address, HOSTS, st.integers(0, 65535))


@given(st.sampled_from([1, 2]), ENDS, ENDS, st.binary())
@settings(max_examples=1000, deadline=None)
def test_what_is_written_is_read(version: int, source: Address, destination: Address, data: bytes) -> None:
    header = encode(version, source, destination)
    assert parse(header + data) == (Header(source, destination), len(header))
    final(header)


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "most"),
    [("v1 TCP4", 45e-6), ("v1 TCP6", 45e-6), ("v2 TCP6", 45e-6), ("v2 with a checksum over most TLVs", 4e-3)],
)
def test_a_header_costs_little(name: str, most: float) -> None:
    header = READ[name][0]
    assert min(timeit.repeat(lambda: parse(header), number=50, repeat=10)) / 50 < most
