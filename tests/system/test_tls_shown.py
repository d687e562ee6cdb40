"""What is shown of TLS: of connections, of certificates, and never of keys."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tls import asking, authority, certificate
from veillink.config.assets import Assets
from veillink.config.file_source import read
from veillink.model import RuleOptions

from .admin_client import AdminClient
from .conftest import Serve, Start
from .harness import HOST, VEILLINK, VeilLink, echo, eventually


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    path = tmp_path / "web.pem"
    path.write_bytes(certificate("a.example").private_key_and_cert_chain_pem.bytes())
    path.chmod(0o600)
    (tmp_path / "ca.pem").write_bytes(authority("ours").cert_pem.bytes())
    return path


@contextmanager
def talking(veillink: VeilLink) -> Iterator[None]:
    """Be a client that shows a certificate and speaks h2."""
    context = asking()
    certificate("me.example").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    with veillink.connect() as sock, context.wrap_socket(sock, server_hostname="a.example") as client:
        client.sendall(b"word")
        assert client.recv(4) == b"word"
        yield


@pytest.mark.parametrize("options", [(), ("--workers=2",)], ids=["alone", "workers"])
def test_what_clients_say_and_certificates_are_shown_and_keys_are_not(
    options: tuple[str, ...], start: Start, backend: Serve, admin: AdminClient, pem: Path
) -> None:
    row = f"{{port}},{HOST},{backend(echo).port},name=web,tls=web.pem,alpn=h2,tls_client_ca=ca.pem,sni=a.example"
    veillink = start(f"{HOST}:{row}\n", admin.option, *options)
    said = {"tls": "TLSv1.3", "sni": "a.example", "alpn": "h2", "client_cert": "me.example"}
    with talking(veillink):
        (connection,) = eventually(lambda: admin.json("/api/connections"), what="the connection")
        assert said.items() <= connection.items()
        web = admin.rule("web")
        assert [target["sni"] for target in web["targets"]] == ["a.example"]
        (shown,) = web["certificates"]
        assert (shown["file"], shown["names"], shown["doubts"]) == ("web.pem", ["a.example"], [])
        expiry = ("veillink_certificate_expiry_timestamp_seconds", (("file", "web.pem"), ("rule", "web")))
        assert admin.metrics()[expiry] == shown["not_after"] > 0
        veillink.send(signal.SIGUSR1)
        assert said.items() <= json.loads(veillink.wait_for_line("state of connection")).items()
        everything = [admin.get(path)[2].decode() for path in ("/api/status", "/api/connections", "/metrics")]
    everything += [veillink.wait_for_line('"end": "client_truncated"'), *veillink.lines]
    key = certificate("a.example").private_key_pem.bytes().decode().splitlines()[1:-1]
    assert not [text for text in everything if any(line in text for line in key)]


def test_nothing_of_a_key_is_in_a_repr(pem: Path) -> None:
    rules = pem.with_name("config.csv")
    rules.write_text(f"8443,{HOST},80,tls=web.pem,target_tls=verify,target_ca=ca.pem,target_cert=web.pem\n")
    found = read(str(rules), RuleOptions(), Assets())
    (rule,) = found.rules.rules
    written = repr((found, rule.tls, rule.targets[0].tls))
    assert "a.example" in written
    key = certificate("a.example").private_key_pem.bytes().decode().splitlines()[1:-1]
    assert not any(line in written for line in key)
    assert "SSLContext" not in written


def test_status_shows_them_on_a_terminal(start: Start, backend: Serve, admin: AdminClient, pem: Path) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web,tls=web.pem,alpn=h2\n", admin.option)
    with talking(veillink):
        text = subprocess.check_output([VEILLINK, "--status", admin.option], text=True)
    assert "TLSv1.3" in text
    assert "web.pem" in text
