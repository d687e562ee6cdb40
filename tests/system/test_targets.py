"""Clients are shared among targets as the rule says, and a target that dies costs them as little as can be."""

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Self

import pytest

from .conftest import Serve, Start
from .ends import read_to_reset, refuses
from .harness import HOST, Backend, VeilLink, echo, eventually, free_port, read_exactly, read_to_eof, reset, saying
from .namespace import Network, replacing
from .test_programs import program, serving

# --- helpers ---------------------------------------------------------------------------------------------------------


def rule(options: str, *targets: object) -> str:
    """Return the rows of a rule; a target is a port, or a port with options of its own (``8000,weight=3``)."""
    rows = [f"{HOST}:{{port}},{HOST},{target}\n" for target in targets]
    return rows[0].replace("\n", f",{options}\n") + "".join(rows[1:])


def at(port: int) -> str:
    """Return how a target is shown."""
    return f"{HOST}:{port}"


def answer(veillink: VeilLink, port: int = 0) -> bytes | None:
    """Return what a new client is told; ``None`` when it is reset."""
    try:
        return veillink.heard(port)
    except ConnectionResetError:
        return None


def answers(veillink: VeilLink, count: int, port: int = 0) -> list[bytes | None]:
    """Return what so many clients are told, one after the other."""
    return [answer(veillink, port) for _ in range(count)]


def tries(veillink: VeilLink, count: int) -> list[str | None]:
    """Return the failed tries of the first ``count`` clients, once all of them are in the log."""
    return [line["tried"] for line in veillink.access(count)]


def turns(veillink: VeilLink) -> list[tuple[str, str]]:
    """Return which targets went down and came up so far, in order."""
    return [(line["message"].split()[1], line["target"]) for line in veillink.logged("^target (down|up)$")]


def states(veillink: VeilLink, count: int) -> dict[str, tuple[str, int]]:
    """Return state and connections of a rule's targets, ``count`` of them."""
    before = len(veillink.logged("^state of target$"))
    veillink.send(signal.SIGUSR1)
    eventually(lambda: len(veillink.logged("^state of target$")) == before + 1 + count, what="the state of all targets")
    lines = veillink.logged("^state of target$")[before:]
    return {line["target"]: (line["state"], line["connections"]) for line in lines if line["rule"] != "canary"}


@contextlib.contextmanager
def full(port: int = 0) -> Iterator[socket.socket]:
    """A listening socket that is as silent as a dead host until its first client, our own, is accepted."""
    with socket.create_server((HOST, port), backlog=0) as listening:
        listening.settimeout(20)
        with socket.create_connection(listening.getsockname()[:2]):
            yield listening


