"""The text of a rules' file: encodings, lines, separators, comments and headers (cells: test_rules.py)."""

import gzip
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.config.lines import line_of
from tests.config.test_rules import bad, good, lines
from veillink.config.rows import MAX_PROBLEMS, Notice
from veillink.config.rules import parse


def noticed(text: str) -> list[str]:
    """Return the notices of a text."""
    return [notice.at("config.csv") for notice in parse(text.encode()).notices]


def lines_of(data: bytes) -> list[int]:
    return [line_of(rule) for rule in parse(data).rules.rules]


# --- what cannot be read ---


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("sick", [b"8081,ho\0st,80", b"8081,b\xfccher.example,80", b"\x1f\x8b\x08\0", b"\0"])
def test_what_is_no_text_costs_its_line_only(sick: bytes, place: int) -> None:
    rows = [b"8080,host,80", b"8082,host,80"]
    rows.insert(place, sick)
    found, (problem,), *_ = parse(b"\r\n".join(rows))
    assert (problem.line, problem.column) == (place + 1, 1)
    assert [rule.name for rule in found.rules] == ["8080", "8082"]


def test_a_byte_that_is_no_text_is_named() -> None:
    assert bad(b"8080,host,80\n8081,ho\0st,80") == [
        "2:1: byte 8 of the line is NUL, which no text has: save the file as UTF-8, or as UTF-16 with a byte order mark"
    ]


@pytest.mark.parametrize(
    "data",
    [
        "8080,host,80\n".encode("utf-16-be") * 3,
        "8080,host,80\n".encode("utf-32"),
        gzip.compress(b"8080,host,80\n" * 100, mtime=0),
        bytes(range(256)) * 100,
    ],
    ids=["UTF-16 without a mark", "UTF-32", "gzip", "bytes"],
)
def test_what_is_no_text_at_all_is_no_rule(data: bytes) -> None:
    found, problems, *_ = parse(data)
    assert not found.rules
    assert 1 <= len(problems) <= MAX_PROBLEMS


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("sick", ["\ud800", "\udc00\ud800"])
def test_what_utf_16_cannot_say_costs_its_line_only(sick: str, order: str) -> None:
    text = f"\ufeff8080,host,80\r\n8081,ho{sick}st,80\r\n8082,host,80\r\n"
    data = text.encode(f"utf-16-{order}", "surrogatepass")
    assert lines_of(data) == [1, 3]
    assert [problem.split(" byte")[0] for problem in bad(data)] == ["2:1: not UTF-8:"]


@pytest.mark.parametrize("end", [b"8", b"\x3d\xd8"])
def test_utf_16_that_is_cut_off_costs_its_last_line_only(end: bytes) -> None:
    data = "\ufeff8080,host,80\r\n8081,host,80".encode("utf-16-le") + end
    assert lines_of(data) == [1]
    assert [problem.split(" byte")[0] for problem in bad(data)] == ["2:1: not UTF-8:"]


# --- headers ---


@pytest.mark.parametrize(
    "header",
    [
        "listen,host,port",
        "listen_port,forward_ip,forward_port",
        "listen_port,forward_ip,forward_port,name,weight",
        "host,port,name",
        "Écoute,hôte,port",
        "порт,адрес,порт",
        "监听端口,转发地址,转发端口",
        "المنفذ,المضيف,المنفذ",
        "Port (TCP),Host,Port",
        "Port No.,Host,Port No.",
        "listen/tcp,host,port",
        "Port 1,IPv4 or IPv6,Port 2",
        "*,?,!",
        "port",
        "tcp,http,localhost",
        ",host,port",
        "Listen:,Host:,Port:",
    ],
)
@pytest.mark.parametrize("before", ["", "# listen,host,port\n\n", ",,\n"])
def test_any_words_in_the_first_row_are_a_header(header: str, before: str) -> None:
    text = f"{before}{header}\n8080,host,80"
    assert [rule.name for rule in good(text)] == ["8080"]
    assert noticed(text) == [f"config.csv:{before.count(chr(10)) + 1}: taken as a header"]


