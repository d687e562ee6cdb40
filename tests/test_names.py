"""Names in one spelling, and the pattern that takes them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veillink.names import Routes, normalise

LABEL = "a" * 63
LONGEST = ".".join([LABEL, LABEL, LABEL, "a" * 61])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.example", "a.example"),
        ("A.Example", "a.example"),
        ("a.example.", "a.example"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_a.b_.example", "_a.b_.example"),
        ("-a.b-.example", "-a.b-.example"),  # Tumblr and YouTube have had such names
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        (LONGEST, LONGEST),
        (LONGEST + ".", LONGEST),
    ],
)
def test_a_name_has_one_spelling(text: str, name: str) -> None:
    assert normalise(text) == name
    assert normalise(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        ".a.example",
        "a..example",
        "a.example..",
        "*.a.example",
        "a b.example",
        "a.example\n",
        "a\r\n.example",
        "a\0.example",
        'a".example',
        "a'.example",
        "a\\.example",
        "a/b",
        "[2001:db8::1]",
        "fe80::1%eth0",
        "bücher.example",
        "\u212a.example",  # a Kelvin sign, whose lower case is an ASCII letter
        LABEL + "a",
        "a" + LONGEST,
        "a." * 20_000,
    ],
)
def test_what_is_no_name_is_refused_in_one_short_printable_line(text: str) -> None:
    with pytest.raises(ValueError, match="bad name") as caught:
        normalise(text)
    assert type(caught.value) is ValueError
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


ROUTES = Routes(
    [
        ("example.org", "exact"),
        ("*.example.org", "below"),
        ("a.example.org", "a"),
        ("*.a.example.org", "below a"),
        ("*.b.a.example.org", "below b"),
    ],
    "default",
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("example.org", "exact"),
        ("a.example.org", "a"),
        ("b.example.org", "below"),
        ("c.b.example.org", "below"),
        ("xa.example.org", "below"),
        ("b.a.example.org", "below a"),
        ("d.c.a.example.org", "below a"),
        ("c.b.a.example.org", "below b"),
        ("e.d.c.b.a.example.org", "below b"),
        ("org", "default"),
        ("xexample.org", "default"),
        ("a.example.org.net", "default"),
        ("192.0.2.1", "default"),
        (None, "default"),
    ],
)
def test_an_exact_name_goes_before_the_longest_wildcard_and_that_before_the_default(
    name: str | None, value: str
) -> None:
    assert ROUTES.find(name) == value


def test_a_wildcard_does_not_take_the_name_itself() -> None:
    assert Routes([("*.example.org", 1)], 0).find("example.org") == 0


def test_without_a_default_an_unknown_name_has_nothing() -> None:
    routes = Routes([("a.example", 1)])
    assert [routes.find(name) for name in ("a.example", "b.example", None)] == [1, None, None]


def test_the_order_of_patterns_does_not_matter() -> None:
    patterns = [("a.b.c", 1), ("*.b.c", 2), ("*.c", 3)]
    assert all(
        [routes.find(name) for name in ("a.b.c", "x.b.c", "x.c", "c")] == [1, 2, 3, None]
        for routes in (Routes(patterns), Routes(reversed(patterns)))
    )


NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map(".".join)
PATTERNS = st.tuples(st.sampled_from(["", "*."]), NAMES).map("".join)


@given(st.sets(PATTERNS, max_size=8), NAMES)
@settings(max_examples=200)
def test_it_is_what_a_walk_over_all_patterns_finds(patterns: set[str], name: str) -> None:
    taking = [
        pattern
        for pattern in patterns
        if pattern == name or (pattern.startswith("*") and name.endswith(pattern[1:]) and name != pattern[1:])
    ]
    best = max(taking, key=lambda pattern: (pattern == name, len(pattern)), default=None)
    assert Routes((pattern, pattern) for pattern in patterns).find(name) == best
