"""What --status asks, whom, and how it writes the answer."""

import io
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from gevent.hub import get_hub

from tests.sockets import Journal
from tests.system.harness import HOST, free_port
from veillink.admin.console import NoAnswer, ask, is_alive, tables
from veillink.admin.http import Slots, listen_at_all
from veillink.admin.pages import Admin
from veillink.model import Address
from veillink.net.listening import listen
from veillink.settings import AdminSettings

_T = TypeVar("_T")

STATUS: dict[str, Any] = {
    "version": "1.0.0",
    "phase": "running",
    "uptime": 200.0,
    "limits": {"connections": 10},
    "totals": {"active": 1, "connections": 7},
    "last_reload": {"result": "refused", "problems": ["rules.csv:1:1: ключ"]},
    "rules": [
        {
            "name": "straße",
            "listen": "*:8080",
            "listener_up": True,
            "options": {"accept_proxy": "any", "allow": "@städte.txt"},
            "ends": {"closed": 1, "denied": 3, "bad_proxy_header": 2},
            "total": 7,
            "bytes_in": 523,
            "bytes_out": 11_264,
            "targets": [{"target": f"{HOST}:8001", "sni": "", "send_proxy": "v2", "up": False, "active": 1}],
            "certificates": [],
        }
    ],
}
LIVE = [{"id": 7, "rule": "straße", "client": "unix:ключ", "target": None, "age": 1.0, "bytes_in": 1, "bytes_out": 2}]


class Terminal(io.TextIOWrapper):
    """Something that colours can be written to."""

    def isatty(self) -> bool:
        return True


def aside(function: Callable[..., _T], *arguments: object) -> _T:
    """Call something that waits without the loop, which answers meanwhile."""
    returned: _T = get_hub().threadpool.apply(function, arguments)
    return returned


def refusal(admin: AdminSettings) -> str:
    """Return why there is no answer."""
    with pytest.raises(NoAnswer) as told:
        ask(admin)
    return str(told.value)


def admin_at(*addresses: Address, token: str = "") -> AdminSettings:
    return AdminSettings("named:1", addresses, frozenset(), token)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp437", "koi8-r"])
@pytest.mark.parametrize("kind", [io.TextIOWrapper, Terminal])
def test_whatever_the_terminal_can_show_the_state_is_shown(
    encoding: str, kind: type[io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = tables(STATUS, LIVE, kind(io.BytesIO(), encoding=encoding)).decode(encoding)
    head = [line for line in text.splitlines() if "VeilLink 1.0.0" in line]
    assert [part in head[0] for part in ("running", "up 3 m", "1 of at most 10 connections", "7 so far")] == [True] * 4
    assert "\\x" not in head[0]
    assert "11.0 KiB" in text
    assert ("\x1b[" in text) is (kind is Terminal)
    assert ("straße" in text) is (encoding in ("utf-8", "latin-1", "cp437"))


def test_without_a_stdout_the_state_is_plain() -> None:
    assert "straße" in tables(STATUS, [], None).decode()


def test_who_is_not_let_in_and_by_what_is_shown_where_a_rule_asks_for_it() -> None:
    text = tables(STATUS, [LIVE[0] | {"via": "192.0.2.1:7"}], None).decode()
    for words in (
        "straße   accept_proxy=any               bad_proxy_header 2",
        "         allow=@städte.txt              denied 3",
        f"         {HOST}:8001 send_proxy=v2",
        "unix:ключ via 192.0.2.1:7",
    ):
        assert words in text
    (rule,) = STATUS["rules"]
    (target,) = rule["targets"]
    plain = rule | {"options": {}, "ends": {"closed": 1}, "targets": [target | {"send_proxy": "off"}]}
    text = tables(STATUS | {"rules": [plain]}, LIVE, None).decode()
    assert not any(word in text for word in ("options", "  refused", "send_proxy", "via"))


def test_routes_certificates_and_what_clients_say_in_tls_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    certificate = {"file": "web.pem", "names": ["a.example", "b.example"], "issuer": "ours", "doubts": []}
    days = 86_400
    certificates = [
        certificate | {"not_after": 1_800_000_000.0 + 15 * days},
        certificate | {"file": "soon.pem", "not_after": 1_800_000_000.0 + 13 * days, "doubts": ["others may read it"]},
        certificate | {"file": "old.pem", "not_after": 1_800_000_000.0 - 1},
        certificate | {"file": "odd.pem", "names": [], "not_after": 0.0, "doubts": ["strange"]},
    ]
    (rule,) = STATUS["rules"]
    (target,) = rule["targets"]
    rule = rule | {"targets": [target | {"sni": "a.example *.b.example"}], "certificates": certificates}
    live = LIVE[0] | {"tls": "TLSv1.3", "sni": "a.example", "alpn": "h2", "client_cert": "\x1b[31mme"}
    text = tables(STATUS | {"rules": [rule]}, [live, LIVE[0]], None).decode()
    for words in (
        f"         {HOST}:8001 sni=a.example *.b.example",
        "straße   web.pem       a.example b.example   2027-01-30",
        "soon.pem      a.example b.example   2027-01-28   ends soon",
        "                                                 others may read it",
        "old.pem       a.example b.example   2027-01-15   has expired",
        "odd.pem                             -            strange",
        "TLSv1.3 a.example h2 '\\x1b[31mme'",
    ):
        assert words in text, text
    assert "certificate" not in tables(STATUS, LIVE, None).decode()
    assert "tls" not in tables(STATUS, LIVE, None).decode()


def test_every_address_of_a_name_is_asked_until_one_answers(journal: Journal) -> None:
    deaf, port = free_port(), free_port()
    sources = SimpleNamespace(status=lambda: STATUS, connections=lambda: LIVE, not_ready_reason=str)
    here = Admin(listen_at_all([Address(HOST, port)], listen), [], "s3cret", Slots(3), sources, journal.log)
    found = admin_at(Address(HOST, deaf), Address("::1", port), Address(HOST, port), token="s3cret")
    assert aside(ask, found) == (STATUS, LIVE)
    assert aside(is_alive, found)
    here.close()
    assert aside(refusal, found).count("no answer at") == 3
    assert not aside(is_alive, found)


def test_who_wants_another_token_lives(journal: Journal) -> None:
    port = free_port()
    sources = SimpleNamespace(status=dict, connections=list, not_ready_reason=str)
    here = Admin(listen_at_all([Address(HOST, port)], listen), [], "s3cret", Slots(3), sources, journal.log)
    assert aside(is_alive, admin_at(Address(HOST, port), token="wrong"))
    assert "another token" in aside(refusal, admin_at(Address(HOST, port), token="wrong"))
    here.close()
