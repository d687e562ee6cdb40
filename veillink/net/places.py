"""Share a number of places by rule, so that no rule leaves nothing to the next.

Rule: who holds none finds one while any is free; who holds some gets more only while they are few beside what is free.
(Choudhury and Hahne 1998, Dynamic Queue Length Thresholds.)
"""


class Places:
    """A number of places for which the parties, the rules, compete.

    Args:
        most: how many there are.
        spread: a party that holds some gets one more while it has fewer than a part of what is free, one in so many.
            With 1 a party alone has half of all; with 4 a fifth, and dozens get one each.
    """

    def __init__(self, most: int, spread: int = 4) -> None:
        self._free = most
        self._spread = spread
        self._held: dict[object, int] = {}

    def take(self, party: object) -> bool:
        """Take one, if there is one for this party."""
        held = self._held.get(party, 0)
        if self._free <= 0 or (held and held >= self._free // self._spread):
            return False
        self._free -= 1
        self._held[party] = held + 1
        return True

    def give_back(self, party: object) -> None:
        """Give one back."""
        self._free += 1
        self._held[party] -= 1
        if not self._held[party]:
            del self._held[party]


class Claim:
    """What the connects of one connection may take: one descriptor is its own, the others are places.

    Args:
        places: where they are had from.
        party: the rule, with which the places are shared.
    """

    __slots__ = ("_party", "_places", "_taken", "short")

    def __init__(self, places: Places, party: object) -> None:
        self._places = places
        self._party = party
        self._taken = 0
        self.short = False
        """Whether the last that was wanted could not be had."""

    def take(self) -> bool:
        """Take one more descriptor, if there is one."""
        self.short = self._taken > 0 and not self._places.take(self._party)
        self._taken += not self.short
        return not self.short

    def give_back(self) -> None:
        """Give one back."""
        self._taken -= 1
        if self._taken:
            self._places.give_back(self._party)
