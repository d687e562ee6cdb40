"""Tests of the pipes that are lent to bulk streams."""

import errno
import fcntl
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sockets import open_files
from veillink.net.pipes import PIPE_SIZE, Pipe, Pipes


def test_a_pipe_waits_for_nobody_and_is_inherited_by_nobody() -> None:
    pipe = Pipe()
    ends = (pipe.entry, pipe.exit)
    assert [os.get_blocking(end) for end in ends] == [False, False]
    assert [os.get_inheritable(end) for end in ends] == [False, False]
    os.write(pipe.entry, b"through")
    assert os.read(pipe.exit, 100) == b"through"
    pipe.close()


def test_a_pipe_holds_much_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe()
    assert fcntl.fcntl(pipe.entry, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    pipe.close()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "the user has too many pages in pipes")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    Pipe().close()


def test_no_more_pipes_are_lent_than_there_may_be() -> None:
    before = open_files()
    pipes = Pipes(2)
    lent = [pipes.take() for _ in range(4)]
    assert [pipe is None for pipe in lent] == [False, False, True, True]
    assert open_files() == before + 4
    for pipe in lent:
        if pipe:
            pipes.give(pipe)
    assert pipes.take() in lent
    for pipe in lent:
        if pipe:
            pipe.close()


def test_a_pipe_that_comes_back_with_bytes_in_it_is_not_lent_again() -> None:
    before = open_files()
    pipes = Pipes(1)
    pipe = pipes.take()
    assert pipe
    pipe.held = os.write(pipe.entry, b"another stream's")
    pipes.give(pipe)
    assert open_files() == before
    fresh = pipes.take()
    assert fresh
    with pytest.raises(BlockingIOError):
        os.read(fresh.exit, 1)
    fresh.close()


def test_without_a_descriptor_there_is_no_pipe_and_later_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> None:
        raise OSError(errno.EMFILE, "injected")

    pipes = Pipes(1)
    with monkeypatch.context() as without:
        without.setattr(os, "pipe2", refuse)
        assert pipes.take() is None
    pipe = pipes.take()
    assert pipe
    pipe.close()


def test_where_the_system_has_no_splice_there_are_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "splice")
    assert Pipes(32).take() is None


REFUSALS = [errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP]


def refusing(number: int) -> Callable[..., int]:
    def splice(*_: object, **__: object) -> int:
        raise OSError(number, "injected")

    return splice


@pytest.mark.parametrize("number", REFUSALS)
def test_where_splice_is_refused_there_are_no_pipes(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr(os, "splice", refusing(number))
    assert Pipes(32).take() is None
    assert open_files() == before


@pytest.mark.parametrize("number", REFUSALS)
def test_once_splice_is_refused_no_pipe_is_lent_any_more(number: int) -> None:
    before = open_files()
    pipes = Pipes(2)
    pipe = pipes.take()
    assert pipe
    assert not pipes.refused(ConnectionResetError(errno.ECONNRESET, "no word about splice"))
    assert pipes.refused(OSError(number, "injected"))
    pipes.give(pipe)
    assert pipes.take() is None
    pipes.on_tick(0)
    assert not pipes.on_tick(0)
    assert open_files() == before


def test_a_process_without_a_free_descriptor_at_its_start_may_use_splice_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> None:
        raise OSError(errno.EMFILE, "injected")

    with monkeypatch.context() as without:
        without.setattr(os, "pipe2", refuse)
        pipes = Pipes(1)
    pipe = pipes.take()
    assert pipe
    pipe.close()


def test_pipes_that_nobody_wants_any_more_are_closed() -> None:
    before = open_files()
    pipes = Pipes(2)
    lent = [pipes.take(), pipes.take()]
    for pipe in lent:
        if pipe:
            pipes.give(pipe)
    assert pipes.on_tick(0)  # they were wanted since the last look
    assert open_files() == before + 4
    assert not pipes.on_tick(0)
    assert open_files() == before


def test_a_pipe_that_is_lent_for_long_is_not_closed() -> None:
    pipes = Pipes(1)
    pipe = pipes.take()
    assert pipe
    for _ in range(3):
        assert pipes.on_tick(0)
    os.write(pipe.entry, b"still open")
    pipe.held = 10
    pipes.give(pipe)
    assert not pipes.on_tick(0)


@given(st.lists(st.sampled_from(["take", "give empty", "give full", "look"]), max_size=30))
def test_whatever_happens_the_limit_holds_and_nothing_stays_open(actions: list[str]) -> None:
    before = open_files()
    pipes = Pipes(2)
    lent: list[Pipe] = []
    for action in actions:
        if action == "take":
            pipe = pipes.take()
            assert (pipe is None) is (len(lent) == 2)
            lent += [pipe] if pipe else []
        elif action == "look":
            pipes.on_tick(0)
        elif lent:
            lent[0].held = int(action == "give full")
            pipes.give(lent.pop(0))
        assert open_files() <= before + 4
    for pipe in lent:
        pipes.give(pipe)
    pipes.on_tick(0)
    assert not pipes.on_tick(0)
    assert open_files() == before
