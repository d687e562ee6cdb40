"""Tests of cells about TLS."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from veillink.config.tls import (
    file_or,
    format_entries,
    format_name,
    parse_certificates,
    parse_files,
    parse_name,
    parse_patterns,
    parse_protocols,
    parse_version,
)

Parse = Callable[[str], object]


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_files, "off", ()),
        (parse_files, " a.pem\t/etc/b.pem  ", ("a.pem", "/etc/b.pem")),
        (parse_files, "k.pem k.pem", ("k.pem", "k.pem")),
        (parse_files, "./off", ("./off",)),
        (parse_certificates, "b.pem a.pem", ("b.pem", "a.pem")),
        (file_or("off"), "off", ""),
        (file_or("off"), "bücher.pem", "bücher.pem"),
        (file_or("system"), "system", ""),
        (file_or("system"), "ca.pem", "ca.pem"),
        (parse_name, "host", ""),
        (parse_name, "host.", "host"),
        (parse_name, "DB.Example.", "db.example"),
        (parse_name, "2001:DB8::1", "2001:db8::1"),
        (parse_patterns, "off", ()),
        (parse_patterns, "off.", ("off",)),
        (parse_patterns, "b.example *.Example.ORG. A.example", ("*.example.org", "a.example", "b.example")),
        (parse_protocols, "off", ()),
        (parse_protocols, "pass", ("pass",)),
        (parse_protocols, "h2  http/1.1", ("h2", "http/1.1")),
        (parse_protocols, "p" * 255, ("p" * 255,)),
        (parse_version, "1.2", "1.2"),
        (parse_version, "1.3", "1.3"),
    ],
)
def test_a_cell_has_a_value(parse: Parse, text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_files, "", "there is no name of a file; off asks for none"),
        (parse_files, "a\x1b.pem", '"a\\x1b.pem" is no name of a file'),
        (parse_certificates, "a.pem a.pem", '"a.pem" is given twice'),
        (file_or("off"), "", '"" is not the name of one file, without blanks, nor off'),
        (file_or("off"), "a b", '"a b" is not the name of one file, without blanks, nor off'),
        (file_or("system"), "off", '"off" is not the name of one file, without blanks, nor system'),
        (parse_name, "", 'bad name ""'),
        (parse_name, "*.example.org", 'bad name "*.example.org"'),
        (parse_name, "a.example b.example", 'bad name "a.example b.example"'),
        (parse_patterns, "", "there is no name like a.example or *.example.org; off asks for none"),
        (parse_patterns, "a.example off", "off stands alone"),
        (parse_files, "a.pem off", "off stands alone"),
        (parse_patterns, "a.example A.Example.", '"a.example" is given twice'),
        (parse_patterns, "*", '"*" has a star elsewhere than in *. at its beginning'),
        (parse_patterns, "a.*.example", '"a.*.example" has a star elsewhere than in *. at its beginning'),
        (parse_patterns, "*.*.example", '"*.*.example" has a star elsewhere than in *. at its beginning'),
        (parse_patterns, "a*.example", '"a*.example" has a star elsewhere than in *. at its beginning'),
        (parse_patterns, "*.", 'bad name ""'),
        (parse_patterns, "a..example", 'bad name "a..example"'),
        (parse_protocols, "", "there is no protocol like h2 or http/1.1; off asks for none"),
        (parse_protocols, "h2 pass", "pass stands alone"),
        (parse_protocols, "off h2", "off stands alone"),
        (parse_protocols, "h2 h2", '"h2" is given twice'),
        (parse_protocols, "p" * 256, f'"{"p" * 40}..." is not a protocol\'s name of at most 255 ASCII characters'),
        (parse_protocols, "hé", '"h\\xe9" is not a protocol\'s name of at most 255 ASCII characters'),
        (parse_version, "1.1", '"1.1" is not one of 1.2, 1.3'),
        (parse_version, "", '"" is not one of 1.2, 1.3'),
    ],
)
def test_what_is_no_value_is_refused(parse: Parse, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        parse(text)
    assert str(raised.value) == message


ENTRIES = [parse_files, parse_certificates, parse_patterns, parse_protocols]


@pytest.mark.parametrize("parse", [*ENTRIES, parse_name, parse_version, file_or("off"), file_or("system")])
@given(text=st.one_of(st.text(), st.text("ab.* off")))
def test_whatever_the_text_only_a_value_error_of_one_line(parse: Parse, text: str) -> None:
    said = ""
    try:
        parse(text)
    except ValueError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 500


@pytest.mark.parametrize("parse", ENTRIES)
@example("off.")
@given(text=st.text("ab.*/ off"))
def test_what_is_shown_of_entries_reads_as_the_same(parse: Callable[[str], tuple[str, ...]], text: str) -> None:
    try:
        value = parse(text)
    except ValueError:
        return
    assert parse(format_entries(value)) == value


@pytest.mark.parametrize("text", ["host", "host.", "a.example", "HOST"])
def test_what_is_shown_of_a_name_reads_as_the_same(text: str) -> None:
    assert parse_name(format_name(parse_name(text))) == parse_name(text)
