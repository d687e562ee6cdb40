"""Tests of list files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink.config.lists import parse_list
from veillink.config.rows import MAX_FILE, MAX_PROBLEMS


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"10.0.0.0/8\n::1\n", ["10.0.0.0/8", "::1"]),
        (b"10.0.0.0/8\r\n::1", ["10.0.0.0/8", "::1"]),
        (b"\xef\xbb\xbf10.0.0.0/8\n", ["10.0.0.0/8"]),
        (b"# us\n\n  10.0.0.1\t# me\n10.0.0.2#you\n", ["10.0.0.1", "10.0.0.2"]),
        ("10.0.0.1 # Zoë\n".encode("latin-1"), ["10.0.0.1"]),
        (b"# nobody\n", []),
    ],
)
def test_a_list(data: bytes, shown: list[str]) -> None:
    networks, problems = parse_list(data)
    assert [str(network) for network in networks] == shown
    assert problems == []


def test_problems_name_their_line() -> None:
    networks, problems = parse_list(b"10.0.0.0/8\n\n# x\nnonsense # y\n::1\n\xff\x00\n10.0.0.1/8\n")
    assert len(networks) == 2
    assert [problem.at("trusted.txt") for problem in problems] == [
        'trusted.txt:4: "nonsense" is not an IP address, nor a network like 10.0.0.0/8 or fd00::/8',
        'trusted.txt:6: "\\ufffd\\x00" is not an IP address, nor a network like 10.0.0.0/8 or fd00::/8',
        'trusted.txt:7: "10.0.0.1/8" has bits set behind its prefix: the network is 10.0.0.0/8',
    ]


@pytest.mark.parametrize("data", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
def test_a_file_that_somebody_has_truncated_is_no_list(data: bytes) -> None:
    assert [problem.at("a.txt") for problem in parse_list(data)[1]] == [
        "a.txt: the list is empty; one that is meant to be has a comment, like # nobody"
    ]


def test_what_is_listed_is_bounded() -> None:
    assert [problem.at("a.txt") for problem in parse_list(b"#" * (MAX_FILE + 1))[1]] == [
        "a.txt: the list is larger than 16 MiB"
    ]
    assert len(parse_list(b"x\n" * (MAX_PROBLEMS + 5))[1]) == MAX_PROBLEMS


@given(st.binary())
def test_whatever_the_bytes_every_problem_is_one_line(data: bytes) -> None:
    networks, problems = parse_list(data)
    assert all(problem.message.isprintable() for problem in problems)
    assert networks or problems or b"#" in data
