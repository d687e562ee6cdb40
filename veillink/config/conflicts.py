"""Rows together: those of one rule, those that take each other's place, and loops of them.

Rule: of two rows that cannot both stand, the earlier one stays.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from veillink.config.rows import Line
from veillink.model import Address, Target

MAX_LISTENERS = 65_536  # ports that all rules together listen on
PROTECTING = ("tls", "tls_client_ca", "tls_client_names", "allow", "deny", "accept_proxy")
"""Options without which a rule would serve whom it should not."""


class Given(NamedTuple):
    """What a row gives as one of its options."""

    value: Any  # what the option's parser returned
    line: int
    column: int


class Row(NamedTuple):
    """A row that is right by itself."""

    line: Line
    cell: str
    listen: Address
    ports: int
    target: Target
    given: dict[str, Given]  # the options of the rule
    own: dict[str, Given]  # those of the target


# A listener takes its ports under some hosts, and must not find them taken under some others: each conflict is found
# in one look-up, however many addresses there are. *4 and *6 are any address of the family; no host is spelled so.
_TAKES = {"": ("0.0.0.0", "::", "*4", "*6"), "0.0.0.0": ("0.0.0.0", "*4"), "::": ("::", "*6")}


_EXCLUDES = {"": ("*4", "*6"), "0.0.0.0": ("*4",), "::": ("*6",)}


@dataclass(slots=True, eq=False)
class Group:
    """The rows of one rule, by target, and the options they agree on."""

    first: Row
    rows: dict[tuple[Address, bool, tuple[str, ...]], Row] = field(default_factory=dict)
    given: dict[str, Given] = field(default_factory=dict)
    routes: dict[str, Row] = field(default_factory=dict)  # by name
    refused: "list[Refused]" = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Add a row, unless it contradicts those before it."""
        target = row.target
        key = (target.address, target.fixed, target.sni)
        if key in self.rows:
            row.line.fault(2, f"the same target as in line {self.rows[key].line.number}")
        for name, mine in row.given.items():
            other = self.given.get(name, mine)
            if other.value != mine.value:
                row.line.fault(mine.column, f"{name} is not the same as in line {other.line}")
        name = next((name for name in target.sni if self.routes.get(name, row).target.sni != target.sni), "")
        if name:
            other_line = self.routes[name].line.number
            row.line.fault(
                row.own["sni"].column,
                f"{name} has a route in line {other_line} already: rows of one route have all names in common",
            )
        if row.line.good:
            self.rows[key] = row
            self.given = row.given | self.given
            self.routes.update(dict.fromkeys(target.sni, row))
        else:
            self.refused.append(_refused(row))


_Taken = dict[str, dict[int, Group]]  # by host and port


def _hosts(table: dict[str, tuple[str, ...]], listen: Address, any4: str, any6: str) -> tuple[str, ...]:
    if listen.is_unix:
        return (listen.host,)
    return table.get(listen.host, (listen.host, any6 if ":" in listen.host else any4))


def _take(taken: _Taken, group: Group) -> None:
    listen, ports = group.first.listen, group.first.ports
    for host in _hosts(_TAKES, listen, "*4", "*6"):
        taken.setdefault(host, {}).update(dict.fromkeys(range(listen.port, listen.port + ports), group))


def _refusal(row: Row, taken: _Taken, listeners: int) -> str:
    listen, ports = row.listen, range(row.listen.port, row.listen.port + row.ports)
    for host in _hosts(_EXCLUDES, listen, "0.0.0.0", "::"):
        groups = taken.get(host, {})
        port = next((port for port in ports if port in groups), 0)
        if port:
            return f"overlaps with line {groups[port].first.line.number}: port {port} is taken there"
    too_many = listeners + row.ports > MAX_LISTENERS
    return f"with this row the file asks for more than {MAX_LISTENERS} listeners" if too_many else ""


