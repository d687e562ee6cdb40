"""When a file is read again."""

import os
from pathlib import Path

import pytest

from veillink.config.files import signature
from veillink.config.schedule import Schedule

WRITE, ASK = "write", "ask"


@pytest.mark.parametrize(
    ("watch", "steps", "read_at"),
    [
        (True, [], []),
        (True, [(1.0, WRITE)], [1.5]),
        (False, [(1.0, WRITE)], []),
        (True, [(1.0, WRITE), (1.4, WRITE), (1.8, WRITE)], [2.3]),
        (True, [(1.0, ASK)], [1.1]),
        (False, [(1.0, ASK)], [1.1]),
        (True, [(1.0, WRITE), (1.0, ASK)], [1.1]),
        (True, [(1.0, WRITE), (1.0, ASK), (2.0, ASK)], [1.1, 2.1]),
        (True, [(1.0, ASK), (1.05, WRITE), (1.14, WRITE)], [1.24]),
        (False, [(1 + n * 0.05, ASK) for n in range(40)], [2.0, 3.05]),
        (True, [(1.0, WRITE), (1.5, WRITE)], [2.0]),
        (True, [(1.0, WRITE), (1.6, WRITE)], [1.5, 2.1]),
    ],
)
def test_the_file_is_read_once_it_stands_still(
    watch: bool, steps: list[tuple[float, str]], read_at: list[float], tmp_path: Path
) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("")
    file = Schedule(signature(str(path)), watch=watch)
    due = []
    for tick in range(400):
        now = tick / 100
        for at, step in steps:
            if round(at * 100) == tick:
                if step == WRITE:
                    path.write_text(path.read_text() + "x")
                else:
                    file.refresh_soon(now)
        if file.due(signature(str(path)), now):
            due.append(now)
    assert due == pytest.approx(read_at, abs=0.011)


def test_how_often_it_is_looked_at_follows_from_what_is_awaited() -> None:
    assert Schedule(None, watch=False).next_look(0) is None
    file = Schedule(None, watch=True)
    assert file.next_look(0) == 0.25
    file.refresh_soon(0)
    assert file.next_look(0) == 0.025
    assert file.due(None, 1)
    assert file.next_look(1) == 0.25
    assert not file.due((1,), 10)  # it has changed
    looks = [file.next_look(now) for now in (10, 10.125, 10.4, 10.5)]
    assert looks == pytest.approx([0.125, 0.125, 0.1, 0.25])
    assert file.due((1,), 10.5)


@pytest.mark.parametrize("watch", [True, False])
def test_what_was_not_to_be_had_is_read_once_more_later(watch: bool) -> None:
    file = Schedule(None, watch=watch)
    file.retry_later(10)
    assert [now for now in range(10, 30) if file.due(None, now)] == [15]


def test_what_may_be_half_of_a_change_is_read_once_more_or_when_the_other_half_comes() -> None:
    def due_at(schedule: Schedule, seen: dict[float, int]) -> list[float]:
        return [now / 4 for now in range(40, 80) if schedule.due(seen.get(now / 4, max(seen.values())), now / 4)]

    alone = Schedule(1, watch=True)
    alone.confirm(10)
    assert due_at(alone, {10.0: 1}) == [11]
    followed = Schedule(1, watch=True)
    followed.confirm(10)
    assert due_at(followed, {10.0: 1, 10.25: 1, 10.5: 2}) == [11]  # half a second after the change, and never again


def test_another_file_at_its_path_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("same")
        os.utime(tmp_path / name, (1, 1))
    path = tmp_path / "rules.csv"
    path.symlink_to("one")
    file = Schedule(signature(str(path)), watch=True)

    def due(now: float) -> bool:
        return file.due(signature(str(path)), now)

    assert not due(10)
    path.unlink()
    path.symlink_to("two")
    assert not due(20)
    assert due(20.5)
    path.unlink()
    assert not due(30)
    assert due(30.5)
    assert not due(40)
