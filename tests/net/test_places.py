"""Places that rules share."""

import pytest

from veillink.net.places import Claim, Places


@pytest.mark.parametrize(("most", "spread", "alone"), [(16, 4, 3), (16, 1, 8), (1, 4, 1), (0, 4, 0), (4, 1, 2)])
def test_a_rule_alone_has_a_part_and_leaves_the_rest(most: int, spread: int, alone: int) -> None:
    places = Places(most, spread)
    taken = 0
    while places.take("a"):
        taken += 1
    assert taken == alone
    assert places.take("b") is (most > alone)


def test_what_is_given_back_is_there_for_others() -> None:
    places = Places(1)
    assert places.take("a")
    assert not places.take("b")
    places.give_back("a")
    assert places.take("b")


def test_the_first_of_a_claim_costs_no_place() -> None:
    places = Places(1)
    one, other = Claim(places, "a"), Claim(places, "b")
    assert one.take()
    assert one.take()  # a place
    assert other.take()
    assert not other.take()
    assert other.short
    one.give_back()
    assert other.take()
