"""Every listen address that can be had is listened on, and a change touches the rules that it changes."""

import errno
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import Serve, Start
from .harness import HOST, VeilLink, echo, eventually, failing, free_port, nobody_listens, open_in, read_exactly, saying
from .namespace import Network

_TIME_WAIT, _LISTEN = "06", "0A"


def sockets(veillink: VeilLink, state: str) -> list[tuple[int, str]]:
    """Return port and inode of every IPv4 socket in this state in the VeilLink's network."""
    lines = Path(f"/proc/{veillink.pid}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return [(int(field[1].rpartition(":")[2], 16), field[9]) for field in fields if field[3] == state]


def listening(veillink: VeilLink) -> dict[int, str]:
    """Return the inode of each of its IPv4 listening sockets, by port: it is the same as long as the socket is."""
    own = set(open_in(veillink.pid))
    return {port: inode for port, inode in sockets(veillink, _LISTEN) if f"socket:[{inode}]" in own}


def echoes(sock: socket.socket) -> None:
    """Fail unless the connection still leads to an echo."""
    sock.sendall(b"to and fro")
    assert read_exactly(sock, 10) == b"to and fro"


def occupied(stack: ExitStack, port: int = 0) -> socket.socket:
    """Return a socket that listens on a port."""
    return stack.enter_context(socket.create_server((HOST, port or free_port())))


def test_a_port_in_use_is_reported_with_its_line_and_listened_on_as_soon_as_it_is_free(
    start: Start, backend: Serve
) -> None:
    served = backend(saying(b"hello"))
    with ExitStack() as stack:
        other = occupied(stack)
        port = other.getsockname()[1]
        veillink = start(f"{HOST}:{{port}},{HOST},{served.port}\n{HOST}:{port},{HOST},{served.port}\n")
        assert veillink.heard() == b"hello"
        (error,) = veillink.logged("cannot listen")
        assert f"{veillink.config}:3: cannot listen on {HOST}:{port}: " in error["message"]
        assert "EADDRINUSE" in error["message"]
    assert eventually(lambda: not nobody_listens(veillink, port) and veillink.heard(port) == b"hello", 3)
    assert len(veillink.logged("cannot listen")) == 1
    veillink.first_fds += 1  # the listener that came late


def test_when_no_rule_can_be_started_it_says_why_and_exits_with_1(start: Start) -> None:
    with ExitStack() as stack:
        port = occupied(stack).getsockname()[1]
        veillink = start(f"{HOST}:{port},{HOST},1\n", canary=False, ready=False)
        assert veillink.child.wait(10) == 1
        veillink.close()
    assert [error["level"] for error in veillink.logged("EADDRINUSE|no rule could be started")] == ["error"] * 2


def test_without_the_right_to_a_privileged_port_the_other_rules_run(
    network: Network, start: Start, backend: Serve
) -> None:
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    # For the files of a test and of a checkout, which only root may read.
    may_read = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
    port = backend(saying(b"hello")).port
    veillink = start(f"{HOST}:80,{HOST},{port}\n{HOST}:{{port}},{HOST},{port}\n", before=(*as_nobody, *may_read))
    assert Path(f"/proc/{veillink.pid}").stat().st_uid != 0
    assert veillink.heard() == b"hello"
    (error,) = veillink.logged("cannot listen")
    assert ":2: cannot listen on 127.0.0.1:80: " in error["message"]
    assert "EACCES" in error["message"]
    assert "CAP_NET_BIND_SERVICE" in error["message"]


def test_an_address_that_this_host_gets_later_is_served_then(network: Network, start: Start, backend: Serve) -> None:
    veillink = start(f"198.51.100.1:{{port}},{HOST},{backend(saying(b'hello')).port}\n", canary=False)
    (warning,) = veillink.logged("EADDRNOTAVAIL")
    assert f"{veillink.config}:1: nobody reaches 198.51.100.1:{veillink.port} yet: " in warning["message"]
    for _ in range(2):
        network.run("ip", "address", "add", "198.51.100.1/32", "dev", "lo")
        assert veillink.heard(host="198.51.100.1") == b"hello"
        network.run("ip", "address", "delete", "198.51.100.1/32", "dev", "lo")


def test_a_restart_gets_its_port_back_while_old_connections_are_in_time_wait(
    network: Network, start: Start, backend: Serve
) -> None:
    # A network of its own: where others have left many thousands behind, the kernel skips TIME_WAIT.
    port = free_port()
    rows = f"{HOST}:{port},{HOST},{backend(lambda sock: sock.sendall(b'bye')).port}\n"
    veillink = start(rows)
    with veillink.connect(port) as sock:
        assert read_exactly(sock, 3) == b"bye"
        assert sock.recv(1) == b""
    eventually(lambda: port in dict(sockets(veillink, _TIME_WAIT)))
    assert veillink.stop() == 0
    again = start(rows)
    assert not again.logged("cannot listen")
    assert again.heard(port) == b"bye"


def test_all_ipv4_and_all_ipv6_addresses_are_two_listeners_for_one_port(start: Start, backend: Serve) -> None:
    four, six = backend(saying(b"four")), backend(saying(b"six"))
    veillink = start(f"0.0.0.0:{{port}},{HOST},{four.port}\n[::]:{{port}},{HOST},{six.port}\n")
    assert veillink.heard() == b"four"
    assert veillink.heard(host="::1") == b"six"


def test_a_bare_port_is_listened_on_for_both_families(start: Start, backend: Serve) -> None:
    veillink = start(f"{{port}},{HOST},{backend(saying(b'hello')).port}\n")
    assert veillink.heard() == b"hello"
    assert veillink.heard(host="::1") == b"hello"


def test_a_bare_port_is_listened_on_where_there_is_no_ipv6(start: Start, backend: Serve, tmp_path: Path) -> None:
    row = f"{{port}},{HOST},{backend(saying(b'hello')).port}\n"
    trace = tmp_path / "trace"
    veillink = start(row, canary=False, before=failing("bind", "EADDRNOTAVAIL", 1, trace))
    assert veillink.heard() == b"hello"
    assert "INJECTED" in trace.read_text(), "nothing to test: IPv6 was there"


def test_a_link_local_address_is_listened_on_at_its_interface(network: Network, start: Start, backend: Serve) -> None:
    network.run("ip", "link", "add", "name", "wire", "type", "veth", "peer", "name", "end")
    for interface in ("wire", "end"):
        network.run("ip", "address", "add", "fe80::1/64", "dev", interface, "nodad")
        network.run("ip", "link", "set", interface, "up")
    veillink = start(f"[fe80::1%wire]:{{port}},{HOST},{backend(saying(b'hello')).port}\n")
    assert not veillink.logged("cannot listen")
    assert veillink.heard(host="fe80::1%wire") == b"hello"


@pytest.mark.unmeasured
def test_a_thousand_rules_are_up_within_three_seconds(network: Network, start: Start, backend: Serve) -> None:
    port = backend(saying(b"hello")).port
    rows = "".join(f"{HOST}:{listen},{HOST},{port}\n" for listen in range(20_000, 21_000))
    veillink = start(rows)
    assert veillink.cpu() < 3  # judged by CPU time: what else the machine does is no matter
    assert listening(veillink).keys() >= set(range(20_000, 21_000))
    for listen in (20_000, 20_499, 20_999):
        assert veillink.heard(listen) == b"hello"


@pytest.mark.unmeasured
def test_a_range_of_nine_thousand_ports_is_up_within_five_seconds(
    network: Network, start: Start, backend: Serve
) -> None:
    veillink = start(f"{HOST}:20000-28999,{HOST},{backend(saying(b'hello')).port}\n")
    assert veillink.cpu() < 5
    for listen in (20_000, 24_321, 28_999):
        assert veillink.heard(listen) == b"hello"


def test_a_range_leads_port_by_port_to_a_range_or_all_of_it_to_one_port(
    network: Network, start: Start, backend: Serve
) -> None:
    for port in range(30_000, 30_004):
        backend(saying(str(port).encode()), port=port)
    veillink = start(f"{HOST}:20000-20003,{HOST},30000-30003\n{HOST}:21000-21003,{HOST},30002\n")
    assert [veillink.heard(port) for port in range(20_000, 20_004)] == [b"30000", b"30001", b"30002", b"30003"]
    assert [veillink.heard(port) for port in range(21_000, 21_004)] == [b"30002"] * 4


def test_a_reload_changes_the_rules_that_changed_and_leaves_sockets_and_connections_alone(
    start: Start, backend: Serve
) -> None:
    old, new = backend(echo), backend(saying(b"new"))
    gone, changed, added = (free_port() for _ in range(3))
    veillink = start(f"{HOST}:{gone},{HOST},{old.port}\n{HOST}:{changed},{HOST},{old.port}\n")
    before = listening(veillink)
    with veillink.connect(gone) as on_gone, veillink.connect(changed) as on_changed:
        echoes(on_gone)
        echoes(on_changed)
        veillink.reload(f"{HOST}:{changed},{HOST},{new.port},keepalive=7s\n{HOST}:{added},{HOST},{new.port}\n")
        assert nobody_listens(veillink, gone)
        assert veillink.heard(changed) == veillink.heard(added) == b"new"
        after = listening(veillink)
        for port in (veillink.echo_port, changed):
            assert after[port] == before[port]
        for _ in range(3):
            echoes(on_gone)
            echoes(on_changed)
    assert not veillink.logged("cannot listen")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("127.0.0.1:{port},127.0.0.1,70000\n", r"csv:1:3: port \"70000\" is not between 1 and 65535"),
        ("# nothing\n", "has no rule"),
        (None, "cannot be read"),
    ],
)
def test_a_file_with_a_problem_changes_nothing(content: str | None, said: str, start: Start, backend: Serve) -> None:
    row = f"{HOST}:{{port}},{HOST},{backend(echo).port}\n"
    veillink = start(row)
    before = listening(veillink)
    with veillink.connect() as sock:
        echoes(sock)
        veillink.config.unlink()
        if content is not None:
            veillink.config.write_text(content.replace("{port}", str(free_port())))
        veillink.send(signal.SIGHUP)
        eventually(lambda: veillink.logged("^not reloaded"))
        assert veillink.logged(said)
        assert listening(veillink) == before
        echoes(sock)
    assert veillink.seconds_to_echo() < 1
    veillink.reload(row)
    assert listening(veillink) == before


