"""Accepting: errors, the limit, and whose turn it is."""

import errno
import os
import socket as stdlib
import time
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import socket

from tests.proxy.front import is_reset
from tests.server.running import Start, Talk, row, rules, talk_to
from tests.sockets import Journal, Sockets, address_of, eventually
from tests.system.harness import HOST, free_port, read_exactly
from veillink.model import Address, RuleSet
from veillink.server.listener import Listener
from veillink.server.server import Server


class FaultySocket(stdlib.socket):
    """A listening socket whose next accepts fail with these errors; ``clients_leave`` takes a client with each."""

    errors: list[int]
    clients_leave = False

    def _accept(self) -> Any:
        if self.errors:
            if self.clients_leave:
                os.close(super()._accept()[0])  # type: ignore[misc]
            raise OSError(self.errors.pop(0), "injected")
        return super()._accept()  # type: ignore[misc]


def make_faulty(running: Server, *errors: int) -> FaultySocket:
    listener = next(iter(running.listeners.values()))
    listening: Any = listener.socket
    faulty = FaultySocket(fileno=listening.detach())
    faulty.errors = list(errors)
    listener.socket = faulty
    return faulty


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_a_failed_accept_costs_a_pause_and_one_line(
    number: int, sockets: Sockets, start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    make_faulty(start(row(port, backend)), number, number)
    started = time.monotonic()
    assert talk_to(sockets, port, backend).works()
    assert time.monotonic() - started >= 2 * 0.1
    line, rest = [line for line in journal.finish() if "cannot accept" in line.get("message", "")]
    assert (line["listen"], line["reason"]) == (f"{HOST}:{port}", errno.errorcode[number])
    assert rest["message"] == "cannot accept: 1 suppressed"


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EINTR, errno.EPROTO])
def test_a_client_that_gave_up_before_accept_costs_nothing(
    number: int, sockets: Sockets, start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    make_faulty(start(row(port, backend)), *[number] * 20)
    started = time.monotonic()
    assert talk_to(sockets, port, backend).works()
    assert time.monotonic() - started < 0.1 * 20
    assert not [line for line in journal.finish() if "cannot accept" in line.get("message", "")]


def test_a_client_that_gave_up_leaves_the_place_to_another_listener(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), max_connections=1)
    faulty = make_faulty(running, errno.ECONNABORTED)
    faulty.clients_leave = True
    first, faulty.errors = faulty.errors, []
    running.apply(rules(row(port, backend), row(other_port, backend)))
    talk = talk_to(sockets, port, backend)
    faulty.errors = first
    sockets.client(Address(HOST, port))
    eventually(lambda: len(running.limiter._waiting) == 1)
    waiting = sockets.client(Address(HOST, other_port))
    eventually(lambda: len(running.limiter._waiting) == 2)
    talk.close()
    assert Talk(waiting, sockets.accept(backend)).works()


def test_a_client_that_gave_up_does_not_cost_those_behind_it_their_turn_when_the_rule_is_removed(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    make_faulty(running, errno.ECONNABORTED)
    with stdlib.create_connection((HOST, port)) as early:  # blocks the loop: nobody accepts meanwhile
        running.apply(RuleSet())
        target = sockets.accept(backend)
        early.sendall(b"still served")
        assert read_exactly(target, 12) == b"still served"


def test_a_rule_may_be_removed_while_its_listener_pauses(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    faulty = make_faulty(running, errno.EMFILE)
    early = sockets.client(Address(HOST, port))
    eventually(lambda: not faulty.errors)
    running.apply(RuleSet())
    assert running.listeners == {}
    assert faulty.fileno() < 0
    target = sockets.accept(backend)
    early.sendall(b"still served")
    assert read_exactly(target, 12) == b"still served"


def test_who_waits_for_a_rate_is_let_in_when_it_is_taken_away(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend, "connection_rate=1/h"))
    talk_to(sockets, port, backend)
    waiting = sockets.client(Address(HOST, port))
    listener = next(iter(running.listeners.values()))
    eventually(lambda: listener._timer is not None)
    running.apply(rules(row(port, backend)))
    began = time.monotonic()
    assert Talk(waiting, sockets.accept(backend)).works()
    assert time.monotonic() - began < 2


def test_a_place_that_a_rule_may_not_use_for_its_rate_goes_to_who_waits_behind_it(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend, "connection_rate=1/h"), row(other_port, backend), max_connections=1)
    talk = talk_to(sockets, port, backend)
    sockets.client(Address(HOST, port))
    eventually(lambda: len(running.limiter._waiting) == 1)
    waiting = sockets.client(Address(HOST, other_port))
    eventually(lambda: len(running.limiter._waiting) == 2)
    talk.close()
    with gevent.Timeout(2):
        assert Talk(waiting, sockets.accept(backend)).works()


def test_a_rule_whose_clients_wait_for_its_rate_is_removed_at_once(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend, "connection_rate=1/h"))
    talk_to(sockets, port, backend)
    waiting = sockets.client(Address(HOST, port))
    listener = next(iter(running.listeners.values()))
    looks = 0

    def has_client() -> bool:
        nonlocal looks
        looks += 1
        return Listener.has_client(listener)

    listener.has_client = has_client  # type: ignore[method-assign]
    running.apply(RuleSet())
    assert is_reset(waiting)
    assert looks < 2  # a thousand, each with a timer


