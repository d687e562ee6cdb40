"""Tests of probes: what they find out of a target, and that no rule's hold up another's."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from tests.sockets import Journal, Sockets, address_of, eventually, no_descriptor_left, no_port_left
from tests.system.harness import HOST, read_to_eof, reset
from tests.system.namespace import Network
from veillink.model import Address, Health, Rule, RuleOptions, Target
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.tls import TlsRoom
from veillink.net.turns import Turns
from veillink.net.unix_queue import UnixQueues
from veillink.proxy.health import Probes
from veillink.proxy.pool import Member, Pool
from veillink.proxy.upstream import Upstream

# --- places ----------------------------------------------------------------------------------------------------------


class Crowd:
    """Greenlets that want a place, and who has got one, in order."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.entered: list[str] = []
        self.leave = Event()

    def join(self, rule: str) -> "gevent.Greenlet[[str], None]":
        greenlet = gevent.spawn(self._hold, rule)
        gevent.sleep(0)
        return greenlet

    def _hold(self, rule: str) -> None:
        with self.turns.place(rule):
            self.entered.append(rule)
            self.leave.wait()


@pytest.fixture
def crowd(request: pytest.FixtureRequest, hub: None) -> Iterator[Crowd]:
    """A crowd for so many places; when all have left, all places are free and nothing is kept."""
    crowd = Crowd(Turns(request.param))
    yield crowd
    crowd.leave.set()
    eventually(lambda: crowd.turns._places._free == request.param)
    assert not crowd.turns._places._held
    assert not crowd.turns._waiting


@pytest.mark.parametrize("crowd", [64], indirect=True)
def test_a_rule_alone_gets_half_of_the_places_and_each_further_one_finds_some(crowd: Crowd) -> None:
    for rule, gets in (("a", 32), ("b", 16), ("c", 8), ("d", 4)):
        for _ in range(100):
            crowd.join(rule)
        assert crowd.entered.count(rule) == gets


@pytest.mark.parametrize("crowd", [1], indirect=True)
def test_rules_that_wait_take_turns(crowd: Crowd) -> None:
    for rule in "aaaabbc":
        crowd.join(rule)
    crowd.leave.set()
    eventually(lambda: "".join(crowd.entered) == "aabcaba" or crowd.entered[6:])
    assert "".join(crowd.entered) == "aabcaba"


@pytest.mark.parametrize("crowd", [1], indirect=True)
def test_who_gives_up_while_waiting_takes_no_place(crowd: Crowd) -> None:
    with crowd.turns.place("first"):
        one, other = crowd.join("a"), crowd.join("a")
        crowd.join("b")
        one.kill()
        other.kill(block=False)
    assert crowd.turns._places._held["a"] == 1, "it was given the place before it knew that it has to go"
    eventually(lambda: crowd.entered)
    assert crowd.entered == ["b"]


# --- what is found out -----------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What probes have told, and how many there were."""

    turned: list[str] = field(default_factory=list)
    lost: int = 0
    probes: int = -1  # the first number is drawn for the start

    def draw(self) -> float:
        self.probes += 1
        return 0.0


Probe = Callable[..., Found]


@pytest.fixture
def probe(journal: Journal) -> Iterator[Probe]:
    """Probe targets every 90 ms; the first probe decides."""
    book = Resolver(journal.log, 8)
    running: list[Probes] = []

    def _probe(*addresses: Address, down: bool = False, turns: Turns | None = None) -> Found:
        options = RuleOptions(health=Health.TCP, health_interval=0.1, health_timeout=60, health_rise=1, health_fall=1)
        found = Found()

        def lost(member: Member) -> None:
            found.lost += 1

        pool = Pool(Rule("web", Address("", 80), 1, tuple(map(Target, addresses)), options), found.draw)
        for member in pool.members.values():
            member.down = down
        upstream = Upstream(
            pool, book, UnixQueues(), Places(16), lambda member, reason: found.turned.append(reason), lost
        )
        running.append(Probes(upstream, options, turns or Turns(4), TlsRoom(), found.draw))
        return found

    yield _probe
    for probes in running:
        probes.stop()
    gevent.sleep(0)
    book._threads.kill()


