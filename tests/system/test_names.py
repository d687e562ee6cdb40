"""Host names are followed to where they lead now, and a name server's trouble stays its own."""

import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest

from .conftest import Serve, Start
from .harness import HOST, VeilLink, echo, eventually, free_port, read_exactly, reset, saying
from .namespace import Network, replacing
from .test_connecting import silent

_NXDOMAIN, _SERVFAIL = 3, 2
_TYPES = {1: socket.AF_INET, 28: socket.AF_INET6}


class NameServer:
    """A name server at 127.0.0.1:53 that knows what it is told.

    ``zone``: the addresses of each name, or ``"SERVFAIL"`` or ``"SILENCE"``; any other name does not exist.
    ``asked``: how often each was asked for. ``delay``: seconds before each answer.
    """

    def __init__(self) -> None:
        self.zone: dict[str, Sequence[str] | str] = {}
        self.asked: Counter[str] = Counter()
        self.delay = 0.0
        self._delayed: list[threading.Timer] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((HOST, 53))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            if not query:
                return
            reply = self._answer(query)
            if reply and self.delay:
                self._delayed.append(threading.Timer(self.delay, self._socket.sendto, (reply, client)))
                self._delayed[-1].start()
            elif reply:
                self._socket.sendto(reply, client)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        (kind,) = struct.unpack_from("!H", query, at + 1)
        question = query[12 : at + 5]
        name = ".".join(labels)
        self.asked[name] += 1
        known = self.zone.get(name)
        if known == "SILENCE":
            return b""
        error = _NXDOMAIN if known is None else _SERVFAIL if known == "SERVFAIL" else 0
        found = [] if error else [a for a in known or () if (":" in a) == (_TYPES.get(kind) == socket.AF_INET6)]
        records = [socket.inet_pton(_TYPES[kind], address) for address in found]
        header = query[:2] + struct.pack("!HHHHH", 0x8180 | error, 1, len(records), 0, 0)
        parts = [struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(record)) + record for record in records]
        return header + question + b"".join(parts)

    def close(self) -> None:
        """Stop answering."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", (HOST, 53))
        for thread in (self._thread, *self._delayed):
            thread.join(5)
        self._socket.close()


@pytest.fixture
def name_server(network: Network) -> Iterator[NameServer]:
    """The only name server in the test's network."""
    server = NameServer()
    yield server
    server.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """What the test's VeilLink finds as ``/etc/hosts``."""
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n")
    return path


@pytest.fixture
def resolving(name_server: NameServer, hosts: Path, tmp_path: Path) -> tuple[str, ...]:
    """What goes before a command that is to ask the test's name server."""
    servers, switch = tmp_path / "resolv.conf", tmp_path / "nsswitch.conf"
    servers.write_text(f"nameserver {HOST}\n")
    switch.write_text("hosts: files dns\n")
    return replacing({"/etc/resolv.conf": servers, "/etc/hosts": hosts, "/etc/nsswitch.conf": switch})


def answer(veillink: VeilLink, port: int = 0) -> bytes | None:
    """Return what a new client is told; ``None`` when it is reset."""
    try:
        return veillink.heard(port)
    except ConnectionResetError:
        return None


def test_a_name_that_does_not_exist_resets_the_client_at_once_and_the_log_says_so_once(
    name_server: NameServer, resolving: tuple[str, ...], start: Start
) -> None:
    veillink = start(f"{HOST}:{{port}},nowhere.test,80,dns_refresh=1s\n", before=resolving)
    begun = time.monotonic()
    assert answer(veillink) is None
    assert time.monotonic() - begun < 3
    (line,) = veillink.access()
    assert (line["end"], line["tried"]) == ("name_not_found", "nowhere.test:80 name_not_found")
    asked = name_server.asked["nowhere.test"]
    eventually(lambda: name_server.asked["nowhere.test"] >= asked + 3, what="it is asked for again")
    (warning,) = veillink.logged("cannot resolve")
    assert warning["host"] == "nowhere.test"


