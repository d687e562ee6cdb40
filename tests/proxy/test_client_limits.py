"""Tests of what each client may have."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink.limits import Rate
from veillink.proxy.client_limits import MAX_CLIENTS, Bucket, Client, ClientLimits

LATE = 1e6  # seconds; a machine that has been up for eleven days


def come(limits: ClientLimits, now: float, key: str = "a") -> Client:
    client = limits.admit(key, now)
    assert client is not None
    return client


def accepted(rate: Rate, *, step: float, seconds: float, bucket: Bucket | None = None, start: float = LATE) -> int:
    """Return how many get in within a time when somebody tries at every step."""
    bucket = bucket or Bucket()
    count = 0
    for number in range(round(seconds / step)):
        now = start + number * step
        if not bucket.delay(rate, now):
            bucket.take(rate, now)
            count += 1
    return count


@pytest.mark.parametrize(
    ("rate", "seconds", "count"),
    [
        (Rate(10), 0.001, 10),
        (Rate(10), 1.0, 19),
        (Rate(10), 10.0, 109),
        (Rate(6, 60), 9.9, 1),
        (Rate(6, 60), 60.0, 6),
        (Rate(5, 3600, 3), 1.0, 3),
        (Rate(5, 3600, 3), 3600.0, 7),
        (Rate(10, 1, 1), 1.0, 10),
    ],
)
def test_a_bucket_gives_its_room_and_then_its_rate(rate: Rate, seconds: float, count: int) -> None:
    assert accepted(rate, step=seconds / 1000, seconds=seconds) == count


@given(st.integers(1, 1000), st.sampled_from([1, 60, 3600]), st.integers(0, 50))
def test_who_waits_as_long_as_is_said_gets_a_token(count: int, period: int, burst: int) -> None:
    rate, bucket, now = Rate(count, period, burst), Bucket(), LATE
    for taken in range(60):
        now += bucket.delay(rate, now)
        assert bucket.delay(rate, now) == 0
        bucket.take(rate, now)
        assert taken + 1 <= rate.room + (now - LATE) * rate.per_second + 0.1


def test_a_bucket_goes_on_under_another_rate() -> None:
    bucket = Bucket()
    slow, fast = Rate(1, 3600), Rate(100)
    bucket.take(slow, LATE)
    assert bucket.delay(slow, LATE) == pytest.approx(3600)
    assert bucket.delay(fast, LATE) == pytest.approx(0.01)
    assert accepted(fast, step=0.001, seconds=1, bucket=bucket) == pytest.approx(100, abs=1)
    assert bucket.delay(slow, LATE + 1) <= 3600


def test_connections_of_a_client_are_counted() -> None:
    limits = ClientLimits(2, Rate())
    first, _ = come(limits, 0), come(limits, 0)
    assert limits.admit("a", 0) is None
    come(limits, 0, "b")
    limits.release(first, 1)
    come(limits, 1)
    assert limits.admit("a", 1) is None


def test_a_refused_try_costs_no_token() -> None:
    limits = ClientLimits(0, Rate(1))
    come(limits, LATE)
    for number in range(1, 99):
        assert limits.admit("a", LATE + number / 100) is None
    come(limits, LATE + 1)
    limits = ClientLimits(1, Rate(2))
    client = come(limits, LATE)
    for _ in range(5):
        assert limits.admit("a", LATE) is None
    limits.release(client, LATE)
    come(limits, LATE)


@pytest.mark.parametrize(
    ("rate", "silence"), [(Rate(), 0.0), (Rate(1), 1.0), (Rate(6, 60), 10.0), (Rate(1, 1, 9), 1.0)]
)
def test_a_client_is_forgotten_when_it_says_nothing_any_more(rate: Rate, silence: float) -> None:
    limits = ClientLimits(3, rate)
    client = come(limits, LATE)
    limits.forget(LATE + 1000)
    assert len(limits) == 1  # it is still there
    limits.release(client, LATE)
    limits.forget(LATE + silence - 0.01)
    assert len(limits) == (1 if silence else 0)
    limits.forget(LATE + silence + 0.01)
    assert len(limits) == 0


def test_those_who_come_make_others_forgotten() -> None:
    limits = ClientLimits(0, Rate(1))
    for number in range(20_000):
        now = LATE + number / 1000
        limits.release(come(limits, now, f"{number}"), now)
        assert len(limits) <= 1001


def test_the_longest_silent_goes_first() -> None:
    limits = ClientLimits(0, Rate(1, 3600), capacity=3)
    for key in "abc":
        limits.release(come(limits, LATE, key), LATE)
    assert limits.admit("a", LATE + 1) is None  # who tries is not silent
    come(limits, LATE + 2, "d")
    assert len(limits) == 3
    assert limits.admit("a", LATE + 3) is None
    assert limits.admit("c", LATE + 3) is None
    come(limits, LATE + 3, "b")


def test_who_has_a_connection_goes_after_those_who_have_none() -> None:
    limits = ClientLimits(1, Rate(1, 3600), capacity=2)
    come(limits, LATE, "live")
    limits.release(come(limits, LATE + 1, "silent"), LATE + 1)
    come(limits, LATE + 2, "new")
    assert limits.admit("live", LATE + 3) is None


def test_a_connection_of_a_client_that_had_to_go_is_not_counted_twice() -> None:
    limits = ClientLimits(1, Rate(), capacity=1)
    old = come(limits, 0)
    come(limits, 0, "b")
    new = come(limits, 0)
    limits.release(old, 1)
    assert limits.admit("a", 1) is None
    limits.release(new, 1)
    come(limits, 1)


def test_counts_and_buckets_survive_a_change() -> None:
    limits = ClientLimits(0, Rate(1))
    clients = [come(limits, LATE + number) for number in range(3)]
    limits.change(2, Rate(10), LATE + 2)
    assert limits.admit("a", LATE + 9) is None  # three are there
    for client in clients[:2]:
        limits.release(client, LATE + 9)
    come(limits, LATE + 9)
    limits.change(0, Rate(), LATE + 9)
    come(limits, LATE + 9)
    limits.change(0, Rate(1), LATE + 9)
    come(limits, LATE + 9)
    assert limits.admit("a", LATE + 9) is None


def test_a_faster_rate_holds_for_those_who_were_silent_too() -> None:
    limits = ClientLimits(0, Rate(1, 3600))
    for key in "abc":
        limits.release(come(limits, LATE, key), LATE)
    limits.change(0, Rate(10), LATE)
    limits.forget(LATE + 1.01)
    assert len(limits) == 0


def test_a_rate_that_is_off_for_a_while_begins_anew_and_the_same_one_again_changes_nothing() -> None:
    limits = ClientLimits(0, Rate(1, 3600))
    client = come(limits, LATE)
    limits.change(0, Rate(1, 3600), LATE + 9)
    assert limits.admit("a", LATE + 3000) is None
    limits.release(client, LATE + 3000)
    limits.change(0, Rate(), LATE + 3000)
    limits.forget(LATE + 3000)
    assert len(limits) == 0


rates = st.builds(Rate, st.integers(1, 50), st.sampled_from([1, 60]), st.integers(0, 20))


@given(st.lists(st.tuples(rates, st.integers(1, 30), st.floats(0, 3)), min_size=1, max_size=6))
def test_whatever_the_rate_was_a_client_gets_no_more_than_the_one_of_now_gives_and_all_of_it(
    forms: list[tuple[Rate, int, float]],
) -> None:
    limits, now = ClientLimits(0, Rate()), LATE
    for rate, tries, pause in forms:
        limits.change(0, rate, now)
        began, served = now, 0
        for _ in range(tries):
            served += limits.admit("a", now) is not None
            assert served <= rate.room + (now - began) * rate.per_second + 0.1
            now += pause
    now += rate.room / rate.per_second
    for _ in range(int(rate.room)):
        come(limits, now)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), st.floats(0, 2)), max_size=60), st.integers(0, 3))
def test_nobody_ever_has_more_than_the_limit_and_all_is_forgotten(
    tries: list[tuple[str, bool, float]], most: int
) -> None:
    limits, now = ClientLimits(most, Rate(2)), LATE
    held: list[Client] = []
    for key, leaves, pause in tries:
        now += pause
        if leaves and held:
            limits.release(held.pop(0), now)
        elif client := limits.admit(key, now):
            held.append(client)
        for name in "abcde":
            count = sum(client.key == name for client in held)
            assert not most or count <= most
    for client in held:
        limits.release(client, now)
    limits.forget(now + 10)
    assert len(limits) == 0


@pytest.mark.alone
def test_a_hundred_thousand_clients_are_the_most_and_cost_no_more_each() -> None:
    limits = ClientLimits(1, Rate(1, 3600))

    def some(first: int) -> float:
        began = time.process_time()
        for number in range(first, first + 50_000):
            limits.release(come(limits, LATE, f"{number}"), LATE)
        return (time.process_time() - began) / 50_000

    some(0)
    some(50_000)
    assert len(limits) == MAX_CLIENTS
    assert some(100_000) < 20e-6
    assert len(limits) == MAX_CLIENTS
    began = time.process_time()
    limits.change(2, Rate(2, 3600), LATE)
    limits.admit("x", LATE + 7200)
    assert time.process_time() - began < 0.01
