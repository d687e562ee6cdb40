"""The bytes of a rules' file in, its rows out: encoding, lines, comments, cells, and whether the first row is a header.

Rule: what cannot be read in a line is that line's problem; what was decided for the whole file is said once.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from veillink.config.values import parse_host, parse_listen
from veillink.text import printable, quoted

MAX_FILE = 16 * 1024 * 1024  # bytes
MAX_LINE = 64 * 1024  # bytes
MAX_ROWS = 65_536  # lines of a file, blank ones and comments included
MAX_PROBLEMS = 10_000  # listed: 16 MiB of some other CSV would have millions

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, order=True)
class Remark:
    """What is to be said of a configuration file, and where.

    Args:
        line: from 1; 0 is the file as a whole.
        column: number of the cell in its line, from 1; 0 is the line as a whole.
        message: one short printable line; what it quotes from the file is escaped.
        file: where it stands, if that is another one than the rules' own.
    """

    line: int
    column: int
    message: str
    file: str = ""

    def at(self, file: str) -> str:
        """Return it as the operator reads it: ``config.csv:12:3: port "70000" is not …``."""
        place = "".join(f":{number}" for number in (self.line, self.column) if number)
        return f"{printable(self.file or file)}{place}: {self.message}"


class Problem(Remark):
    """What is wrong, and keeps a row, or a changed file, from being used."""

    __slots__ = ()


class Notice(Remark):
    """How something was understood that could have been meant otherwise; nothing is wrong."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Remarks:
    """What was found so far."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Line:
    """One line of the file, and whether it is good so far."""

    number: int
    remarks: Remarks
    good: bool = True

    def fault(self, column: int, message: str) -> None:
        """Note what is wrong in a cell."""
        self.good = False
        if len(self.remarks.problems) < MAX_PROBLEMS:
            self.remarks.problems.append(Problem(self.number, column, message))

    def note(self, message: str) -> None:
        """Note how the line was understood."""
        self.remarks.notices.append(Notice(self.number, 0, message))

    def attempt(self, column: int, parse: Callable[[str], _T], text: str, prefix: str = "") -> _T | None:
        """Return what ``parse`` makes of a cell; what it refuses is a fault."""
        try:
            return parse(text)
        except ValueError as error:
            self.fault(column, f"{prefix}{error}")
            return None


# --- lines -----------------------------------------------------------------------------------------------------------

_UTF_16: Final = {codecs.BOM_UTF16_LE: codecs.utf_16_le_decode, codecs.BOM_UTF16_BE: codecs.utf_16_be_decode}
_COMMENT: Final = re.compile(rb'[ \t]*(?:"[ \t]*)?#')
_NO_TEXT: Final = "which no text has: save the file as UTF-8, or as UTF-16 with a byte order mark"


def _utf_8(data: bytes) -> bytes:
    """Return a file in UTF-8 and without a byte order mark. What was no character in UTF-16 is none then either."""
    decode = _UTF_16.get(data[:2])
    if decode is None:
        return data.removeprefix(codecs.BOM_UTF8)
    text, used = decode(data[2:], "surrogatepass", False)
    cut_off = "\udc00" if used < len(data) - 2 else ""
    return (text + cut_off).encode(errors="surrogatepass")


def _line_ends(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def _lines(data: bytes, remarks: Remarks) -> list[bytes]:
    """Return the lines of a file in UTF-8, or none and a problem when the file as a whole is refused."""
    if len(data) > MAX_FILE:
        remarks.problems.append(Problem(0, 0, f"the file is larger than {MAX_FILE // 1024 // 1024} MiB"))
        return []
    text = _utf_8(data).rstrip(b"\r\n")
    if _line_ends(text) >= MAX_ROWS:
        remarks.problems.append(Problem(0, 0, f"the file has more than {MAX_ROWS} lines"))
        return []
    return text.splitlines()


def _text(line: Line, raw: bytes) -> str:
    """Return the text of a line, which is empty if nothing is to be read there."""
    if _COMMENT.match(raw):
        return ""
    if len(raw) > MAX_LINE:
        line.fault(1, f"the line is longer than {MAX_LINE // 1024} KiB")
        return ""
    if b"\0" in raw:
        line.fault(1, f"byte {raw.index(0) + 1} of the line is NUL, {_NO_TEXT}")
        return ""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line.fault(1, f"not UTF-8: byte {error.start + 1} of the line is 0x{raw[error.start]:02x}")
        return ""


# --- cells -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Separator:
    """What stands between cells.

    Args:
        char: the character.
        name: as the operator reads it.
        blanks: what may stand around a cell and is no part of it.
        cell: matches one cell and the separator after it.
    """

    char: str
    name: str
    blanks: str
    cell: re.Pattern[str]


def _separator(char: str, name: str, blanks: str) -> Separator:
    # Possessive (++, *+): otherwise one stray quote in a long line costs the square of its length.
    cell = rf'[{blanks}]*+(?:"((?:[^"]++|"")*+)"[{blanks}]*+|([^"{char}]*+))({char}|\Z)'
    return Separator(char, name, blanks, re.compile(cell))


COMMA: Final = _separator(",", "commas", " \t")
_SEPARATORS: Final = (COMMA, _separator(";", "semicolons", " \t"), _separator("\t", "tabs", " "))
_SEP: Final = re.compile(r'"?sep=(.)"?', re.IGNORECASE)


def _split(text: str, separator: Separator) -> tuple[list[str], bool]:
    """Return the cells of a line (RFC 4180 section 2, and blanks around quotes), and whether all could be read."""
    cells: list[str] = []
    match, blanks, end, onward = separator.cell.match, separator.blanks, 0, separator.char
    while onward:
        found = match(text, end)
        if not found:
            return cells, False
        quoted, plain, onward = found.groups()
        cells.append((plain if quoted is None else quoted.replace('""', '"')).strip(blanks))
        end = found.end()
    return cells, True


def _fits(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _is_value(cell: str) -> bool:
    """Return whether a cell was meant as an address or a port, as ``8O80`` was: it has as many digits as letters."""
    digits, letters = sum(map(str.isdigit, cell)), sum(map(str.isalpha, cell))
    if "unix:" in cell or (digits and digits >= letters):
        return True
    return ":" in cell and (_fits(parse_listen, cell) or _fits(parse_host, cell))


def _separator_of(text: str) -> Separator:
    """Return what separates the cells of the first row, and so of all: commas, unless another one fits better.

    It has to make all three cells: one semicolon among commas is a slip.
    """

    def fit(separator: Separator) -> int:
        cells, whole = _split(text, separator)
        return 1 + sum(map(_is_value, cells[:3])) if whole and len(cells) >= 3 else 0

    return max(_SEPARATORS, key=fit)  # the first of those that fit alike


def is_header(cells: list[str]) -> bool:
    """Return whether a file's first row names its columns: any words do, in any language.

    None of them may have been meant as a value. A row in which one cell was mistyped has others that were: where it
    listens, the port of its host, or the path of its UNIX socket.
    """
    return any(cells[:3]) and not any(map(_is_value, cells[:3]))


# --- all of it -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Rows:
    """The rows of a file, one after the other.

    Args:
        remarks: get what is to be said of them.
        separator: of the cells, as the first row has it.
    """

    remarks: Remarks
    separator: Separator = COMMA

    def read(self, data: bytes) -> Iterator[tuple[Line, list[str]]]:
        """Yield every line that has cells, with them, and note what is wrong with others."""
        decided = False
        for number, raw in enumerate(_lines(data, self.remarks), 1):
            line = Line(number, self.remarks)
            text = _text(line, raw)
            if not decided:
                decided = bool(text.strip(" \t,;"))
                if not decided or self._says_only_what_separates(line, text):
                    continue
            cells, whole = _split(text, self.separator)
            if not whole:
                line.fault(len(cells) + 1, "a quote is not closed, or there is text beside a quoted cell")
            elif any(cells):
                yield line, cells

    def _says_only_what_separates(self, line: Line, text: str) -> bool:
        """Find what separates the cells of the first row and of all others; return whether it says nothing else.

        Excel writes such a line, ``sep=;``, and heeds it.
        """
        said = _SEP.fullmatch(text.strip(" "))
        known = {separator.char: separator for separator in _SEPARATORS}
        if said and said[1] not in known:
            line.fault(1, f"cells are separated by commas, semicolons or tabs, not by {quoted(said[1])}")
        self.separator = known.get(said[1], COMMA) if said else _separator_of(text)
        if self.separator is not COMMA:
            line.note(f"cells are separated by {self.separator.name}")
        return said is not None