def test_at_the_limit_clients_wait_and_are_served_when_others_leave(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), max_connections=2)
    talks = [talk_to(sockets, port, backend) for _ in range(2)]
    waiting = [sockets.client(Address(HOST, port)) for _ in range(3)]
    eventually(lambda: running.limiter._waiting)
    assert all(talk.works() for talk in talks)
    for client in waiting:
        talks.pop(0).close()
        talks.append(Talk(client, sockets.accept(backend)))
        assert talks[-1].works()
        assert running.limiter.in_use == 2


def test_a_place_goes_to_a_client_of_another_listener_too(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), row(other_port, backend), max_connections=1)
    first = talk_to(sockets, port, backend)  # its listener asks for the next place, but nobody comes to it
    eventually(lambda: len(running.limiter._waiting) == 1)
    waiting = sockets.client(Address(HOST, other_port))
    eventually(lambda: len(running.limiter._waiting) == 2)
    first.close()
    waiting.sendall(b"at last")
    with gevent.Timeout(1):
        assert read_exactly(sockets.accept(backend), 7) == b"at last"


def test_the_place_goes_to_the_listener_that_has_waited_longest(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    ports = [port, *(free_port() for _ in range(4))]
    running = start(*(row(each, backend) for each in ports), max_connections=1)
    talks = [talk_to(sockets, port, backend)]
    waiting = []
    for number, each in enumerate(ports[1:], 2):
        waiting.append(sockets.client(Address(HOST, each)))
        eventually(lambda number=number: len(running.limiter._waiting) == number)  # type: ignore[misc]
    for client in waiting:
        talks.pop().close()
        talks.append(Talk(client, sockets.accept(backend)))
        assert talks[-1].works()


def test_a_listener_that_waits_for_a_place_may_be_removed(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), row(other_port, backend), max_connections=1)
    first = talk_to(sockets, port, backend)
    eventually(lambda: running.limiter._waiting)
    running.apply(rules(row(other_port, backend)))
    waiting = sockets.client(Address(HOST, other_port))
    first.close()
    waiting.sendall(b"at last")
    assert read_exactly(sockets.accept(backend), 7) == b"at last"


def test_a_raised_limit_lets_those_in_who_wait(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), max_connections=1)
    first = talk_to(sockets, port, backend)
    waiting = [sockets.client(Address(HOST, port)) for _ in range(3)]
    eventually(lambda: running.limiter._waiting)
    running._max_connections = 0
    running.apply(running.rules)
    for _ in waiting:
        sockets.accept(backend)
    assert first.works()


def ports_in_a_row(number: int) -> list[int]:
    ports = [free_port()]
    while len(ports) < number:
        ports.append(free_port())
        if ports[-1] != ports[-2] + 1:
            del ports[:-1]
    return ports


def test_a_limit_that_is_raised_by_many_lets_the_clients_of_many_listeners_in(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    ports = ports_in_a_row(8)
    wide = f"{HOST}:{ports[0]}-{ports[-1]},{HOST},{address_of(backend).port}"
    running = start(row(port, backend), wide, max_connections=1)
    talk = talk_to(sockets, port, backend)
    waiting = [sockets.client(Address(HOST, each)) for each in ports]
    eventually(lambda: len(running.limiter._waiting) >= len(waiting))
    running._max_connections = 0
    running.apply(running.rules)  # wakes a listener for each rule; the others have to be woken by those
    for _ in waiting:
        sockets.accept(backend)
    assert talk.works()


def test_a_place_that_a_rule_has_no_use_for_any_more_goes_to_who_waits_behind_it(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    first, second = ports_in_a_row(2)
    narrow = f"{HOST}:{first}-{second},{HOST},{address_of(backend).port},max_connections=1"
    running = start(row(port, backend), narrow, row(other_port, backend), max_connections=2)
    talks = [talk_to(sockets, port, backend) for _ in range(2)]
    waiting = []
    for number, each in enumerate((first, second, other_port), 1):
        waiting.append(sockets.client(Address(HOST, each)))
        eventually(lambda number=number: len(running.limiter._waiting) >= number)  # type: ignore[misc]
    talks[0].close()
    assert Talk(waiting[0], sockets.accept(backend)).works()
    talks[1].close()  # the place is offered to the second port, whose rule is full by now
    with gevent.Timeout(5):
        assert Talk(waiting[2], sockets.accept(backend)).works()


def test_clients_of_several_rules_who_come_one_after_the_other_are_served_in_that_order(
    start: Start, backend: socket.socket
) -> None:
    """As a client's control port and then its data port: the target hears of them in the same order."""
    ports = [free_port() for _ in range(4)]
    start(*(row(each, backend) for each in ports))
    for _ in range(5):
        with ExitStack() as stack:
            for number, each in enumerate(ports):  # blocks the loop: it finds all of them at once
                client = stack.enter_context(stdlib.create_connection((HOST, each)))
                client.sendall(bytes([number]))
            targets = [stack.enter_context(backend.accept()[0]) for _ in ports]
            assert [read_exactly(target, 1)[0] for target in targets] == [0, 1, 2, 3]
