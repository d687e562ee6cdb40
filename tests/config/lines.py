"""Where rules stand, for tests of the rules' file."""

from veillink.model import Rule


def line_of(rule: Rule) -> int:
    """Return the line of a rule's first row."""
    return int(rule.origin.rpartition(":")[2])
