"""Write rules as they were understood, in lines that a person can compare with their rows; and their certificates."""

from collections.abc import Iterator
from typing import Any, Final

from veillink.config.options import OPTIONS, Option
from veillink.credentials import Certificate
from veillink.model import Rule, RuleOptions, Target
from veillink.text import printable

_OF_RULE: Final = [option for option in OPTIONS if option.scope == "rule" and option.name != "name"]
_OF_CLIENTS: Final = [option for option in _OF_RULE if option.group == "clients"]
_OF_TARGET: Final = [option for option in OPTIONS if option.scope == "target"]


def describe(rule: Rule) -> str:
    """Return a rule with its targets, and its options where they differ from what every rule has."""
    targets = ", ".join(_describe_target(target, rule.ports) for target in rule.targets)
    return " ".join([f"{rule.name}: {rule.shown_listen} -> {targets}", *_words(_OF_RULE, rule.options, RuleOptions())])


def describe_certificate(certificate: Certificate, now: float) -> list[str]:
    """Return what a certificate says of itself, and a line for each thing that is wrong with it.

    Args:
        certificate: as it was read.
        now: Unix seconds.
    """
    told = {"for": " ".join(certificate.names), "issued by": certificate.issuer, "until": certificate.until}
    said = ", ".join(f"{word} {value}" for word, value in told.items() if value) or "a certificate"
    return [
        printable(f"{certificate.file}: {line}")
        for line in (said, *map("warning: {}".format, certificate.warnings(now)))
    ]


def options_for_clients(rule: Rule) -> dict[str, str]:
    """Return what a rule asks of who comes to it, by the names of the options, where it differs from what all have."""
    return {option.name: option.format(value) for option, value in _given(_OF_CLIENTS, rule.options, RuleOptions())}


def _describe_target(target: Target, ports: int) -> str:
    last = f"-{target.at(ports - 1).port}" if target.at(ports - 1) != target.address else ""
    return " ".join([f"{target.address}{last}", *_words(_OF_TARGET, target, Target(target.address))])


def _words(options: list[Option], values: Any, default: Any) -> list[str]:
    """Return how those options are written whose value is not the default one; a flag is its name alone."""
    return [
        option.name if value is True else f"{option.name}={option.format(value)}"
        for option, value in _given(options, values, default)
    ]


def _given(options: list[Option], values: Any, default: Any) -> Iterator[tuple[Option, Any]]:
    """Yield those options whose value is not the default one."""
    found = ((option, getattr(values, option.name)) for option in options)
    return ((option, value) for option, value in found if value != getattr(default, option.name))
