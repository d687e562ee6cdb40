"""How descriptors and memory are divided."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.running import FD_LIMIT, Start
from tests.sockets import Journal
from tests.system.harness import HOST
from veillink.model import RuleSet
from veillink.server.fd_budget import FdBudget
from veillink.server.server import Server


@given(st.integers(0, 1 << 20), st.integers(0, 1000), st.booleans(), st.integers(0, 100))
def test_whatever_is_in_use_at_a_time_fits_into_the_descriptors(
    limit: int, listeners: int, splice: bool, inherited: int
) -> None:
    fd_budget = FdBudget(limit, splice, inherited=inherited)
    connections = fd_budget.connections(listeners)
    in_use = 2 * (connections + fd_budget.lookups + fd_budget.pipes) + fd_budget.parallel_attempts + listeners + 22
    in_use += fd_budget.probes + fd_budget.admin + inherited
    assert in_use in (limit, limit - 1)
    assert sum(fd_budget.breakdown(listeners).values()) == in_use
    assert splice or not fd_budget.pipes


MIB = 1 << 20


@pytest.mark.parametrize(
    ("memory", "workers", "fits"),
    [
        (0, 1, math.inf),
        (64 * MIB, 1, 2048),
        (1024 * MIB, 1, 51_200),
        (20 * MIB, 1, 64),
        (64 * MIB + 3 * 24 * MIB, 2, 1638),  # two workers and their master
    ],
)
def test_as_many_connections_are_held_as_fit_into_the_memory(
    memory: int, workers: int, fits: float, journal: Journal
) -> None:
    worker = 0 if workers == 1 else 1
    running = Server(journal.log, FdBudget(1 << 20), 0, worker=worker, memory=memory)
    running.apply(RuleSet())
    running.set_worker_count(workers)
    assert running.fits_memory == fits
    assert running.limiter.limit == min(fits, FdBudget(1 << 20).connections(0))


@given(st.integers(0, 1000))
def test_what_is_needed_is_the_least_with_which_one_connection_fits(listeners: int) -> None:
    for splice, watched in ((True, True), (False, False)):
        needed = FdBudget(0, splice, watched).needed(listeners)
        assert FdBudget(needed, splice, watched).connections(listeners) > 0
        assert FdBudget(needed - 1, splice, watched).connections(listeners) <= 0


@pytest.mark.parametrize(
    ("max_connections", "listeners", "limit"),
    [
        (0, 1, FdBudget(FD_LIMIT).connections(1)),
        (0, 101, FdBudget(FD_LIMIT).connections(101)),
        (7, 1, 7),
        (10_000, 1, FdBudget(FD_LIMIT).connections(1)),
        (0, FD_LIMIT, 0),
    ],
)
def test_as_many_connections_are_held_as_descriptors_allow_and_the_operator_wants(
    max_connections: int, listeners: int, limit: int, start: Start
) -> None:
    rows = (f"192.0.2.1:{port},{HOST},80" for port in range(1, 1 + listeners))  # this host has no such address
    assert start(*rows, max_connections=max_connections).limiter.limit == limit
