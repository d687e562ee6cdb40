"""Read the files that rules name, and put what they hold into the rules: a changed file is a changed rule.

Rule: a list with a problem takes its rule away at a start, and is refused with the whole file in a reload; a list that
vanishes never opens anything.
"""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from veillink.config.credentials import Credentials, names_in
from veillink.config.files import Signature, read_regular, signature
from veillink.config.lists import parse_list
from veillink.config.rows import MAX_FILE, Problem
from veillink.config.rules import Parsed
from veillink.limits import Networks, Ranges
from veillink.model import Rule, RuleOptions, RuleSet

_CELLS = ("allow", "deny")


class _List(NamedTuple):
    """A list as it was read: ``seen`` was at its path just before, and ``digest`` is that of its bytes."""

    ranges: Ranges
    problems: tuple[Problem, ...]
    seen: Signature = None
    digest: bytes = b""


def names_of(rules: RuleSet) -> tuple[str, ...]:
    """Return the names of all files that rules name, as written."""
    names = {name for rule in rules.rules for name in (*_lists_of(rule), *names_in(rule))}
    return tuple(sorted(names - {""}))


class Assets:
    """The files that rules name, as they were read last.

    One that has not been written since is not read again, and one with the same bytes is not parsed and built again:
    100,000 networks take half a second, in which every system call of the loop's waits for this thread.
    """

    def __init__(self) -> None:
        self.seen: dict[str, Signature] = {}
        """What was at the path of each file just before it was read last."""
        self._known: dict[str, _List] = {}
        self._credentials = Credentials()

    def fill(self, found: Parsed, path: str) -> Parsed:
        """Return rules with what the files hold that they name.

        Args:
            found: as the rules' file says it.
            path: of the rules' file, always the same; the names are relative to its folder.
        """
        folder, names = Path(path).parent, names_of(found.rules)
        self.seen = {name: signature(str(folder / name)) for name in names}
        named = sorted({name for rule in found.rules.rules for name in _lists_of(rule)})
        lists = self._known = {name: self._list(name, str(folder / name)) for name in named}
        good = {name: each.ranges for name, each in lists.items() if not each.problems}
        able, unfit = self._credentials.fill(found.rules.rules, folder, self.seen)
        rules = tuple(_filled(rule, good) for rule in able if _lists_of(rule) <= good.keys())
        problems = (*found.problems, *(problem for each in lists.values() for problem in each.problems), *unfit)
        return found._replace(rules=RuleSet(rules, names), problems=problems)

    def _list(self, name: str, path: str) -> _List:
        known, seen = self._known.get(name), self.seen[name]
        if known is not None and seen is not None and known.seen == seen:
            return known
        try:
            data = read_regular(path, MAX_FILE + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            return _List(Ranges(()), (Problem(0, 0, f"cannot be read: {reason}", name),))
        digest = sha256(data).digest()
        if known is not None and known.digest == digest:
            return known._replace(seen=seen)
        networks, problems = parse_list(data)
        return _List(Ranges(networks), tuple(replace(problem, file=name) for problem in problems), seen, digest)


def _lists_of(rule: Rule) -> set[str]:
    return {name for cell in _CELLS for name in getattr(rule.options, cell).files}


def _filled(rule: Rule, lists: dict[str, Ranges]) -> Rule:
    if not _lists_of(rule):
        return rule
    options: RuleOptions = rule.options
    allow, deny = (_with(cell, lists) for cell in (options.allow, options.deny))
    return replace(rule, options=replace(options, allow=allow, deny=deny))


def _with(cell: Networks, lists: dict[str, Ranges]) -> Networks:
    return replace(cell, listed=tuple(lists[name] for name in cell.files)) if cell.files else cell
