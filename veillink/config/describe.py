"""Write a rule as it was understood, in one line that a person can compare with its rows."""

from typing import Any, Final

from veillink.config.options import OPTIONS, Option
from veillink.model import Rule, RuleOptions, Target

_OF_RULE: Final = [option for option in OPTIONS if option.scope == "rule" and option.name != "name"]
_OF_TARGET: Final = [option for option in OPTIONS if option.scope == "target"]


def describe(rule: Rule) -> str:
    """Return a rule with its targets, and its options where they differ from what every rule has."""
    targets = ", ".join(_describe_target(target, rule.ports) for target in rule.targets)
    return " ".join([f"{rule.name}: {rule.shown_listen} -> {targets}", *_given(_OF_RULE, rule.options, RuleOptions())])


def _describe_target(target: Target, ports: int) -> str:
    last = f"-{target.at(ports - 1).port}" if target.at(ports - 1) != target.address else ""
    return " ".join([f"{target.address}{last}", *_given(_OF_TARGET, target, Target(target.address))])


def _given(options: list[Option], values: Any, default: Any) -> list[str]:
    """Return those options whose value is not the default one; a flag is its name alone."""
    found = ((option, getattr(values, option.name)) for option in options)
    return [
        option.name if value is True else f"{option.name}={option.format(value)}"
        for option, value in found
        if value != getattr(default, option.name)
    ]
