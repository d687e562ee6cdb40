"""A stream that encrypts talks to OpenSSL's own programs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from gevent.subprocess import PIPE, STDOUT, Popen

from tests.sockets import Sockets, address_of, eventually
from tests.system.harness import HOST, free_port
from tests.tls import NAME, asking, authority, certificate, serving
from veillink.model import Address
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import adopt
from veillink.net.tls import TlsError, TlsRoom, TlsStream

VERSIONS = pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
Start = Callable[..., Any]


@pytest.fixture
def openssl(tmp_path: Path) -> Iterator[Start]:
    """Start the program; the files ``ca.pem`` and ``cert.pem`` are where it runs."""
    authority("ours").cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate().private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert.pem"))
    with ExitStack() as stack:

        def start(command: str) -> Any:
            process = Popen(["openssl", *command.split()], stdin=PIPE, stdout=PIPE, stderr=STDOUT, cwd=tmp_path)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def wait_for(process: Any, words: bytes) -> bytes:
    """Return the output of a program up to these words."""
    said = b""
    while words not in said:
        part = process.stdout.read1(1 << 16)
        assert part, said
        said += part
    return said


def client_of(openssl: Start, sockets: Sockets, options: str) -> tuple[Any, TlsStream]:
    listener = sockets.listener()
    process = openssl(f"s_client -connect {address_of(listener)} -CAfile ca.pem -servername {NAME} {options}")
    accepted = listener.accept()[0]
    stream = TlsStream(SocketStream(adopt(accepted.detach(), socket.AF_INET)), serving(), TlsRoom())
    stream.handshake()
    return process, stream


def receive(stream: TlsStream) -> bytes:
    buffer = bytearray(100)
    try:
        return bytes(buffer[: stream.recv_into(memoryview(buffer))])
    finally:
        stream.stop_reading()


def say(process: Any, words: bytes) -> None:
    process.stdin.write(words)
    process.stdin.flush()


@VERSIONS
def test_its_client_gets_an_answer_and_an_end(version: str, openssl: Start, sockets: Sockets) -> None:
    process, stream = client_of(openssl, sockets, f"-{version} -verify_return_error")
    if version == "tls1_3":
        wait_for(process, b"---\n")
        say(process, b"K\n")  # new keys, also ours
        wait_for(process, b"KEYUPDATE")
    say(process, b"question\n")
    assert receive(stream) == b"question\n"
    stream.sendall(memoryview(b"answer\n"))
    wait_for(process, b"answer")
    process.stdin.close()
    assert receive(stream) == b""
    stream.send_eof()
    stream.close()
    assert process.wait() == 0


def test_its_client_is_refused_new_parameters(openssl: Start, sockets: Sockets) -> None:
    process, stream = client_of(openssl, sockets, "-tls1_2")
    wait_for(process, b"---\n")
    say(process, b"R\n")
    with pytest.raises(TlsError):
        receive(stream)
    stream.abort()
    wait_for(process, b"no renegotiation")


@VERSIONS
def test_its_server_gets_an_end_and_answers(version: str, openssl: Start, sockets: Sockets) -> None:
    port = free_port()
    process = openssl(f"s_server -accept {HOST}:{port} -cert cert.pem -{version} -rev")
    wait_for(process, b"ACCEPT")
    far = sockets.client(Address(HOST, port))
    stream = TlsStream(SocketStream(adopt(far.detach(), socket.AF_INET)), asking(), TlsRoom(), NAME)
    stream.handshake()
    stream.sendall(memoryview(b"question\n"))
    assert receive(stream) == b"noitseuq\n"
    stream.send_eof()
    eventually(lambda: receive(stream) == b"")
    stream.close()
