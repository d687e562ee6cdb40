"""The table of options."""

from dataclasses import Field, fields

import pytest

from veillink.config.options import OPTIONS
from veillink.config.settings import parser
from veillink.model import Address, RuleOptions, Target


def test_the_table_tells_the_truth() -> None:
    assert [option.name for option in OPTIONS if option.name in RuleOptions.__slots__] == [
        f.name for f in fields(RuleOptions)
    ]
    for option in OPTIONS:
        assert option.help
        assert option.help.isprintable()
        assert len(option.help) < 80
        if option.name in RuleOptions.__slots__:
            assert option.scope == "rule"
            assert option.parse(option.default) == getattr(RuleOptions(), option.name)
        elif option.scope == "target":
            assert option.parse(option.default) == getattr(Target(Address("", 1)), option.name)


OF_TARGETS = {
    *("weight", "backup", "send_proxy"),
    *("sni", "target_tls", "target_ca", "target_name", "target_cert", "target_key"),
}
OF_ROWS_ALONE = {"tls", "tls_key", "tls_client_ca", "tls_client_names", "alpn"}


@pytest.mark.parametrize("field", fields(RuleOptions), ids=lambda field: field.name)
def test_every_limit_is_an_option_of_a_row_and_of_the_command_line_with_one_default(field: Field[float]) -> None:
    (option,) = [option for option in OPTIONS if option.name == field.name]
    assert option.scope == "rule"
    assert option.parse(option.default) == field.default
    assert option.on_command_line is (field.name not in OF_ROWS_ALONE | {"max_connections"})
    if field.name not in OF_ROWS_ALONE:
        assert getattr(parser().parse_args([]), field.name) == field.default


def test_every_option_of_a_row_sets_something() -> None:
    assert {option.name for option in OPTIONS} == {"name"} | OF_TARGETS | {field.name for field in fields(RuleOptions)}


@pytest.mark.parametrize("name", sorted(OF_TARGETS))
def test_the_options_of_a_target_have_its_defaults(name: str) -> None:
    (option,) = [option for option in OPTIONS if option.name == name]
    (default,) = [field.default for field in fields(Target) if field.name == name]
    assert option.scope == "target"
    assert option.parse(option.default) == default


def test_the_command_line_explains_every_option_of_a_rule_as_the_table_does() -> None:
    shown = {action.dest: action.help for action in parser()._actions}
    for option in OPTIONS:
        if option.on_command_line:
            assert option.help in (shown[option.name] or "")
