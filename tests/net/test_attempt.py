"""One connect."""

import errno

import gevent
import pytest

from tests.sockets import Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, free_port
from veillink.model import Address, End
from veillink.net.attempt import Attempt, ended


@pytest.mark.parametrize(
    ("number", "end"),
    [
        (errno.ECONNREFUSED, End.CONNECT_REFUSED),
        (errno.ETIMEDOUT, End.CONNECT_TIMEOUT),
        (errno.EAGAIN, End.CONNECT_TIMEOUT),
        (errno.ENETUNREACH, End.CONNECT_FAILED),
    ],
)
def test_an_error_is_an_end(number: int, end: End) -> None:
    found = ended(OSError(number, "injected"))
    assert (found.end, found.detail) == (end, errno.errorcode[number])


def test_on_this_host_it_has_connected_at_once(sockets: Sockets) -> None:
    attempt = Attempt(address_of(sockets.listener()), 0.0)
    assert attempt.begin()
    attempt.stream().close()


def test_a_refusal_is_its_error(hub: None) -> None:
    attempt = Attempt(Address(HOST, free_port()), 0.0)
    assert not attempt.begin()
    assert attempt.error is not None or not attempt.look()
    attempt.abandon()


def test_who_watches_is_called_back_once_it_is_decided(sockets: Sockets) -> None:
    silent = Attempt(sockets.silent(), 0.0)
    told: list[object] = []
    assert not silent.begin()
    silent.watch(told.append)
    gevent.sleep(0.05)
    assert told == []
    silent.unwatch()
    before = open_files()
    silent.abandon()
    assert open_files() == before - 1
    eventually(lambda: True)
