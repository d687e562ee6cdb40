"""Make TLS contexts from files, and prove each with a handshake in memory.

Rule: a context is not changed once it is made: new files make a new one, for a pair that does not fit leaves a living
one without a cipher. It is made by hand, because what ``ssl.create_default_context`` sets depends on Python's version.
"""

import contextlib
import ssl
from collections.abc import Iterable
from typing import Any, Final

from veillink.config.files import anybody_may_read, read_regular
from veillink.credentials import Certificate

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, not named by Python
# The TLS feature extension (RFC 7633), in DER.
_MUST_STAPLE: Final = bytes.fromhex("06082b06010505070118")
MOST: Final = 1 << 22  # bytes of a file; the system's authorities are 220 KiB


class ContextError(ValueError):
    """A context cannot be made of these files.

    Args:
        path: of the file that it cannot be made of.
        why: it cannot.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


def server_context(
    certificate: str, key: str = "", *, minimum: str = "1.2", alpn: Iterable[str] = (), client_ca: str = ""
) -> tuple[ssl.SSLContext, Certificate]:
    """Return the context of a server, and what its certificate says.

    Args:
        certificate: the path of its PEM file, with the chain.
        key: the path of its key, if that is in a file of its own.
        minimum: the lowest version, ``1.2`` or ``1.3``.
        alpn: the protocols that it speaks, the best one first.
        client_ca: the path of the authorities that have to have signed a client's certificate; without it none is
            asked for.

    Raises:
        ContextError: it cannot be made, or does not work.
    """
    context = _new(ssl.PROTOCOL_TLS_SERVER, minimum, alpn)
    _load_pair(context, certificate, key)
    if client_ca:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context, _proved(context, certificate, key)


def client_context(
    *,
    verify: bool = True,
    ca: str = "",
    certificate: str = "",
    key: str = "",
    minimum: str = "1.2",
    alpn: Iterable[str] = (),
) -> tuple[ssl.SSLContext, Certificate | None]:
    """Return the context of a client, and what its own certificate says, if it has one.

    With the system's authorities it takes 618 KiB and 16 ms: share it.

    Args:
        verify: whether the server has to prove that it has the name that it is asked for.
        ca: the path of the authorities that may have signed for that, or of the server's own certificate; the system's
            where there is none.
        certificate: the path of its own PEM file.
        key: the path of its key, if that is in a file of its own.
        minimum: the lowest version, ``1.2`` or ``1.3``.
        alpn: the protocols that it speaks, the best one first.

    Raises:
        ContextError: it cannot be made, or its own certificate does not work.
    """
    context = _new(ssl.PROTOCOL_TLS_CLIENT, minimum, alpn)
    context.hostname_checks_common_name = False
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca:
        _load_authorities(context, ca)
    else:
        context.set_default_verify_paths()
    if not certificate:
        return context, None
    trusting = _new(ssl.PROTOCOL_TLS_CLIENT, minimum)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    for each in (context, trusting):
        _load_pair(each, certificate, key)
    return context, _proved(trusting, certificate, key)


def _new(side: int, minimum: str = "1.2", alpn: Iterable[str] = ()) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = _VERSIONS[minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if protocols := list(alpn):
        context.set_alpn_protocols(protocols)
    return context


# --- files ---


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    if b"BEGIN CERTIFICATE" not in _content(certificate):
        raise ContextError(certificate, "holds no certificate")
    if b"PRIVATE KEY" not in _content(key or certificate):
        raise ContextError(key or certificate, "holds no private key")

    def ask() -> str:  # without this function OpenSSL would ask at the terminal
        raise ContextError(key or certificate, "the private key is encrypted")

    try:
        context.load_cert_chain(certificate, key or None, ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ContextError(key or certificate, "the private key is of another certificate") from None
        raise ContextError(certificate if error.reason else _damaged(certificate, key), _reason(error)) from None
    except OSError as error:  # it has gone since it was read
        raise ContextError(certificate, _reason(error)) from None


def _damaged(certificate: str, key: str) -> str:
    """Return which of two files OpenSSL cannot read; it does not tell."""
    try:
        _new(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except OSError:
        return certificate
    return key or certificate


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    if b"BEGIN " not in _content(path):
        raise ContextError(path, "holds no certificate")
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise ContextError(path, _reason(error)) from None


def _content(path: str) -> bytes:
    try:
        return read_regular(path, MOST)
    except OSError as error:
        raise ContextError(path, error.strerror or str(error)) from None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "its PEM cannot be read"
    return error.strerror or str(error)


# --- the proof ---


def _proved(context: ssl.SSLContext, certificate: str, key: str) -> Certificate:
    """Shake hands with a context, and return what its certificate says."""
    try:
        return _told(context, certificate, key)
    except ssl.SSLError as error:
        raise ContextError(certificate, _reason(error)) from None
    except ContextError:
        raise
    except ValueError:  # OpenSSL takes some base64 and some times that Python does not
        raise ContextError(certificate, "what it says cannot be read") from None


def _told(context: ssl.SSLContext, certificate: str, key: str) -> Certificate:
    """Return what a certificate says.

    Python tells that only of a certificate that it has verified: here it is its own authority, whatever the time.
    """
    der = _leaf(certificate)
    doubts = ["it asks for OCSP stapling, which is not done"] if _MUST_STAPLE in der else []
    if anybody_may_read(key or certificate):
        doubts.append("others may read its private key")
    verifier = _verifier(context, certificate, key)
    verifier.load_verify_locations(cadata=der)
    try:
        told: Any = _shake_hands(verifier, context).getpeercert()
    except ssl.SSLCertVerificationError as error:
        verifier.verify_mode = ssl.CERT_NONE
        _shake_hands(verifier, context)
        return Certificate(certificate, doubts=(*doubts, error.verify_message))
    subject, issuer = (dict(pair[0] for pair in told[of]) for of in ("subject", "issuer"))
    names = tuple(value for _, value in told.get("subjectAltName", ()))
    return Certificate(
        certificate,
        names or tuple(filter(None, (subject.get("commonName"),))),
        issuer.get("commonName") or issuer.get("organizationName") or "",
        ssl.cert_time_to_seconds(told["notBefore"]),
        ssl.cert_time_to_seconds(told["notAfter"]),
        tuple(doubts),
    )


def _leaf(certificate: str) -> bytes:
    """Return the first certificate of a file, in DER."""
    _, begin, rest = _content(certificate).decode("ascii", "replace").partition("-----BEGIN CERTIFICATE-----")
    body, end, _ = rest.partition("-----END CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(begin + body + end)


def _verifier(context: ssl.SSLContext, certificate: str, key: str) -> ssl.SSLContext:
    """Return the context of the other side."""
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        verifier = _new(ssl.PROTOCOL_TLS_CLIENT)
        verifier.check_hostname = False
    else:
        verifier = _new(ssl.PROTOCOL_TLS_SERVER)
        _load_pair(verifier, certificate, key)  # a server has to have one
        verifier.verify_mode = ssl.CERT_REQUIRED
    verifier.verify_flags |= _NO_CHECK_TIME
    return verifier


def _shake_hands(verifier: ssl.SSLContext, context: ssl.SSLContext) -> ssl.SSLObject:
    """Return the verifier's end of a handshake in memory, once that end is through."""
    to_verifier, to_context = ssl.MemoryBIO(), ssl.MemoryBIO()
    serves = context.protocol is ssl.PROTOCOL_TLS_SERVER
    verifies = verifier.wrap_bio(to_verifier, to_context, not serves)
    shows = context.wrap_bio(to_context, to_verifier, serves)
    while True:
        for end in (verifies, shows):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                if end is verifies:
                    return verifies
