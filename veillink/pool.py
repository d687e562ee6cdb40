"""Choose a target for a connection."""

from collections.abc import Collection, Sequence

from .model import Target


class Pool:
    """The targets of one rule, chosen in turn by weight.

    Args:
        targets: in the order of their rows.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._primary = [target for target in targets if target.weight and not target.backup]
        self._backup = [target for target in targets if target.weight and target.backup]
        self._credit = dict.fromkeys(targets, 0)

    def choose(self, tried: Collection[Target] = ()) -> Target | None:
        """Return the next target that was not tried yet, a backup only when no other is left, or ``None``.

        Smooth weighted round robin, as nginx does it: each candidate earns its weight, the richest pays the sum.
        Weights 3 and 1 give a a b a, and exactly 300 and 100 of 400.
        """
        candidates = [t for t in self._primary if t not in tried] or [t for t in self._backup if t not in tried]
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        for target in candidates:
            self._credit[target] += target.weight
        chosen = max(candidates, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(target.weight for target in candidates)
        return chosen

    def untried(self, tried: Collection[Target]) -> int:
        """Return how many targets a connection that has tried these can still try."""
        return sum(target not in tried for target in self._primary + self._backup)
