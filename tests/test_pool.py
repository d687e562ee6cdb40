"""Tests of choosing a target."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink.model import Address, Target
from veillink.pool import Pool


def targets(*weights: int, backup: bool = False) -> list[Target]:
    return [Target(Address(f"10.0.{int(backup)}.{n}", 80), weight, backup) for n, weight in enumerate(weights)]


@st.composite
def some_targets(draw: st.DrawFn) -> list[Target]:
    weights = st.lists(st.integers(0, 10), max_size=4)
    return draw(st.permutations(targets(*draw(weights)) + targets(*draw(weights), backup=True)))


@pytest.mark.parametrize(
    ("weights", "connections", "shares"),
    [
        ((1,), 7, [7]),
        ((1, 1), 1000, [500, 500]),
        ((3, 1), 400, [300, 100]),
        ((3, 1), 4, [3, 1]),
        ((5, 0, 1), 600, [500, 0, 100]),
        ((1000, 1), 1001, [1000, 1]),
    ],
)
def test_connections_are_split_exactly_by_weight(weights: tuple[int, ...], connections: int, shares: list[int]) -> None:
    pool, candidates = Pool(targets(*weights)), targets(*weights)
    chosen = Counter(pool.choose() for _ in range(connections))
    assert [chosen[target] for target in candidates] == shares


@given(st.lists(st.integers(1, 10), min_size=1, max_size=5), st.integers(1, 5))
def test_any_whole_number_of_rounds_is_split_exactly(weights: list[int], rounds: int) -> None:
    pool, candidates = Pool(targets(*weights)), targets(*weights)
    chosen = Counter(pool.choose() for _ in range(rounds * sum(weights)))
    assert [chosen[target] for target in candidates] == [rounds * weight for weight in weights]


def test_a_heavy_target_does_not_get_all_its_connections_in_a_row() -> None:
    pool, (a, b) = Pool(targets(3, 1)), targets(3, 1)
    assert [pool.choose() for _ in range(8)] == [a, a, b, a] * 2


@given(some_targets(), st.data())
def test_who_is_chosen_may_be_chosen(candidates: list[Target], data: st.DataObject) -> None:
    pool = Pool(candidates)
    for _ in range(10):
        tried = data.draw(st.sets(st.sampled_from(candidates))) if candidates else set()
        usable = [target for target in candidates if target.weight and target not in tried]
        primary = [target for target in usable if not target.backup]
        chosen = pool.choose(tried)
        assert pool.untried(tried) == len(usable)
        assert chosen in (primary or usable) if usable else chosen is None


@given(some_targets())
def test_a_connection_tries_every_usable_target_once_and_backups_last(candidates: list[Target]) -> None:
    pool = Pool(candidates)
    tried: list[Target] = []
    while target := pool.choose(tried):
        assert target not in tried
        tried.append(target)
    assert set(tried) == {target for target in candidates if target.weight}
    assert [target.backup for target in tried] == sorted(target.backup for target in tried)


@given(st.lists(st.integers(1, 10), min_size=2, max_size=5), st.data())
def test_a_target_that_was_out_for_a_while_is_not_flooded(weights: list[int], data: st.DataObject) -> None:
    pool, candidates = Pool(targets(*weights)), targets(*weights)
    out = data.draw(st.sampled_from(candidates))
    for _ in range(data.draw(st.integers(0, 50))):
        pool.choose({out})
    burst = [pool.choose() for _ in range(sum(weights))]
    assert burst.count(out) <= out.weight + 1


def test_backups_share_by_weight_too() -> None:
    primary, backups = targets(1), targets(3, 1, backup=True)
    pool = Pool(primary + backups)
    chosen = Counter(pool.choose(primary) for _ in range(400))
    assert [chosen[target] for target in backups] == [300, 100]