def test_who_waits_in_the_queue_of_a_removed_listener_is_served(start: Start, backend: Serve) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{backend(saying(b'hello')).port}\n")
    with ExitStack() as stack:
        veillink.send(signal.SIGSTOP)
        # More than it accepts before it looks at its signals.
        clients = [stack.enter_context(veillink.connect()) for _ in range(400)]
        veillink.write("")
        veillink.send(signal.SIGHUP)
        veillink.send(signal.SIGCONT)
        for sock in clients:
            assert read_exactly(sock, 5) == b"hello"
        eventually(lambda: veillink.logged("^reloaded"))
        assert nobody_listens(veillink, veillink.port)


def test_fifty_reloads_back_and_forth_leave_the_same_descriptors_and_the_connection_alone(
    start: Start, backend: Serve
) -> None:
    port, ports = backend(echo).port, [free_port() for _ in range(3)]
    one = f"{HOST}:{{port}},{HOST},{port}\n{HOST}:{ports[0]},{HOST},{port}\n{HOST}:{ports[1]},{HOST},{port}\n"
    other = f"{HOST}:{{port}},{HOST},{port},name=other\n{HOST}:{ports[0]},localhost,{port}\n{HOST}:{ports[2]},::1,9\n"
    veillink = start(one)
    with veillink.connect() as sock:
        echoes(sock)
        veillink.reload(other)
        veillink.reload(one)
        fds = veillink.fds()
        for _ in range(25):
            veillink.reload(other)
            veillink.reload(one)
        eventually(lambda: veillink.fds() == fds, what=f"{fds} descriptors")
        echoes(sock)
    assert listening(veillink).keys() == {veillink.echo_port, veillink.port, *ports[:2]}


