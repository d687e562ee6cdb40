"""Tests of contexts made from files: what they say, and what is refused before a client meets it."""

import contextlib
import datetime
import random
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tls import authority, certificate
from veillink.config.contexts import ContextError, client_context, server_context

Issue = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where the files are, so that errors name them briefly."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pem() -> str:
    """A certificate with its key in one file."""
    return write(
        "both.pem", certificate("a.example", "*.b.example", "192.0.2.1").private_key_and_cert_chain_pem.bytes()
    )


@pytest.fixture
def ca() -> str:
    return write("ca.pem", authority("ours").cert_pem.bytes())


def write(name: str, content: bytes, mode: int = 0o600) -> str:
    path = Path(name)
    path.write_bytes(content)
    path.chmod(mode)
    return name


_MAKE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O=Makers/CN=odd.example"
    " -keyout key.pem -out cert.pem"
)


def self_signed(*options: str) -> str:
    """Make a certificate as OpenSSL's own program does, and return the path of it and its key."""
    subprocess.run(
        [*_MAKE.split(), *options],
        check=True,
        capture_output=True,
    )
    return write("odd.pem", Path("cert.pem").read_bytes() + Path("key.pem").read_bytes())


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(to_client, to_server, server_hostname=name)
    serves = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (asks, serves) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return asks, serves


def test_a_certificate_says_who_it_is_for_and_until_when(pem: str) -> None:
    _, told = server_context(pem)
    assert told.names == ("a.example", "*.b.example", "192.0.2.1")
    assert told.issuer.startswith("trustme")
    assert 0 < told.not_before < time.time() < told.not_after
    assert (told.file, told.doubts) == (pem, ())


def test_a_name_alone_stands_where_there_are_no_others() -> None:
    _, told = server_context(self_signed())
    assert (told.names, told.issuer) == (("odd.example",), "odd.example")


