"""Options that make no sense together, or alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.config.test_rules import bad, good, lines
from veillink.config.rules import parse
from veillink.model import Health, RuleOptions

TO_TARGET = "target_tls=verify"


@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        *(
            (f"443,h,80,{name}=x", [f"1:4: {name} does nothing without tls: add tls=CERTIFICATE.pem, or remove it"])
            for name in ("tls_key", "tls_client_ca", "tls_client_names", "alpn")
        ),
        ("443,h,80,alpn=pass", ["1:4: alpn does nothing without tls: add tls=CERTIFICATE.pem, or remove it"]),
        *(
            (f"443,h,80,{it}=x", [f"1:4: {it} does nothing without target_tls: add target_tls=verify, or remove it"])
            for it in ("target_ca", "target_name", "target_cert", "target_key")
        ),
        (
            "443,h,80,tls_min=1.3",
            ["1:4: tls_min does nothing without tls and target_tls: add one of them, or remove it"],
        ),
        (
            "443,h,80,tls_timeout=5s",
            ["1:4: tls_timeout does nothing without tls and sni: add one of them, or remove it"],
        ),
        ("443,h,80,health=tls", ["1:4: health=tls needs target_tls; health=tcp only connects"]),
        (
            "443,h,80,tls=a b,tls_key=a b c",
            ["1:5: tls_key names 3 files and tls 2: there is no certificate for each key"],
        ),
        (
            "443,h,80,tls=a,tls_client_names=x.example",
            ["1:5: tls_client_names does nothing without tls_client_ca: add that, or remove it"],
        ),
        (
            f"443,h,80,tls=a,alpn=pass\n443,i,80,{TO_TARGET}",
            [
                "1:5: alpn=pass needs target_tls for every target: line 1 has none",
                "2:1: is left out too: tls of line 1, which has a problem, is for this row",
            ],
        ),
        (
            f"443,h,80,{TO_TARGET}\n443,i,80,tls=a,alpn=pass",
            [
                "1:1: is left out too: tls of line 2, which has a problem, is for this row",
                "2:5: alpn=pass needs target_tls for every target: line 2 has none",
            ],
        ),
        (
            f"443,h,80,tls=a,alpn=pass,tls_client_ca=ca,{TO_TARGET}",
            [
                "1:5: alpn=pass cannot be had with tls_client_ca: the target is connected before the client has shown"
                " its certificate"
            ],
        ),
        (
            "443,h,80,target_ca=ca,target_tls=insecure",
            ["1:4: target_ca does nothing with target_tls=insecure, which trusts anybody: write verify, or remove it"],
        ),
        (
            "443,unix:/run/x,,target_tls=verify",
            ["1:4: target_tls=verify needs target_name here, for a UNIX socket has no name to prove"],
        ),
        (
            "443,h,80,target_tls=verify,target_key=k",
            ["1:5: target_key does nothing without target_cert: add that, or remove it"],
        ),
        (
            "443,h,80,sni=a.example,target_tls=verify",
            [
                "1:5: target_tls with sni needs tls: without it the client's own TLS is passed on as it is"
            ],
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_problem_at_its_cell(rows: str, problems: list[str]) -> None:
    assert bad(rows) == problems


@pytest.mark.parametrize(
    "rows",
    [
        "443,h,80,tls=a,tls_key=k,tls_client_ca=c,tls_client_names=n,alpn=h2,tls_min=1.3,tls_timeout=5s",
        "443,h,80,tls_key=off,tls_client_ca=off,tls_client_names=off,alpn=off,tls_min=1.2,tls_timeout=10s,health=off",
        "443,h,80,target_tls=off,target_ca=system,target_name=host,target_cert=off,target_key=off",
        "443,h,80,tls_key=k\n443,i,80,tls=a",
        "443,h,80,tls=a b,tls_key=k",
        "443,h,80,sni=a.example,tls_timeout=5s",
        "443,h,80,target_tls=verify,tls_min=1.3,health=tls",
        "443,h,80,tls_min=1.3\n443,i,80,target_tls=verify",
        "443,h,80,target_tls=verify,health=tls\n443,i,80",
        "443,h,80,tls=a,alpn=pass,target_tls=insecure\n443,i,80,target_tls=verify",
        "443,h,80,target_tls=insecure,target_name=n,target_cert=c,target_key=k",
        "443,unix:/run/x,,target_tls=verify,target_name=a.example",
        "443,unix:/run/x,,target_tls=insecure",
        "unix:/run/x,h,80,tls=a,sni=a.example,target_tls=verify",
        "443,h,80,sni=a.example\n443,i,80,target_tls=verify",
    ],
)
def test_what_makes_sense_is_none(rows: str) -> None:
    assert good(rows)


def test_every_row_that_gives_it_is_refused() -> None:
    text = "443,h,80,tls_key=k\n443,i,80,,tls_key=k\n443,j,80"
    assert [problem.partition(" does")[0] for problem in bad(text)] == ["1:4: tls_key", "2:5: tls_key"]
    assert lines(text) == [3]


def test_what_only_made_sense_by_a_refused_row_is_refused_too() -> None:
    text = "443,h,80,tls=a,tls_key=k l\n443,i,80,alpn=h2\n443,j,80,sni=x.example,target_tls=verify\n443,k,80"
    assert [problem.partition(" ")[0] for problem in bad(text)] == ["1:5:", "2:4:", "3:5:", "4:1:"]


def test_what_the_command_line_says_for_all_rules_is_no_problem_of_one() -> None:
    defaults = RuleOptions(health=Health.TLS, tls_min="1.3", tls_timeout=3)
    assert parse(b"443,h,80\n444,h,80,tls=a", defaults).problems == ()


# --- routes ---


def test_rows_with_the_same_names_are_one_route() -> None:
    (rule,) = good("443,h,80,sni=b.example A.example.\n443,i,80,sni=a.example b.example\n443,h,80\n443,h,80,sni=*.x")
    assert [target.sni for target in rule.targets] == [("a.example", "b.example")] * 2 + [(), ("*.x",)]


@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        (
            "443,h,80,sni=a.example b.example\n443,i,80,,sni=b.example",
            ["2:5: b.example has a route in line 1 already: rows of one route have all names in common"],
        ),
        (
            "443,h,80,sni=*.a.example\n443,i,80\n443,j,80,sni=x *.A.example",
            ["3:4: *.a.example has a route in line 1 already: rows of one route have all names in common"],
        ),
        ("443,h,80,sni=a.example\n444,h,80,sni=a.example b.example", []),
        ("443,h,80,sni=a.example\n443,h,80,sni=*.a.example", []),
        ("443,h,80,sni=a.example\n443,h,80,sni=a.example", ["2:2: the same target as in line 1"]),
        ("443,h,80,sni=a.example\n443,h,8O,sni=b.example\n443,j,80,sni=b.example c.example", ["2:3: port"]),
    ],
)
def test_a_name_has_one_route(rows: str, problems: list[str]) -> None:
    found = bad(rows)
    assert len(found) == len(problems)
    assert all(one.startswith(other) for one, other in zip(found, problems, strict=True))


NAMES = st.lists(st.sampled_from(["a", "b", "*.a", "c"]), min_size=1, max_size=3, unique=True).map(sorted).map(tuple)


@given(st.lists(st.tuples(st.sampled_from("xyz"), NAMES), max_size=8))
@settings(max_examples=200, deadline=None)
def test_in_what_is_left_a_name_has_one_route(rows: list[tuple[str, tuple[str, ...]]]) -> None:
    text = "".join(f"443,{host},80,sni={' '.join(names)}\n" for host, names in rows)
    found, problems, *_ = parse(text.encode())
    routes = {target.sni for rule in found.rules for target in rule.targets}
    names = [name for route in routes for name in route]
    assert len(names) == len(set(names))
    assert sum(len(rule.targets) for rule in found.rules) + len(problems) == len(rows)
