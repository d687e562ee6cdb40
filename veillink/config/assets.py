"""Read the files that rules name, and put what they hold into the rules: a changed file is a changed rule.

Rule: a list with a problem takes its rule away at a start, and is refused with the whole file in a reload; a list that
vanishes never opens anything.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from veillink.config.files import read_regular
from veillink.config.lists import parse_list
from veillink.config.rows import MAX_FILE, Problem
from veillink.config.rules import Parsed
from veillink.limits import Network, Networks
from veillink.model import Rule, RuleOptions, RuleSet

_CELLS = ("allow", "deny")


class _List(NamedTuple):
    networks: tuple[Network, ...]
    problems: tuple[Problem, ...]


def names_of(rules: RuleSet) -> tuple[str, ...]:
    """Return the names of all files that rules name, as written."""
    cells = (getattr(rule.options, cell) for rule in rules.rules for cell in _CELLS)
    return tuple(sorted({name for cell in cells for name in cell.files}))


def with_assets(found: Parsed, path: str) -> Parsed:
    """Return rules with what the files hold that they name.

    Args:
        found: as the rules' file says it.
        path: of the rules' file; the names are relative to its folder.
    """
    folder = Path(path).parent
    lists = {name: _read(folder, name) for name in names_of(found.rules)}
    if not lists:
        return found
    problems = [problem for each in lists.values() for problem in each.problems]
    good = {name: each.networks for name, each in lists.items() if not each.problems}
    rules = [_filled(rule, good) for rule in found.rules.rules if _named(rule) <= good.keys()]
    return found._replace(rules=RuleSet(tuple(rules), tuple(lists)), problems=(*found.problems, *problems))


def _named(rule: Rule) -> set[str]:
    return {name for cell in _CELLS for name in getattr(rule.options, cell).files}


def _filled(rule: Rule, lists: dict[str, tuple[Network, ...]]) -> Rule:
    if not _named(rule):
        return rule
    options: RuleOptions = rule.options
    allow, deny = (_with(cell, lists) for cell in (options.allow, options.deny))
    return replace(rule, options=replace(options, allow=allow, deny=deny))


def _with(cell: Networks, lists: dict[str, tuple[Network, ...]]) -> Networks:
    listed = tuple(network for name in cell.files for network in lists[name])
    return replace(cell, listed=listed) if cell.files else cell


def _read(folder: Path, name: str) -> _List:
    try:
        networks, problems = parse_list(read_regular(str(folder / name), MAX_FILE + 1))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return _List((), (Problem(0, 0, f"cannot be read: {reason}", name),))
    return _List(tuple(networks), tuple(replace(problem, file=name) for problem in problems))
