"""Tests of ClientHellos: what is read however it is cut, what is refused, and what is no TLS."""

import shutil
import subprocess
import timeit
from itertools import pairwise
from ssl import TLSVersion
from typing import Any

import pytest
from gevent import socket
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.net.hellos import (
    GREASE,
    NAME,
    TLS_1_2,
    TLS_1_3,
    Maker,
    by_openssl,
    hello,
    in_records,
    like_chromium,
    name_by_openssl,
    named,
)
from tests.net.peers import receive
from tests.sockets import Sockets
from tests.system.harness import HOST
from veillink.net.client_hello import LIMIT, ClientHello, HelloParser

make = Maker()
MESSAGE = make.message(make.server_name(NAME), make.alpn(b"h2", b"http/1.1"))
HELLO = make.record(MESSAGE)
BOTH = ClientHello(NAME, (b"h2", b"http/1.1"))
NAMED = ClientHello(NAME)
NOT_TLS = "not TLS"
DATA = b"\x17\x03\x03\0\x05HELLO"


def padded(size: int) -> bytes:
    """Return a hello of so many bytes in one record."""
    name = make.server_name(NAME)
    return hello(name, make.extension(21, bytes(size - len(hello(name)) - 4)))


READ = {
    "a name and protocols": (HELLO, BOTH),
    "a name": (named(NAME), NAMED),
    "in capitals": (named("A.ExAmple"), NAMED),
    "a dot behind the name": (named(NAME + "."), NAMED),
    "an A-label": (named("xn--bcher-kva.example"), ClientHello("xn--bcher-kva.example")),
    "an address": (named("192.0.2.1"), ClientHello("192.0.2.1")),  # OpenSSL takes it too
    "an IPv6 address": (named("2001:DB8::1"), ClientHello("2001:db8::1")),
    "protocols": (hello(make.alpn(GREASE, b"h2")), ClientHello(None, (GREASE, b"h2"))),
    "neither": (hello(), ClientHello()),
    "neither among others": (hello(make.extension(23, b""), make.extension(0xFF01, b"\0")), ClientHello()),
    "no extensions at all": (make.record(b"\1" + make.vector(make.message()[4:-2], 3)), ClientHello()),
    "an empty session": (make.record(make.message(make.server_name(NAME), session_id=b"")), NAMED),
    "two compressions": (make.record(make.message(make.server_name(NAME), compressions=b"\1\0")), NAMED),
    "record version 3.0": (make.record(MESSAGE, 0), BOTH),
    "record version 3.3": (make.record(MESSAGE, 3), BOTH),
    "12 kB of padding": (padded(12_000), NAMED),
    "the longest": (padded(LIMIT), NAMED),
    "like Chromium's": (like_chromium(), BOTH),
    "in two records": (in_records(MESSAGE, len(MESSAGE) // 2 + 1), BOTH),
    "in sixty records": (in_records(MESSAGE, -(-len(MESSAGE) // 60)), BOTH),
    "in records of one byte": (in_records(MESSAGE, 1), BOTH),
    "like Chromium's, in records of one byte": (in_records(like_chromium()[5:], 1), BOTH),
    "in records of several versions": (make.record(MESSAGE[:9], 0) + make.record(MESSAGE[9:], 4), BOTH),
}


def server_names(data: bytes) -> bytes:
    return hello(make.extension(0, data))


# Each with the number of bytes that show it; nothing where that is all of them.
REFUSED: dict[str, tuple[bytes, int | None, str]] = {
    "another handshake": (make.record(make.message(kind=2)), 6, "no hello"),
    "a request for a hello": (b"\x16\x03\x01\0\x04\0\0\0\0", 6, "no hello"),
    "an empty record": (b"\x16\x03\x01\0\0", None, "bad length of a record"),
    "an empty record within": (make.record(MESSAGE[:9]) + b"\x16\x03\x01\0\0", None, "bad length of a record"),
    "a record over 16 KiB": (b"\x16\x03\x01\x40\x01", None, "bad length of a record"),
    "an alert within": (make.record(MESSAGE[:9]) + b"\x15\x03\x01\0\2\1\0", 15, "another record"),
    "plain text within": (make.record(MESSAGE[:9]) + b"GET", 15, "another record"),
    "another version within": (make.record(MESSAGE[:9]) + b"\x16\x02\x01\0\2", 16, "another record"),
    "a hello of 16 MiB": (b"\x16\x03\x01\x40\0\x01\xff\xff\xff" + bytes(LIMIT), 9, "hello too long"),
    "a byte too long": (padded(LIMIT + 1), 9, "hello too long"),
    "too long with its records": (in_records(padded(LIMIT)[5:], 4096), LIMIT, "hello too long"),
    "records of one byte without end": (in_records(padded(12_000)[5:], 1), LIMIT, "hello too long"),
    "another message in its record": (make.record(MESSAGE + b"\x0b\0\0\0"), len(HELLO), "bad length"),
    "a record that goes on": (b"\x16\x03\x01\x40\0" + MESSAGE, None, "bad length"),
    "nothing in it": (b"\x16\x03\x01\0\4\1\0\0\0", None, "bad length"),
    "no random": (b"\x16\x03\x01\0\x26\1\0\0\x22" + bytes(34), None, "bad length"),
    "a session of 33 bytes": (make.record(make.message(session_id=bytes(33))), None, "bad length"),
    "no ciphers": (make.record(make.message(ciphers=b"")), None, "bad length"),
    "half a cipher": (make.record(make.message(ciphers=bytes(3))), None, "bad length"),
    "no compression": (make.record(make.message(compressions=b"")), None, "bad length"),
    "a byte behind the extensions": (
        make.record(b"\1" + make.vector(make.message()[4:] + b"\0", 3)),
        None,
        "bad length",
    ),
    "a byte behind the last extension": (hello(make.server_name(NAME), b"\0"), None, "bad length"),
    "three bytes behind the last extension": (hello(make.server_name(NAME), b"\0\1\0"), None, "bad length"),
    "two names": (hello(make.server_name(NAME), make.server_name(NAME)), None, "an extension twice"),
    "an unknown extension twice": (hello(*[make.extension(0xAAAA, b"")] * 2), None, "an extension twice"),
    "an empty answer for a name": (server_names(b""), None, "bad length"),
    "no names": (server_names(b"\0\0"), None, "bad list of names"),
    "a name of another type": (hello(make.server_name(NAME, b"\1")), None, "bad list of names"),
    "two names in a list": (server_names(make.vector((b"\0" + make.vector(b"a.example")) * 2)), None, "bad length"),
    "a byte behind the list": (server_names(make.vector(b"\0" + make.vector(b"a")) + b"\0"), None, "bad length"),
    "a name that goes beyond": (server_names(make.vector(b"\0\0\x0aa.example")), None, "bad length"),
    "a name that stops before": (server_names(make.vector(b"\0\0\x08a.example")), None, "bad length"),
    "no protocols": (hello(make.alpn()), None, "bad length"),
    "an empty protocol": (hello(make.alpn(b"h2", b"")), None, "bad length"),
    "a protocol that goes beyond": (hello(make.extension(16, b"\0\3\3h2")), None, "bad length"),
    "a byte behind the protocols": (hello(make.extension(16, b"\0\3\2h2\0")), None, "bad length"),
    **{
        f"the name {name!r}": (named(name), None, shown)
        for name, shown in {
            b"": 'bad name ""',
            b".": 'bad name "."',
            b"a..example": 'bad name "a..example"',
            b".example": 'bad name ".example"',
            b"*.example": 'bad name "*.example"',
            b"a b": 'bad name "a b"',
            b"a.example\0": 'bad name "a.example\\x00"',
            b"a\0.example": 'bad name "a\\x00.example"',
            b'a".example': 'bad name "a\\".example"',
            b"a\r\nb": 'bad name "a\\r\\nb"',
            b"a\x1b[0m": 'bad name "a\\x1b[0m"',
            b"b\xc3\xbccher": 'bad name "b\\xc3\\xbccher"',
            b"x" * 300: f'bad name "{"x" * 40}..."',
        }.items()
    },
}

# The first bytes, up to the one that shows it.
PLAIN = {
    "HTTP": b"G",
    "SSH": b"S",
    "PROXY": b"P",
    "SMTP": b"\r",
    "zeros": b"\0",
    "an SSLv2 hello": b"\x80",
    "an alert": b"\x15",
    "another record": b"\x17",
    "almost": b"\x16\x02",
    "almost DTLS": b"\x16\xfe",
    "almost a line": b"\x16\n",
}

read = pytest.mark.parametrize(("data", "value"), READ.values(), ids=READ)
refused = pytest.mark.parametrize(("data", "shown_at", "detail"), REFUSED.values(), ids=REFUSED)

Answer = ClientHello | str | None


def answer(parser: HelloParser, data: bytes) -> Answer:
    """Return a hello, why there is none, or nothing where more is needed."""
    try:
        found = parser.parse(data)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        return str(error)
    if found is None:
        return None
    assert found[1] == 0
    return NOT_TLS if found[0] is None else found[0]


def parsed(data: bytes, cuts: tuple[int, ...] = ()) -> Answer:
    """Return the first answer that is one, to bytes that come in pieces."""
    parser = HelloParser()
    for end in (*cuts, len(data)):
        if (found := answer(parser, data[:end])) is not None:
            return found
    return None


def by_bytes(data: bytes) -> tuple[Answer, int]:
    """Return the answer to bytes that come one by one, and how many it has needed."""
    parser = HelloParser()
    for end in range(len(data) + 1):
        if (found := answer(parser, data[:end])) is not None:
            return found, end
    return None, len(data)


# --- reading ---------------------------------------------------------------------------------------------------------


@read
def test_a_hello_is_read_and_what_follows_does_not_matter(data: bytes, value: ClientHello) -> None:
    for after in (b"", DATA, data, bytes(100_000)):
        assert parsed(data + after) == value


@read
def test_it_may_come_in_any_two_pieces(data: bytes, value: ClientHello) -> None:
    step = max(1, len(data) // 100)
    assert {parsed(data, (cut,)) for cut in range(0, len(data), step)} == {value}


@read
def test_it_may_come_byte_by_byte(data: bytes, value: ClientHello) -> None:
    assert by_bytes(data + DATA) == (value, len(data))


@given(st.sampled_from(sorted(data for data, _ in READ.values() if len(data) < 2000)), st.data())
@settings(max_examples=500)
def test_it_may_be_cut_into_any_records_and_segments(data: bytes, drawn: st.DataObject) -> None:
    message = data[5:] if data[5:9] == b"\1" + (len(data) - 9).to_bytes(3) else MESSAGE
    value = parsed(make.record(message))
    assert isinstance(value, ClientHello)
    cuts = st.sets(st.integers(1, len(message) - 1), max_size=20).map(sorted)
    pieces = [message[at:end] for at, end in pairwise([0, *drawn.draw(cuts), len(message)])]
    records = b"".join(make.record(piece, drawn.draw(st.integers(0, 4))) for piece in pieces)
    assert parsed(records, tuple(drawn.draw(cuts))) == value


def test_a_record_that_claims_16_kib_and_stops_is_waited_for() -> None:
    for data in (b"\x16\x03\x01\x40\0", b"\x16\x03\x01\x40\0\1\0\x3f\xf7" + bytes(1000)):
        assert by_bytes(data)[0] is None


def test_nothing_is_waited_for() -> None:
    assert parsed(b"") is None


# --- refusing --------------------------------------------------------------------------------------------------------


@refused
def test_what_is_wrong_is_refused_as_soon_as_it_is_seen(data: bytes, shown_at: int | None, detail: str) -> None:
    assert by_bytes(data) == (detail, shown_at or len(data))
    for after in (b"", DATA, bytes(LIMIT)):
        assert parsed(data + after) == detail


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_what_no_tls_begins_with_is_told_at_that_byte(data: bytes) -> None:
    assert by_bytes(data + b" / HTTP/1.1\r\n\r\n") == (NOT_TLS, len(data))
    assert parsed(data + HELLO) == NOT_TLS


@pytest.mark.parametrize("first", range(256))
def test_only_a_handshake_can_begin_tls(first: int) -> None:
    assert parsed(bytes([first])) == (None if first == 22 else NOT_TLS)


def with_wrong_length(which: int, off: int) -> bytes:
    maker = Maker(which, off)
    return maker.record(maker.message(maker.server_name(NAME), maker.alpn(b"h2", b"http/1.1")))


LENGTHS = {
    "name": 0,
    "list of names": 1,
    "names": 2,
    "protocol": 3,
    "last protocol": 4,
    "list of protocols": 5,
    "protocols": 6,
    "session": 7,
    "ciphers": 8,
    "compressions": 9,
    "extensions": 10,
    "message": 11,
    "record": 12,
}


@pytest.mark.parametrize("which", LENGTHS.values(), ids=LENGTHS)
def test_no_length_may_be_wrong(which: int) -> None:
    assert parsed(with_wrong_length(which, 0)) == BOTH
    for off in range(1, 9):  # by more it may be right again: a protocol that takes the next one in
        assert isinstance(parsed(with_wrong_length(which, off) + bytes(LIMIT)), str)
        assert isinstance(parsed(with_wrong_length(which, -off) + bytes(LIMIT)), str)


def test_those_are_all_the_lengths() -> None:
    maker = Maker()
    maker.record(maker.message(maker.server_name(NAME), maker.alpn(b"h2", b"http/1.1")))
    assert maker.lengths == len(LENGTHS)


# --- any bytes -------------------------------------------------------------------------------------------------------


def final(data: bytes) -> None:
    """Check that the answer does not depend on the pieces, and that there is one in time."""
    found, needed = by_bytes(data)
    assert parsed(data) == found
    if found is None:
        assert parsed(data + bytes(LIMIT)) is not None
    else:
        assert parsed(data[:needed] + DATA) == found


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x16", b"\x16\x03\x01", HELLO[:9], HELLO[:43], HELLO[:84]]))
@settings(max_examples=2000)
def test_any_bytes_have_an_answer(data: bytes, start: bytes) -> None:
    final(start + data)


@st.composite
def mutilated(draw: st.DrawFn) -> bytes:
    """Return a hello with something of it replaced."""
    data = draw(st.sampled_from([HELLO, named("www.example.org"), like_chromium(), in_records(MESSAGE, 20)]))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(data), 400)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    return data


@given(mutilated())
@settings(max_examples=2000)
def test_any_mutilated_hello_has_an_answer(data: bytes) -> None:
    final(data)


@given(mutilated())
@settings(max_examples=1000)
def test_no_name_is_found_but_the_one_that_openssl_finds(data: bytes) -> None:
    found = parsed(data)
    if isinstance(found, ClientHello):
        name = name_by_openssl(data)
        assert name is None or name.lower().removesuffix(".") == found.server_name


# --- hellos of others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
@pytest.mark.parametrize("name", [None, NAME, "WWW.Example.ORG"])
@pytest.mark.parametrize("versions", [(TLS_1_2, TLS_1_2), (TLS_1_3, TLS_1_3), (TLS_1_2, TLS_1_3)])
def test_a_hello_of_the_standard_library_is_read(
    versions: tuple[TLSVersion, TLSVersion], name: str | None, alpn: tuple[str, ...]
) -> None:
    data = by_openssl(name, *versions, alpn)
    expected = ClientHello(name and name.lower(), tuple(protocol.encode() for protocol in alpn))
    assert by_bytes(data) == (expected, len(data))
    assert name_by_openssl(data) == name


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-servername", NAME], NAMED),
        (["-servername", NAME, "-tls1_2", "-alpn", "h2,http/1.1"], BOTH),
        (["-servername", NAME, "-tls1_3", "-alpn", "h2,http/1.1"], BOTH),
        (["-servername", NAME, "-split_send_frag", "512"], NAMED),
        (["-noservername"], ClientHello()),
    ],
)
def test_a_hello_of_openssl_s_client_is_read(options: list[str], expected: ClientHello) -> None:
    with socket.create_server((HOST, 0)) as listener:
        address = f"{HOST}:{listener.getsockname()[1]}"
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", address, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        listener.settimeout(30)
        with client, listener.accept()[0] as peer:
            peer.settimeout(30)
            parser, data, found = HelloParser(), b"", None
            while found is None and (part := peer.recv(100)):
                data += part
                found = answer(parser, data)
            peer.sendall(b"\x15\x03\x01\0\2\2\x28")
    assert found == expected


# --- through a stream ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [HELLO, in_records(MESSAGE, 3), b"GET / HTTP/1.1\r\n\r\n"])
def test_a_stream_keeps_what_was_read(sent: bytes, sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(sent + DATA)
    peer.shutdown(socket.SHUT_WR)
    found = stream.read_prefix(HelloParser().parse, LIMIT)
    assert found == (None if sent.startswith(b"GET") else BOTH)
    kept = b""
    while part := receive(stream):
        kept += part
    assert kept == sent + DATA


# --- cost ------------------------------------------------------------------------------------------------------------


class Counting(bytes):
    """Counts what is taken out of it."""

    taken = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        Counting.taken += len(part)
        return part


def test_a_byte_more_is_no_walk_over_all_that_came_before() -> None:
    data = padded(LIMIT)
    parser = HelloParser()
    Counting.taken = 0
    for end in range(len(data)):
        assert parser.parse(Counting(data[:end])) is None
    assert Counting.taken < 8 * len(data)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("data", "most"),
    [
        (padded(517), 60e-6),
        (like_chromium(), 150e-6),
        (hello(*[make.extension(kind, b"") for kind in range(17, 4000)]), 20e-3),
        (in_records(padded(2700)[5:], 1), 30e-3),
    ],
    ids=["517 bytes", "like Chromium's", "as many extensions as fit", "as many records as fit"],
)
def test_a_hello_costs_little(data: bytes, most: float) -> None:
    assert isinstance(parsed(data), ClientHello)
    assert min(timeit.repeat(lambda: HelloParser().parse(data), number=20, repeat=10)) / 20 < most


@pytest.mark.alone
def test_byte_by_byte_it_costs_little_too() -> None:
    data = in_records(like_chromium()[5:], 1)
    assert min(timeit.repeat(lambda: by_bytes(data), number=1, repeat=5)) < 0.2
