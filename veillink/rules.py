"""Rows in, rules and every problem of theirs out; and how two sets of rules differ.

Rule 1: whatever the bytes, nothing is raised. Rule 2: a row with a problem is left out whole, and the others stay.
Rule 3: of two rows that cannot both stand, the earlier one stays.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from .cells import OPTIONS, parse_host, parse_listen, parse_ports, shown
from .model import Address, Rule, RuleOptions, RuleSet, Target
from .rows import COMMA, MAX_PROBLEMS, Line, Notice, Problem, Remarks, Rows, is_header

MAX_LISTENERS = 65_536  # ports that all rules together listen on

_DEFAULTS = RuleOptions()
_LONGEST_NAME = 40  # of an option that is compared with the known ones
_OPTION = {option.name: option for option in OPTIONS}


# --- one row ---------------------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    value: Any  # what the option's parser returned
    line: int
    column: int


class _Row(NamedTuple):
    line: Line
    cell: str
    listen: Address
    ports: int
    target: Target
    given: dict[str, _Given]  # the options of the rule


def _unknown(name: str) -> str:
    near = get_close_matches(name[:_LONGEST_NAME], _OPTION, 1)
    return f"unknown option {shown(name)}; " + (
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


def _options(line: Line, cells: list[str], columns: dict[int, str]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for column, cell in enumerate(cells[3:], 4):
        name, equals, text = cell.partition("=")
        if column in columns:
            name, equals, text = columns[column], "=", cell
        name, text = name.strip(" \t"), text.strip(" \t")
        if not cell or columns.get(column) == "":
            continue
        if not equals:
            line.fault(column, f"{shown(cell)} is not option=value")
        elif name not in _OPTION:
            line.fault(column, _unknown(name))
        elif name in given:
            line.fault(column, f"{name} is given twice")
        else:
            value = line.attempt(column, _OPTION[name].parse, text, f"{name}: ")
            given[name] = _Given(value, line.number, column)
    return given


def _target_ports(line: Line, host: str | None, cell: str) -> range | None:
    if host is None or not Address(host, 0).is_unix:
        return line.attempt(3, parse_ports, cell)
    if cell:
        line.fault(3, f"a UNIX socket has no port: {shown(cell)} has to go, and the cell stays empty")
    return range(1)


def _row(line: Line, cells: list[str], columns: dict[int, str]) -> _Row | None:
    listen = line.attempt(1, parse_listen, cells[0])
    host = line.attempt(2, parse_host, cells[1])
    ports = _target_ports(line, host, cells[2])
    given = _options(line, cells, columns)
    if listen and ports and len(ports) not in (1, listen[1]):
        line.fault(3, f"range {shown(cells[2])} has {len(ports)} ports, but listen has {listen[1]}")
    if not (line.good and listen and host and ports):
        return None
    of_target = {name: given.pop(name).value for name in list(given) if _OPTION[name].scope == "target"}
    target = Target(Address(host, ports.start), fixed=len(ports) < listen[1], **of_target)
    return _Row(line, cells[0], *listen, target, given)


def _rows(data: bytes, remarks: Remarks) -> Iterator[_Row]:
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
        elif row := _row(line, cells, columns):
            yield row


# --- rows together ---------------------------------------------------------------------------------------------------

# A listener takes its ports under some hosts, and must not find them taken under some others: each conflict is found
# in one look-up, however many addresses there are. *4 and *6 are any address of the family; no host is spelled so.
_TAKES = {"": ("0.0.0.0", "::", "*4", "*6"), "0.0.0.0": ("0.0.0.0", "*4"), "::": ("::", "*6")}
_EXCLUDES = {"": ("*4", "*6"), "0.0.0.0": ("*4",), "::": ("*6",)}


@dataclass(slots=True, eq=False)
class _Group:
    """The rows of one rule, by target, and the options they agree on."""

    first: _Row
    rows: dict[tuple[Address, bool], _Row] = field(default_factory=dict)
    given: dict[str, _Given] = field(default_factory=dict)

    def add(self, row: _Row) -> None:
        key = (row.target.address, row.target.fixed)
        if key in self.rows:
            row.line.fault(2, f"the same target as in line {self.rows[key].line.number}")
        for name, mine in row.given.items():
            other = self.given.get(name, mine)
            if other.value != mine.value:
                row.line.fault(mine.column, f"{name} is not the same as in line {other.line}")
        if row.line.good:
            self.rows[key] = row
            self.given = row.given | self.given


_Taken = dict[str, dict[int, _Group]]  # by host and port


def _hosts(table: dict[str, tuple[str, ...]], listen: Address, any4: str, any6: str) -> tuple[str, ...]:
    if listen.is_unix:
        return (listen.host,)
    return table.get(listen.host, (listen.host, any6 if ":" in listen.host else any4))


def _take(taken: _Taken, group: _Group) -> None:
    listen, ports = group.first.listen, group.first.ports
    for host in _hosts(_TAKES, listen, "*4", "*6"):
        taken.setdefault(host, {}).update(dict.fromkeys(range(listen.port, listen.port + ports), group))


def _refusal(row: _Row, taken: _Taken, listeners: int) -> str:
    listen, ports = row.listen, range(row.listen.port, row.listen.port + row.ports)
    for host in _hosts(_EXCLUDES, listen, "0.0.0.0", "::"):
        groups = taken.get(host, {})
        port = next((port for port in ports if port in groups), 0)
        if port:
            return f"overlaps with line {groups[port].first.line.number}: port {port} is taken there"
    too_many = listeners + row.ports > MAX_LISTENERS
    return f"with this row the file asks for more than {MAX_LISTENERS} listeners" if too_many else ""


def _gather(rows: Iterable[_Row]) -> tuple[list[_Group], _Taken]:
    groups: dict[tuple[Address, int], _Group] = {}
    taken: _Taken = {}
    listeners = 0
    for row in rows:
        key = (row.listen, row.ports)
        if key not in groups:
            refusal = _refusal(row, taken, listeners)
            if refusal:
                row.line.fault(1, refusal)
                continue
            groups[key] = _Group(row)
            listeners += row.ports
            _take(taken, groups[key])
        groups[key].add(row)
    return list(groups.values()), taken


# --- loops -----------------------------------------------------------------------------------------------------------

_LOCAL4, _LOCAL6 = ("127.0.0.1", "0.0.0.0"), ("::1", "::")
_REACHES = {"localhost": _LOCAL4 + _LOCAL6, "0.0.0.0": _LOCAL4, "::1": _LOCAL6, "::": _LOCAL6}

_Node = tuple[_Group, int]  # one listener: the group, and how far into its range
_Ways = Iterator[tuple[_Row, _Node]]  # the listeners that a listener's connections come to, and by which rows
_Path = dict[_Node, tuple[_Row | None, _Ways]]  # how each listener was come to, and the ways on not yet tried


def _reaches(address: Address) -> tuple[str, ...]:
    """Return the listen hosts that take a connection to the address, as far as can be known without asking DNS."""
    if address.is_unix:
        return (address.host,)
    host = address.host.removesuffix(".")
    if host.startswith("127.") and not address.is_name:
        return (host, "0.0.0.0")
    return _REACHES.get(host, (host,))


def _refuse_loops(groups: list[_Group], taken: _Taken) -> None:
    local = {
        group: [row for row in group.rows.values() if any(map(taken.get, _reaches(row.target.address)))]
        for group in groups
    }

    def ways(node: _Node) -> _Ways:
        group, offset = node
        for row in local[group]:
            address = row.target.at(offset)
            for host in _reaches(address):
                other = taken.get(host, {}).get(address.port)
                if other:
                    yield row, (other, address.port - other.first.listen.port)

    done: set[_Node] = set()
    for group in groups:
        for offset in range(group.first.ports if local[group] else 0):
            _walk((group, offset), ways, done)


def _walk(start: _Node, ways: Callable[[_Node], _Ways], done: set[_Node]) -> None:
    """Go depth first from a listener, refusing a row of each loop (no recursion: a chain has any length)."""
    path: _Path = {start: (None, ways(start))}
    while path:
        here, (_, onward) = next(reversed(path.items()))
        row, there = next(onward, (None, here))
        if row is None:
            done.add(here)
            del path[here]
        elif row.line.good and there in path:
            _break(path, row, there)
        elif row.line.good and there not in done:
            path[there] = row, ways(there)


def _break(path: _Path, closing: _Row, there: _Node) -> None:
    """Refuse the last row of the loop that leads from ``there`` along the path and back, and what hangs on it."""
    nodes = list(path)
    came = [row for row, _ in path.values()]
    loop = {row.line.number: row for row in [*came[nodes.index(there) + 1 :], closing] if row}
    last = loop.pop(max(loop))
    through = ", ".join(map(str, sorted(loop)[:5])) + (f" and {len(loop) - 5} more" if len(loop) > 5 else "")
    last.line.fault(2, "forwards to its own listener" + (f" through line {through}" if loop else ""))
    for node in nodes[came.index(last) if last in came else len(nodes) :]:
        del path[node]


# --- all of it -------------------------------------------------------------------------------------------------------


def _standing(group: _Group) -> tuple[list[_Row], dict[str, _Given]]:
    rows = [row for row in group.rows.values() if row.line.good]
    return rows, {name: option for row in rows for name, option in row.given.items()}


def _refuse_names(groups: list[_Group]) -> None:
    """Two rules of one name would be one in the log and in metrics."""
    taken: dict[str, int] = {}
    for group in groups:
        rows, given = _standing(group)
        if not rows:
            continue
        name, line = given["name"].value if "name" in given else rows[0].cell, rows[0].line.number
        if taken.setdefault(name, line) != line:
            for row in rows:
                column = row.given["name"].column if "name" in row.given else 1
                row.line.fault(column, f"the rule of line {taken[name]} has the same name")


def _rule(group: _Group, defaults: RuleOptions) -> Iterator[Rule]:
    rows, given = _standing(group)
    if rows:
        values = {name: option.value for name, option in given.items()}
        name, targets = values.pop("name", rows[0].cell), tuple(row.target for row in rows)
        options = replace(defaults, **values)
        yield Rule(name, rows[0].listen, rows[0].ports, targets, options, rows[0].line.number)


class Parsed(NamedTuple):
    """What a configuration file says.

    Args:
        rules: of the rows without a problem.
        problems: all of them, in line order.
        notices: how the file was understood, in line order.
    """

    rules: RuleSet = RuleSet()
    problems: tuple[Problem, ...] = ()
    notices: tuple[Notice, ...] = ()


def parse(data: bytes, defaults: RuleOptions = _DEFAULTS) -> Parsed:
    """Read a configuration file.

    Args:
        data: the file's bytes; of a longer file ``MAX_FILE + 1`` are enough.
        defaults: what a rule has where no row gives its own.
    """
    remarks = Remarks()
    groups, taken = _gather(_rows(data, remarks))
    _refuse_loops(groups, taken)
    _refuse_names(groups)
    problems = remarks.problems
    if len(problems) == MAX_PROBLEMS:
        problems[-1] = replace(problems[-1], message=f"no more than {MAX_PROBLEMS} problems are listed")
    rules = RuleSet(tuple(rule for group in groups for rule in _rule(group, defaults)))
    return Parsed(rules, tuple(sorted(problems)), tuple(remarks.notices))


@dataclass(frozen=True, slots=True)
class Diff:
    """How one set of rules differs from an older one; rules are the same by their ``key``.

    Args:
        added: rules that are only in the new set.
        removed: rules that are only in the old set.
        changed: the new form of rules that are in both and differ.
        same: the new form of rules that are in both and do not differ.
    """

    added: tuple[Rule, ...]
    removed: tuple[Rule, ...]
    changed: tuple[Rule, ...]
    same: tuple[Rule, ...]


def diff(old: RuleSet, new: RuleSet, paced: Callable[[Iterable[Rule]], Iterable[Rule]] = iter) -> Diff:
    """Compare two sets of rules, each in its own order.

    Args:
        old: the one set.
        new: the other one.
        paced: goes over thousands of rules and lets others work in between.
    """
    removed = {rule.key: rule for rule in paced(old.rules)}
    added: list[Rule] = []
    changed: list[Rule] = []
    same: list[Rule] = []
    for rule in paced(new.rules):
        was = removed.pop(rule.key, None)
        (added if was is None else same if was == rule else changed).append(rule)
    return Diff(tuple(added), tuple(removed.values()), tuple(changed), tuple(same))
