"""Tests of when a reload of all workers is done."""

import pytest

from veillink.fleet.reload import LONGEST, FleetReload


@pytest.mark.parametrize(
    ("before", "looks"),
    [
        ({1: 1, 2: 1}, [(0.0, {1: 1, 2: 1}, False), (1.0, {1: 2, 2: 1}, False), (2.0, {1: 2, 2: 2}, True)]),
        ({1: 4, 2: 1}, [(1.0, {1: 5, 2: 2}, True)]),
        ({1: 1, 2: 1}, [(1.0, {1: 2}, True)]),  # the second one has ended, or drains
        ({1: 1, 2: 1}, [(1.0, {1: 2, 3: 1}, True)]),  # and the third one, in its place, has read the file as it is
        ({1: 1, 2: 1}, [(LONGEST, {1: 2, 2: 1}, False), (LONGEST + 0.1, {1: 2, 2: 1}, True)]),
    ],
    ids=["one after the other", "at once", "one ends", "one is replaced", "one never answers"],
)
def test_it_is_done_once_everybody_who_goes_on_has_read_the_file_again(
    before: dict[int, int], looks: list[tuple[float, dict[int, int], bool]]
) -> None:
    reload = FleetReload()
    reload.begin(before, 100.0)
    for now, reads, done in looks:
        assert reload.is_under_way
        assert reload.ends(reads, 100.0 + now) is done
    assert not reload.is_under_way


def test_without_anybody_to_wait_for_it_is_never_under_way() -> None:
    reload = FleetReload()
    assert not reload.is_under_way
    reload.begin({}, 100.0)
    assert not reload.is_under_way


def test_a_second_one_waits_for_the_second_reading() -> None:
    reload = FleetReload()
    reload.begin({1: 1}, 100.0)
    reload.begin({1: 2}, 101.0)
    assert not reload.ends({1: 2}, 102.0)
    assert reload.ends({1: 3}, 103.0)
