"""Configuration text, as an operator or an accident writes it, against rules and problems."""

import contextlib
import subprocess
import sys
import time
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.config.lines import line_of
from veillink.config.options import OPTIONS, Option
from veillink.config.rows import MAX_FILE, MAX_LINE, MAX_PROBLEMS, MAX_ROWS, Problem
from veillink.config.rules import Parsed, parse
from veillink.config.values import parse_host
from veillink.model import Address, Rule, RuleOptions, RuleSet, Target


def good(text: str | bytes) -> tuple[Rule, ...]:
    """Return the rules of a text without problems."""
    found, problems, *_ = parse(text if isinstance(text, bytes) else text.encode())
    assert problems == ()
    return found.rules


def bad(text: str | bytes) -> list[str]:
    """Return the problems of a text, as ``line:column: message``."""
    problems = parse(text if isinstance(text, bytes) else text.encode()).problems
    return [problem.at("").removeprefix(":") for problem in problems]


def lines(text: str) -> list[int]:
    """Return the lines of the rules of a text, faulty or not."""
    return [line_of(rule) for rule in parse(text.encode())[0].rules]


PLAIN = Rule("8080", Address("", 8080), 1, (Target(Address("host", 80)),))


# --- the file ---


@pytest.mark.parametrize(
    "text",
    [
        b"8080,host,80",
        b"8080,host,80\n",
        b"8080,host,80\r\n",
        b"8080,host,80\r",
        b"\xef\xbb\xbf8080,host,80\n",
        b"\xef\xbb\xbf\n8080,host,80\n",
        b'"8080","host","80"\n',
        b'"8080" , "host",80\n',
        b' "8080"\t,\t"host" , 80 \n',
        b" 8080 ,\thost\t, 80 \n",
        b"8080,host,80,,,\n",
        b"8080,HOST,80\n",
        b"\n\r\n\r# comment\n \t \n  # comment, with, commas\n,,,\n , \n8080,host,80\n",
        b"listen,host,port\n8080,host,80\n",
        b"# comment\n\n Listen_port , forward host,forward-port\n8080,host,80\n",
        b'"listen","host","port"\n8080,host,80\n',
        b"port\n8080,host,80\n",
        "a,überschrift,x\n8080,host,80".encode(),
        b'"# note: ""old"", x"\n" #" no cell\n8080,host,80',
        "# Büro\n8080,host,80".encode("latin-1"),
        b"# \0\n8080,host,80",
        b"#".ljust(MAX_LINE + 1, b"#") + b"\n8080,host,80",
        b"8080;host;80",
        b"8080\thost\t80\t\t",
        b'sep=;\r\n"8080" ; "host" ;80',
        b'"SEP=\t"\n8080\thost\t80\n',
        b"sep=,\n8080,host,80",
        b";;;\n# comment;\n8080;host;80\n",
        "\ufeff8080,host,80\r\n".encode("utf-16-le"),
        "\ufeff# ü,😀\n8080\thost\t80\r".encode("utf-16-be"),
    ],
)
def test_one_plain_row_however_it_is_written(text: bytes) -> None:
    assert good(text) == (PLAIN,)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_count_lines(end: str) -> None:
    assert [line_of(rule) for rule in good(f"# c{end}8080,a,80{end}{end}8081,b,80{end}8082,c,80")] == [2, 4, 5]


def test_line_ends_may_be_mixed() -> None:
    assert [line_of(rule) for rule in good("1,a,80\r2,b,80\r\n3,c,80\n\r4,d,80")] == [1, 2, 3, 5]


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_nothing_else_ends_a_line(char: str) -> None:
    assert lines(f"1,a,80,name=x{char}2,b,80\n3,c,80") == [2]


def test_nothing_is_no_rule_and_no_problem() -> None:
    assert parse(b"") == parse(b"\xef\xbb\xbf") == parse(b"\n,\n#\n") == Parsed()


def test_bytes_that_are_not_utf8_cost_their_row_only() -> None:
    text = "1,a,80\n2,bücher.example,80\n3,c,80\n".encode("latin-1")
    assert bad(text) == ["2:1: not UTF-8: byte 4 of the line is 0xfc"]
    assert [line_of(rule) for rule in parse(text)[0].rules] == [1, 3]


