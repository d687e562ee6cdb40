"""Connections through a VeilLink of which a test holds both ends, one of them or both in TLS."""

import contextlib
import ssl
import subprocess
from pathlib import Path
from typing import Any

import trustme

from tests.tls import NAME, TlsPeer, asking, authority, certificate, serving

from .ends import Ends

AUTHORITY = "target_tls=verify,target_ca=ca.pem,target_name=a.example"  # what a row says of a target with ``serving()``


class Pem:
    """A folder of certificates: ``ca.pem``, and ``cert.pem`` of the name that ``asking()`` asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority("ours").cert_pem.write_to_path(str(folder / "ca.pem"))
        self.write("cert.pem", certificate())

    def write(self, name: str, cert: trustme.LeafCert) -> Path:
        """Write a certificate with its chain and key, as a whole and for nobody else to read."""
        path = self.folder / name
        part = path.with_suffix(".part")
        part.touch(0o600)
        part.write_bytes(cert.private_key_and_cert_chain_pem.bytes())
        return part.rename(path)

    def openssl(self, *command: str, stdin: bytes = b"", seconds: float = 20) -> str:
        """Return what ``openssl`` prints, run in the folder; how it ends does not matter."""
        done = subprocess.run(
            ["openssl", *command], cwd=self.folder, input=stdin, capture_output=True, timeout=seconds, check=False
        )
        return (done.stdout + done.stderr).decode(errors="replace")


class TlsEnds(Ends):
    """A VeilLink whose target is the test itself; ``connect`` and ``accept`` are without TLS as before."""

    _ended = 0

    def client(self, context: ssl.SSLContext | None = None, name: str = NAME) -> TlsPeer:
        """Return a client that has shaken hands."""
        return TlsPeer(self.connect(), context or asking(), name).shake_hands()

    def target(self, context: ssl.SSLContext | None = None) -> TlsPeer:
        """Return the target's end of the connection that comes next, once it has shaken hands."""
        return TlsPeer(self.accept(), context or serving()).shake_hands()

    def nobody_comes(self) -> bool:
        """Return whether no connection waits for the target."""
        self._listening.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            self._listening.accept()
            return False
        return True

    def line(self, **expected: Any) -> dict[str, Any]:
        """Return the access line of the connection that has ended next, which says this."""
        self._ended += 1
        line = self.veillink.access(self._ended)[self._ended - 1]
        assert {name: line.get(name) for name in expected} == expected, line
        return line