def knocking_at(port: int) -> int:
    """Return how many connections to a port wait for an answer (SYN_SENT, proc(5))."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[3] == "02" and line[2].endswith(f":{port:04X}") for line in lines)


def wait_for_probes(target: Backend, count: int) -> None:
    """Wait until a target was connected so often more, while no client comes: the clock of what is probed beside it."""
    until = target.accepted + count
    eventually(lambda: target.accepted >= until, what=f"{count} more probes")


def accept_client(listening: socket.socket) -> socket.socket:
    """Return the next connection on which something is said: probes say nothing."""
    while True:
        sock, _ = listening.accept()
        sock.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            if sock.recv(1, socket.MSG_PEEK):
                return sock
        sock.close()


class Holding:
    """Clients that stay connected, by the word that their target said."""

    def __init__(self, veillink: VeilLink) -> None:
        self._veillink = veillink
        self._held: list[tuple[bytes, socket.socket]] = []

    def open(self, count: int) -> list[bytes]:
        """Connect so many, one after the other, and return what they are told."""
        for _ in range(count):
            sock = self._veillink.connect()
            self._held.append((read_exactly(sock, 1), sock))
        return [word for word, _ in self._held[-count:]]

    def close(self, *words: bytes) -> None:
        """Close those that were told one of these words."""
        for word, sock in self._held:
            if word in words:
                sock.close()
        self._held = [(word, sock) for word, sock in self._held if word not in words]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(*(word for word, _ in self._held))


# --- who gets the next client ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "shares"), [((1, 1), (500, 500)), ((3, 1), (300, 100)), ((0, 1), (0, 100))])
def test_targets_in_turn_get_exactly_their_shares(
    weights: tuple[int, int], shares: tuple[int, int], start: Start, backend: Serve
) -> None:
    words = (b"a", b"b")
    ports = [backend(saying(word)).port for word in words]
    veillink = start(rule("", *(f"{port},weight={weight}" for port, weight in zip(ports, weights, strict=True))))
    told = Counter(answers(veillink, sum(shares)))
    assert tuple(told[word] for word in words) == shares
    assert set(tries(veillink, sum(shares))) == {None}


def test_a_lone_target_without_weight_gets_nobody(start: Start, backend: Serve) -> None:
    resting = backend(echo)
    veillink = start(rule("", f"{resting.port},weight=0"))
    assert answers(veillink, 3) == [None] * 3
    assert {line["end"] for line in veillink.access(3)} == {"no_target"}
    assert resting.accepted == 0


def test_the_target_with_the_fewest_connections_gets_the_next_client_also_after_a_reload(
    start: Start, backend: Serve
) -> None:
    a, b = backend(saying(b"a")), backend(saying(b"b"))
    rows = rule("balance=least_connections", a.port, b.port)
    veillink = start(rows)
    with Holding(veillink) as clients:
        assert Counter(clients.open(6)) == {b"a": 3, b"b": 3}
        clients.close(b"a")
        eventually(lambda: states(veillink, 2) == {at(a.port): ("up", 0), at(b.port): ("up", 3)}, what="the a's gone")
        assert clients.open(1) == [b"a"]
        veillink.reload(rows.replace("least_connections", "least_connections,idle_timeout=1h"))
        assert clients.open(2) == [b"a"] * 2
        assert Counter(clients.open(4)) == {b"a": 2, b"b": 2}


def test_connections_under_way_count_so_a_slow_target_gets_no_more_than_its_share(start: Start, backend: Serve) -> None:
    fast = backend(echo)
    with full() as slow, contextlib.ExitStack() as stack:
        port = slow.getsockname()[1]
        veillink = start(rule("balance=least_connections,connect_timeout=40s", port, fast.port))
        clients = [stack.enter_context(veillink.connect())]
        eventually(lambda: knocking_at(port) == 1, what="a client on its way to the slow one")
        for gone in range(1, 11):
            assert veillink.seconds_to_echo() < 5
            veillink.access(gone)
        clients += [stack.enter_context(veillink.connect()) for _ in range(19)]
        eventually(lambda: states(veillink, 2) == {at(port): ("up", 10), at(fast.port): ("up", 10)}, what="10 each")
        assert (knocking_at(port), fast.accepted) == (10, 10 + 10)
        for client in clients:
            reset(client)
        eventually(lambda: states(veillink, 2) == {at(port): ("up", 0), at(fast.port): ("up", 0)}, what="nobody")


def test_at_random_everybody_is_served_and_both_targets_are_used(start: Start, backend: Serve) -> None:
    veillink = start(rule("balance=random", backend(saying(b"a")).port, backend(saying(b"b")).port))
    told = Counter(answers(veillink, 400))
    assert told.keys() == {b"a", b"b"}
    assert min(told.values()) > 100


def test_a_client_address_leads_to_one_target_and_a_target_that_goes_moves_only_its_own(
    start: Start, backend: Serve
) -> None:
    ports = [backend(saying(word)).port for word in (b"a", b"b", b"c")]
    veillink = start(rule("balance=source", *ports))

    def told() -> dict[str, bytes]:
        found = {}
        for client in [f"127.0.0.{n}" for n in range(2, 62)]:
            with socket.create_connection((HOST, veillink.port), 20, source_address=(client, 0)) as sock:
                found[client] = read_exactly(sock, 1)
        return found

    before = told()
    assert set(before.values()) == {b"a", b"b", b"c"}
    assert told() == before
    veillink.reload(rule("balance=source", *ports[:2]))
    without = told()
    assert {client for client in before if without[client] != before[client]} == {
        client for client, word in before.items() if word == b"c"
    }
    veillink.reload(rule("balance=source", *ports))
    assert told() == before


# --- a target that cannot be had -------------------------------------------------------------------------------------


def test_of_a_thousand_clients_none_notices_that_a_target_refuses_and_only_three_try_it(
    start: Start, backend: Serve
) -> None:
    dead = free_port()
    veillink = start(rule("fail_timeout=1h", dead, backend(saying(b"served")).port))
    assert Counter(answers(veillink, 1000)) == {b"served": 1000}
    assert Counter(tries(veillink, 1000)) == {f"{at(dead)} ECONNREFUSED": 3, None: 997}
    assert turns(veillink) == [("down", at(dead))]


def test_where_failures_do_not_count_a_dead_target_is_tried_in_its_turn_for_ever(start: Start, backend: Serve) -> None:
    dead = free_port()
    veillink = start(rule("max_fails=0", dead, backend(saying(b"served")).port))
    assert Counter(answers(veillink, 20)) == {b"served": 20}
    assert Counter(tries(veillink, 20)) == {f"{at(dead)} ECONNREFUSED": 10, None: 10}
    assert turns(veillink) == []


def test_a_silent_target_makes_one_client_wait_and_no_other(start: Start, backend: Serve) -> None:
    with full() as silent:
        dead = silent.getsockname()[1]
        veillink = start(rule("connect_timeout=2s,max_fails=1", dead, backend(echo).port))
        assert veillink.seconds_to_echo() > 0.95
        assert max(veillink.seconds_to_echo() for _ in range(20)) < 0.95
    assert len(veillink.access(21)) == 21
    (line,) = veillink.logged("^target down$")
    assert (line["target"], line["reason"]) == (at(dead), "ETIMEDOUT")


def test_without_retries_each_client_that_meets_the_dead_target_is_reset_until_it_is_out(
    start: Start, backend: Serve
) -> None:
    dead = free_port()
    veillink = start(rule("retries=0,fail_timeout=1h", dead, backend(saying(b"served")).port))
    assert answers(veillink, 10) == [None, b"served", None, b"served", None, *[b"served"] * 5]
    assert Counter(line["end"] for line in veillink.access(10)) == {"connect_refused": 3, "closed": 7}


def test_a_backup_serves_only_while_every_primary_is_out(start: Start, backend: Serve) -> None:
    dead = free_port()
    primary, spare = backend(saying(b"primary")), backend(saying(b"spare"))
    veillink = start(rule("max_fails=1,fail_timeout=300ms", dead, primary.port, f"{spare.port},backup=yes"))
    assert answers(veillink, 20) == [b"primary"] * 20
    assert spare.accepted == 0
    primary.close()
    assert answers(veillink, 20) == [b"spare"] * 20
    backend(saying(b"back"), port=primary.port)
    eventually(lambda: answer(veillink) == b"back", what="the primary served again")
    served = spare.accepted
    assert answers(veillink, 20) == [b"back"] * 20
    assert spare.accepted == served


def test_a_name_that_does_not_exist_costs_no_client_its_connection(
    network: Network, tmp_path: Path, start: Start, backend: Serve
) -> None:
    switch = tmp_path / "nsswitch.conf"
    switch.write_text("hosts: files\n")
    rows = f"{HOST}:{{port}},nosuch.invalid,80\n{HOST}:{{port}},{HOST},{backend(saying(b'served')).port}\n"
    veillink = start(rows, before=replacing({"/etc/nsswitch.conf": switch}))
    assert answers(veillink, 20) == [b"served"] * 20
    assert Counter(tries(veillink, 20)) == {"nosuch.invalid:80 name_not_found": 3, None: 17}
    assert turns(veillink) == [("down", "nosuch.invalid:80")]


# --- out, and back again ---------------------------------------------------------------------------------------------


def test_a_target_that_was_out_gets_one_trial_and_is_back_with_its_success(start: Start, backend: Serve) -> None:
    dead = free_port()
    veillink = start(rule("fail_timeout=2s,connect_timeout=30s", dead, backend(saying(b"other")).port))
    assert answers(veillink, 20) == [b"other"] * 20
    veillink.wait_for_line("target down")
    with full(dead) as revived, contextlib.ExitStack() as stack:
        clients: list[socket.socket] = []

        def knocked() -> int:
            clients.append(stack.enter_context(veillink.connect()))
            return knocking_at(dead)

        eventually(knocked, what="a trial")
        assert answers(veillink, 20) == [b"other"] * 20
        assert knocking_at(dead) == 1
        revived.accept()[0].close()
        trial = stack.enter_context(revived.accept()[0])
        veillink.wait_for_line("target up")
        trial.sendall(b"TRIAL")
        assert Counter(read_exactly(client, 5) for client in clients) == {b"other": len(clients) - 1, b"TRIAL": 1}
    assert turns(veillink) == [("down", at(dead)), ("up", at(dead))]


def test_a_target_that_stays_dead_is_tried_once_in_a_fail_timeout_and_reported_once(
    start: Start, backend: Serve
) -> None:
    dead = free_port()
    veillink = start(rule("max_fails=2,fail_timeout=400ms", dead, backend(saying(b"served")).port))

    def tried() -> list[float]:
        assert answer(veillink) == b"served"
        lines = [line for line in veillink.access(0) if line["tried"]]
        return [datetime.fromisoformat(line["time"]).timestamp() - line["duration_ms"] / 1000 for line in lines]

    times = eventually(lambda: (found := tried())[4:] and found, what="two failures and three trials")
    assert len(times) == 5
    assert min(after - before for before, after in itertools.pairwise(times[1:])) > 0.35
    assert turns(veillink) == [("down", at(dead))]


def test_a_target_that_clients_have_found_dead_stays_out_through_a_reload(start: Start, backend: Serve) -> None:
    dead, other = free_port(), backend(saying(b"served"))
    veillink = start(rule("max_fails=1,fail_timeout=1h", dead, other.port))
    assert answers(veillink, 2) == [b"served"] * 2
    veillink.reload(rule("max_fails=1,fail_timeout=1h,idle_timeout=1h", dead, other.port))
    assert answers(veillink, 10) == [b"served"] * 10
    assert tries(veillink, 12) == [f"{at(dead)} ECONNREFUSED", *[None] * 11]
    assert states(veillink, 2) == {at(dead): ("down", 0), at(other.port): ("up", 0)}
    assert turns(veillink) == [("down", at(dead))]


def test_a_target_that_was_out_is_in_when_a_reload_says_that_failures_do_not_count(
    start: Start, backend: Serve
) -> None:
    dead, b = free_port(), backend(saying(b"b"))
    veillink = start(rule("max_fails=1,fail_timeout=1h", dead, b.port))
    assert answers(veillink, 2) == [b"b"] * 2
    veillink.reload(rule("max_fails=0,fail_timeout=1h", dead, b.port))
    backend(saying(b"a"), port=dead)
    assert Counter(answers(veillink, 4)) == {b"a": 2, b"b": 2}


def test_a_lone_target_is_never_out(start: Start, backend: Serve) -> None:
    dead = free_port()
    veillink = start(rule("max_fails=1,fail_timeout=1h", dead))
    assert answers(veillink, 20) == [None] * 20
    assert tries(veillink, 20) == [f"{at(dead)} ECONNREFUSED"] * 20
    backend(saying(b"here"), port=dead)
    assert answers(veillink, 3) == [b"here"] * 3
    assert turns(veillink) == []


def test_a_client_that_comes_while_its_target_restarts_waits_for_it(start: Start, backend: Serve) -> None:
    port = free_port()
    veillink = start(rule("retry_interval=50ms,connect_timeout=0", port))
    with veillink.connect() as client:
        time.sleep(0.3)  # for some tries
        backend(saying(b"here again"), port=port)
        assert read_exactly(client, 10) == b"here again"
    (line,) = veillink.access()
    assert line["tried"] == f"{at(port)} ECONNREFUSED"


def test_when_all_are_out_all_are_tried_and_one_that_lives_again_serves_the_very_next_client(
    start: Start, backend: Serve
) -> None:
    dead, other = free_port(), free_port()
    veillink = start(rule("max_fails=1,fail_timeout=1h", dead, other))
    assert answers(veillink, 10) == [None] * 10
    both = {f"{at(dead)} ECONNREFUSED", f"{at(other)} ECONNREFUSED"}
    assert all(set((tried or "").split(", ")) == both for tried in tries(veillink, 10))
    backend(saying(b"here"), port=other)
    assert answers(veillink, 20) == [b"here"] * 20
    veillink.access(30)
    assert Counter(turns(veillink)) == {("down", at(dead)): 1, ("down", at(other)): 1, ("up", at(other)): 1}


def test_clients_that_fail_while_all_are_down_cost_little_and_nothing_afterwards(start: Start) -> None:
    veillink = start(rule("fail_timeout=200ms", free_port(), free_port()))
    before = veillink.cpu()
    assert answers(veillink, 200) == [None] * 200
    veillink.access(200)
    after = veillink.cpu()
    assert after - before < 200 * 0.003
    time.sleep(2)  # this long it has nothing to do
    assert veillink.cpu() - after < 0.1


# --- probes ----------------------------------------------------------------------------------------------------------


def test_probes_take_a_dead_target_out_and_back_with_one_line_each(start: Start, backend: Serve) -> None:
    a, b = backend(saying(b"a")), backend(saying(b"b"))
    veillink = start(rule("health=tcp,health_interval=200ms,health_fall=4,health_rise=3", a.port, b.port))
    begun = time.monotonic()
    a.close()
    eventually(lambda: turns(veillink) == [("down", at(a.port))], 1.5, "down")
    assert time.monotonic() - begun > 0.5, "down before the fourth probe"
    assert answers(veillink, 10) == [b"b"] * 10
    assert tries(veillink, 10) == [None] * 10
    begun = time.monotonic()
    revived = backend(saying(b"a"), port=a.port)
    eventually(lambda: turns(veillink) == [("down", at(a.port)), ("up", at(a.port))], 1.2, "up")
    assert time.monotonic() - begun > 0.3, "up before the third probe"
    assert Counter(answers(veillink, 10)) == {b"a": 5, b"b": 5}
    wait_for_probes(revived, 8)
    assert len(turns(veillink)) == 2
    assert len(veillink.access(20)) == 20, "probes are no clients"


def test_a_target_that_never_answers_its_probes_goes_down_by_their_timeout(start: Start, backend: Serve) -> None:
    with full() as silent:
        dead = silent.getsockname()[1]
        timing = "health_interval=100ms,health_timeout=200ms,health_fall=2"
        veillink = start(rule(f"health=tcp,{timing}", dead, backend(saying(b"served")).port))
        veillink.wait_for_line("target down", 1.5)
        assert answers(veillink, 4) == [b"served"] * 4
    (line,) = veillink.logged("^target down$")
    assert (line["target"], line["reason"]) == (at(dead), "ETIMEDOUT")


@pytest.mark.parametrize("on_down", ["keep", "reset"])
def test_connections_of_a_target_that_goes_down_are_kept_or_reset(on_down: str, start: Start, backend: Serve) -> None:
    with socket.create_server((HOST, 0)) as listening, contextlib.ExitStack() as stack:
        listening.settimeout(20)
        port = listening.getsockname()[1]
        options = f"health=tcp,health_interval=100ms,health_fall=2,on_down={on_down}"
        veillink = start(rule(options, port, backend(echo).port))
        client, neighbour = [stack.enter_context(veillink.connect()) for _ in range(2)]
        client.sendall(b"there")
        target = stack.enter_context(accept_client(listening))
        assert read_exactly(target, 5) == b"there"
        listening.close()
        veillink.wait_for_line("target down", 2)
        if on_down == "reset":
            assert read_to_reset(client) == b""
            (line,) = veillink.access()
            assert (line["end"], line["target"]) == ("target_reset", at(port))
            eventually(lambda: refuses(target), what="the target's side cut too")
        else:
            target.sendall(b"and back")
            target.shutdown(socket.SHUT_WR)
            assert read_to_eof(client) == b"and back"
            client.close()
            (line,) = veillink.access()
            assert line["end"] == "closed"
        neighbour.sendall(b"unharmed")
        assert read_exactly(neighbour, 8) == b"unharmed"


def test_only_connections_of_the_rule_that_says_so_are_reset_though_another_has_the_same_target(
    start: Start, backend: Serve
) -> None:
    with socket.create_server((HOST, 0)) as listening, contextlib.ExitStack() as stack:
        listening.settimeout(20)
        port, other = listening.getsockname()[1], free_port()
        spare = backend(echo).port
        options = "health=tcp,health_interval=100ms,health_fall=2,on_down=reset,name=web"
        veillink = start(rule(options, port, spare) + f"{HOST}:{other},{HOST},{port}\n")
        client = stack.enter_context(veillink.connect(other))
        client.sendall(b"x")
        target = stack.enter_context(accept_client(listening))
        listening.close()
        veillink.wait_for_line("target down", 2)
        target.sendall(b"still here")
        assert read_exactly(client, 10) == b"still here"


def test_connections_from_before_a_reload_that_renames_the_rule_are_reset_too(start: Start, backend: Serve) -> None:
    with socket.create_server((HOST, 0)) as listening, contextlib.ExitStack() as stack:
        listening.settimeout(20)
        port, spare = listening.getsockname()[1], backend(echo).port
        options = "health=tcp,health_interval=100ms,health_fall=2,on_down=reset"
        veillink = start(rule(options, port, spare))
        client = stack.enter_context(veillink.connect())
        client.sendall(b"x")
        stack.enter_context(accept_client(listening))
        veillink.reload(rule(f"{options},name=new", port, spare))
        listening.close()
        veillink.wait_for_line("target down", 2)
        assert read_to_reset(client) == b""


def test_a_target_that_is_down_stays_down_through_a_reload_without_a_second_line(start: Start, backend: Serve) -> None:
    dead, b = free_port(), backend(saying(b"b"))
    options = "health=tcp,health_interval=100ms"
    veillink = start(rule(options, dead, b.port))
    veillink.wait_for_line("target down")
    veillink.reload(rule(f"{options},idle_timeout=1h", dead, b.port))
    assert states(veillink, 2) == {at(dead): ("down", 0), at(b.port): ("up", 0)}
    assert answers(veillink, 10) == [b"b"] * 10
    assert tries(veillink, 10) == [None] * 10
    wait_for_probes(b, 6)
    assert turns(veillink) == [("down", at(dead))]
    backend(saying(b"a"), port=dead)
    eventually(lambda: turns(veillink) == [("down", at(dead)), ("up", at(dead))], what="up")
    assert Counter(answers(veillink, 4)) == {b"a": 2, b"b": 2}


def test_probes_stop_when_a_reload_switches_them_off(start: Start, backend: Serve) -> None:
    a, b, other = backend(echo), backend(echo), free_port()
    probed = "health=tcp,health_interval=100ms"
    clock = f"{HOST}:{other},{HOST},{b.port},{probed}\n"
    veillink = start(rule(probed, a.port) + clock)
    wait_for_probes(a, 3)
    veillink.reload(rule("", a.port) + clock)
    wait_for_probes(b, 2)  # one of the other's may have been under way
    counted = a.accepted
    wait_for_probes(b, 10)
    assert a.accepted == counted


def test_a_target_that_was_down_gets_clients_again_when_probes_are_switched_off(start: Start, backend: Serve) -> None:
    dead, b = free_port(), backend(saying(b"b"))
    veillink = start(rule("health=tcp,health_interval=100ms", dead, b.port))
    veillink.wait_for_line("target down")
    veillink.reload(rule("", dead, b.port))
    backend(saying(b"a"), port=dead)
    assert Counter(answers(veillink, 4)) == {b"a": 2, b"b": 2}


def test_a_target_that_clients_and_probes_find_dead_goes_down_once_and_comes_up_once(
    start: Start, backend: Serve
) -> None:
    dead, b = free_port(), backend(saying(b"b"))
    veillink = start(rule("health=tcp,health_interval=300ms,fail_timeout=1s", dead, b.port))
    assert answers(veillink, 10) == [b"b"] * 10
    wait_for_probes(b, 6)
    assert turns(veillink) == [("down", at(dead))]
    backend(saying(b"a"), port=dead)
    eventually(lambda: answer(veillink) and len(turns(veillink)) == 2, what="up")
    assert Counter(answers(veillink, 4)) == {b"a": 2, b"b": 2}
    wait_for_probes(b, 6)
    assert turns(veillink) == [("down", at(dead)), ("up", at(dead))]


# --- several at once -------------------------------------------------------------------------------------------------


def ping(sock: socket.socket) -> None:
    """Fail unless a Redis answers."""
    sock.sendall(b"PING\r\n")
    assert read_exactly(sock, 7) == b"+PONG\r\n"


def test_when_one_of_two_redis_servers_is_killed_under_traffic_whoever_connects_afterwards_is_served(
    tmp_path: Path, start: Start
) -> None:
    command = (program("redis-server", "redis-server"), "--save", "", "--dir", str(tmp_path), "--bind", HOST, "--port")
    first, second = free_port(), free_port()
    with serving(first, *command, str(first)) as doomed, serving(second, *command, str(second)):
        veillink = start(rule("fail_timeout=1h", first, second))
        served: list[float] = []
        failed: list[tuple[float, BaseException]] = []
        done = threading.Event()

        def reconnect() -> None:
            while not done.is_set():
                begun = time.monotonic()
                try:
                    with veillink.connect() as sock:
                        ping(sock)
                    served.append(begun)
                except (OSError, AssertionError) as error:
                    failed.append((begun, error))

        with veillink.connect() as held, veillink.connect() as other:
            ping(held)
            ping(other)
            threads = [threading.Thread(target=reconnect) for _ in range(4)]
            for thread in threads:
                thread.start()
            try:
                eventually(lambda: len(served) > 200, what="traffic")
                os.kill(doomed.pid, signal.SIGKILL)
                doomed.wait(10)
                killed = time.monotonic()
                eventually(lambda: served[-1] > killed and sum(t > killed for t in served) > 400, 10, "more traffic")
            finally:
                done.set()
                for thread in threads:
                    thread.join(30)
            assert [error for begun, error in failed if begun > killed] == []
            with pytest.raises((ConnectionError, AssertionError)):
                ping(held)
            ping(other)
    assert turns(veillink) == [("down", at(first))]
    lines = veillink.access(len(served) + len(failed))
    tried = sum(line["tried"] is not None for line in lines)
    cut = sum(line["end"] == "target_reset" and not line["bytes_out"] for line in lines)  # while they waited for PONG
    assert tried + cut >= 3
    assert tried <= 3 + len(threads)


def free_range(count: int) -> range:
    """Return so many free ports in a row."""
    while True:
        ports = [free_port() for _ in range(count)]
        if ports == list(range(ports[0], ports[0] + count)):
            return range(ports[0], ports[0] + count)


def test_each_port_of_a_range_has_its_own_pair_of_targets_and_fails_over_within_it(
    start: Start, backend: Serve
) -> None:
    listens, first, second = free_range(3), free_range(3), free_range(3)
    backends = {port: backend(saying(str(port).encode()), port=port) for port in (*first, *second)}
    cells = [f"{ports[0]}-{ports[-1]}" for ports in (listens, first, second)]
    listen, *targets = cells
    veillink = start("".join(f"{HOST}:{listen},{HOST},{target},name=range\n" for target in targets))
    pairs = {
        port: Counter({str(one).encode(): 2, str(other).encode(): 2})
        for port, one, other in zip(listens, first, second, strict=True)
    }
    assert {port: Counter(answers(veillink, 4, port)) for port in listens} == pairs
    backends[second[1]].close()
    told = {port: Counter(answers(veillink, 10, port)) for port in listens}
    assert told[listens[1]] == {str(first[1]).encode(): 10}
    assert all(told[port].keys() == pairs[port].keys() for port in (listens[0], listens[2]))
    assert Counter(tries(veillink, 12 + 30)) == {f"{at(second[1])} ECONNREFUSED": 3, None: 39}
    assert turns(veillink) == [("down", at(second[1]))]