def gather(rows: Iterable[Row]) -> tuple[list[Group], _Taken]:
    """Return the rows by rule, and who takes which port; rows whose listeners overlap others are refused."""
    groups: dict[tuple[Address, int], Group] = {}
    taken: _Taken = {}
    listeners = 0
    for row in rows:
        key = (row.listen, row.ports)
        if key not in groups:
            refusal = _refusal(row, taken, listeners)
            if refusal:
                row.line.fault(1, refusal)
                continue
            groups[key] = Group(row)
            listeners += row.ports
            _take(taken, groups[key])
        groups[key].add(row)
    return list(groups.values()), taken


_LOCAL4, _LOCAL6 = ("127.0.0.1", "0.0.0.0"), ("::1", "::")


_REACHES = {"localhost": _LOCAL4 + _LOCAL6, "0.0.0.0": _LOCAL4, "::1": _LOCAL6, "::": _LOCAL6}


_Node = tuple[Group, int]  # one listener: the group, and how far into its range


_Ways = Iterator[tuple[Row, _Node]]  # the listeners that a listener's connections come to, and by which rows


_Path = dict[_Node, tuple[Row | None, _Ways]]  # how each listener was come to, and the ways on not yet tried


def _reaches(address: Address) -> tuple[str, ...]:
    """Return the listen hosts that take a connection to the address, as far as can be known without asking DNS."""
    if address.is_unix:
        return (address.host,)
    host = address.host.removesuffix(".")
    if host.startswith("127.") and not address.is_name:
        return (host, "0.0.0.0")
    return _REACHES.get(host, (host,))


def refuse_loops(groups: list[Group], taken: _Taken) -> None:
    """Refuse a row of each loop: nobody could ever be served there."""
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


def _break(path: _Path, closing: Row, there: _Node) -> None:
    """Refuse the last row of the loop that leads from ``there`` along the path and back, and what hangs on it."""
    nodes = list(path)
    came = [row for row, _ in path.values()]
    loop = {row.line.number: row for row in [*came[nodes.index(there) + 1 :], closing] if row}
    last = loop.pop(max(loop))
    through = ", ".join(map(str, sorted(loop)[:5])) + (f" and {len(loop) - 5} more" if len(loop) > 5 else "")
    last.line.fault(2, "forwards to its own listener" + (f" through line {through}" if loop else ""))
    for node in nodes[came.index(last) if last in came else len(nodes) :]:
        del path[node]


def standing(group: Group) -> tuple[list[Row], dict[str, Given]]:
    """Return the rows of a rule that have no problem, and the options that they give."""
    rows = [row for row in group.rows.values() if row.line.good]
    return rows, {name: option for row in rows for name, option in row.given.items()}


class Refused(NamedTuple):
    """A row that cannot stand, as far as it is known where it would have listened."""

    listen: Address
    ports: int
    line: int
    given: Collection[str]  # the names of its options


def refuse_unprotected(groups: list[Group], refused: Iterable[Refused]) -> None:
    """Refuse rows that would stand without what another one of their rule, which cannot stand, says of who may come."""
    of: dict[tuple[Address, int], list[Refused]] = {}
    for each in refused:
        of.setdefault((each.listen, each.ports), []).append(each)
    for group in groups:
        first = group.first
        lost = [*of.get((first.listen, first.ports), ()), *group.refused]
        lost += [_refused(row) for row in group.rows.values() if not row.line.good]
        rows, given = standing(group)
        for name, line in ((name, each.line) for each in lost for name in PROTECTING if name in each.given):
            for row in rows if name not in given else ():
                if row.line.good:
                    row.line.fault(1, f"is left out too: {name} of line {line}, which has a problem, is for this row")


def _refused(row: Row) -> Refused:
    return Refused(row.listen, row.ports, row.line.number, row.given)


def refuse_names(groups: list[Group]) -> None:
    """Two rules of one name would be one in the log and in metrics."""
    taken: dict[str, int] = {}
    for group in groups:
        rows, given = standing(group)
        if not rows:
            continue
        name, line = given["name"].value if "name" in given else rows[0].cell, rows[0].line.number
        if taken.setdefault(name, line) != line:
            for row in rows:
                column = row.given["name"].column if "name" in row.given else 1
                row.line.fault(column, f"the rule of line {taken[name]} has the same name")
