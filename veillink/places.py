"""Share the descriptors for connects side by side among all connections.

Rule: the first connect of each has one of its own; for the others no rule leaves nothing to the next.
"""


class Places:
    """The descriptors for connects beside the first of each connection, which all rules share.

    Args:
        most: how many there are.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._held: dict[object, int] = {}

    @property
    def held(self) -> int:
        """How many are in use."""
        return sum(self._held.values())

    def take(self, party: object) -> bool:
        """Take one, if there is one for this party: the first of its own, or up to a quarter of what is free.

        So dozens of rules get one each, however many clients of some others wait for silent targets.
        """
        held = self._held.get(party, 0)
        if self._free <= 0 or (held and held >= self._free // 4):
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
