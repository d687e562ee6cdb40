"""Text for people: one printable line, whatever it holds."""

import pytest

from veillink.text import printable, quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain", "plain"), ("straße", "straße"), ("a\nb", r"'a\nb'"), ("\x1b[2J", r"'\x1b[2J'"), ("", "")],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("8080", '"8080"'),
        ('say "x"', r'"say \"x\""'),
        ("a\tb", r'"a\tb"'),
        ("ß", r'"\xdf"'),
        ("x" * 41, f'"{"x" * 40}..."'),
    ],
)
def test_what_is_quoted_is_short_and_prints(text: str, shown: str) -> None:
    assert quoted(text) == shown
