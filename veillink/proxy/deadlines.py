"""When has a connection been silent for too long, or lived too long: functions of numbers.

Rule: a limit of 0 is off. All times are seconds, those that are points monotonic ones.
"""

from typing import Final

from veillink.model import End, RuleOptions

FLUSH_TIME: Final = 5.0
"""What was received before a reset is given so long without progress to reach the other side."""


def lifetime_is_over(options: RuleOptions, opened: float, now: float) -> bool:
    """Return whether a connection that was opened then has lived too long."""
    return 0 < options.max_lifetime <= now - opened


def silence_limit(options: RuleOptions, *, half_closed: bool) -> tuple[float, End]:
    """Return how long a connection may be silent, and how it ends after that.

    Args:
        options: of its rule.
        half_closed: whether one side has finished, and not the other one. Then the shorter limit counts.
    """
    idle, half_close = options.idle_timeout, options.half_close_timeout
    if half_closed and half_close and not 0 < idle < half_close:
        return half_close, End.HALF_CLOSE_TIMEOUT
    return idle, End.IDLE_TIMEOUT


def is_flushed(reset_at: float, moved_at: float, now: float) -> bool:
    """Return whether enough was waited since a reset and since something moved last."""
    return now - max(reset_at, moved_at) >= FLUSH_TIME


def postponed(since: float, lost: float, now: float) -> float:
    """Return a point that a deadline counts from, moved by the time that nobody lived through."""
    return min(now, since + lost)
