"""UNIX sockets as rows and cells, and as the files that listeners own."""

import pytest

from tests.config.lines import line_of
from tests.config.test_rules import bad, good, lines
from veillink.config.options import OPTIONS
from veillink.config.rules import parse
from veillink.config.values import parse_host, parse_listen
from veillink.model import Address, Rule, Target

LONGEST = "unix:/".ljust(len("unix:") + 107, "x")

loop = pytest.mark.usefixtures("hub")

# --- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell", ["unix:/run/x", "unix:/x", "unix:/run/a b,c.sock", "unix:/run/ä:80", "unix:/run/-", LONGEST]
)
def test_a_unix_socket_is_an_address_without_a_port(cell: str) -> None:
    assert parse_listen(cell) == (Address(cell, 0), 1)
    assert parse_host(cell) == cell
    address = Address(cell, 0)
    assert (address.is_unix, address.is_name, address.path, str(address)) == (True, False, cell[5:], cell)


@pytest.mark.parametrize(
    "cell", ["unix:", "unix:x", "unix:/", "unix:/run/", "unix://", "unix:/.", "unix:/a\tb", "unix:/a\x7f"]
)
def test_what_is_no_path_of_a_socket_is_refused_on_both_sides(cell: str) -> None:
    for parser in (parse_listen, parse_host):
        with pytest.raises(ValueError, match=r"is not unix: and an absolute path$"):
            parser(cell)


@pytest.mark.parametrize("cell", [LONGEST + "x", "unix:/" + "ä" * 54])
def test_the_length_of_a_path_counts_in_bytes(cell: str) -> None:
    for parser in (parse_listen, parse_host):
        with pytest.raises(ValueError, match=r"is longer than 107 bytes$"):
            parser(cell)


@pytest.mark.parametrize("cell", ["UNIX:/run/x", "/run/x", "unix/run/x", "@x"])
def test_only_the_word_unix_makes_a_path(cell: str) -> None:
    with pytest.raises(ValueError, match=r"^(listen|port) .* is not "):
        parse_listen(cell)


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("600", 0o600), ("0777", 0o777), ("000", 0)])
def test_a_mode_is_three_octal_digits(text: str, mode: int) -> None:
    (option,) = (option for option in OPTIONS if option.name == "socket_mode")
    assert option.parse(text) == mode


@pytest.mark.parametrize("text", ["", "66", "0o660", "1660", "00660", "0680", "rw", "６６０", "-660", "0660 1"])
def test_not_a_mode(text: str) -> None:
    (option,) = (option for option in OPTIONS if option.name == "socket_mode")
    with pytest.raises(ValueError, match=r"is not a mode of three octal digits, like 0660$"):
        option.parse(text)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "listen", "target"),
    [
        ("unix:/a,host,80", Address("unix:/a", 0), Address("host", 80)),
        ("8080,unix:/a,", Address("", 8080), Address("unix:/a", 0)),
        ("8080,unix:/a, ", Address("", 8080), Address("unix:/a", 0)),
        ("unix:/a,unix:/b,,", Address("unix:/a", 0), Address("unix:/b", 0)),
        ('"unix:/a,b",unix:/b,""', Address("unix:/a,b", 0), Address("unix:/b", 0)),
    ],
)
def test_a_row_with_a_unix_socket(text: str, listen: Address, target: Address) -> None:
    (rule,) = good(text)
    assert (rule.listen, rule.ports, rule.targets) == (listen, 1, (Target(target),))
    assert rule.name == str(rule.listen) or rule.name == "8080"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("8080,unix:/a", "1:2: a row begins with three cells: listen,host,port"),
        ("8080,unix:/a,80-81", '1:3: a UNIX socket has no port: "80-81" has to go, and the cell stays empty'),
        ("unix:/a,unix:/b,0", '1:3: a UNIX socket has no port: "0" has to go, and the cell stays empty'),
        ("unix:/a,host,", '1:3: port "" is not a number from 1 to 65535 in plain digits'),
        ("unix:/a,host,80-81", '1:3: range "80-81" has 2 ports, but listen has 1'),
        ("unix:/a:80,b,x", '1:3: port "x" is not a number from 1 to 65535 in plain digits'),
        ("unix:/a/,host,80", '1:1: "unix:/a/" is not unix: and an absolute path'),
        ("8080,unix:a,", '1:2: "unix:a" is not unix: and an absolute path'),
        (f"{LONGEST}x,host,80", f'1:1: the path of "{LONGEST[:40]}..." is longer than 107 bytes'),
        (f"8080,{LONGEST}x,", f'1:2: the path of "{LONGEST[:40]}..." is longer than 107 bytes'),
    ],
)
def test_a_faulty_row_with_a_unix_socket(text: str, problem: str) -> None:
    assert problem in bad(text)
    assert lines(f"{text}\nunix:/other,host,80") == [2]