def test_a_listener_can_grow_from_one_address_to_all_and_back(start: Start, backend: Serve) -> None:
    target = f"{HOST},{backend(saying(b'hello')).port}"
    veillink = start(f"{HOST}:{{port}},{target}\n")
    for rows in (f"{{port}},{target}\n", f"{HOST}:{{port}},{target}\n"):
        veillink.reload(rows)
        assert veillink.heard() == b"hello"
    assert not veillink.logged("cannot listen")


def test_a_growing_range_keeps_the_sockets_it_has(network: Network, start: Start, backend: Serve) -> None:
    port = backend(echo).port
    veillink = start(f"{HOST}:20000-20003,{HOST},{port}\n")
    before = listening(veillink)
    veillink.reload(f"{HOST}:20000-20007,{HOST},{port}\n")
    after = listening(veillink)
    assert {port: after[port] for port in before} == before
    assert after.keys() >= set(range(20_000, 20_008))
    veillink.reload(f"{HOST}:20000-20003,{HOST},{port}\n")
    assert listening(veillink) == before


def test_a_port_in_use_at_a_reload_is_tried_until_it_is_free_unless_its_rule_goes(start: Start, backend: Serve) -> None:
    port = backend(saying(b"hello")).port
    with ExitStack() as stack:
        dropped, kept = (occupied(stack).getsockname()[1] for _ in range(2))
        veillink = start("")
        veillink.reload(f"{HOST}:{dropped},{HOST},{port}\n{HOST}:{kept},{HOST},{port}\n")
        assert len(veillink.logged("cannot listen")) == 2
        veillink.reload(f"{HOST}:{kept},{HOST},{port}\n")
    eventually(lambda: veillink.logged("listening at last"), 4)
    assert veillink.heard(kept) == b"hello"
    assert nobody_listens(veillink, dropped)
    veillink.first_fds += 1  # the listener that came late


def test_a_new_conflict_is_tried_again_soon_although_another_has_lasted_long(start: Start, backend: Serve) -> None:
    port = backend(saying(b"hello")).port
    with ExitStack() as stack, ExitStack() as soon:
        lasting, passing = occupied(stack).getsockname()[1], occupied(soon).getsockname()[1]
        veillink = start(f"{HOST}:{lasting},{HOST},{port}\n")
        time.sleep(3.2)  # it was tried after one second and after three, and would be again after seven
        veillink.reload(f"{HOST}:{lasting},{HOST},{port}\n{HOST}:{passing},{HOST},{port}\n")
        soon.close()
        eventually(lambda: veillink.logged("listening at last"), 2.5)
        assert veillink.heard(passing) == b"hello"
    veillink.first_fds += 1  # the listener that came late


def test_two_veillinks_do_not_share_a_port(start: Start, backend: Serve) -> None:
    port = backend(saying(b"hello")).port
    first = start(f"{HOST}:{{port}},{HOST},{port}\n")
    second = start(f"{HOST}:{first.port},{HOST},{port}\n")
    (error,) = second.logged("cannot listen")
    assert errno.errorcode[errno.EADDRINUSE] in error["message"]
    assert first.heard() == b"hello"
