"""PROXY headers between VeilLink and a real HAProxy, on either side of it."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from veillink.model import Address
from veillink.net.proxy_protocol import encode

from .conftest import Serve, Start
from .ends import MIB, Upload, digest_to_eof
from .harness import HOST, echo, eventually, exchange, free_port
from .test_programs import program, serving

CONFIG = """
global
  maxconn 100
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  unique-id-format %[uuid()]
listen it
  bind {host}:{port} {bind}
  bind [::1]:{port} {bind}
  server next {host}:{target} {server}
"""
SENDING = {
    "v1": "send-proxy",
    "v2": "send-proxy-v2",
    "v2 with a checksum": "send-proxy-v2 proxy-v2-options crc32c",
    "v2 with TLVs": "send-proxy-v2 proxy-v2-options crc32c,unique-id",
}

HAProxy = Callable[..., int]


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[HAProxy]:
    """Start an HAProxy that leads to a port, and return its own.

    ``haproxy(target, "accept-proxy", "send-proxy")``: words for its ``bind`` and ``server`` lines.
    """
    with ExitStack() as stack:

        def _haproxy(target: int, bind: str = "", server: str = "") -> int:
            port = free_port()
            conf = tmp_path / f"haproxy-{port}.cfg"
            conf.write_text(CONFIG.format(host=HOST, port=port, target=target, bind=bind, server=server))
            stack.enter_context(serving(port, program("haproxy", "haproxy"), "-db", "-f", str(conf)))
            return port

        yield _haproxy


def first_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        assert byte, line
        line += byte
    return line


def tell(sock: socket.socket) -> None:
    """Send back the header of a connection, and all that follows it."""
    sock.sendall(first_line(sock))
    echo(sock)


def converse(client: socket.socket) -> None:
    """Send a little, then much, through to an echo that finishes when it has everything."""
    for _ in range(3):
        exchange(client)
    upload = Upload(client, 8 * MIB)
    assert digest_to_eof(client) == upload.digest()


def connect(host: str, port: int) -> tuple[socket.socket, Address, Address]:
    """Return a client's socket, and who has connected to where."""
    client = socket.create_connection((host, port), timeout=20)
    return client, Address(*client.getsockname()[:2]), Address(*client.getpeername()[:2])


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("server", SENDING.values(), ids=SENDING.keys())
def test_behind_haproxy_the_client_is_the_one_that_it_had(
    server: str, start: Start, backend: Serve, haproxy: HAProxy
) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{backend(echo).port},accept_proxy={HOST}\n")
    port = haproxy(veillink.port, server=server)
    for count, host in enumerate((HOST, "::1"), 1):
        client, source, _ = connect(host, port)
        with client:
            converse(client)
        line = veillink.access(count)[-1]
        assert (line["client"], line["end"]) == (str(source), "closed")
        assert line["via"].startswith(HOST)
        assert line["bytes_in"] == line["bytes_out"] == 8 * MIB + 12


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_believes_what_it_is_told(version: str, start: Start, backend: Serve, haproxy: HAProxy) -> None:
    port = haproxy(backend(tell).port, "accept-proxy", "send-proxy")
    veillink = start(
        f"{HOST}:{{port}},{HOST},{port},send_proxy={version}\n[::1]:{{port}},{HOST},{port},send_proxy={version}\n"
    )
    for host in (HOST, "::1"):
        client, source, destination = connect(host, veillink.port)
        with client:
            assert first_line(client) == encode(1, source, destination)
            converse(client)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("server", SENDING.values(), ids=SENDING.keys())
def test_between_two_of_them_the_last_one_knows_the_client_of_the_first(
    server: str, version: str, start: Start, backend: Serve, haproxy: HAProxy
) -> None:
    last = haproxy(backend(tell).port, "accept-proxy", "send-proxy")
    veillink = start(f"{HOST}:{{port}},{HOST},{last},accept_proxy=any,send_proxy={version}\n")
    first = haproxy(veillink.port, server=server)
    for host in (HOST, "::1"):
        client, source, destination = connect(host, first)
        with client:
            assert first_line(client) == encode(1, source, destination)
            converse(client)


@pytest.mark.parametrize("server", ["send-proxy", "send-proxy-v2"])
def test_the_checks_of_haproxy_are_let_in_as_its_own(
    server: str, start: Start, backend: Serve, haproxy: HAProxy
) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{backend(echo).port},accept_proxy=any\n")
    haproxy(veillink.port, server=f"{server} check inter 50ms")
    lines = veillink.access(10)
    assert {line["end"] for line in lines} <= {"closed", "client_left", "client_reset"}
    assert all(line["client"].startswith(HOST) for line in lines)
    assert all(line["client"] == line.get("via", line["client"]) for line in lines)  # v1 has no word for its own


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_takes_our_probes_for_our_own(version: str, start: Start, backend: Serve, haproxy: HAProxy) -> None:
    told: list[bytes] = []
    port = haproxy(backend(lambda sock: told.append(first_line(sock))).port, "accept-proxy", "send-proxy")
    start(f"{HOST}:{{port}},{HOST},{port},send_proxy={version},health=tcp,health_interval=100ms\n")
    eventually(lambda: len(told) >= 3, what="probes at the target behind HAProxy")
    assert all(
        line.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ") and line.endswith(b" %d\r\n" % port) for line in told
    )
