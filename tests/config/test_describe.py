"""A rule in one line."""

import pytest

from tests.system.harness import HOST
from veillink.config.describe import describe, describe_certificate, options_for_clients
from veillink.config.networks import parse_networks
from veillink.credentials import Certificate, TargetTls
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
        (
            Rule(
                "s",
                Address("", 443),
                1,
                (
                    Target(DB, sni=("*.b.example", "a.example"), target_tls=TargetTls.VERIFY, target_name="host"),
                    Target(DB, target_tls=TargetTls.INSECURE, target_cert="c.pem"),
                ),
                RuleOptions(tls=("a.pem", "b.pem"), alpn=("h2",), tls_min="1.3"),
            ),
            "s: *:443 -> db:5432 sni=*.b.example a.example target_tls=verify target_name=host.,"
            " db:5432 target_tls=insecure target_cert=c.pem tls=a.pem b.pem tls_min=1.3 alpn=h2",
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


@pytest.mark.parametrize(
    ("certificate", "lines"),
    [
        (
            Certificate("a.pem", ("a.example", "192.0.2.1"), "R3", 0.0, 1.8e9),
            ["a.pem: for a.example 192.0.2.1, issued by R3, until 2027-01-15"],
        ),
        (
            Certificate("a.pem", ("a.example",), "R\x1b3", 0.0, 86_400.0, ("others may read its private key",)),
            [
                "'a.pem: for a.example, issued by R\\x1b3, until 1970-01-02'",
                "a.pem: warning: expired on 1970-01-02",
                "a.pem: warning: others may read its private key",
            ],
        ),
        (Certificate("a.pem", doubts=("unfit",)), ["a.pem: a certificate", "a.pem: warning: unfit"]),
    ],
)
def test_a_certificate_says_who_it_is_for_and_what_is_wrong_with_it(certificate: Certificate, lines: list[str]) -> None:
    assert describe_certificate(certificate, 1e9) == lines