def test_the_key_may_be_in_a_file_of_its_own() -> None:
    leaf = certificate()
    cert = write("cert.pem", b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key = write("key.pem", leaf.private_key_pem.bytes())
    assert server_context(cert, key)[1].names == client_context(verify=False, certificate=cert, key=key)[1].names  # type: ignore[union-attr]


def test_both_sides_agree_on_a_protocol_and_know_each_other(pem: str, ca: str) -> None:
    server, _ = server_context(pem, client_ca=ca, alpn=("h2", "http/1.1"))
    client, own = client_context(ca=ca, certificate=pem, alpn=("http/1.1",))
    asks, serves = handshake(client, server, "x.b.example")
    assert asks.selected_alpn_protocol() == serves.selected_alpn_protocol() == "http/1.1"
    assert serves.getpeercert()
    assert own is not None
    assert own.names[0] == "a.example"


def test_a_client_without_a_certificate_is_refused_where_there_has_to_be_one(pem: str, ca: str) -> None:
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(client_context(ca=ca)[0], server_context(pem, client_ca=ca)[0], "a.example")


@pytest.mark.parametrize("name", ["other.example", "b.example", "192.0.2.2", "x.y.b.example"])
def test_a_client_verifies_the_name(name: str, pem: str, ca: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(client_context(ca=ca)[0], server_context(pem)[0], name)


def test_a_client_trusts_the_system_alone_or_what_it_is_told_or_anybody(pem: str, ca: str) -> None:
    server, _ = server_context(pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client_context()[0], server, "a.example")
    assert handshake(client_context(ca=ca)[0], server, "a.example")
    assert handshake(client_context(ca=pem)[0], server, "a.example")  # the server's own certificate
    assert handshake(client_context(verify=False)[0], server, "other.example")


def test_a_name_in_the_subject_alone_is_not_believed() -> None:
    pem = self_signed()
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(client_context(ca=pem)[0], server_context(pem)[0], "odd.example")


@pytest.mark.parametrize("old", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_are_refused(old: ssl.TLSVersion, pem: str) -> None:
    client = client_context(verify=False)[0]
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = old
    minimum = "1.3" if old is ssl.TLSVersion.TLSv1_2 else "1.2"
    with pytest.raises(ssl.SSLError, match=r"VERSION|UNSUPPORTED"):
        handshake(client, server_context(pem, minimum=minimum)[0], "a.example")


def test_an_expired_certificate_is_served_and_says_so() -> None:
    leaf = authority("ours").issue_cert("a.example", not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    _, told = server_context(write("old.pem", leaf.private_key_and_cert_chain_pem.bytes()))
    assert told.not_after < time.time()
    assert told.names == ("a.example",)


@pytest.mark.parametrize(
    ("options", "doubt"),
    [
        (["-addext", "extendedKeyUsage=clientAuth"], "unsuitable certificate purpose"),
        (["-addext", "tlsfeature=status_request"], "it asks for OCSP stapling, which is not done"),
    ],
)
def test_a_certificate_that_some_refuse_is_served_with_a_doubt(options: list[str], doubt: str) -> None:
    assert server_context(self_signed(*options))[1].doubts == (doubt,)


def test_a_certificate_for_clients_alone_serves_a_client() -> None:
    _, own = client_context(verify=False, certificate=self_signed("-addext", "extendedKeyUsage=clientAuth"))
    assert own is not None
    assert (own.names, own.doubts) == (("odd.example",), ())


def test_a_key_that_others_may_read_is_a_doubt(pem: str) -> None:
    Path(pem).chmod(0o644)
    assert server_context(pem)[1].doubts == ("others may read its private key",)


GARBAGE = b"-----BEGIN %s-----\nYWJj\n-----END %s-----\n"


@pytest.mark.parametrize(
    ("cert", "key", "why"),
    [
        ("none.pem", "", "none.pem: No such file or directory"),
        (".", "", ".: it is a directory"),
        ("empty.pem", "", "empty.pem: holds no certificate"),
        ("ca.pem", "", "ca.pem: holds no private key"),
        ("both.pem", "empty.pem", "empty.pem: holds no private key"),
        ("both.pem", "none.pem", "none.pem: No such file or directory"),
        ("both.pem", "other.pem", "other.pem: the private key is of another certificate"),
        ("both.pem", "locked.pem", "locked.pem: the private key is encrypted"),
        ("garbage.pem", "", "garbage.pem: its PEM cannot be read"),
        ("both.pem", "garbage.pem", "garbage.pem: its PEM cannot be read"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [server_context, lambda cert, key: client_context(verify=False, certificate=cert, key=key)],
    ids=["server", "client"],
)
def test_files_that_do_not_work_are_refused(
    make: Callable[[str, str], object],
    cert: str,
    key: str,
    why: str,
    pem: str,
    ca: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write("empty.pem", b"")
    write("garbage.pem", b"".join(GARBAGE % (kind, kind) for kind in (b"CERTIFICATE", b"PRIVATE KEY")))
    write("other.pem", certificate("other.example").private_key_pem.bytes())
    lock = ["openssl", "pkey", "-in", pem, "-aes256", "-passout", "pass:word", "-out", "locked.pem"]
    subprocess.run(lock, check=True, capture_output=True)
    with pytest.raises(ContextError, match=f"^{why}"):
        make(cert, key)
    assert capfd.readouterr() == ("", "")  # nobody was asked for a password


def damaged(draw: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(data))
        cut = draw.choice((0, 1, 10, 200))
        new = draw.choice((b"", draw.randbytes(draw.choice((1, 3, 100))), b"-----BEGIN CERTIFICATE-----", b"\n"))
        data[at : at + cut] = new or b"A"
    return bytes(data)


@pytest.mark.parametrize("seed", range(300))
def test_whatever_a_file_holds_it_is_a_context_or_one_line(seed: int, pem: str, ca: str) -> None:
    draw = random.Random(seed)
    write("x.pem", damaged(draw, Path(draw.choice((pem, ca))).read_bytes()))
    makes: tuple[Callable[[], object], ...] = (
        lambda: server_context("x.pem"),
        lambda: server_context(pem, "x.pem"),
        lambda: server_context(pem, client_ca="x.pem"),
        lambda: client_context(ca="x.pem"),
        lambda: client_context(verify=False, certificate="x.pem"),
    )
    for make in makes:
        try:
            make()
        except ContextError as error:
            assert error.path in ("x.pem", pem)  # noqa: PT017 - that there is one is not said
            assert error.why.isprintable()  # noqa: PT017


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("none.pem", "No such file or directory"),
        ("empty.pem", "holds no certificate"),
        ("key.pem", "NO_CERTIFICATE_OR_CRL_FOUND"),
    ],
)
def test_authorities_that_do_not_work_are_refused(path: str, why: str, pem: str) -> None:
    write("empty.pem", b"")
    write("key.pem", certificate().private_key_pem.bytes())
    with pytest.raises(ContextError, match=f"^{path}: {why}$"):
        client_context(ca=path)
    with pytest.raises(ContextError, match=f"^{path}: {why}$"):
        server_context(pem, client_ca=path)


def test_nothing_of_a_key_is_shown(pem: str) -> None:
    context, told = server_context(pem)
    secret = Path(pem).read_text().split("PRIVATE KEY-----")[1].split()[0]
    assert secret not in repr(context) + repr(told) + str(told)


def test_a_context_does_what_it_must_whatever_python_does_by_itself(pem: str) -> None:
    for context in (server_context(pem)[0], client_context(verify=False)[0]):
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert not context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
