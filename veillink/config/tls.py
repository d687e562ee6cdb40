"""The text of a cell about TLS in, its value out: files, names, protocols.

Rule: an entry that is not accepted raises ``ValueError`` with a message for the operator, and nothing else is raised.
"""

from collections.abc import Callable
from typing import Final

from veillink.names import normalise
from veillink.text import quoted

_OFF: Final = "off"
_PASS: Final = "pass"  # noqa: S105 - no password
_LONGEST_PROTOCOL: Final = 255  # bytes (RFC 7301 section 3.1)
_VERSIONS: Final = ("1.2", "1.3")


def _entries(text: str, missing: str) -> tuple[str, ...]:
    """Return what stands between blanks, or nothing for ``off``.

    A cell without any is refused: one that somebody's template has left empty would be served without TLS.
    """
    entries = tuple(text.split())
    if entries == (_OFF,):
        return ()
    if not entries:
        raise ValueError(f"there is no {missing}; {_OFF} asks for none")
    if _OFF in entries:
        raise ValueError(f"{_OFF} stands alone")
    return entries


def parse_files(text: str) -> tuple[str, ...]:
    """Return the names of files that stand between blanks; ``off`` is none.

    Raises:
        ValueError: one of them is none.
    """
    entries = _entries(text, "name of a file")
    for entry in entries:
        if not entry.isprintable():
            raise ValueError(f"{quoted(entry)} is no name of a file")
    return entries


def parse_certificates(text: str) -> tuple[str, ...]:
    """Return the names of files, each of which may be given once.

    Raises:
        ValueError: there is none, or one twice.
    """
    return _each_once(parse_files(text))


def file_or(word: str) -> Callable[[str], str]:
    """Return a parser of the name of one file; the word stands for none."""

    def parse(text: str) -> str:
        if text == word:
            return ""
        entries = text.split()
        if len(entries) != 1 or entries == [_OFF] or not text.isprintable():
            raise ValueError(f"{quoted(text)} is not the name of one file, without blanks, nor {word}")
        return entries[0]

    return parse


def parse_name(text: str) -> str:
    """Return a name, or nothing for ``host``; a host of that name is written with a dot at its end.

    Raises:
        ValueError: it is none.
    """
    return "" if text == "host" else normalise(text)


def parse_patterns(text: str) -> tuple[str, ...]:
    """Return, in alphabetical order, the names and wildcards that stand between blanks; ``off`` is none.

    Raises:
        ValueError: one of them is none, or stands there twice.
    """
    entries = _entries(text, "name like a.example or *.example.org")
    return tuple(sorted(_each_once(tuple(map(_pattern, entries)))))


def _pattern(text: str) -> str:
    star, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if "*" in name:
        raise ValueError(f"{quoted(text)} has a star elsewhere than in *. at its beginning")
    return star + normalise(name)


def parse_protocols(text: str) -> tuple[str, ...]:
    """Return the names of protocols that stand between blanks, ``pass`` alone, or none for ``off``.

    Raises:
        ValueError: there is none, or one that no hello can have.
    """
    entries = _each_once(_entries(text, "protocol like h2 or http/1.1"))
    if len(entries) > 1 and _PASS in entries:
        raise ValueError(f"{_PASS} stands alone")
    for entry in entries:
        if not (entry.isascii() and entry.isprintable() and len(entry) <= _LONGEST_PROTOCOL):
            raise ValueError(
                f"{quoted(entry)} is not a protocol's name of at most {_LONGEST_PROTOCOL} ASCII characters"
            )
    return entries


def parse_version(text: str) -> str:
    """Return a version of TLS.

    Raises:
        ValueError: it is none that is spoken.
    """
    if text not in _VERSIONS:
        raise ValueError(f"{quoted(text)} is not one of {', '.join(_VERSIONS)}")
    return text


def _each_once(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        if entries.count(entry) > 1:
            raise ValueError(f"{quoted(entry)} is given twice")
    return entries


def format_entries(entries: tuple[str, ...]) -> str:
    """Return the text of which the parsers of several entries make these."""
    return " ".join(f"{_OFF}." if entry == _OFF else entry for entry in entries) or _OFF  # a name may be that word


def format_name(name: str) -> str:
    """Return the text of which ``parse_name`` makes this."""
    return f"{name}." if name == "host" else name or "host"
