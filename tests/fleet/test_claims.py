"""Tests of who may listen where another process listens: siblings, and nobody else."""

import os
import socket
from collections.abc import Callable

from tests.forked import Forked, forked
from tests.system.harness import HOST, free_port, listens
from veillink.fleet.claims import Claims, place_of
from veillink.model import Address, RuleOptions
from veillink.net import listening as listening_module


def claims() -> Claims:
    made = Claims.of({})
    assert made is not None
    return made


def listening(at: Claims, address: Address) -> Callable[[], object]:
    """Return what begins to listen there, and goes on."""
    kept: list[socket.socket] = []

    def listen() -> str:
        kept.append(at.listen(address, RuleOptions(), ahead=True))
        return "listens"

    return listen


def test_siblings_share_an_address_and_another_fleet_is_kept_away() -> None:
    ours, theirs = claims(), claims()
    places = [Address(HOST, free_port()), Address("", free_port())]
    if listening_module._HAS_FREEBIND:
        places.append(Address("192.0.2.1", free_port()))  # which this host may have later
    for address in places:
        listen, intrude = listening(ours, address), listening(theirs, address)
        with forked(intrude, intrude) as stranger:
            with forked(listen) as first, forked(listen) as second:
                assert (first.does(), second.does()) == ("listens", "listens")
                assert "another VeilLink" in stranger.does()
            assert stranger.does() == "listens"
            with forked(listen) as late:
                assert "another VeilLink" in late.does()


def test_who_is_the_last_to_close_an_address_leaves_it_to_others() -> None:
    ours, address = claims(), Address(HOST, free_port())
    sock = ours.listen(address, RuleOptions())
    assert not sock.getblocking()
    with forked(listening(ours, address)) as sibling, forked(listening(claims(), address)) as stranger:
        assert sibling.does() == "listens"
        sock.close()
        sock.close()
        assert listens(address.port)
        assert "another VeilLink" in stranger.does()
    with forked(listening(claims(), address)) as stranger:
        assert stranger.does() == "listens"


def test_what_cannot_be_had_is_not_claimed() -> None:
    ours = claims()
    port = free_port()
    again = listening(ours, Address(HOST, port))
    with forked(again, again) as worker, forked(listening(claims(), Address(HOST, port))) as stranger:
        with socket.create_server((HOST, port)):
            assert worker.does() == "Address already in use"
        assert stranger.does() == "listens"
        assert "another VeilLink" in worker.does()


def test_who_comes_while_a_sibling_looks_waits_for_it_but_not_for_ever() -> None:
    ours, address = claims(), Address(HOST, free_port())
    listen = listening(ours, address)
    with forked(listen, listen) as late:
        with forked(lambda: ours.begin_to_look(place_of(address))) as looking:
            looking.does()
            assert late.does() == "Device or resource busy"
        assert late.does() == "listens"


def test_many_workers_that_come_at_once_all_get_the_address() -> None:
    """All but one of them find that another one just looks whether it is free."""
    ours, addresses = claims(), [Address(HOST, free_port()) for _ in range(40)]

    def listen_at_all() -> int:
        kept = [ours.listen(address, RuleOptions()) for address in addresses]
        return len(kept)

    workers = [Forked(listen_at_all) for _ in range(6)]
    try:
        for worker in workers:
            worker.begin()
        assert [worker.end() for worker in workers] == ["40"] * 6
    finally:
        for worker in workers:
            worker.kill()


def test_a_program_that_takes_over_knows_where_the_workers_before_it_listen() -> None:
    ours, address = claims(), Address(HOST, free_port())
    variables = dict(ours.hand_over())
    assert os.get_inheritable(int(*variables.values()))
    environ = {"GUNICORN_PID": "1"} | variables
    same = Claims.of(environ)
    assert same is not None
    assert environ == {"GUNICORN_PID": "1"}
    assert not os.get_inheritable(int(*variables.values()))
    with forked(listening(ours, address)) as before, forked(listening(same, address)) as after:
        assert (before.does(), after.does()) == ("listens", "listens")
    assert Claims.of({"GUNICORN_PID": "1"}) is None
    assert Claims.of({"GUNICORN_PID": "1", "_VEILLINK_CLAIMS": "99999"}) is None
