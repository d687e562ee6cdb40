"""Listeners that cannot be had, and those whose place has gone."""

import socket as stdlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from gevent import socket

from tests.server.running import QUICK, Start, absent, row, rules, talk_to
from tests.sockets import Journal, Sockets, address_of, eventually
from tests.system.harness import HOST, free_port, read_exactly
from tests.system.namespace import Network
from veillink.model import Address, RuleOptions, RuleSet
from veillink.net import listening
from veillink.server import listeners
from veillink.server.listeners import PACE, Listeners


def test_a_listener_that_cannot_be_had_is_reported_and_tried_again(
    sockets: Sockets, start: Start, other_port: int, backend: socket.socket, journal: Journal
) -> None:
    taken = sockets.listener(port=free_port())
    port = address_of(taken).port
    running = start("# rules", row(port, backend, "name=db"), row(other_port, backend), pace=QUICK)
    assert list(running.down) == [Address(HOST, port)]
    assert talk_to(sockets, other_port, backend).works()
    error = journal.wait_for("cannot listen")
    assert error["level"] == "error"
    assert error["rule"] == "db"
    assert error["message"].startswith(
        f"rules.csv:2: cannot listen on {HOST}:{port}: Address already in use (EADDRINUSE)"
    )
    taken.close()
    again = journal.wait_for("listening at last")
    assert (again["rule"], again["listen"]) == ("db", f"{HOST}:{port}")
    assert running.down == {}
    assert talk_to(sockets, port, backend).works()
    eventually(lambda: running._listeners._keeper is None)


@pytest.mark.skipif(not listening._HAS_FREEBIND, reason="needs Linux")
def test_an_address_this_host_does_not_have_yet_is_listened_on_and_warned_of_once(
    start: Start, port: int, other_port: int, backend: socket.socket, journal: Journal
) -> None:
    running = start("# rules", absent(port, backend))
    assert list(running.listeners) == [Address("192.0.2.1", port)]
    assert running.down == {}
    running.apply(rules(absent(port, backend), row(other_port, backend)))
    (warning,) = [line for line in journal.finish() if "EADDRNOTAVAIL" in line.get("message", "")]
    assert warning["message"].startswith(f"rules.csv:2: nobody reaches 192.0.2.1:{port} yet")
    assert (warning["level"], warning["rule"]) == ("warning", "vip")


