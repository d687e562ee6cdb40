"""TLS towards targets: who they have to be, and what becomes of a client whose target is not."""

import socket
import ssl
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from tests.tls import NAME, TlsPeer, asking, authority, certificate, serving

from .conftest import Hold, HoldTls, Serve, Start
from .ends import read_to_reset
from .harness import HOST, echo, eventually, free_port, read_exactly, read_to_eof
from .tls_ends import AUTHORITY, Pem

DAY, NOW = timedelta(1), datetime.now(UTC)


def talks(context: ssl.SSLContext, word: bytes = b"") -> Callable[[socket.socket], None]:
    """Return a handler that shakes hands, says its word and sends everything back."""

    def handler(sock: socket.socket) -> None:
        with suppress(OSError):
            peer = TlsPeer(sock, context).shake_hands()
            peer.sendall(word)
            while data := peer.recv(1 << 16):
                peer.sendall(data)
            peer.finish()
            with suppress(ssl.SSLError):
                peer.pull()

    return handler


def hangs_up(sock: socket.socket) -> None:
    sock.recv(1 << 16)


def silent(sock: socket.socket) -> None:
    with suppress(ConnectionResetError):
        while sock.recv(1 << 16):
            pass


def speaks_plain(sock: socket.socket) -> None:
    sock.recv(1 << 16)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    sock.recv(1)


def outdated() -> ssl.SSLContext:
    context = serving()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # which is the point
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def dated(not_before: datetime = NOW - 2 * DAY, not_after: datetime = NOW + 2 * DAY) -> ssl.SSLContext:
    return serving(authority("ours").issue_cert(NAME, not_before=not_before, not_after=not_after))


def common_name_alone() -> ssl.SSLContext:
    return serving(authority("ours").issue_cert("b.example", common_name=NAME))


