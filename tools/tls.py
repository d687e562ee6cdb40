"""What a measure needs to speak TLS: certificates, and a client's context."""

import functools
import ssl
import subprocess
import tempfile
from pathlib import Path

from .processes import ToolError

KEYS = {"p256": "ec -pkeyopt ec_paramgen_curve:P-256", "rsa2048": "rsa:2048"}


@functools.cache
def certificate(key: str) -> bytes:
    """Make a certificate that signs itself, and return it behind its key, in PEM.

    Raises:
        ToolError: openssl is not there, or does not make it.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        files = [Path(folder, name) for name in ("key", "certificate")]
        command = ["openssl", "req", "-x509", "-nodes", "-subj", "/CN=bench", "-newkey", *KEYS[key].split()]
        command += ["-keyout", str(files[0]), "-out", str(files[1])]
        try:
            subprocess.run(command, capture_output=True, check=True)  # noqa: S603
        except (OSError, subprocess.CalledProcessError) as error:
            raise ToolError(f"no certificate: {error}") from None
        return b"".join(file.read_bytes() for file in files)


def context() -> ssl.SSLContext:
    """Return what a client needs that does not mind who it speaks to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