def test_an_address_this_host_does_not_have_yet_is_waited_for_where_the_kernel_cannot_listen_there(
    start: Start, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_HAS_FREEBIND", False)
    running = start(absent(port, backend), pace=QUICK)
    assert "EADDRNOTAVAIL" in running.down[Address("192.0.2.1", port)]
    assert running.can_go_on
    error = journal.wait_for("cannot listen")["message"]
    assert "does not have that address now" in error
    assert error.endswith("it is tried again")
    monkeypatch.undo()  # stands for the address that comes
    eventually(lambda: running.down == {})


def test_a_lone_listener_that_cannot_be_had_is_not_said_to_be_tried_again(
    sockets: Sockets, start: Start, backend: socket.socket, journal: Journal
) -> None:
    running = start(row(address_of(sockets.listener()).port, backend))
    assert not running.can_go_on
    (error,) = [line for line in journal.finish() if "cannot listen" in line.get("message", "")]
    assert "tried again" not in error["message"]


def test_each_address_that_is_down_has_a_delay_of_its_own(
    sockets: Sockets,
    start: Start,
    backend: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: Counter[Address] = Counter()
    listen = Listeners._listen

    def counted(self: Listeners, address: Address, options: RuleOptions) -> stdlib.socket:
        tries[address] += 1
        return listen(self, address, options)

    monkeypatch.setattr(Listeners, "_listen", counted)
    path = tmp_path / "socket"
    with stdlib.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        port = address_of(sockets.listener()).port
        start(row(port, backend), f"unix:{path},{HOST},{address_of(backend).port}", pace=replace(QUICK, first=60.0))
        eventually(lambda: tries[Address(f"unix:{path}", 0)] > 5, 10)
    assert tries[Address(HOST, port)] == 1


def test_the_delay_of_an_address_that_stays_down_grows() -> None:
    tcp, unix = [0.0], [0.0]
    for _ in range(6):
        tcp.append(PACE.delay(Address(HOST, 80), tcp[-1], awaited=False))
        unix.append(PACE.delay(Address("unix:/path", 0), unix[-1], awaited=False))
    assert tcp[1:] == [1, 2, 4, 8, 10, 10]
    assert unix[1:] == [0.2, 0.4, 0.8, 0.8, 0.8, 0.8]


@pytest.mark.parametrize("by_itself", [False, True], ids=["at a reload", "by itself"])
@pytest.mark.parametrize("another", [False, True], ids=["removed", "replaced"])
def test_a_unix_listener_whose_file_has_gone_listens_anew(
    another: bool,
    by_itself: bool,
    start: Start,
    backend: socket.socket,
    journal: Journal,
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    running = start(f"unix:{path},{HOST},{address_of(backend).port},name=local", pace=QUICK if by_itself else PACE)
    path.unlink()
    if another:
        with stdlib.socket(socket.AF_UNIX) as passing:
            passing.bind(str(path))
    if not by_itself:
        running.apply(running.rules)
    told = journal.wait_for("listening anew")
    reason = "another file is in its place" if another else "its file was removed"
    assert (told["level"], told["rule"], told["reason"]) == ("warning", "local", reason)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"word")
        with backend.accept()[0] as target:
            assert read_exactly(target, 4) == b"word"


def test_a_unix_listener_whose_place_somebody_else_has_is_down(
    start: Start, backend: socket.socket, journal: Journal, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    running = start(f"unix:{path},{HOST},{address_of(backend).port}")
    path.unlink()
    with stdlib.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        running.apply(running.rules)
        assert "EADDRINUSE" in running.down[Address(f"unix:{path}", 0)]
        journal.wait_for("cannot listen any more")
    eventually(lambda: running.down == {})


def test_a_link_local_listener_whose_interface_was_made_anew_listens_there(
    start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    with Network() as network, network.inside():
        make = ("ip", "link", "add", "wire", "type", "veth", "peer", "name", "end")
        network.run(*make)
        running = start(f"[fe80::1%wire]:{port},{HOST},{address_of(backend).port}")
        (listener,) = running.listeners.values()
        network.run("ip", "link", "delete", "wire")
        running.apply(running.rules)
        assert "ENODEV" in running.down[Address("fe80::1%wire", port)]
        assert running.can_go_on
        network.run(*make)
        running.apply(running.rules)
        (anew,) = running.listeners.values()
        assert anew is not listener
        assert anew.socket.getsockname()[3] == stdlib.if_nametoindex("wire")
        network.run("ip", "link", "delete", "wire")
        network.run(*make)
        running.apply(running.rules)
        (last,) = running.listeners.values()
        assert last.socket.getsockname()[3] == stdlib.if_nametoindex("wire")
        assert [line["reason"] for line in journal.finish() if "reason" in line] == [
            "its interface has gone",
            "its interface was made anew",
        ]
        running.apply(RuleSet())


def test_a_listener_that_is_down_is_given_up_with_its_rule(
    sockets: Sockets, start: Start, other_port: int, backend: socket.socket
) -> None:
    taken = sockets.listener(port=free_port())
    running = start(row(address_of(taken).port, backend), pace=QUICK)
    running.apply(rules(row(other_port, backend)))
    assert running.down == {}
    eventually(lambda: running._listeners._keeper is None)


def test_a_listener_that_comes_late_serves_the_rule_of_now(
    sockets: Sockets, start: Start, backend: socket.socket, other_backend: socket.socket
) -> None:
    taken = sockets.listener(port=free_port())
    port = address_of(taken).port
    running = start(row(port, backend), pace=QUICK)
    running.apply(rules(row(port, other_backend)))
    taken.close()
    eventually(lambda: running.listeners)
    assert talk_to(sockets, port, other_backend).works()


def test_a_listener_that_stays_down_is_reported_with_the_line_of_now(
    sockets: Sockets, start: Start, backend: socket.socket, journal: Journal
) -> None:
    port = address_of(sockets.listener(port=free_port())).port
    running = start(row(port, backend))
    running.apply(rules("# one line more", row(port, backend)))
    reports = [line["message"] for line in journal.finish() if "cannot listen" in line.get("message", "")]
    assert [report.partition(": ")[0] for report in reports] == ["rules.csv:1", "rules.csv:2"]


def test_what_cannot_be_changed_is_told_and_ends_nothing(
    start: Start, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(row(port, backend))

    def fails(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(listeners, "set_keepalive", fails)
    running.apply(rules(row(port, backend, "keepalive=7s")))
    assert "cannot change" in journal.wait_for("cannot change")["message"]
    assert running.rules.rules[0].options.keepalive == 7
