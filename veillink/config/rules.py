"""Rows in, rules and every problem of theirs out.

Rule 1: whatever the bytes, nothing is raised. Rule 2: a row with a problem is left out whole, and the others stay.
"""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import NamedTuple

from veillink.config.combinations import refuse_combinations
from veillink.config.conflicts import (
    Given,
    Group,
    Refused,
    Row,
    gather,
    refuse_loops,
    refuse_names,
    refuse_unprotected,
    standing,
)
from veillink.config.options import OPTIONS
from veillink.config.rows import COMMA, MAX_PROBLEMS, Line, Notice, Problem, Remarks, Rows, is_header
from veillink.config.values import parse_host, parse_listen, parse_ports
from veillink.model import Address, Rule, RuleOptions, RuleSet, Target
from veillink.text import quoted

_DEFAULTS = RuleOptions()
_LONGEST_NAME = 40  # of an option that is compared with the known ones
_OPTION = {option.name: option for option in OPTIONS}


# --- one row ---------------------------------------------------------------------------------------------------------


def _unknown(name: str) -> str:
    near = get_close_matches(name[:_LONGEST_NAME], _OPTION, 1)
    return f"unknown option {quoted(name)}; " + (
        f"did you mean {near[0]}?" if near else f"there are {', '.join(_OPTION)}"
    )


def _header(line: Line, cells: list[str]) -> dict[int, str]:
    """Return the options that the header names, by number of the column; a faulty name leaves an empty one."""
    columns: dict[int, str] = {}
    for column, name in enumerate(cells[3:], 4):
        good = name in _OPTION and name not in columns.values()
        if name and not good:
            line.fault(column, f"{name} is given twice" if name in _OPTION else _unknown(name))
        if name:
            columns[column] = name if good else ""
    return columns


def _options(line: Line, cells: list[str], columns: dict[int, str]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for column, cell in enumerate(cells[3:], 4):
        name, equals, text = cell.partition("=")
        if column in columns:
            name, equals, text = columns[column], "=", cell
        name, text = name.strip(" \t"), text.strip(" \t")
        if not cell or columns.get(column) == "":
            continue
        if not equals:
            line.fault(column, f"{quoted(cell)} is not option=value")
        elif name not in _OPTION:
            line.fault(column, _unknown(name))
        elif name in given:
            line.fault(column, f"{name} is given twice")
        else:
            value = line.attempt(column, _OPTION[name].parse, text, f"{name}: ")
            given[name] = Given(value, line.number, column)
    return given


def _target_ports(line: Line, host: str | None, cell: str) -> range | None:
    if host is None or not Address(host, 0).is_unix:
        return line.attempt(3, parse_ports, cell)
    if cell:
        line.fault(3, f"a UNIX socket has no port: {quoted(cell)} has to go, and the cell stays empty")
    return range(1)


def _row(line: Line, cells: list[str], columns: dict[int, str], refused: list[Refused]) -> Row | None:
    listen = line.attempt(1, parse_listen, cells[0])
    host = line.attempt(2, parse_host, cells[1])
    ports = _target_ports(line, host, cells[2])
    given = _options(line, cells, columns)
    if listen and ports and len(ports) not in (1, listen[1]):
        line.fault(3, f"range {quoted(cells[2])} has {len(ports)} ports, but listen has {listen[1]}")
    if not (line.good and listen and host and ports):
        if listen:
            refused.append(Refused(*listen, line.number, given))
        return None
    own = {name: given.pop(name) for name in list(given) if _OPTION[name].scope == "target"}
    values = {name: option.value for name, option in own.items()}
    target = Target(Address(host, ports.start), fixed=len(ports) < listen[1], **values)
    return Row(line, cells[0], *listen, target, given, own)


def _rows(data: bytes, remarks: Remarks, refused: list[Refused]) -> Iterator[Row]:
    columns: dict[int, str] | None = None
    rows = Rows(remarks)
    for line, cells in rows.read(data):
        if columns is None and is_header(cells):
            line.note("taken as a header")
            columns = _header(line, cells)
            continue
        columns = columns or {}
        if len(cells) < 3:
            between = "" if rows.separator is COMMA else f", with {rows.separator.name} between them"
            line.fault(len(cells), f"a row begins with three cells: listen,host,port{between}")
        elif row := _row(line, cells, columns, refused):
            yield row


# --- all of it -------------------------------------------------------------------------------------------------------


def _rule(group: Group, defaults: RuleOptions, source: str) -> Iterator[Rule]:
    rows, given = standing(group)
    if rows:
        values = {name: option.value for name, option in given.items()}
        name, targets = values.pop("name", rows[0].cell), tuple(row.target for row in rows)
        options = replace(defaults, **values)
        yield Rule(name, rows[0].listen, rows[0].ports, targets, options, origin=f"{source}:{rows[0].line.number}")


class Parsed(NamedTuple):
    """What a configuration file says.

    Args:
        rules: of the rows without a problem.
        problems: all of them, in line order.
        notices: how the file was understood, in line order.
        warnings: of where it stands; said once, at a start.
    """

    rules: RuleSet = RuleSet()
    problems: tuple[Problem, ...] = ()
    notices: tuple[Notice, ...] = ()
    warnings: tuple[str, ...] = ()


def parse(data: bytes, defaults: RuleOptions = _DEFAULTS, source: str = "") -> Parsed:
    """Read a configuration file.

    Args:
        data: the file's bytes; of a longer file ``MAX_FILE + 1`` are enough.
        defaults: what a rule has where no row gives its own.
        source: the file's name.
    """
    remarks = Remarks()
    refused: list[Refused] = []
    groups, taken = gather(_rows(data, remarks, refused))
    refuse_combinations(groups)
    refuse_loops(groups, taken)
    refuse_names(groups)
    refuse_unprotected(groups, refused)
    problems = remarks.problems
    if len(problems) == MAX_PROBLEMS:
        problems[-1] = replace(problems[-1], message=f"no more than {MAX_PROBLEMS} problems are listed")
    rules = RuleSet(tuple(rule for group in groups for rule in _rule(group, defaults, source)))
    return Parsed(rules, tuple(sorted(problems)), tuple(remarks.notices))