REFUSED: dict[str, Callable[[], Callable[[socket.socket], None]]] = {
    "Hostname mismatch, certificate is not valid for 'a.example'.": lambda: talks(serving(certificate("b.example"))),
    "certificate has expired": lambda: talks(dated(not_after=NOW - DAY)),
    "certificate is not yet valid": lambda: talks(dated(not_before=NOW + DAY)),
    "unable to get local issuer certificate": lambda: talks(serving(certificate(of="others"))),
    "WRONG_VERSION_NUMBER": lambda: speaks_plain,
    "TLSV1_ALERT_PROTOCOL_VERSION": lambda: talks(outdated()),
    "closed in the handshake": lambda: hangs_up,
    "handshake too slow": lambda: silent,
}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def careless(handler: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Return a handler that does not mind how it ends."""

    def handle(sock: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError):
            handler(sock)

    return handle


def test_a_target_that_is_not_who_it_should_be_is_refused_and_the_line_says_why(
    start: Start, backend: Serve, pem: Pem
) -> None:
    ports = {detail: free_port() for detail in REFUSED}
    rows = ""
    for detail, make in REFUSED.items():
        port, timeout = backend(careless(make())).port, "500ms" if "slow" in detail else "5s"
        rows += f"{HOST}:{ports[detail]},{HOST},{port},{AUTHORITY},connect_timeout={timeout},name={len(rows)}\n"
    veillink = start(rows)
    for count, (detail, port) in enumerate(ports.items(), 1):
        with veillink.connect(port) as client:
            client.sendall(b"secret")
            assert read_to_reset(client) == b""
        line = veillink.access(count)[-1]
        assert (line["end"], line["detail"], line["target"], line["bytes_in"]) == ("target_tls", detail, None, 0)
        assert detail in line["tried"]
        warning = veillink.logged("cannot reach a target")[-1]
        assert (warning["failure"], warning["reason"]) == ("target_tls", detail)


def test_no_name_in_a_cn_is_believed(hold_tls: HoldTls) -> None:
    ends = hold_tls(AUTHORITY)
    client = ends.connect()
    with suppress(OSError, ssl.SSLError):
        ends.target(common_name_alone()).recv(1)
    assert read_to_reset(client) == b""
    ends.line(end="target_tls", detail="Hostname mismatch, certificate is not valid for 'a.example'.")


def test_an_address_is_verified_by_the_addresses_of_a_certificate(hold_tls: HoldTls, pem: Pem) -> None:
    ends = hold_tls("target_tls=verify,target_ca=ca.pem")
    client = ends.connect()
    target = ends.target(serving(certificate(HOST)))
    target.sendall(b"hello")
    assert read_exactly(client, 5) == b"hello"
    other = ends.connect()
    with suppress(OSError, ssl.SSLError):
        ends.target(serving(certificate("127.0.0.2"))).recv(1)
    assert read_to_reset(other) == b""
    ends.line(end="target_tls", detail="IP address mismatch, certificate is not valid for '127.0.0.1'.")


@pytest.mark.parametrize(
    ("row", "cert", "asked"),
    [
        ("target_tls=verify,target_ca=ca.pem,target_name=B.Example", "b.example", "b.example"),
        ("target_tls=verify,target_ca=own.pem,target_name=b.example", "b.example", "b.example"),  # itself, no CA
        ("target_tls=insecure", "c.example", None),
        ("target_tls=insecure,target_name=d.example", "c.example", "d.example"),
    ],
)
def test_the_name_of_the_row_is_asked_for_and_verified(
    row: str, cert: str, asked: str | None, hold_tls: HoldTls, pem: Pem
) -> None:
    certificate(cert).cert_chain_pems[0].write_to_path(str(pem.folder / "own.pem"))
    ends = hold_tls(row)
    names: list[str | None] = []
    context = serving(certificate(cert))
    context.sni_callback = lambda _, name, __: names.append(name)
    client = ends.connect()
    target = ends.target(context)
    target.sendall(b"hello")
    assert read_exactly(client, 5) == b"hello"
    assert names == [asked]


def test_a_target_is_shown_our_certificate(hold_tls: HoldTls, pem: Pem) -> None:
    pem.write("ours.pem", certificate("veillink.example"))
    ends = hold_tls(f"{AUTHORITY},target_cert=ours.pem")
    context = serving()
    authority("ours").configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = ends.connect()
    target = ends.target(context)
    target.sendall(b"hello")
    assert read_exactly(client, 5) == b"hello"
    told = target.engine.getpeercert()
    assert told
    assert told["subjectAltName"] == (("DNS", "veillink.example"),)


def test_a_target_that_refuses_our_certificate_is_one_that_fails(hold_tls: HoldTls) -> None:
    ends = hold_tls(AUTHORITY)
    context = serving(version="1.2")
    authority("ours").configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = ends.connect()
    with pytest.raises(ssl.SSLError):
        ends.target(context)
    assert read_to_reset(client) == b""
    ends.line(end="target_tls", detail="SSLV3_ALERT_HANDSHAKE_FAILURE")


@pytest.mark.parametrize("front", ["", "tls=cert.pem"])
def test_the_next_target_gets_what_the_client_has_said_exactly_once_and_failures_count(
    front: str, start: Start, backend: Serve, pem: Pem
) -> None:
    bad, good = backend(talks(serving(certificate(of="others")), b"never")), backend(talks(serving(), b"220 "))
    rows = "".join(
        f"{HOST}:{{port}},{HOST},{port},{AUTHORITY},{front},max_fails=2,fail_timeout=1m,name=web\n"
        for port in (bad.port, good.port)
    )
    veillink = start(rows)
    for _ in range(6):
        sock = veillink.connect()
        if front:
            peer = TlsPeer(sock, asking()).shake_hands()
            peer.sendall(b"once")
            peer.finish()
            assert peer.read_to_eof() == b"220 once"
        else:
            sock.sendall(b"once")
            sock.shutdown(socket.SHUT_WR)
            assert read_to_eof(sock) == b"220 once"
        sock.close()
    lines = veillink.access(6)
    assert {(line["end"], line["target"]) for line in lines} == {("closed", f"{HOST}:{good.port}")}
    assert sum(line["tried"] is not None for line in lines) == bad.accepted == 2
    (down,) = veillink.logged("target down")
    assert down["reason"] == "unable to get local issuer certificate"


def test_probes_shake_hands_and_take_out_who_cannot(start: Start, backend: Serve, pem: Pem) -> None:
    right = serving()
    context = {"now": serving(certificate(of="others"))}
    changing = backend(lambda sock: talks(context["now"])(sock))
    steady = backend(talks(right))
    plain = backend(echo)
    options = "health=tls,health_interval=100ms,health_fall=2,health_rise=2,name=web"
    veillink = start(
        f"{HOST}:{{port}},{HOST},{changing.port},{AUTHORITY},{options}\n"
        f"{HOST}:{{port}},{HOST},{steady.port},{AUTHORITY},{options}\n"
        f"{HOST}:{{port}},{HOST},{plain.port},weight=0,{options}\n"  # without TLS it is a probe by connecting
    )
    down = eventually(lambda: veillink.logged("target down"))
    assert [(line["target"], line["reason"]) for line in down] == [
        (f"{HOST}:{changing.port}", "unable to get local issuer certificate")
    ]
    context["now"] = right
    up = eventually(lambda: veillink.logged("target up"))
    assert [line["target"] for line in up] == [f"{HOST}:{changing.port}"]


@pytest.mark.parametrize("how", ["verify", "insecure"])
def test_a_handshake_that_takes_its_share_of_the_time_leaves_the_rest_to_the_next(
    how: str, start: Start, backend: Serve, pem: Pem
) -> None:
    tls = AUTHORITY if how == "verify" else "target_tls=insecure"
    rows = "".join(
        f"{HOST}:{{port}},{HOST},{port},{tls},connect_timeout=3s\n"
        for port in (backend(silent).port, backend(talks(serving(), b"hi")).port)
    )
    veillink = start(rows)
    began = time.monotonic()
    with veillink.connect() as client:
        assert read_exactly(client, 2) == b"hi"
    assert time.monotonic() - began < 2.9
    (line,) = veillink.access()
    assert "handshake too slow" in line["tried"]


def test_a_client_that_leaves_while_a_target_shakes_hands_ends_that(hold: Hold) -> None:
    ends = hold("target_tls=insecure,connect_timeout=1m")
    client = ends.connect()
    target = ends.accept()
    assert target.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert ends.end() == "client_left"
