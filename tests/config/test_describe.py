"""A rule in one line."""

import pytest

from tests.system.harness import HOST
from veillink.config.describe import describe, options_for_clients
from veillink.config.networks import parse_networks
from veillink.limits import EVERYBODY, Rate
from veillink.model import Address, Rule, RuleOptions, Target

DB = Address("db", 5432)


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        (Rule("8080", Address("", 8080), 1, (Target(DB),)), "8080: *:8080 -> db:5432"),
        (
            Rule("many", Address(HOST, 8000), 11, (Target(DB), Target(Address("::1", 80), fixed=True))),
            "many: 127.0.0.1:8000-8010 -> db:5432-5442, [::1]:80",
        ),
        (
            Rule("b", Address("", 80), 1, (Target(DB, weight=0), Target(DB, weight=3, backup=True))),
            "b: *:80 -> db:5432 weight=0, db:5432 weight=3 backup",
        ),
        (
            Rule(
                "t", Address("", 80), 1, (Target(DB),), RuleOptions(connect_timeout=0, idle_timeout=0.25, keepalive=10)
            ),
            "t: *:80 -> db:5432 connect_timeout=0 idle_timeout=0.25s keepalive=10s",
        ),
    ],
)
def test_a_rule_is_described_in_one_line(rule: Rule, shown: str) -> None:
    assert describe(rule) == shown


def test_what_a_rule_asks_of_clients_is_as_its_row_has_it() -> None:
    options = RuleOptions(
        idle_timeout=5,
        accept_proxy=EVERYBODY,
        allow=parse_networks("10.0.0.0/8 @ours.txt"),
        connection_rate_per_client=Rate(5, 60),
    )
    rule = Rule("b", Address("", 80), 1, (Target(DB),), options)
    assert options_for_clients(rule) == {
        "accept_proxy": "any",
        "allow": "10.0.0.0/8 @ours.txt",
        "connection_rate_per_client": "5/m",
    }
    assert options_for_clients(Rule("b", Address("", 80), 1, (Target(DB),))) == {}