def test_clients_of_a_name_that_does_not_exist_cost_one_look_up_a_second(
    name_server: NameServer, resolving: tuple[str, ...], start: Start
) -> None:
    veillink = start(f"{HOST}:{{port}},nowhere.test,80\n", before=resolving)
    begun = time.monotonic()
    for _ in range(200):
        assert answer(veillink) is None
    look_ups = name_server.asked["nowhere.test"] / 2  # for both families
    assert look_ups <= 2 + (time.monotonic() - begun)


@pytest.mark.parametrize("where", ["name server", "hosts file"])
def test_a_name_that_appears_is_served_without_a_restart(
    where: str, name_server: NameServer, hosts: Path, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    port = backend(saying(b"here")).port
    veillink = start(f"{HOST}:{{port}},late.test,{port}\n", before=resolving)
    assert answer(veillink) is None
    if where == "hosts file":
        with hosts.open("a") as file:
            file.write(f"{HOST} late.test\n")
    else:
        name_server.zone["late.test"] = [HOST]
    eventually(lambda: answer(veillink) == b"here", 4)
    eventually(lambda: veillink.logged("resolved again"))


def test_a_silent_name_server_costs_the_connect_timeout_and_not_more(
    name_server: NameServer, resolving: tuple[str, ...], start: Start
) -> None:
    name_server.zone["slow.test"] = "SILENCE"
    veillink = start(f"{HOST}:{{port}},slow.test,80,connect_timeout=1s\n", before=resolving)
    begun = time.monotonic()
    assert answer(veillink) is None
    assert 0.95 < time.monotonic() - begun < 3
    (line,) = veillink.access()
    assert (line["end"], line["tried"]) == ("connect_timeout", "slow.test:80 connect_timeout")
    assert veillink.stop() == 0


def test_a_silent_name_server_leaves_time_for_the_next_target(
    name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    name_server.zone["slow.test"] = "SILENCE"
    port = backend(saying(b"second")).port
    rows = f"{HOST}:{{port}},slow.test,{port},connect_timeout=2s\n{HOST}:{{port}},{HOST},{port},backup=yes\n"
    veillink = start(rows, before=resolving)
    begun = time.monotonic()
    assert veillink.heard() == b"second"
    assert time.monotonic() - begun < 2
    assert veillink.stop() == 0


def test_a_client_that_leaves_during_the_look_up_is_let_go_at_once(
    name_server: NameServer, resolving: tuple[str, ...], start: Start
) -> None:
    name_server.zone["slow.test"] = "SILENCE"
    veillink = start(f"{HOST}:{{port}},slow.test,80,connect_timeout=30s\n", before=resolving)
    eventually(lambda: name_server.asked["slow.test"])
    fds = veillink.fds()
    sock = veillink.connect()
    eventually(lambda: veillink.fds() > fds, what="the client's descriptor")
    reset(sock)
    (line,) = veillink.access(seconds=1)
    assert (line["end"], line["tried"]) == ("client_left", None)
    assert veillink.stop() == 0


def test_twelve_look_ups_that_hang_delay_neither_a_numeric_nor_a_resolvable_target(
    name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    first = 20_000
    name_server.zone = {f"hang{n}.test": "SILENCE" for n in range(12)} | {"good.test": [HOST]}
    served = backend(echo)
    rows = [f"{HOST}:{first + n},hang{n}.test,80\n" for n in range(12)]
    veillink = start("".join(rows) + f"{HOST}:{{port}},good.test,{served.port}\n", before=resolving)
    clients = [veillink.connect(first + n) for n in range(12)]
    eventually(lambda: all(name_server.asked[f"hang{n}.test"] for n in range(12)), what="all twelve are asked for")
    assert veillink.seconds_to_echo() < 2
    assert veillink.seconds_to_echo(veillink.echo_port) < 2
    for sock in clients:
        reset(sock)
    assert len(veillink.access(13)) == 13
    assert veillink.stop() == 0


def test_a_new_rule_whose_name_is_in_the_hosts_file_is_served_at_once_beside_hundreds_of_names_that_hang(
    name_server: NameServer, hosts: Path, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    name_server.zone = {f"hang{n}.test": "SILENCE" for n in range(300)}
    rows = "".join(f"{HOST}:{20_000 + n},hang{n}.test,80\n" for n in range(300))
    rows += f"{HOST}:{{port}},{HOST},{backend(saying(b'here')).port}\n"
    veillink = start(rows, before=resolving)
    eventually(lambda: len(name_server.asked) >= 40, what="many are asked for at a time")
    with hosts.open("a") as file:
        file.write(f"{HOST} good.test\n")
    served = backend(saying(b"good"))
    port = free_port()
    veillink.reload(rows + f"{HOST}:{port},good.test,{served.port},connect_timeout=3s\n")
    assert [veillink.heard(port) for _ in range(3)] == [b"good"] * 3
    assert veillink.stop() == 0


def test_a_name_server_that_cannot_be_reached_is_asked_again_for_the_same_client(
    name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    name_server.zone = {"moody.test": "SERVFAIL", "down.test": "SERVFAIL"}
    other = free_port()
    row = f"{HOST}:{other},down.test,80,connect_timeout=1s\n"
    veillink = start(row + f"{HOST}:{{port}},moody.test,{backend(echo).port},connect_timeout=20s\n", before=resolving)
    with veillink.connect() as sock:
        sock.sendall(b"x")
        assert answer(veillink, other) is None
        (line,) = veillink.access()
        assert (line["end"], line["tried"]) == ("connect_timeout", "down.test:80 connect_timeout")
        name_server.zone["moody.test"] = [HOST]
        assert read_exactly(sock, 1) == b"x"


@pytest.mark.parametrize("old", ["refuses", "silent"])
def test_a_client_that_finds_a_name_s_address_moved_is_served_itself(
    old: str, name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    served = backend(saying(b"new"), host="127.0.0.202")
    name_server.zone["moved.test"] = ["127.0.0.201"]
    with silent("127.0.0.201", served.port) if old == "silent" else nullcontext():
        veillink = start(f"{HOST}:{{port}},moved.test,{served.port},dns_refresh=1h\n", before=resolving)
        eventually(lambda: name_server.asked["moved.test"] >= 2, what="both families are asked for")
        name_server.zone["moved.test"] = ["127.0.0.202"]
        assert answer(veillink) == b"new"
    (line,) = veillink.access()
    assert line["target"] == f"127.0.0.202:{served.port}"


def test_look_ups_that_hang_do_not_delay_the_exit(
    name_server: NameServer, resolving: tuple[str, ...], start: Start
) -> None:
    name_server.zone = {f"hang{n}.test": "SILENCE" for n in range(3)}
    rows = [f"{HOST}:{20_000 + n},hang{n}.test,80\n" for n in range(3)]
    veillink = start("".join(rows), before=resolving)
    eventually(lambda: len(name_server.asked) == 3, what="all three are asked for")
    begun = time.monotonic()
    assert veillink.stop() == 0
    assert time.monotonic() - begun < 4


def test_look_ups_that_hang_take_no_client_the_descriptors(
    name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    name_server.zone = {f"hang{n}.test": "SILENCE" for n in range(40)}
    rows = [f"{HOST}:20000,hang{n}.test,80\n" for n in range(40)]
    served = backend(saying(b"hello"))
    rows.append(f"{HOST}:{{port}},{HOST},{served.port}\n")
    veillink = start("".join(rows), before=(*resolving, "prlimit", "--nofile=100"))
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(veillink.connect(20_000))
        eventually(lambda: len(name_server.asked) >= 4, what="as many as may be are asked for at a time")
        clients = [stack.enter_context(veillink.connect()) for _ in range(50)]
        while clients:
            for sock in eventually(lambda: select.select(clients, [], [], 0)[0]):
                assert read_exactly(sock, 5) == b"hello"
                clients.remove(sock)
                sock.close()
    assert not veillink.logged("cannot accept")
    assert veillink.stop() == 0


def test_the_first_client_of_a_name_does_not_wait_for_a_slow_name_server(
    name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    name_server.zone["slow.test"] = [HOST]
    name_server.delay = 0.7
    veillink = start(f"{HOST}:{{port}},slow.test,{backend(echo).port},dns_refresh=1s\n", before=resolving)
    # The second look-up begins after the first has been answered.
    eventually(lambda: name_server.asked["slow.test"] >= 3, what="a second look-up")
    assert veillink.seconds_to_echo() < 0.5


def test_a_name_that_changes_its_address_takes_new_clients_along_and_leaves_old_ones_alone(
    name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    old = backend(echo, host="127.0.0.201")
    backend(saying(b"new"), host="127.0.0.202", port=old.port)
    name_server.zone["moving.test"] = ["127.0.0.201"]
    veillink = start(f"{HOST}:{{port}},moving.test,{old.port},dns_refresh=1s\n", before=resolving)
    with veillink.connect() as sock:
        sock.sendall(b"old")
        assert read_exactly(sock, 3) == b"old"
        name_server.zone["moving.test"] = ["127.0.0.202"]
        eventually(lambda: answer(veillink) == b"new", 3)
        assert [veillink.heard() for _ in range(5)] == [b"new"] * 5
        sock.sendall(b"still old")
        assert read_exactly(sock, 9) == b"still old"


def test_a_name_whose_address_refuses_is_looked_up_again_soon_and_not_only_when_its_age_demands_it(
    name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    served = backend(saying(b"new"), host="127.0.0.202")
    name_server.zone["moved.test"] = ["127.0.0.201"]
    veillink = start(f"{HOST}:{{port}},moved.test,{served.port},dns_refresh=1h\n", before=resolving)
    assert answer(veillink) is None
    name_server.zone["moved.test"] = ["127.0.0.202"]
    eventually(lambda: answer(veillink) == b"new", 4)


@pytest.mark.parametrize("trouble", ["SERVFAIL", "SILENCE", "NXDOMAIN"])
def test_the_last_good_answer_serves_while_the_name_server_is_in_trouble(
    trouble: str, name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    name_server.zone["good.test"] = [HOST]
    veillink = start(f"{HOST}:{{port}},good.test,{backend(echo).port},dns_refresh=1s\n", before=resolving)
    assert veillink.seconds_to_echo() < 5
    if trouble == "NXDOMAIN":
        del name_server.zone["good.test"]
    else:
        name_server.zone["good.test"] = trouble
    asked = name_server.asked["good.test"]
    look_ups = 1 if trouble == "SILENCE" else 2  # silence keeps the resolver busy for ten seconds
    eventually(lambda: name_server.asked["good.test"] >= asked + 2 * look_ups, what="it is asked for in vain")
    for _ in range(20):
        assert veillink.seconds_to_echo() < 2
    if trouble == "SILENCE":
        assert veillink.stop() == 0
        return
    eventually(lambda: veillink.logged("cannot resolve"))
    name_server.zone["good.test"] = [HOST]
    eventually(lambda: veillink.logged("resolved again"))
    (warning,) = veillink.logged("cannot resolve")
    assert warning["kept"] == "keeping the last good answer"


@pytest.mark.parametrize("addresses", [["127.0.0.201", HOST], ["::1", "127.0.0.201", HOST], ["127.0.0.201", "::1"]])
def test_every_address_of_a_name_is_tried(
    addresses: list[str],
    name_server: NameServer,
    resolving: tuple[str, ...],
    start: Start,
    backend: Serve,
) -> None:
    served = backend(echo, host=addresses[-1])
    name_server.zone["many.test"] = addresses
    veillink = start(f"{HOST}:{{port}},many.test,{served.port}\n", before=resolving)
    for _ in range(4):
        assert veillink.seconds_to_echo() < 0.5
    assert {line["end"] for line in veillink.access(4)} == {"closed"}


def test_a_name_that_no_rule_uses_any_more_is_asked_for_no_more(
    name_server: NameServer, resolving: tuple[str, ...], start: Start, backend: Serve
) -> None:
    name_server.zone = {"old.test": [HOST], "new.test": [HOST]}
    port = backend(saying(b"here")).port
    veillink = start(f"{HOST}:{{port}},old.test,{port},dns_refresh=1s\n", before=resolving)
    assert veillink.heard() == b"here"
    veillink.reload(f"{HOST}:{{port}},new.test,{port},dns_refresh=1s\n")
    asked = name_server.asked["old.test"]
    assert veillink.heard() == b"here"
    eventually(lambda: name_server.asked["new.test"] >= 4, what="two look-ups of the new name")
    assert name_server.asked["old.test"] == asked
