"""When a connection has been silent for too long, or lived too long: numbers in, numbers out."""

import pytest

from veillink.model import End, RuleOptions
from veillink.proxy.deadlines import FLUSH_TIME, is_flushed, lifetime_is_over, postponed, silence_limit

IDLE, HALF = End.IDLE_TIMEOUT, End.HALF_CLOSE_TIMEOUT


@pytest.mark.parametrize(
    ("idle", "half_close", "half_closed", "expected"),
    [
        (0, 0, False, (0, IDLE)),
        (0, 0, True, (0, IDLE)),
        (10, 300, False, (10, IDLE)),
        (10, 300, True, (10, IDLE)),  # the shorter one counts
        (600, 300, True, (300, HALF)),
        (300, 300, True, (300, HALF)),
        (0, 300, False, (0, IDLE)),
        (0, 300, True, (300, HALF)),
        (10, 0, True, (10, IDLE)),
    ],
)
def test_the_shorter_limit_of_silence_counts(
    idle: float, half_close: float, half_closed: bool, expected: tuple[float, End]
) -> None:
    options = RuleOptions(idle_timeout=idle, half_close_timeout=half_close)
    assert silence_limit(options, half_closed=half_closed) == expected


@pytest.mark.parametrize(
    ("most", "opened", "now", "over"),
    [(0, 0, 1e9, False), (10, 100, 109.9, False), (10, 100, 110, True), (10, 100, 200, True), (10, 100, 100, False)],
)
def test_a_lifetime_ends_whatever_moves(most: float, opened: float, now: float, over: bool) -> None:
    assert lifetime_is_over(RuleOptions(max_lifetime=most), opened, now) is over


@pytest.mark.parametrize(
    ("reset_at", "moved_at", "now", "flushed"),
    [
        (0, 0, FLUSH_TIME - 0.01, False),
        (0, 0, FLUSH_TIME, True),
        (0, 3, FLUSH_TIME, False),  # something has moved since
        (0, 3, 3 + FLUSH_TIME, True),
        (3, 0, FLUSH_TIME, False),
    ],
)
def test_after_a_reset_there_is_time_while_something_moves(
    reset_at: float, moved_at: float, now: float, flushed: bool
) -> None:
    assert is_flushed(reset_at, moved_at, now) is flushed


@pytest.mark.parametrize(("since", "lost", "now", "expected"), [(0, 7, 10, 7), (8, 7, 10, 10), (8, 0, 10, 8)])
def test_time_that_nobody_lived_through_does_not_count(since: float, lost: float, now: float, expected: float) -> None:
    assert postponed(since, lost, now) == expected


def test_a_fake_clock_runs_through_the_life_of_a_silent_connection() -> None:
    """Every quarter of a second somebody looks, and it is ended at the first look after its time."""
    options = RuleOptions(idle_timeout=2.0, max_lifetime=60.0)
    moved_at, ended = 0.0, ""
    for tick in range(1, 1000):
        now = tick / 4
        if now == 1.5:
            moved_at = now  # a byte
        limit, end = silence_limit(options, half_closed=False)
        if lifetime_is_over(options, 0.0, now) or now - moved_at >= limit:
            ended = f"{end} {now}"
            break
    assert ended == "idle_timeout 3.5"
