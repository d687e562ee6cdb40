"""TLS with clients and targets: bytes and ends are passed on as without it, and what is cut never looks complete."""

import random
import socket
import ssl
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from tests.tls import NAME, TlsPeer, asking, authority, serving
from veillink.model import Address
from veillink.net.proxy_protocol import encode

from .conftest import HoldTls
from .ends import read_to_any_end
from .harness import read_to_eof, reset
from .tls_ends import AUTHORITY, Pem, TlsEnds

DATA = random.Random(1).randbytes(1 << 20)
ROWS = {"client": "tls=cert.pem", "target": AUTHORITY, "both": f"tls=cert.pem,{AUTHORITY}"}
SIDES = pytest.mark.parametrize("sides", ROWS)
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
DAY = timedelta(1)
NOW = datetime.now(UTC)


class Plain:
    """A peer without TLS, with the words of one that has it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sendall, self.recv, self.close = sock.sendall, sock.recv, sock.close

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def read_to_eof(self) -> bytes:
        return read_to_eof(self.sock)


Peer = Plain | TlsPeer


def pair(ends: TlsEnds, sides: str, version: str = "") -> tuple[Peer, Peer]:
    """Return a client and its target, each with TLS or without."""
    client: Peer = Plain(ends.connect()) if sides == "target" else ends.client(asking(version))
    target: Peer = Plain(ends.accept()) if sides == "client" else ends.target(serving(version=version))
    return client, target


def expect_reset(peer: Peer) -> bytes:
    """Return what comes before a reset, and fail where it looks like an end."""
    data = b""
    with suppress(ConnectionResetError):
        while part := peer.recv(1 << 16):
            data += part
        raise AssertionError("finished")
    return data


# --- bytes and ends --------------------------------------------------------------------------------------------------


@SIDES
def test_who_has_finished_gets_a_mebibyte_and_the_line_says_how(sides: str, hold_tls: HoldTls) -> None:
    ends = hold_tls(ROWS[sides])
    for version, first in product(["1.2", "1.3"], ["client", "target"]):
        client, target = pair(ends, sides, version)
        one, other = (client, target) if first == "client" else (target, client)
        one.sendall(b"last words")
        one.finish()
        assert other.read_to_eof() == b"last words"
        answer = threading.Thread(target=_finish_with, args=(other, DATA))
        answer.start()
        assert one.read_to_eof() == DATA
        answer.join(20)
        line = ends.line(end="closed", tls=None if sides == "target" else f"TLSv{version}", detail=None)
        moved = (10, len(DATA)) if first == "client" else (len(DATA), 10)
        assert (line["bytes_in"], line["bytes_out"]) == moved


def _finish_with(peer: Peer, data: bytes) -> None:
    peer.sendall(data)
    peer.finish()


@SIDES
def test_eight_mebibytes_both_ways_at_once_arrive_as_they_were(sides: str, hold_tls: HoldTls) -> None:
    ends = hold_tls(ROWS[sides])
    client, target = pair(ends, sides)
    # Each end has one thread: an engine of OpenSSL's is not for two at a time.
    sent = {"up": DATA * 8, "down": DATA[::-1] * 8}
    received: dict[str, bytes] = {}
    exchanged = threading.Thread(target=lambda: received.update(up=_swap(target, sent["down"])))
    exchanged.start()
    received["down"] = _swap(client, sent["up"])
    exchanged.join(20)
    assert received == sent
    ends.line(end="closed", bytes_in=len(DATA) * 8, bytes_out=len(DATA) * 8)


def _swap(peer: Peer, data: bytes) -> bytes:
    """Send and receive in turn, as much as is sent, then finish."""
    received = bytearray()
    for start in range(0, len(data), 1 << 16):
        peer.sendall(data[start : start + (1 << 16)])
        received += peer.recv(1 << 16)
    while len(received) < len(data):
        received += peer.recv(len(data) - len(received))
    peer.finish()
    return bytes(received) + peer.read_to_eof()


@pytest.mark.parametrize(("sides", "who"), [("client", "client"), ("target", "target"), ("both", "client")])
def test_a_fin_without_a_close_notify_is_a_reset_behind_what_came_before(
    sides: str, who: str, hold_tls: HoldTls
) -> None:
    ends = hold_tls(ROWS[sides])
    for version in ("1.2", "1.3"):
        client, target = pair(ends, sides, version)
        one, other = (client, target) if who == "client" else (target, client)
        one.sendall(DATA[:65536])
        one.sock.shutdown(socket.SHUT_WR)
        assert expect_reset(other) == DATA[:65536]
        ends.line(end=f"{who}_truncated")
    assert ends.veillink.logged("(?i)truncated") == []


def test_a_record_that_was_tampered_with_is_told_to_who_sent_it_and_resets_the_other(hold_tls: HoldTls) -> None:
    ends = hold_tls(ROWS["both"])
    for end in ("bad_tls", "target_tls"):
        client, target = pair(ends, "both")
        one, other = (client, target) if end == "bad_tls" else (target, client)
        one.sendall(b"good")
        one.sock.sendall(b"\x17\x03\x03\0\x20" + bytes(32))
        assert expect_reset(other) == b"good"
        with pytest.raises(ssl.SSLError, match=r"(?i)bad record mac"):
            one.recv(1)
        ends.line(end=end, detail="DECRYPTION_FAILED_OR_BAD_RECORD_MAC")


@SIDES
def test_a_reset_is_passed_on(sides: str, hold_tls: HoldTls) -> None:
    ends = hold_tls(ROWS[sides])
    for end in ("client_reset", "target_reset"):
        client, target = pair(ends, sides)
        one, other = (client, target) if end == "client_reset" else (target, client)
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        reset(one.sock)
        expect_reset(other)
        ends.line(end=end)


# --- clients that may not come in ------------------------------------------------------------------------------------


def refused(ends: TlsEnds, said: bytes) -> tuple[bytes, float]:
    """Return what a client hears that says this, and after how many seconds it has ended."""
    began = time.monotonic()
    client = ends.connect()
    client.sendall(said)
    heard = read_to_any_end(client, 5)
    return heard, time.monotonic() - began


JUNK = {
    b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n": "HTTP_REQUEST",
    b"SSH-2.0-OpenSSH_9.2\r\n": "WRONG_VERSION_NUMBER",
    bytes(100): "WRONG_VERSION_NUMBER",
    b"\x16\x03\x01\0\x05\x02\0\0\x01\0": "UNEXPECTED_MESSAGE",
}


def test_who_speaks_no_tls_is_gone_at_once_and_reaches_no_target(hold_tls: HoldTls) -> None:
    ends = hold_tls("tls=cert.pem,name=web")
    for said, detail in JUNK.items():
        client = ends.connect()
        client.sendall(said)
        read_to_any_end(client)
        ends.line(end="bad_tls", detail=detail, target=None, bytes_in=0)
    assert ends.nobody_comes()
    (warning,) = ends.veillink.logged("a client is not let in")  # the others are too many at a time
    assert (warning["failure"], warning["reason"]) == ("bad_tls", "HTTP_REQUEST")


@pytest.mark.parametrize("least", VERSIONS)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_a_version_that_is_too_old_is_refused(least: str, hold_tls: HoldTls) -> None:
    ends = hold_tls(f"tls=cert.pem,tls_min={least}")
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
        context = asking()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        if version >= VERSIONS[least]:
            ends.client(context).close()
            continue
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            ends.client(context)
        ends.line(end="bad_tls", detail="UNSUPPORTED_PROTOCOL")


def showing(
    of: str, name: str = "b.example", not_before: datetime = NOW - 2 * DAY, not_after: datetime = NOW + 2 * DAY
) -> ssl.SSLContext:
    """Return a client that shows a certificate of an authority, or none."""
    context = asking()
    if of:
        cert = authority(of).issue_cert(name, not_before=not_before, not_after=not_after)
        cert.configure_cert(context)
    return context


def test_who_shows_no_good_certificate_hears_an_alert_and_reaches_no_target(hold_tls: HoldTls) -> None:
    wrong = {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": showing(""),
        "unable to get local issuer certificate": showing("others"),
        "certificate has expired": showing("ours", not_after=NOW - DAY),
        "certificate is not yet valid": showing("ours", not_before=NOW + DAY),
    }
    ends = hold_tls("tls=cert.pem,tls_client_ca=ca.pem")
    for version, (detail, context) in product(VERSIONS.values(), wrong.items()):
        context.maximum_version = version
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            ends.client(context).recv(1)  # in TLS 1.3 it hears of it when it reads
        ends.line(end="bad_tls", detail=detail, client_cert=None)
    assert ends.nobody_comes()


def test_a_client_s_certificate_is_named_and_has_to_be_for_a_name_that_may_come_in(hold_tls: HoldTls) -> None:
    ends = hold_tls("tls=cert.pem,tls_client_ca=ca.pem,tls_client_names=b.example *.c.example")
    for name in ("b.example", "x.y.c.example"):
        client = ends.client(showing("ours", name))
        ends.accept().close()
        assert client.recv(1) == b""
        client.close()
        ends.line(end="closed", client_cert=name)
    for name in ("c.example", "a.b.example"):
        client = ends.client(showing("ours", name))
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        ends.line(end="bad_tls", detail=f"the client's certificate is for {name}")
    assert ends.nobody_comes()


# --- clients that leave or stall -------------------------------------------------------------------------------------


def hello() -> bytes:
    """Return what a client says first."""
    sent = ssl.MemoryBIO()
    engine = asking().wrap_bio(ssl.MemoryBIO(), sent, server_hostname=NAME)
    with suppress(ssl.SSLWantReadError):
        engine.do_handshake()
    return sent.read()


@pytest.mark.parametrize("row", ["tls=cert.pem", "sni=a.example", "tls=cert.pem,alpn=pass,target_tls=insecure"])
def test_who_leaves_before_a_whole_hello_has_left(row: str, hold_tls: HoldTls) -> None:
    ends = hold_tls(row)
    for count, leave in product([0, 1, 100], [socket.socket.close, reset]):
        client = ends.connect()
        client.sendall(hello()[:count])
        leave(client)
        ends.line(end="client_left", target=None)
    assert ends.nobody_comes()
    assert ends.veillink.logged("a client is not let in") == []


def test_who_leaves_in_the_middle_of_a_handshake_has_not_shaken_hands(hold_tls: HoldTls) -> None:
    ends = hold_tls("tls=cert.pem")
    client = ends.connect()
    client.sendall(hello())
    assert client.recv(1)
    client.shutdown(socket.SHUT_WR)
    read_to_any_end(client)
    ends.line(end="bad_tls", detail="closed in the handshake")


@pytest.mark.parametrize("row", ["tls=cert.pem", "sni=a.example"])
def test_who_sends_a_byte_now_and_then_has_no_more_time_than_others(row: str, hold_tls: HoldTls) -> None:
    ends = hold_tls(f"{row},tls_timeout=1s")
    client, began = ends.connect(), time.monotonic()
    with suppress(OSError):
        for byte in hello():
            client.sendall(bytes([byte]))
            time.sleep(0.1)
    assert 0.9 < time.monotonic() - began < 4
    ends.line(end="bad_tls", detail="too late")


# --- together with others --------------------------------------------------------------------------------------------


def test_a_proxy_header_comes_before_the_hello_on_both_sides(hold_tls: HoldTls) -> None:
    ends = hold_tls(f"accept_proxy=any,send_proxy=v2,{ROWS['both']}")
    source, destination = Address("198.51.100.7", 4711), Address("203.0.113.1", 443)
    sock = ends.connect()
    sock.sendall(encode(1, source, destination))
    client = TlsPeer(sock, asking()).shake_hands()
    accepted = ends.accept()
    expected = encode(2, source, destination)
    assert accepted.recv(len(expected), socket.MSG_WAITALL) == expected
    target = TlsPeer(accepted, serving()).shake_hands()
    client.sendall(b"x")
    client.finish()
    assert target.read_to_eof() == b"x"
    target.finish()
    assert client.read_to_eof() == b""
    ends.line(end="closed", client=str(source), tls="TLSv1.3")


def test_bytes_in_tls_have_a_rate_too(hold_tls: HoldTls) -> None:
    ends = hold_tls(f"{ROWS['both']},upload_rate=4M,download_rate=4M")
    client, target = pair(ends, "both")
    began = time.monotonic()
    sender = threading.Thread(target=lambda: (client.sendall(DATA * 6), client.finish()))
    sender.start()
    assert target.read_to_eof() == DATA * 6
    assert time.monotonic() - began > 0.4  # 4 MiB at once, and 2 MiB in half a second
    sender.join(20)
    target.finish()
    ends.line(end="closed")


@pytest.mark.parametrize("sides", ["client", "both"])
def test_unix_sockets_speak_it_on_both_sides(sides: str, hold_tls: HoldTls, pem: Pem, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as sock:
        listening.bind(str(tmp_path / "target"))
        listening.listen()
        listening.settimeout(20)
        ends = hold_tls(f"\nunix:{tmp_path}/front,unix:{tmp_path}/target,,{ROWS[sides]}")
        sock.settimeout(20)
        sock.connect(str(tmp_path / "front"))
        client = TlsPeer(sock, asking()).shake_hands()
        with listening.accept()[0] as accepted:
            accepted.settimeout(20)
            target: Peer = TlsPeer(accepted, serving()).shake_hands() if sides == "both" else Plain(accepted)
            client.sendall(DATA[:65536])
            client.finish()
            assert target.read_to_eof() == DATA[:65536]
            target.sendall(b"thanks")
            target.finish()
            assert client.read_to_eof() == b"thanks"
    ends.line(end="closed", tls="TLSv1.3")
