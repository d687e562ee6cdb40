"""Options that make no sense together, or alone.

Rule: an option that would do nothing is a problem, for whoever gave it believes that it does something.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from veillink.config.conflicts import Group, Row, standing
from veillink.credentials import PASS, TargetTls
from veillink.model import Health, RuleOptions, Target

_PLAIN: Final = RuleOptions()
_OF_CLIENTS: Final = ("tls_key", "tls_client_ca", "tls_client_names", "alpn")
_OF_TARGETS: Final = ("target_ca", "target_name", "target_cert", "target_key")
_TOO_EARLY: Final = (
    "alpn=pass cannot be had with tls_client_ca: the target is connected before the client has shown its certificate"
)
_TRUSTED: Final = "target_ca does nothing with target_tls=insecure, which trusts anybody: write verify, or remove it"
_PASSED_ON: Final = "target_tls with sni needs tls: without it the client's own TLS is passed on as it is"

_Faults = Iterator[tuple[str, str]]  # the option, and what is wrong with it


def refuse_combinations(groups: list[Group]) -> None:
    """Refuse the rows with options that make no sense where they stand.

    An option that a refused row gives is not given any more, so that others may make no sense then.
    """
    for group in groups:
        while any(row.given or row.own for row in group.rows.values()) and _refuse(group):
            pass


def _refuse(group: Group) -> bool:
    rows, given = standing(group)
    options = replace(_PLAIN, **{name: option.value for name, option in given.items() if name != "name"})
    of_rule = dict(_of_rule(options, rows))
    refused = False
    for row in rows:
        of_target = dict(_of_target(row.target, options)) if row.own else {}
        for name, message in (of_rule | of_target).items():
            if option := row.given.get(name) or row.own.get(name):
                row.line.fault(option.column, message)
                refused = True
    return refused


def _idle(name: str, without: str, add: str) -> str:
    return f"{name} does nothing without {without}: add {add}, or remove it"


def _of_rule(options: RuleOptions, rows: Sequence[Row]) -> _Faults:
    plain = [row for row in rows if row.target.target_tls is TargetTls.OFF]
    if not options.tls:
        for name in _OF_CLIENTS:
            if getattr(options, name):
                yield name, _idle(name, "tls", "tls=CERTIFICATE.pem")
        if options.tls_timeout != _PLAIN.tls_timeout and not any(row.target.sni for row in rows):
            yield "tls_timeout", _idle("tls_timeout", "tls and sni", "one of them")
        if options.tls_min != _PLAIN.tls_min and len(plain) == len(rows):
            yield "tls_min", _idle("tls_min", "tls and target_tls", "one of them")
    else:
        yield from _of_certificates(options)
        if options.alpn == PASS and plain:
            yield "alpn", f"alpn=pass needs target_tls for every target: line {plain[0].line.number} has none"
    if options.health is Health.TLS and len(plain) == len(rows):
        yield "health", "health=tls needs target_tls; health=tcp only connects"


def _of_certificates(options: RuleOptions) -> _Faults:
    certificates, keys = len(options.tls), len(options.tls_key)
    if keys > certificates:
        yield "tls_key", f"tls_key names {keys} files and tls {certificates}: there is no certificate for each key"
    if options.tls_client_names and not options.tls_client_ca:
        yield "tls_client_names", _idle("tls_client_names", "tls_client_ca", "that")
    if options.alpn == PASS and options.tls_client_ca:
        yield "alpn", _TOO_EARLY


def _of_target(target: Target, options: RuleOptions) -> _Faults:
    if target.target_tls is TargetTls.OFF:
        for name in _OF_TARGETS:
            if getattr(target, name):
                yield name, _idle(name, "target_tls", "target_tls=verify")
        return
    if target.target_tls is TargetTls.INSECURE and target.target_ca:
        yield "target_ca", _TRUSTED
    if target.target_tls is TargetTls.VERIFY and target.address.is_unix and not target.target_name:
        yield "target_tls", "target_tls=verify needs target_name here, for a UNIX socket has no name to prove"
    if target.target_key and not target.target_cert:
        yield "target_key", _idle("target_key", "target_cert", "that")
    if target.sni and not options.tls:
        yield "target_tls", _PASSED_ON
