"""Tests of the nouns."""

import dataclasses

import pytest

from veillink.credentials import Certificate, ClientTls, ServerTls
from veillink.model import Address, End, Ended, Rule, RuleOptions, RuleSet, Target

TARGET = Target(Address("db", 5432))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("127.0.0.1", 80), "127.0.0.1:80"),
        (Address("::1", 80), "[::1]:80"),
        (Address("fe80::1%eth0", 80), "[fe80::1%eth0]:80"),
        (Address("db.example", 80), "db.example:80"),
        (Address("", 80), "*:80"),
    ],
)
def test_an_address_is_shown_as_people_write_it(address: Address, text: str) -> None:
    assert str(address) == text


@pytest.mark.parametrize(
    ("host", "is_name"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("localhost", True),
        ("db.example", True),
        ("1.example", True),
        ("127.0.0.1.example", True),
        ("4.3.2.1.in-addr.arpa.", True),
        ("xn--bcher-kva.example", True),
    ],
)
def test_only_a_host_name_has_to_be_resolved(host: str, is_name: bool) -> None:
    assert Address(host, 80).is_name is is_name


def test_a_target_follows_the_listener_through_the_range() -> None:
    assert [TARGET.at(offset).port for offset in range(3)] == [5432, 5433, 5434]
    assert TARGET.at(2).host == "db"


def test_a_fixed_target_is_the_same_for_the_whole_range() -> None:
    fixed = dataclasses.replace(TARGET, fixed=True)
    assert {fixed.at(offset) for offset in range(3)} == {fixed.address}


@pytest.mark.parametrize(("ports", "expected"), [(1, [(8000, 0)]), (3, [(8000, 0), (8001, 1), (8002, 2)])])
def test_a_rule_listens_on_each_port_of_its_range(ports: int, expected: list[tuple[int, int]]) -> None:
    rule = Rule("web", Address("::1", 8000), ports, (TARGET,))
    assert list(rule.listens()) == [(Address("::1", port), offset) for port, offset in expected]
    for port in range(expected[0][0] - 2, expected[0][0] + 5):
        assert rule.listens_at(Address("::1", port)) == (port in dict(expected))
        assert not rule.listens_at(Address("127.0.0.1", port))


def test_a_rule_that_only_moved_to_another_line_is_the_same() -> None:
    rule = Rule("web", Address("", 80), 1, (TARGET,), origin="config.csv:1")
    moved = dataclasses.replace(rule, origin="config.csv:2")
    assert moved == rule
    assert hash(moved) == hash(rule)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"listen": Address("", 81)},
        {"ports": 2},
        {"targets": (TARGET, Target(Address("db2", 5432)))},
        {"targets": (dataclasses.replace(TARGET, weight=2),)},
        {"targets": (dataclasses.replace(TARGET, backup=True),)},
        {"targets": (dataclasses.replace(TARGET, fixed=True),)},
        {"options": RuleOptions(keepalive=1)},
    ],
)
def test_a_rule_that_differs_in_anything_else_is_another(change: dict[str, object]) -> None:
    rule = Rule("web", Address("", 80), 1, (TARGET,))
    assert dataclasses.replace(rule, **change) != rule  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [Address("", 80), TARGET, RuleOptions(), RuleSet(), Rule("web", Address("", 80), 1, (TARGET,))]
)
def test_nouns_cannot_be_changed(value: object) -> None:
    names = value._fields if isinstance(value, Address) else [field.name for field in dataclasses.fields(value)]  # type: ignore[arg-type]
    for name in names:
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_an_ending_carries_its_reason() -> None:
    ended = Ended(End.CLIENT_RESET, "ECONNRESET")
    assert (ended.end, ended.detail) == (End.CLIENT_RESET, "ECONNRESET")
    assert Ended(End.DRAINED).detail == ""


@pytest.mark.parametrize("end", End)
def test_an_end_is_one_lower_case_word_wherever_it_is_written(end: End) -> None:
    assert f"{end}" == str(end) == end.value == end.name.lower()


def test_the_certificates_of_rules_are_told_once() -> None:
    one, two, three = (Certificate(name) for name in ("a", "b", "c"))
    target = Target(Address("h", 1), tls=ClientTls(b"", certificate=three))
    rules = RuleSet(
        (
            Rule("x", Address("", 1), 1, (Target(Address("h", 1)),), tls=ServerTls(b"", (one, two))),
            Rule("y", Address("", 2), 1, (target, target), tls=ServerTls(b"", (one,))),
        )
    )
    assert rules.certificates == (one, two, three)
