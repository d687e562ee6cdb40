"""Who may come in, and as whom: PROXY headers, lists, limits by client, with real programs on both sides."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tools.bench.installed import stream_module
from veillink.model import Address
from veillink.net.proxy_protocol import encode

from .conftest import Hold, Serve, Start
from .ends import Ends, frozen
from .harness import HOST, VeilLink, echo, eventually, exchange, free_port, listens, read_to_eof
from .test_programs import program

CLIENT, BALANCER = Address("198.51.100.7", 4711), Address("203.0.113.1", 443)
HEADERS = {"v1": encode(1, CLIENT, BALANCER), "v2": encode(2, CLIENT, BALANCER)}
LOCAL_V2 = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def is_reset(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        read_to_eof(sock)
        return False
    return True


def nobody_came(ends: Ends) -> bool:
    ends._listening.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        ends._listening.accept()
        return False
    return True


# --- PROXY headers that come in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize("parts", ["whole", "byte by byte", "with the data", "the data later"])
def test_the_client_is_the_one_of_the_header_and_the_data_follow(header: bytes, parts: str, hold: Hold) -> None:
    ends = hold("accept_proxy=127.0.0.0/8,name=web")
    client = ends.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts == "byte by byte":
        for byte in header:
            client.sendall(bytes([byte]))
            time.sleep(0.0015)
        client.sendall(b"HELLO")
    elif parts == "with the data":
        client.sendall(header + b"HELLO")
    else:
        client.sendall(header)
        if parts == "the data later":
            time.sleep(0.2)
        client.sendall(b"HELLO")
    target = ends.accept()
    assert target.recv(5, socket.MSG_WAITALL) == b"HELLO"
    client.shutdown(socket.SHUT_WR)
    assert target.recv(1) == b""
    target.close()
    assert read_to_eof(client) == b""
    (line,) = ends.veillink.access()
    assert line["client"] == str(CLIENT)
    assert line["via"].startswith(HOST)
    assert (line["bytes_in"], line["end"]) == (5, "closed")


def test_a_target_that_speaks_first_is_connected_once_the_header_is_whole(hold: Hold) -> None:
    ends = hold("accept_proxy=any")
    client = ends.connect()
    client.sendall(HEADERS["v1"])
    target = ends.accept()
    target.sendall(b"220 ready")
    assert client.recv(9, socket.MSG_WAITALL) == b"220 ready"


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_and_nothing_else_is_a_connection_of_no_bytes(header: bytes, hold: Hold) -> None:
    ends = hold("accept_proxy=any")
    client = ends.connect()
    client.sendall(header)
    client.shutdown(socket.SHUT_WR)
    with ends.accept() as target:
        assert target.recv(1) == b""
    (line,) = ends.veillink.access()
    assert (line["client"], line["bytes_in"], line["bytes_out"], line["end"]) == (str(CLIENT), 0, 0, "closed")


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * 200,
        HEADERS["v2"][:13] + b"\x12" + HEADERS["v2"][14:],
    ],
)
def test_what_is_no_header_is_reset_and_nothing_reaches_the_target(junk: bytes, hold: Hold) -> None:
    ends = hold("accept_proxy=any")
    client = ends.connect()
    client.sendall(junk)
    assert is_reset(client)
    assert nobody_came(ends)
    (line,) = ends.veillink.access()
    assert (line["end"], line["target"]) == ("bad_proxy_header", None)
    assert "a client is not let in" in ends.veillink.wait_for_line("not let in")


def test_half_a_header_and_silence_end_at_the_limit_and_delay_nobody(hold: Hold) -> None:
    ends = hold("accept_proxy=any,proxy_timeout=3s")
    silent = [ends.connect() for _ in range(50)]
    began = time.monotonic()
    for sock in silent:
        sock.sendall(HEADERS["v1"][:20])
    client = ends.connect()
    client.sendall(HEADERS["v2"] + b"x")
    assert ends.accept().recv(1) == b"x"
    assert time.monotonic() - began < 2.9
    assert all(map(is_reset, silent))
    assert 2.5 < time.monotonic() - began < 8
    assert {line["end"] for line in eventually(lambda: ends.veillink.access(50))} == {"bad_proxy_header"}


def test_who_is_late_because_the_process_was_stopped_is_not_cut(hold: Hold) -> None:
    ends = hold("accept_proxy=any,proxy_timeout=3s")
    whole, parts = ends.connect(), ends.connect()
    parts.sendall(HEADERS["v2"][:20])
    eventually(lambda: ends.veillink.fds() >= ends.veillink.first_fds + 2)
    with frozen(ends.veillink):
        whole.sendall(HEADERS["v2"])
        time.sleep(3.5)
    ends.accept()
    parts.sendall(HEADERS["v2"][20:])
    ends.accept()


def test_who_is_not_trusted_is_never_believed(hold: Hold) -> None:
    ends = hold("accept_proxy=192.0.2.0/24")
    client = ends.connect()
    with contextlib.suppress(OSError):
        client.sendall(HEADERS["v1"] + b"HELLO")
    assert is_reset(client)
    (line,) = ends.veillink.access()
    assert (line["end"], line["client"].partition(":")[0]) == ("bad_proxy_header", HOST)
    assert nobody_came(ends)


def test_a_check_that_connects_and_leaves_is_a_client_that_left(hold: Hold) -> None:
    ends = hold("accept_proxy=any")
    ends.connect().close()
    (line,) = ends.veillink.access()
    assert line["end"] == "client_left"


def test_without_the_option_a_header_is_data(hold: Hold) -> None:
    ends = hold()
    client = ends.connect()
    client.sendall(HEADERS["v1"])
    assert ends.accept().recv(200) == HEADERS["v1"]


def test_a_header_of_the_balancer_itself_keeps_the_real_pair(hold: Hold) -> None:
    ends = hold("accept_proxy=any")
    client = ends.connect()
    client.sendall(LOCAL_V2 + b"x")
    target = ends.accept()
    assert target.recv(1) == b"x"
    client.close()
    target.close()
    (line,) = ends.veillink.access()
    assert line["client"].startswith(HOST)
    assert "via" not in line


# --- PROXY headers that go out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_target_is_told_before_anything_else(version: str, hold: Hold) -> None:
    ends = hold(f"send_proxy={version}")
    client = ends.connect()
    target = ends.accept()
    own, here = Address(*client.getsockname()), Address(HOST, ends.veillink.port)
    expected = encode(int(version[1]), own, here)
    assert target.recv(len(expected)) == expected  # in one piece, though the client has said nothing
    client.sendall(b"HELLO")
    assert target.recv(5, socket.MSG_WAITALL) == b"HELLO"
    client.close()
    target.close()
    (line,) = ends.veillink.access()
    assert line["bytes_in"] == 5


def test_a_chain_of_three_tells_the_last_target_who_the_client_is(start: Start) -> None:
    with socket.create_server((HOST, 0)) as listening:
        ports = [free_port() for _ in range(3)]
        rows = [
            f"{HOST}:{ports[0]},{HOST},{ports[1]},send_proxy=v2\n",
            f"{HOST}:{ports[1]},{HOST},{ports[2]},accept_proxy=any,send_proxy=v1\n",
            f"{HOST}:{ports[2]},{HOST},{listening.getsockname()[1]},accept_proxy=any,send_proxy=v2\n",
        ]
        for row in rows:
            start(row)
        listening.settimeout(20)
        for port in ports:
            eventually(lambda port=port: listens(port))  # type: ignore[misc]
        with socket.create_connection((HOST, ports[0])) as client:
            client.sendall(b"x")
            expected = encode(2, Address(*client.getsockname()), Address(HOST, ports[0]))
            while True:
                target, _ = listening.accept()
                with target:
                    if target.recv(len(expected) + 1, socket.MSG_WAITALL) == expected + b"x":
                        break


NGINX = """
daemon off; error_log stderr; pid {folder}/pid;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen {host}:{port} proxy_protocol; location / {{ return 200 "$proxy_protocol_addr\\n"; }} }}
}}
"""


NGINX_STREAM = """
{module} daemon off; error_log stderr; pid {folder}/pid; events {{ }}
stream {{ server {{ listen {host}:{port}; proxy_pass {host}:{target}; proxy_protocol on; }} }}
"""


@contextlib.contextmanager
def running_nginx(folder: Path, conf: str, **values: object) -> Iterator[int]:
    """An nginx with this configuration, for as long as it is needed; yields its port."""
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(conf.format(folder=folder, host=HOST, port=port, **values))
    os.chmod(folder, 0o755)  # noqa: PTH101
    with subprocess.Popen([program("nginx", "nginx"), "-c", file, "-p", folder], stderr=subprocess.DEVNULL) as it:
        try:
            eventually(lambda: listens(port))
            yield port
        finally:
            it.terminate()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[int]:
    """Run an nginx that wants a PROXY header and answers with the client that it names; return its port."""
    with running_nginx(tmp_path, NGINX) as port:
        yield port


@pytest.mark.skipif(stream_module() is None and "CI" not in os.environ, reason="needs libnginx-mod-stream (Debian)")
def test_behind_nginx_the_client_is_the_one_that_it_had(start: Start, backend: Serve, tmp_path: Path) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{backend(echo).port},accept_proxy={HOST}\n")
    with running_nginx(tmp_path, NGINX_STREAM, module=stream_module(), target=veillink.port) as port:
        with veillink.connect(port) as client:
            exchange(client, random.Random(1).randbytes(100_000))
            name = "{}:{}".format(*client.getsockname())
        (line,) = veillink.access()
    assert (line["client"], line["bytes_in"], line["end"]) == (name, 100_000, "closed")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_and_curl_understand_it(version: str, start: Start, nginx: int) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{nginx},accept_proxy=any,send_proxy={version}\n")
    command = ["curl", "-s", "--haproxy-protocol", f"http://{HOST}:{veillink.port}/"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    assert found == f"{HOST}\n"
    with closing(veillink.connect()) as client:
        client.sendall(encode(2, CLIENT, BALANCER) + b"GET / HTTP/1.0\r\n\r\n")
        assert read_to_eof(client).endswith(b"198.51.100.7\n")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_health_probes_say_that_they_are_our_own(version: str, hold: Hold) -> None:
    ends = hold(f"health=tcp,health_interval=100ms,send_proxy={version}")
    probe = ends.accept()
    if version == "v2":
        assert probe.recv(100) == LOCAL_V2
    else:
        assert probe.recv(100) == encode(1, Address(*probe.getpeername()), Address(*probe.getsockname()))


# --- who may come in -------------------------------------------------------------------------------------------------


def served(ends: Ends, host: str) -> bool:
    """Return whether a client from this host is served (as its PROXY header says)."""
    client = ends.connect()
    with contextlib.suppress(OSError):
        client.sendall(encode(2, Address(host, 1), BALANCER) + b"x")
        client.settimeout(5)
        ends._listening.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            target, _ = ends._listening.accept()
            target.close()
            return True
    assert is_reset(client)
    return False


@pytest.mark.parametrize(
    ("row", "let_in", "refused"),
    [
        (
            "allow=10.0.0.0/8 2001:db8::/32",
            ["10.1.2.3", "2001:db8::1", "::ffff:10.0.0.1"],
            ["192.0.2.1", "2001:db9::1"],
        ),
        ("deny=10.0.0.0/8", ["192.0.2.1"], ["10.1.2.3", "::ffff:10.0.0.1"]),
        ("allow=10.0.0.0/8,deny=10.1.0.0/16", ["10.2.0.1"], ["10.1.0.1", "192.0.2.1"]),
        ("deny=::/0", ["192.0.2.1"], ["2001:db8::1"]),
    ],
)
def test_the_lists_decide_by_the_real_client(row: str, let_in: list[str], refused: list[str], hold: Hold) -> None:
    ends = hold(f"accept_proxy=any,{row}")
    assert [host for host in let_in + refused if served(ends, host)] == let_in
    lines = eventually(lambda: ends.veillink.access(len(let_in + refused)))
    assert sum(line["end"] == "denied" for line in lines) == len(refused)


def test_a_list_is_followed_live_and_a_bad_one_changes_nothing(hold: Hold, tmp_path: Path) -> None:
    (tmp_path / "trusted.txt").write_text("# ours\n10.0.0.0/8\n")
    ends = hold(f"accept_proxy=any,allow=@{tmp_path}/trusted.txt")
    assert served(ends, "10.0.0.1")
    assert not served(ends, "192.0.2.1")
    (tmp_path / "trusted.txt").write_text("192.0.2.0/24  # others\r\n")
    assert '"changed": 1' in ends.veillink.wait_for_line("reloaded")
    assert served(ends, "192.0.2.1")
    assert not served(ends, "10.0.0.1")
    (tmp_path / "trusted.txt").write_text("192.0.2.0/24\n10.0.0.1/8\n")
    assert "trusted.txt:2:" in ends.veillink.wait_for_line("trusted.txt")
    ends.veillink.wait_for_line("not reloaded")
    assert served(ends, "192.0.2.1")
    assert not served(ends, "10.0.0.1")
    (tmp_path / "trusted.txt").unlink()
    ends.veillink.wait_for_line("cannot be read")
    assert not served(ends, "10.0.0.1")


def test_at_the_start_a_rule_with_a_bad_list_does_not_listen_until_it_is_mended(start: Start, tmp_path: Path) -> None:
    other = free_port()
    with socket.create_server((HOST, 0)) as target:
        port = target.getsockname()[1]
        rows = f"{HOST}:{{port}},{HOST},{port}\n{HOST}:{other},{HOST},{port},deny=@{tmp_path}/missing\n"
        veillink = start(rows)
        assert "missing" in veillink.wait_for_line("cannot be read")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, other))
        (tmp_path / "missing").write_text("# these\n127.0.0.0/8\n")
        veillink.wait_for_line("reloaded")
        with socket.create_connection((HOST, other)) as client:
            assert is_reset(client)
        lines = veillink.config.read_text().splitlines(keepends=True)
        veillink.config.write_text("".join(line for line in lines if str(other) not in line))
        assert '"removed": 1' in veillink.wait_for_line('"removed": 1')


@pytest.mark.parametrize("cell", ["allow", "deny"])
def test_lists_that_change_under_load_fail_nobody_whom_they_let_in(
    cell: str, forward: Callable[..., VeilLink], tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    names = {"kept": "10.0.0.1", "changing": "10.0.0.2", "other": "10.0.0.3"}

    def write(*, let_in: bool) -> None:
        wanted = [names["kept"]] if cell == "allow" else [names["other"]]
        part = tmp_path / "part"
        part.write_text("\n".join(wanted + [names["changing"]] * (let_in is (cell == "allow"))))
        part.rename(listed)

    def come(name: str, sock: socket.socket) -> bool:
        with contextlib.suppress(OSError):
            sock.sendall(encode(2, Address(names[name], 1), BALANCER) + b"x")
            return sock.recv(1) == b"x"
        return False

    write(let_in=True)
    veillink = forward(echo, f"accept_proxy=any,{cell}=@{listed}", "--no-access-log")
    stop = threading.Event()
    tries: list[tuple[str, bool]] = []

    def load() -> None:
        while not stop.is_set():
            for name in ("kept", "other"):
                with veillink.connect() as sock:
                    tries.append((name, come(name, sock)))

    threads = [threading.Thread(target=load) for _ in range(3)]
    with veillink.connect() as living:
        assert come("changing", living)
        for thread in threads:
            thread.start()
        try:
            for change in range(1, 5):
                write(let_in=change % 2 == 0)
                veillink.wait_for_line('"reloaded"', count=change)
                for _ in range(20):
                    with veillink.connect() as sock:
                        assert come("changing", sock) is (change % 2 == 0)
                exchange(living)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert len(tries) > 100
    assert set(tries) == {("kept", True), ("other", False)}


def write_many(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    part = path.with_suffix(".part")
    part.write_text("".join(f"{IPv4Address(draw.getrandbits(24) << 8)}/24\n" for _ in range(100_000)))
    part.rename(path)


@pytest.mark.alone
def test_a_list_of_a_hundred_thousand_networks_changes_and_nobody_waits_for_it(
    start: Start, backend: Serve, tmp_path: Path
) -> None:
    many = tmp_path / "many.txt"
    write_many(many, 0)
    port = backend(echo).port
    veillink = start(f"{HOST}:{{port}},{HOST},{port}\n{HOST}:{free_port()},{HOST},{port},deny=@{many}\n")
    veillink.first_fds += 1
    stalls = []
    with veillink.connect() as probe:
        for seed in range(1, 6):
            write_many(many, seed)
            slowest = 0.0
            while len(veillink.logged("^reloaded$")) < seed:
                began = time.monotonic()
                exchange(probe)
                slowest = max(slowest, time.monotonic() - began)
            stalls.append(slowest)
        print("longest exchange, in ms:", [f"{stall * 1e3:.0f}" for stall in stalls])
        # a machine that is busy with other things stalls some of the changes, a loop that is held up stalls each: 170
        assert min(stalls) < 0.12
        cpu = veillink.cpu()
        for count in range(6, 11):
            veillink.send(signal.SIGHUP)
            eventually(lambda count=count: len(veillink.logged("^reloaded$")) == count)  # type: ignore[misc]
        assert veillink.cpu() - cpu < 0.5  # five times 0.5 s when it was read and built each time


# --- how much ---------------------------------------------------------------------------------------------------------


def test_one_client_more_than_it_may_have_is_reset_and_others_are_served(hold: Hold) -> None:
    ends = hold("accept_proxy=any,max_connections_per_client=2")

    def come(host: str) -> socket.socket:
        client = ends.connect()
        client.sendall(encode(2, Address(host, 1), BALANCER))
        return client

    first, second = come("192.0.2.1"), come("192.0.2.1")
    targets = [ends.accept() for _ in (first, second)]
    assert is_reset(come("192.0.2.1"))
    come("192.0.2.2")
    ends.accept()
    for sock in (first, *targets):
        sock.close()
    ends.veillink.access(2)
    come("192.0.2.1")
    ends.accept()


def test_the_addresses_of_a_64_are_one_client(hold: Hold) -> None:
    ends = hold("accept_proxy=any,connection_rate_per_client=6/m")
    assert served(ends, "2001:db8::1")
    assert not served(ends, "2001:db8::2")
    assert served(ends, "2001:db8:0:1::1")


def test_at_its_rate_a_rule_accepts_and_the_others_wait(forward: Callable[..., VeilLink]) -> None:
    def hello(sock: socket.socket) -> None:
        sock.sendall(b"x")

    veillink = forward(hello, "connection_rate=20/s")
    began = time.monotonic()
    clients = [veillink.connect() for _ in range(50)]
    for client in clients:
        assert client.recv(1) == b"x"
        client.close()
    assert 1.3 < time.monotonic() - began < 4  # 20 at once, and 30 more at 20 a second
