"""Rows that cannot all stand: overlaps, and loops."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.config.lines import line_of
from tests.config.test_rules import bad, good, lines
from veillink.config.rules import parse


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("8000-8010", "8005"),
        ("8000-8010", "8010-8020"),
        ("8000-8010", "8000-8009"),
        ("8000-8010", "7000-9000"),
        ("8080", "127.0.0.1:8080"),
        ("8080", "[::1]:8080"),
        ("8080", "0.0.0.0:8080"),
        ("8080", "[::]:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("[::]:8080", "[::1]:8080"),
        ("127.0.0.1:8000-8010", "127.0.0.1:8005"),
        ("127.0.0.1:8000-8010", "0.0.0.0:8005-8100"),
    ],
)
def test_overlaps_name_both_lines(one: str, two: str) -> None:
    for first, second in ((one, two), (two, one)):
        text = f"1,host,80\n{first},host,80\n{second},host,81"
        (problem,) = bad(text)
        assert problem.startswith("3:1: overlaps with line 2: port ")
        assert lines(text) == [1, 2]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("[::]:80", "0.0.0.0:80"),
        ("[::]:80", "127.0.0.1:80"),
        ("[::1]:80", "0.0.0.0:80"),
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("[::1]:80", "127.0.0.1:80"),
        ("8000-8010", "8011"),
        ("127.0.0.1:8000-8010", "127.0.0.2:8005"),
    ],
)
def test_neighbours_do_not_overlap(one: str, two: str) -> None:
    assert len(good(f"{one},host,80\n{two},host,80")) == len(good(f"{two},host,80\n{one},host,80")) == 2


def test_overlap_names_the_port() -> None:
    assert bad("8000-8010,h,80\n[::1]:8005-8020,h,80") == ["2:1: overlaps with line 1: port 8005 is taken there"]


def test_listeners_are_counted() -> None:
    text = "127.0.0.1:1-65535,h,80\n127.0.0.2:1,h,80\n127.0.0.2:2,h,80\n127.0.0.2:1,h,81\n127.0.0.2:3,h,80"
    assert bad(text) == [
        "3:1: with this row the file asks for more than 65536 listeners",
        "5:1: with this row the file asks for more than 65536 listeners",
    ]
    assert lines(text) == [1, 2]


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        *(("8080", host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST.", "0.0.0.0", "::")),
        ("8080", "::ffff:127.0.0.1"),
        ("8080", "[::ffff:7f00:1]"),
        *(("0.0.0.0:8080", host) for host in ("127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0", "::ffff:127.0.0.1")),
        *(("[::]:8080", host) for host in ("::1", "localhost", "::", "[0::1]")),
        *(("127.0.0.1:8080", host) for host in ("127.0.0.1", "localhost", "0.0.0.0")),
        *(("[::1]:8080", host) for host in ("::1", "localhost", "::")),
        ("[::ffff:127.0.0.1]:8080", "127.0.0.1"),
        ("10.0.0.1:8080", "10.0.0.1"),
        ("[2001:db8::1]:8080", "2001:DB8::0001"),
        ("[fe80::1%lo]:8080", "fe80::1%lo"),
    ],
)
def test_a_rule_that_forwards_to_itself(listen: str, host: str) -> None:
    text = f"1,host,80\n{listen},{host},8080"
    assert bad(text) == ["2:2: forwards to its own listener"]
    assert lines(text) == [1]


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [
        ("8080", "127.0.0.1", "8081"),
        ("8080", "example.com", "8080"),
        ("8080", "127.example", "8080"),
        ("8080", "10.0.0.1", "8080"),
        ("0.0.0.0:8080", "::1", "8080"),
        ("[::]:8080", "127.0.0.1", "8080"),
        ("127.0.0.1:8080", "127.0.0.2", "8080"),
        ("127.0.0.1:8080", "::1", "8080"),
        ("10.0.0.1:8080", "localhost", "8080"),
        ("10.0.0.1:8080", "10.0.0.2", "8080"),
        ("8000-8010", "127.0.0.1", "9000-9010"),
        ("8000-8010", "127.0.0.1", "8001-8011"),
        ("8000-8010", "127.0.0.1", "8011"),
    ],
)
def test_no_loop(listen: str, host: str, port: str) -> None:
    assert good(f"{listen},{host},{port}")


@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        ("1,::1,2\n2,::1,1", ["2:2: forwards to its own listener through line 1"]),
        ("1,::1,2\n2,::1,3\n3,::1,1", ["3:2: forwards to its own listener through line 1, 2"]),
        ("1,::1,3\n2,::1,1\n3,::1,2", ["3:2: forwards to its own listener through line 1, 2"]),
        ("1,::1,3\n3,::1,2\n2,::1,1\n4,::1,1", ["3:2: forwards to its own listener through line 1, 2"]),
        ("4,::1,1\n1,::1,3\n3,::1,1\n9,h,80", ["3:2: forwards to its own listener through line 2"]),
        # two ways on, one of them back
        ("1,h,80\n1,::1,2\n2,h,80\n2,::1,1", ["4:2: forwards to its own listener through line 2"]),
        ("1,::1,2\n2,h,80\n1,::1,3\n3,h,80", []),
        ("1,::1,2\n1,::1,3\n2,::1,4\n3,::1,4\n4,h,80", []),
        # two loops with one row in common, and two without
        ("1,::1,2\n2,::1,1\n2,::1,3\n3,::1,1", ["2:2: forwards to its own listener through line 1",
                                                "4:2: forwards to its own listener through line 1, 3"]),
        ("1,::1,2\n2,::1,1\n3,::1,4\n4,::1,3", ["2:2: forwards to its own listener through line 1",
                                                "4:2: forwards to its own listener through line 3"]),
        # what was explored through a row refused later is explored again
        ("5,::1,1\n1,::1,5\n1,::1,2\n2,::1,1\n2,::1,5", ["2:2: forwards to its own listener through line 1",
                                                         "4:2: forwards to its own listener through line 3",
                                                         "5:2: forwards to its own listener through line 1, 3"]),
        # ranges, port by port
        ("10-19,::1,20-29\n25,::1,15", ["2:2: forwards to its own listener through line 1"]),
        ("10-19,::1,20-29\n25,::1,14", []),
        ("10-19,::1,20-29\n20-29,::1,9-18", []),
        ("10-19,::1,20-29\n20-29,::1,11-20", ["2:2: forwards to its own listener through line 1"]),
        ("10-19,::1,11-20\n20,::1,10", ["2:2: forwards to its own listener through line 1"]),
        ("10-19,::1,15", ["1:2: forwards to its own listener"]),
        ("10-19,::1,20\n20,::1,19", ["2:2: forwards to its own listener through line 1"]),
        # addresses
        ("127.0.0.1:1,127.0.0.2,1\n127.0.0.2:1,0.0.0.0,1", ["2:2: forwards to its own listener through line 1"]),
        ("0.0.0.0:1,::1,1\n[::]:1,127.0.0.1,1", ["2:2: forwards to its own listener through line 1"]),
        ("0.0.0.0:1,127.0.0.1,2\n[::1]:2,localhost,1", []),
        ("127.0.0.1:1,localhost,2\n[::1]:2,localhost,1", ["2:2: forwards to its own listener through line 1"]),
    ],
)  # fmt: skip
def test_loops_of_rows(rows: str, problems: list[str]) -> None:
    assert bad(rows) == problems


def test_a_long_loop_names_a_few_lines() -> None:
    text = "".join(f"{n},::1,{n % 9 + 1}\n" for n in range(1, 10))
    assert bad(text) == ["9:2: forwards to its own listener through line 1, 2, 3, 4, 5 and 3 more"]


def test_a_rule_keeps_its_other_targets() -> None:
    (rule,) = parse(b"1,::1,1,name=x\n1,host,80\n1,other,80,name=x")[0].rules
    assert (rule.name, line_of(rule), len(rule.targets)) == ("x", 2, 2)


edges = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), unique=True, max_size=14)


@given(edges)
@settings(max_examples=500, deadline=None)
def test_what_is_left_has_no_loop_and_what_is_refused_had_one(edges: list[tuple[int, int]]) -> None:
    found, problems, *_ = parse("".join(f"{a},::1,{b}\n" for a, b in edges).encode())
    kept = {(rule.listen.port, target.address.port) for rule in found.rules for target in rule.targets}
    refused = {edges[problem.line - 1] for problem in problems}
    assert kept | refused == set(edges)
    assert not kept & refused
    assert not any(reaches(kept, port, port) for port in range(1, 7))
    for (a, b), problem in zip((edges[p.line - 1] for p in problems), problems, strict=True):
        assert reaches(set(edges[: problem.line - 1]) | {(a, b)}, b, a) or a == b


def reaches(edges: set[tuple[int, int]], start: int, end: int) -> bool:
    """Whether one step or more lead from the start to the end."""
    seen: set[int] = set()
    wave = {start}
    while wave:
        wave = {b for a, b in edges if a in wave} - seen
        seen |= wave
    return end in seen


@pytest.mark.parametrize(
    "option", ["tls=c.pem", "allow=10.0.0.0/8", "deny=::1", "accept_proxy=any", "allow=10.0.0.1/8"]
)
@pytest.mark.parametrize("fault", ["ho st,80", "host,99999", "host,80,weight=x", "host,81,max_fails=2"])
def test_no_row_stands_without_what_a_refused_one_says_of_who_may_come(option: str, fault: str) -> None:
    text = f"443,b,81,max_fails=1\n443,{fault},{option}\n1,host,80"
    name = option.partition("=")[0]
    found = bad(text)
    assert f"1:1: is left out too: {name} of line 2, which has a problem, is for this row" in found
    assert lines(text) == [3]


def test_a_row_that_says_so_itself_stands() -> None:
    assert lines("443,b,81,tls=c.pem\n443,ho st,80,tls=c.pem") == [1]
    assert lines("443,b,81\n443,ho st,80,max_fails=1\n444,ho st,80,tls=c.pem") == [1]