@pytest.mark.parametrize(
    "row",
    [
        "l8080,10.0.0.5,80",
        "O080,10.0.0.5,80",
        "http,10.0.0.5,80",
        "localhost,10.0.0.1,80",
        "localhost,db,80",
        "tcp,8080,10.0.0.5",
        "tcp,8080,db",
        "8080,10.0.0.5,8O",
        "8080,db,http",
        "8080,db,",
        "8O80,db,8O",
        "l8080,db",
        "l8080,10.0.0.5,",
        "l8080,fe80::1,",
        "l8080,unix:/run/x,",
        "unix:/run/x,db,http",
        "unix/run/x,10.0.0.5,80",
        "[::a]:8080,db,http",
        "*:8O,db,8O",
        "70000,db,80000",
        "8080:80,db,http",
        '"",host,80',
        ",,,name=x",
        "2024-11-25,db,http",
    ],
)
def test_a_first_row_that_was_mistyped_is_no_header(row: str) -> None:
    assert bad(f"{row}\n8081,host,80")
    assert lines(f"{row}\n8081,host,80") == [2]
    assert noticed(row) == []


@pytest.mark.parametrize("separator", ",;\t")
@pytest.mark.parametrize(
    "row",
    ["8080,10.0.0.5,80", "127.0.0.1:80,db,8000", "[::1]:80,::1,80", "unix:/a,db,80", "80,unix:/a,", "80-81,db,80"],
)
def test_one_slip_in_the_first_row_never_takes_its_rule_away_unsaid(row: str, separator: str) -> None:
    row = row.replace(",", separator)
    for place, slip in itertools.product(range(len(row) + 1), ["x", "O", " ", ""]):
        for text in (row[:place] + slip + row[place:], row[:place] + slip + row[place + 1 :]):
            found = parse(f"{text}\n9000{separator}host{separator}80".encode())
            assert len(found.rules.rules) == 2 or found.problems
            assert not any("header" in notice.message for notice in found.notices)


def test_a_later_row_is_no_header() -> None:
    assert bad("8080,host,80\nlisten,host,port")[0].startswith("2:1: ")
    assert bad("listen,host,port\nlisten,host,port")[0].startswith("2:1: ")


# --- separators ---


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("8080;127.0.0.1;8000\n8081;host;80;name=a, b\n", "semicolons"),
        ("listen;host;port;name\n8080;127.0.0.1;8000;a, b\n8081;host;80\n", "semicolons"),
        ("8080;127.0.0.1;8000;name=a,b,c,d\n8081;host;80\n", "semicolons"),
        ("8080\t127.0.0.1\t8000\n8081\t host \t80\tname=a, b; c\n", "tabs"),
        ('8080;"127.0.0.1";8000;"name=a;b"\n8081;host;80\n', "semicolons"),
    ],
)
def test_the_first_row_decides_what_separates_cells(text: str, name: str) -> None:
    assert len(good(text)) == 2
    assert noticed(text)[0] == f"config.csv:1: cells are separated by {name}"
    assert len(noticed(text)) == 1 + text.startswith("listen")


@pytest.mark.parametrize(
    "text",
    [
        "8080,host,80,name=a;b;c;d;e",
        "8080\t,\thost\t,\t80",
        '8080,host,80,"name=a;b;c;d"',
        "listen port;old,forward host,port;x;y\n8080,host,80",
    ],
)
def test_commas_go_first(text: str) -> None:
    assert good(text)
    assert not any("separated" in notice for notice in noticed(text))


def test_one_slip_does_not_decide_for_the_others() -> None:
    assert lines("8080;host,80\n8081,host,80") == lines("8080,host;80\n8081,host,80") == [2]
    assert lines("8O80;127.0.0.1;8000;name=a,b,c\n8081;host;80") == [2]


def test_the_whole_file_uses_the_same() -> None:
    assert bad("8080;host;80\n8081,host,80") == [
        "2:1: a row begins with three cells: listen,host,port, with semicolons between them"
    ]


def test_a_line_may_say_what_separates_cells() -> None:
    text = "sep=;\n8080;host;80\n"
    assert [line_of(rule) for rule in good(text)] == [2]
    assert parse(text.encode()).notices == (Notice(1, 0, "cells are separated by semicolons"),)
    assert bad("sep=|\n8080,host,80") == ['1:1: cells are separated by commas, semicolons or tabs, not by "|"']


# --- anything ---


@given(st.binary(), st.sampled_from([b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"sep="]))
@settings(max_examples=1000, deadline=None)
def test_nothing_is_raised(data: bytes, start: bytes) -> None:
    _, problems, notices, _ = parse(start + data)
    for remark in (*problems, *notices):
        assert remark.message.isascii()
        assert remark.message.isprintable()


@given(st.text('08abx;;;,\t:[]"#=\n\r é\0'))
@settings(max_examples=1000, deadline=None)
def test_nothing_is_raised_for_any_separator(text: str) -> None:
    _, problems, notices, _ = parse(text.encode("utf-16"))
    assert all(remark.message.isprintable() for remark in (*problems, *notices))