def test_every_port_of_a_range_leads_to_the_one_unix_socket() -> None:
    (rule,) = good("8000-8010,unix:/a,")
    assert [rule.targets[0].at(offset) for _, offset in rule.listens()] == [Address("unix:/a", 0)] * 11


def test_rows_with_the_same_unix_socket_are_one_rule_with_several_targets() -> None:
    (rule,) = good("unix:/a,host,80\nunix:/a,unix:/b,,backup=yes\nunix:/a,unix:/c,,weight=3,socket_mode=0600")
    assert rule.targets == (
        Target(Address("host", 80)),
        Target(Address("unix:/b", 0), backup=True),
        Target(Address("unix:/c", 0), weight=3),
    )
    assert (rule.options.socket_mode, line_of(rule)) == (0o600, 1)


def test_two_rows_of_a_rule_cannot_have_the_same_unix_socket_as_target_nor_two_modes() -> None:
    assert bad("8080,unix:/a,\n8080,unix:/a,") == ["2:2: the same target as in line 1"]
    text = "unix:/a,b,80,socket_mode=0600\nunix:/a,c,80,socket_mode=0660"
    assert bad(text) == ["2:4: socket_mode is not the same as in line 1"]


def test_the_name_of_a_header_in_front_of_unix_rows_is_no_listen_address() -> None:
    (rule,) = good("listen,host,port,socket_mode\nunix:/a,unix:/b,,0666\n")
    assert (rule.listen, rule.options.socket_mode) == (Address("unix:/a", 0), 0o666)


def test_unix_sockets_take_no_ports_and_no_ports_take_them() -> None:
    assert lines("unix:/a,h,1\nunix:/b,h,1\n8080,h,1\n127.0.0.1:8081,h,1\nunix:/ab,h,1") == [1, 2, 3, 4, 5]


def test_a_rule_is_the_same_by_the_path_of_its_socket() -> None:
    old, *_ = parse(b"unix:/a,h,1\nunix:/b,h,1\nunix:/c,h,1\n")
    new, *_ = parse(b"unix:/a,h,1\nunix:/b,unix:/x,\nunix:/d,h,1\n")

    def names(rules: tuple[Rule, ...]) -> list[str]:
        return [rule.name for rule in rules]

    found = old.diff(new)
    assert [names(rules) for rules in (found.added, found.removed, found.changed, found.same)] == [
        ["unix:/d"],
        ["unix:/c"],
        ["unix:/b"],
        ["unix:/a"],
    ]


# --- loops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("unix:/a,unix:/a,", "1:2: forwards to its own listener"),
        ("8080,unix:/a,\nunix:/a,127.0.0.1,8080", "2:2: forwards to its own listener through line 1"),
        ("unix:/a,unix:/b,\nunix:/b,unix:/a,", "2:2: forwards to its own listener through line 1"),
        (
            "unix:/a,localhost,80\n80-81,unix:/b,\nunix:/b,unix:/a,",
            "3:2: forwards to its own listener through line 1, 2",
        ),
        ("unix:/a.,unix:/a.,", "1:2: forwards to its own listener"),
        ("unix:/a/b,unix:/a//b,", "1:2: forwards to its own listener"),
        ("unix:/a/./b,unix:/a/b,", "1:2: forwards to its own listener"),
    ],
)
def test_a_loop_through_a_unix_socket_is_refused(text: str, problem: str) -> None:
    assert bad(text) == [problem]


@pytest.mark.parametrize(
    "text",
    [
        "unix:/a,unix:/b,\nunix:/b,unix:/c,",
        "unix:/a,unix:/A,",
        "unix:/run/a,unix:/a,",
        "unix:/a,unix:/a.,",
    ],
)
def test_what_only_looks_like_a_loop_is_none(text: str) -> None:
    assert good(text)


def test_of_a_rule_with_several_targets_only_the_row_that_closes_the_loop_goes() -> None:
    text = "unix:/a,unix:/b,\nunix:/a,host,80\nunix:/b,unix:/a,\nunix:/b,host,81"
    assert bad(text) == ["3:2: forwards to its own listener through line 1"]
    found, *_ = parse(text.encode())
    assert [len(rule.targets) for rule in found.rules] == [2, 1]