@pytest.fixture(params=["tcp", "unix"])
def target(request: pytest.FixtureRequest, sockets: Sockets, tmp_path: Path) -> tuple[socket.socket, Address]:
    """A listening socket of either kind, and its address."""
    if request.param == "tcp":
        listener = sockets.listener()
        return listener, address_of(listener)
    listener = sockets.keep(socket.socket(socket.AF_UNIX))
    path = str(tmp_path / "target")
    listener.bind(path)
    listener.listen(16)
    return listener, Address(f"unix:{path}", 0)


def test_a_target_that_stays_silent_is_good(target: tuple[socket.socket, Address], probe: Probe) -> None:
    found = probe(target[1], down=True)
    began = time.monotonic()
    eventually(lambda: found.turned == [""])
    assert time.monotonic() - began > 0.045, "it did not stay"


def test_a_target_that_speaks_is_good_at_once_and_takes_no_reset_for_it(
    target: tuple[socket.socket, Address], probe: Probe
) -> None:
    found = probe(target[1], down=True)
    with target[0].accept()[0] as sock:
        sock.sendall(b"220 mail.example\r\n")
        assert read_to_eof(sock) == b""
    eventually(lambda: found.turned == [""])


def test_a_target_that_accepts_and_closes_is_bad(target: tuple[socket.socket, Address], probe: Probe) -> None:
    found = probe(target[1])
    target[0].accept()[0].close()
    eventually(lambda: found.turned)
    assert (found.turned, found.lost) == (["closed at once"], 1)


def test_a_target_that_accepts_and_resets_is_bad(sockets: Sockets, probe: Probe) -> None:
    listener = sockets.listener()
    found = probe(address_of(listener))
    reset(listener.accept()[0])
    eventually(lambda: found.turned)
    assert (found.turned, found.lost) == (["ECONNRESET"], 1)


def test_what_this_host_lacks_takes_no_target_out(target: tuple[socket.socket, Address], probe: Probe) -> None:
    found = probe(target[1])
    with no_descriptor_left():
        eventually(lambda: found.probes > 2)
    assert (found.turned, found.lost) == ([], 0)


def test_a_lack_of_free_ports_takes_no_target_out(probe: Probe) -> None:
    with Network() as network, network.inside(), socket.create_server((HOST, 0)) as listener:
        with no_port_left(listener):
            found = probe(address_of(listener))
            eventually(lambda: found.probes > 2)
        assert (found.turned, found.lost) == ([], 0)


def test_silent_targets_of_one_rule_do_not_hold_up_the_probes_of_another(sockets: Sockets, probe: Probe) -> None:
    port = sockets.silent("0.0.0.0").port
    turns = Turns(4)
    silent = probe(*(Address(f"127.0.0.{n}", port) for n in range(1, 21)), turns=turns)
    eventually(lambda: turns._waiting)
    good = probe(address_of(sockets.listener()), turns=turns)
    eventually(lambda: good.probes > 3)
    assert silent.turned == []


@pytest.mark.parametrize("begun", [False, True])
def test_of_probes_that_were_stopped_nothing_is_left_to_the_collector(journal: Journal, *, begun: bool) -> None:
    """It would hold everybody up at a reload of thousands of rules."""
    rule = Rule("web", Address("", 80), 1, (Target(Address(HOST, 9)),), RuleOptions(health=Health.TCP))
    upstream = Upstream(
        Pool(rule, lambda: 0.0), Resolver(journal.log, 1), UnixQueues(), Places(1), lambda *_: None, lambda _: None
    )
    probes = Probes(upstream, rule.options, Turns(1), TlsRoom(), lambda: 1.0)
    gone = weakref.ref(probes)
    if begun:
        gevent.sleep(0)
    gc.collect()
    gc.disable()
    try:
        probes.stop()
        del probes
        gevent.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()