def test_a_long_line_costs_its_row_only() -> None:
    fits = "2,b,80".ljust(MAX_LINE)
    text = f"1,a,80\n{fits}\n{fits} \n4,d,80\n"
    assert lines(text) == [1, 2, 4]
    assert bad(text) == ["3:1: the line is longer than 64 KiB"]


def test_a_large_file_is_refused() -> None:
    row = b"1,a,80\n"
    assert good(row.ljust(MAX_FILE, b"\n"))
    for end in (b"\n", b" ", b"#"):
        assert parse(row.ljust(MAX_FILE + 1, end)) == Parsed(
            problems=(Problem(0, 0, "the file is larger than 16 MiB"),)
        )


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_too_many_rows_are_refused(end: bytes) -> None:
    assert good(b"1,a,80" + end + b"#" + (end + b"#") * (MAX_ROWS - 2) + end)
    refused = Parsed(problems=(Problem(0, 0, "the file has more than 65536 lines"),))
    assert parse(b"1,a,80" + end + b"#" + (end + b"#") * (MAX_ROWS - 1)) == refused
    assert parse(end * MAX_ROWS + b"1,a,80") == refused


def test_refusing_is_quick_and_small() -> None:
    code = """
import time
from veillink.config.rows import MAX_FILE
from veillink.config.rules import parse
rows = b"".join(b"%d,host,80\\n" % (n % 60000 + 1) for n in range(100_000))
utf16 = b"\\xff\\xfe" + b"8\\0,\\0" * (MAX_FILE // 4 - 1)
long = b"\\r\\n" * 65_000 + b"x," * 8_000_000
for data in (rows, utf16, b"x" * MAX_FILE, b"\\n" * MAX_FILE, b"x" * (MAX_FILE + 1), long):
    found, problems, *_ = parse(data)
    assert not found.rules
    assert len(problems) <= 1
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kib, seconds = map(float, done.stdout.split())
    assert kib < 200 * 1024
    assert seconds < 5


def test_a_wrong_file_does_not_list_problems_for_ever() -> None:
    found, problems, *_ = parse(b"7,host,80\n" + b"a,b,c,d,e\n" * 20_000 + b"8,host,80\n")
    assert len(problems) == MAX_PROBLEMS
    assert problems[-1].message == "no more than 10000 problems are listed"
    assert [line_of(rule) for rule in found.rules] == [1, 20_002]


# --- cells ---


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ('"8080,host,80', 1),
        ('8080,"host,80', 2),
        ('8080,host,"80', 3),
        ('8080,host,"80""', 3),
        ('8080,host,"80"80', 3),
        ('8080,host,"80" 80', 3),
        ('8080,host,8"0', 3),
        ('8080,host,80"', 3),
        ('8080,host,80 "80"', 3),
        ('80"80",host,80', 1),
        ('8080,host,80,name="x"', 4),
        ('8080,host,80,"name=x" y', 4),
        ('8080,host,80,"' + " " * 60_000, 4),
        ('8080,host,80,"' + '""' * 30_000, 4),
        ("8080,host,80," + " " * 60_000 + 'x"', 4),
    ],
)
def test_a_faulty_quote_costs_its_line_only(text: str, column: int) -> None:
    text = f'{text}\n8081,"host",80\n'
    assert bad(text) == [f"1:{column}: a quote is not closed, or there is text beside a quoted cell"]
    assert lines(text) == [2]


def test_quoted_cells_may_hold_commas_and_quotes() -> None:
    assert good('8080,host,80,"name=a, ""b"" = c"')[0].name == 'a, "b" = c'


@pytest.mark.parametrize(("text", "column"), [("8080", 1), ("8080,host", 2), ('"8080" ', 1), ("8080;host", 1)])
def test_too_few_cells(text: str, column: int) -> None:
    assert bad(text) == [f"1:{column}: a row begins with three cells: listen,host,port"]


@pytest.mark.parametrize("before", ["8080,host,80\n", "listen,host,port\n", "70000,host,80\n"])
def test_only_the_first_row_is_a_header(before: str) -> None:
    assert bad(f"{before}listen,host,80")[-1].startswith('2:1: port "listen" is not a number')


# --- listen ---


@pytest.mark.parametrize(
    ("cell", "listen", "ports"),
    [
        ("8080", Address("", 8080), 1),
        ("1", Address("", 1), 1),
        ("65535", Address("", 65535), 1),
        ("127.0.0.1:8080", Address("127.0.0.1", 8080), 1),
        ("0.0.0.0:8080", Address("0.0.0.0", 8080), 1),
        ("[::]:8080", Address("::", 8080), 1),
        ("[::1]:8080", Address("::1", 8080), 1),
        ("[0:0::0:1]:8080", Address("::1", 8080), 1),
        ("*:8080", Address("", 8080), 1),
        ("*:8000-8001", Address("", 8000), 2),
        ("[2001:DB8::A]:8080", Address("2001:db8::a", 8080), 1),
        ("[fe80::1%eth0.1]:8080", Address("fe80::1%eth0.1", 8080), 1),
        ("[::ffff:127.0.0.1]:8080", Address("127.0.0.1", 8080), 1),
        ("8000-8010", Address("", 8000), 11),
        ("1-65535", Address("", 1), 65535),
        ("127.0.0.1:8000-8001", Address("127.0.0.1", 8000), 2),
        ("[::1]:8000-8001", Address("::1", 8000), 2),
    ],
)
def test_listen(cell: str, listen: Address, ports: int) -> None:
    (rule,) = good(f"{cell},host,80")
    assert (rule.name, rule.listen, rule.ports) == (cell, listen, ports)


NOT_PORTS = [
    "0",
    "-1",
    "65536",
    "99999",
    "1e3",
    "0x50",
    "８０",
    "8٠",
    "8_0",
    "+80",
    "080",
    "9" * 20,
    "8 0",
    "80.",
    "٣",
    "x",
    "-",
]


@pytest.mark.parametrize("port", [*NOT_PORTS, "80-", "-80", "1-2-3", "80--90"])
def test_not_a_port(port: str) -> None:
    for row in (f"1\n{port},host,80", f"1\n127.0.0.1:{port},host,80", f"1\n8080,host,{port}"):
        first, problem = bad(row)
        assert first.startswith("1:1: a row")
        assert problem.startswith(("2:1: ", "2:3: "))
        assert problem.isascii()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("8080,host,70000", '1:3: port "70000" is not between 1 and 65535'),
        ("8080,host,-1", '1:3: port "-1" is not between 1 and 65535'),
        ("8080,host,080", '1:3: port "080" is not a number from 1 to 65535 in plain digits'),
        ("8080,host,", '1:3: port "" is not a number from 1 to 65535 in plain digits'),
        ("127.0.0.1:0,host,80", '1:1: port "0" is not between 1 and 65535'),
        ("8010-8000,host,80", '1:1: range "8010-8000" does not go up'),
        ("8000-8000,host,80", '1:1: range "8000-8000" does not go up'),
        ("8000-65536,host,80", '1:1: port "65536" is not between 1 and 65535'),
        ("127.1:80,host,80", '1:1: "127.1" is not an IP address'),
        ("127.0.0.01:80,host,80", '1:1: "127.0.0.01" is not an IP address'),
        ("[::g]:80,host,80", '1:1: "::g" is not an IP address'),
        ("unix:run/x,host,80", '1:1: "unix:run/x" is not unix: and an absolute path'),
        ("8080,unix:/run/x,80", '1:3: a UNIX socket has no port: "80" has to go, and the cell stays empty'),
        ("8080,host,80,retries=1001", '1:4: retries: "1001" is not a whole number from 0 to 1000'),
        ("8080,host,80,health=http", '1:4: health: "http" is not one of off, tcp, tls'),
        ("8080,host,80,socket_mode=999", '1:4: socket_mode: "999" is not a mode of three octal digits, like 0660'),
        ("8080,host,80,health_interval=50ms", '1:4: health_interval: "50ms" is less than 100ms'),
        ("8080,host,9000-9001", '1:3: range "9000-9001" has 2 ports, but listen has 1'),
        ("8000-8010,host,9000-9009", '1:3: range "9000-9009" has 10 ports, but listen has 11'),
    ],
)
def test_problem(text: str, problem: str) -> None:
    assert bad(text) == [problem]


@pytest.mark.parametrize(
    "cell",
    [
        "::1:80",
        "::1",
        "[::1]",
        "[::1]80",
        "[127.0.0.1]:80",
        "[]:80",
        "::80",
        ":80",
        "**:80",
        "*:",
        "localhost:80",
        "80:",
        "[::1:80",
    ],
)
def test_what_is_no_listen_address_is_told_the_forms(cell: str) -> None:
    (problem,) = bad(f"1,host,80\n{cell},host,80")
    assert (
        problem
        == f'2:1: listen "{cell}" is not PORT (on every address), IPV4:PORT, [IPV6]:PORT (in brackets) or unix:/PATH'
    )


# --- host and port ---


@pytest.mark.parametrize(
    ("cell", "host", "is_name"),
    [
        ("10.0.0.1", "10.0.0.1", False),
        ("::1", "::1", False),
        ("[::1]", "::1", False),
        ("2001:0DB8::000A", "2001:db8::a", False),
        ("fe80::1%lo", "fe80::1%lo", False),
        ("[fe80::1%lo]", "fe80::1%lo", False),
        ("::ffff:10.0.0.1", "10.0.0.1", False),
        ("localhost", "localhost", True),
        ("Example.COM", "example.com", True),
        ("example.com.", "example.com.", True),
        ("_srv.a-b.x", "_srv.a-b.x", True),
        ("1.example", "1.example", True),
        ("127.0.0.1.example", "127.0.0.1.example", True),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("BÜCHER.example", "xn--bcher-kva.example", True),
        ("straße.example", "xn--strae-oqa.example", True),
        ("FAẞ.de", "xn--fa-hia.de", True),
        ("_srv.bücher。example", "_srv.xn--bcher-kva.example", True),
        ("xn--e28h.example", "xn--e28h.example", True),
        ("نامه\u200cای.example", "xn--mgba3gch31f060k.example", True),
        ("ｅxample", "example", True),
        ("a" * 63, "a" * 63, True),
        (".".join(["a" * 49] * 5) + ".abc", ".".join(["a" * 49] * 5) + ".abc", True),
        (".".join(["a" * 49] * 5) + ".abc.", ".".join(["a" * 49] * 5) + ".abc.", True),
        ("0xg", "0xg", True),
        ("dead.beef", "dead.beef", True),
    ],
)
def test_host(cell: str, host: str, is_name: bool) -> None:
    (target,) = good(f"8080,{cell},80")[0].targets
    assert target.address == Address(host, 80)
    assert target.address.is_name is is_name


@pytest.mark.parametrize(
    "cell",
    [
        "",
        ".",
        "a" * 64,
        ".".join(["a" * 49] * 5) + ".abcd",
        "a" * 5000,
        "é" * 5000,
        "ho st",
        "a..b",
        ".a",
        "a..",
        "-bad-",
        "-a",
        "a-",
        "a.b-",
        "a.-b",
        "a/b",
        "a@b",
        "a\x1bb",
        "a\u2028b",
        "a\xadb.é.-",
        "[host]",
        "[10.0.0.1]",
        "[::1",
        "::1]",
        "::g",
        "host:80",
        "10.0.0.1:80",
        "fe80::1%",
        "fe80::1%a b",
        "fe80::1%" + "x" * 16,
        "fe80::1%a%b",
        "::1%lo",
        "=cmd()",
        "../../etc/passwd",
        "$(id)",
        "%s%n",
        "http://host",
        # spellings that getaddrinfo takes for an address
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f.1",
        "0x7f000001",
        "0X7F000001",
        "1.0x",
        "127.0.0.1.",
        "1.2.3.256",
        "1.2.3.4.5",
        "１２７.0.0.1",
        "127。0。0。1",
    ],
)
def test_not_a_host(cell: str) -> None:
    found, (problem,), *_ = parse(f"8080,{cell},80\n8081,host,80".encode())
    assert (problem.line, problem.column) == (1, 2)
    assert problem.message.isascii()
    assert problem.message.isprintable()
    assert len(problem.message) < 500
    assert [line_of(rule) for rule in found.rules] == [2]


@pytest.mark.parametrize("cell", ["😀.example", "a\u200db.example", "xn--é.example", "é-.example", "אa.example", "ﷺ.x"])
def test_what_idna_2008_refuses_is_refused(cell: str) -> None:
    shown = cell.encode("unicode_escape").decode()
    assert bad(f"8080,{cell},80") == [f'1:2: host "{shown}" is no host name that IDNA 2008 allows (RFC 5891)']


@given(st.text(st.characters(exclude_characters=',"\r\n\0', exclude_categories=["Cs"])))
@settings(max_examples=1000, deadline=None)
def test_any_text_is_a_host_or_is_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_host(text).isascii() or text.startswith("unix:")


def test_a_range_is_mapped_one_to_one_or_onto_one_port() -> None:
    spread, fixed = good("8000-8010,host,9000-9010\n7000-7010,host,9000")
    assert spread.targets == (Target(Address("host", 9000)),)
    assert spread.targets[0].at(10) == Address("host", 9010)
    assert fixed.targets == (Target(Address("host", 9000), fixed=True),)
    assert fixed.targets[0].at(10) == Address("host", 9000)
    assert len(list(spread.listens())) == 11


# --- problems ---


def test_every_problem_is_reported_in_order() -> None:
    text = (
        "listen,name\n70000,-bad-,99999,wieght=3,weight=x,backup\n8080,127.0.0.1,8080\n1,h\n8081,h,80\n8081,h,80\n,h,80"
    )
    problems = parse(text.encode())[1]
    places = [(problem.line, problem.column) for problem in problems]
    assert places == [(2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6), (3, 2), (4, 2), (6, 2), (7, 1)]
    assert lines(text) == [5]


def test_a_problem_names_its_place() -> None:
    problem = Problem(12, 3, 'port "70000" is not between 1 and 65535')
    assert problem.at("config.csv") == 'config.csv:12:3: port "70000" is not between 1 and 65535'
    assert Problem(0, 0, "message").at("config.csv") == "config.csv: message"


@pytest.mark.parametrize(
    "nasty", ["\x1b[31m", "\u2028\u2029\x85", "\x7f", '""', "\\", "\u202e", "x" * 10_000, "😀" * 10_000]
)
@pytest.mark.parametrize("row", ["{},host,80", "8080,{}/,80", "8080,host,{}", "8080,host,80,{}", "8080,host,80,{}=1"])
def test_text_of_the_file_is_escaped_and_cut(row: str, nasty: str) -> None:
    cell = row.format(nasty).replace('""', '\\"')
    for problem in bad(f"1,host,80\n{cell}"):
        assert problem.isascii()
        assert problem.isprintable()
        assert len(problem) < 1100
    assert bad(f"1,host,80\n{cell}")


def test_a_cut_is_shown() -> None:
    assert bad("8080,host," + "9" * 41) == [f'1:3: port "{"9" * 40}..." is not between 1 and 65535']
    assert bad("8080,host," + "9" * 40) == [f'1:3: port "{"9" * 40}" is not between 1 and 65535']


def test_a_quote_in_the_text_cannot_end_the_quotation() -> None:
    assert bad('8080,"a""b",80') == [r'1:2: host "a\"b" is neither an IP address nor a host name']


# --- options ---


def test_options() -> None:
    (rule,) = good(
        "8080,a,80,name= our = shop ,weight=0,backup = yes,idle_timeout=5m\n"
        "8080,b,80,,backup=no,,connect_timeout=250ms,idle_timeout=300s,keepalive=0,name=our = shop"
    )
    assert rule.name == "our = shop"
    assert rule.targets == (Target(Address("a", 80), weight=0, backup=True), Target(Address("b", 80)))
    assert rule.options == RuleOptions(connect_timeout=0.25, idle_timeout=300, keepalive=0)


def test_options_given_nowhere_have_the_defaults() -> None:
    defaults = RuleOptions(1, 2, 3, 4, 5, 6)
    one, two = parse(b"1,h,80\n2,h,80,max_lifetime=9s", defaults)[0].rules
    assert one.options == defaults
    assert two.options == RuleOptions(1, 2, 3, 9, 5, 6)


def test_header_columns_are_options() -> None:
    text = (
        "listen_port,forward_ip,forward_port,name,,weight\n"
        '8080,a,80,"x=1, y",backup=yes,5,idle_timeout=1s\n'
        "8081,b,80,,,,\n"
        "8082,c,80\n"
    )
    one, two, three = good(text)
    assert (one.name, one.options.idle_timeout) == ("x=1, y", 1)
    assert one.targets == (Target(Address("a", 80), weight=5, backup=True),)
    assert (two.name, three.name) == ("8081", "8082")


def test_a_faulty_header_column_is_ignored() -> None:
    text = "listen,host,port,wieght,weight,weight,Name\n8080,a,80,x,7,y,z"
    (rule,) = parse(text.encode())[0].rules
    assert rule.targets[0].weight == 7
    assert bad(text) == [
        '1:4: unknown option "wieght"; did you mean weight?',
        "1:6: weight is given twice",
        '1:7: unknown option "Name"; did you mean name?',
    ]


@pytest.mark.parametrize(
    ("cells", "column", "part"),
    [
        ("weight", 4, '"weight" is not option=value'),
        ("=5", 4, 'unknown option ""; there are name,'),
        (",colour=red", 5, 'unknown option "colour"; there are name, weight, backup,'),
        ("weight=1,weight=1", 5, "weight is given twice"),
        ("weight=", 4, 'weight: "" is not a whole number from 0 to 1000'),
        ("weight=1001", 4, "weight: "),
        ("weight=-1", 4, "weight: "),
        ("weight=01", 4, "weight: "),
        ("weight=1.5", 4, "weight: "),
        ("weight=５", 4, "weight: "),
        ("weight=" + "1" * 5000, 4, "weight: "),
        ("backup=true", 4, 'backup: "true" is not yes or no'),
        ("backup=", 4, "backup: "),
        ("name=", 4, 'name: "" is not 1 to 100 printable characters'),
        ("name=a\x1bb", 4, "name: "),
        ("name=a\tb", 4, "name: "),
        ("name=a\u2028b", 4, "name: "),
        ("name=" + "x" * 101, 4, "name: "),
        ("idle_timeout=5", 4, 'idle_timeout: "5" is not a duration: write 250ms, 5s, 2m, 1h or 0'),
        ("keepalive=999ms", 4, 'keepalive: "999ms" is not between 1s and 9h, nor 0'),
        ("keepalive=10h", 4, "keepalive: "),
        ("retry_interval=9ms", 4, 'retry_interval: "9ms" is less than 10ms'),
        ("dns_refresh=0", 4, 'dns_refresh: "0" is less than 1s'),
        ("dns_refresh=999ms", 4, "dns_refresh: "),
    ],
)
def test_faulty_options(cells: str, column: int, part: str) -> None:
    text = f"8080,host,80,{cells}\n8081,host,80"
    (problem,) = bad(text)
    assert problem.startswith(f"1:{column}: {part}")
    assert lines(text) == [2]


@pytest.mark.parametrize(
    "cell",
    [
        "weight=1000",
        "weight=0",
        "name=" + "é" * 100,
        "keepalive=9h",
        "keepalive=1s",
        "dns_refresh=1s",
        "retry_interval=10ms",
    ],
)
def test_the_edges_of_options_are_in(cell: str) -> None:
    assert good(f"8080,host,80,{cell}")


def test_a_faulty_value_in_a_named_column_is_placed_there() -> None:
    assert bad("l,h,p,weight\n1,h,80,weight=3") == ['2:4: weight: "weight=3" is not a whole number from 0 to 1000']


# --- rows with one listen cell ---


def test_rows_with_one_listen_address_are_one_rule() -> None:
    text = "[0::1]:80,a,80\n8080,b,80\n[::1]:80,c,80,name=x\n[::1]:80,a,81"
    one, two = good(text)
    assert (one.name, one.listen, line_of(one)) == ("x", Address("::1", 80), 1)
    assert [str(target.address) for target in one.targets] == ["a:80", "c:80", "a:81"]
    assert (two.name, line_of(two)) == ("8080", 2)


def test_rows_that_disagree_name_both_lines() -> None:
    text = (
        "1,a,80,name=x\n1,b,80,idle_timeout=5s\n1,c,80,name=y,idle_timeout=5s\n1,d,80,,name=x,idle_timeout=6s\n1,e,80"
    )
    assert bad(text) == ["3:4: name is not the same as in line 1", "4:6: idle_timeout is not the same as in line 2"]
    (rule,) = parse(text.encode())[0].rules
    assert [target.address.host for target in rule.targets] == ["a", "b", "e"]


def test_a_refused_row_leaves_no_option_behind() -> None:
    text = "1,a,80\n1,a,80,idle_timeout=5s\n1,b,80,idle_timeout=6s"
    assert bad(text) == ["2:2: the same target as in line 1"]
    assert parse(text.encode())[0].rules[0].options.idle_timeout == 6


@pytest.mark.parametrize(("one", "two"), [("host", "HOST"), ("::1", "[0::1]"), ("10.0.0.1", "::ffff:10.0.0.1")])
def test_a_target_twice_in_one_rule_names_both_lines(one: str, two: str) -> None:
    text = f"8080,{one},80\n8081,{one},80\n8080,{two},80,weight=2"
    assert bad(text) == ["3:2: the same target as in line 1"]
    assert lines(text) == [1, 2]


# --- time ---

RING = [f"{n},127.0.0.1,{n % 10_000 + 1}" for n in range(1, 10_001)]


@pytest.mark.alone
@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        (RING[:-1], 0),
        (RING[-2::-1], 0),
        (RING, 1),
        (RING[::-1], 1),
        ([f"{n},127.0.0.1,{n + 1}" for n in range(1, 5001)] + [f"{n},::1,{n - 1}" for n in range(2, 5001)], 4999),
        ([f"80,127.0.{n // 250}.{n % 250 + 1},81" for n in range(10_000)], 0),
        ([f"127.0.{n // 250}.{n % 250 + 1}:80,host,81" for n in range(10_000)], 0),
        (["2-9001,127.0.0.1,9002-18001", "9002-18001,127.0.0.1,1-9000"], 0),
        (["1-9000,127.0.0.1,2-9001", "9001,127.0.0.1,1"], 1),
        (["1-9000,127.0.0.1,9000"], 1),
        (["8080," + "é" * 30_000 + ",80"] * 250, 250),
    ],
)
def test_time_is_bounded(rows: list[str], problems: int) -> None:
    data = "\n".join(rows).encode()
    started = time.process_time()
    found = parse(data)[1]
    assert time.process_time() - started < 5
    assert len(found) == problems


# --- anything ---


def check(data: bytes) -> None:
    """Check what holds for every input."""
    found, problems, *_ = parse(data)
    assert list(problems) == sorted(problems)
    for problem in problems:
        assert problem.message.isascii()
        assert problem.message.isprintable()
        assert len(problem.message) < 1100
    assert parse(write(found)) == Parsed(found)


def write(found: RuleSet) -> bytes:
    """Write rules as the file that they could have come from."""
    return "".join(f"{row}\n" for rule in found.rules for row in rows_of(rule)).encode()


def written(option: Option, value: object) -> str:
    """Return a value to the millisecond: what is shown to people is shorter."""
    return f"{value * 1000:.0f}ms" if isinstance(value, float) else option.format(value)


def rows_of(rule: Rule) -> list[str]:
    def span(first: int, ports: int) -> str:
        return f"{first}-{first + ports - 1}" if ports > 1 else str(first)

    host = f"[{rule.listen.host}]" if ":" in rule.listen.host else rule.listen.host
    listen = f"{host}:" * bool(host) + span(rule.listen.port, rule.ports)
    name = "name=" + rule.name.replace('"', '""')
    options = [
        f"{option.name}={written(option, getattr(rule.options, option.name))}"
        for option in OPTIONS
        if option.scope == "rule" and option.name != "name"
    ]
    return [
        ",".join(
            [
                listen,
                target.address.host,
                span(target.address.port, 1 if target.fixed else rule.ports),
                f'"{name}"',
                *(
                    f"{option.name}={option.format(getattr(target, option.name))}"
                    for option in OPTIONS
                    if option.scope == "target"
                ),
                *options,
            ]
        )
        for target in rule.targets
    ]


@given(st.binary())
@settings(max_examples=2000, deadline=None)
def test_any_bytes(data: bytes) -> None:
    check(data)


@given(st.lists(st.lists(st.text(), max_size=6), max_size=6), st.sampled_from(["\n", "\r", "\r\n"]))
@settings(max_examples=2000, deadline=None)
def test_any_rows(rows: list[list[str]], end: str) -> None:
    check(end.join(map(",".join, rows)).encode("utf-8", "surrogatepass"))


@given(st.text('0123456789abx,,,.:[]-"#=%\n\r \té\u3002'))
@settings(max_examples=2000, deadline=None)
def test_any_text_of_the_grammar_s_characters(text: str) -> None:
    check(text.encode())


ADDRESSES = ["", "127.0.0.1:", "0.0.0.0:", "[::]:", "[::1]:", "[fe80::1%lo]:", "[::ffff:1.2.3.4]:"]
HOSTS = ["host", "localhost", "bücher.example.", "127.0.0.1", "[::1]", "::", "fe80::1%lo", "10.0.0.1", "127.1"]
VALUES = {
    "name": st.sampled_from(["a", "=", 'x, "y" = z', "\x1b", "é" * 100]),
    "weight": st.integers(0, 1001).map(str),
    "backup": st.sampled_from(["yes", "no", "maybe"]),
}
durations = st.builds(lambda n, unit: f"{n}{unit}", st.integers(0, 100_000), st.sampled_from(["ms", "s", "m", "h"]))
cells = st.sampled_from(OPTIONS).flatmap(
    lambda option: VALUES.get(option.name, durations).map(lambda value: f"{option.name}={value}".replace('"', '""'))
)


@st.composite
def rows(draw: st.DrawFn) -> str:
    """Draw a row that is most often without a problem."""
    first, count = draw(st.integers(1, 30)), draw(st.sampled_from([1, 1, 1, 3]))
    onto = draw(st.integers(1, 30))
    spread = draw(st.booleans()) and count > 1
    listen = draw(st.sampled_from(ADDRESSES)) + (f"{first}-{first + count - 1}" if count > 1 else f"{first}")
    options = draw(st.lists(cells, max_size=2))
    port = f"{onto}-{onto + count - 1}" if spread else f"{onto}"
    return ",".join([listen, draw(st.sampled_from(HOSTS)), port, *(f'"{cell}"' for cell in options)])


@given(st.lists(rows(), max_size=12))
@settings(max_examples=1000, deadline=None)
def test_likely_rows(rows: list[str]) -> None:
    check("\n".join(rows).encode())
    found, problems, *_ = parse("\n".join(rows).encode())
    kept = sum(len(rule.targets) for rule in found.rules)
    assert kept + len({problem.line for problem in problems}) == len(rows)


# --- differences ---


def test_diff() -> None:
    old = RuleSet(good("1,a,80\n2,b,80\n3,c,80\n4-5,d,80\n127.0.0.1:6,e,80"))
    new = RuleSet(good("7,g,80\n3,c,81\n\n1,a,80\n4-6,d,80\n127.0.0.1:9,e,80\n2,b,80,name=x"))
    found = old.diff(new)
    assert [rule.name for rule in found.added] == ["7", "4-6", "127.0.0.1:9"]
    assert [rule.name for rule in found.removed] == ["4-5", "127.0.0.1:6"]
    assert [rule.name for rule in found.changed] == ["3", "x"]
    assert [(rule.name, line_of(rule)) for rule in found.same] == [("1", 4)]
    assert found.changed[0].targets == (Target(Address("c", 81)),)


def test_diff_of_equals_is_nothing() -> None:
    ruleset = RuleSet(good("1,a,80\n2,b,80"))
    assert astuple(ruleset.diff(ruleset))[:3] == ((), (), ())
    assert ruleset.diff(ruleset).same == ruleset.rules
    assert RuleSet().diff(ruleset).added == ruleset.diff(RuleSet()).removed == ruleset.rules
