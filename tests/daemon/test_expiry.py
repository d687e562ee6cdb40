"""Tests of the warnings of certificates that end soon."""

import datetime
import signal
from pathlib import Path

import pytest
from gevent import socket

from tests.daemon.life import Live, row, send, settings_of
from tests.sockets import Journal
from tests.tls import authority
from veillink.credentials import Certificate, ClientTls, ServerTls, ending
from veillink.daemon.announcements import Announcements
from veillink.daemon.expiry import ExpiryWatch
from veillink.daemon.membership import Alone
from veillink.model import Address, Rule, RuleSet, Target

NOW, DAY = 1_800_000_000.0, 86_400.0


def showing(name: str, *certificates: Certificate, to_target: Certificate | None = None) -> Rule:
    target = Target(Address("db", 1), tls=ClientTls(b"", certificate=to_target) if to_target else None)
    return Rule(name, Address("", 80), 1, (target,), tls=ServerTls(b"", certificates))


@pytest.mark.parametrize(
    ("left", "said"),
    [(14 * DAY + 1, ""), (14 * DAY, "ends soon"), (1.0, "ends soon"), (0.0, "has expired"), (-9 * DAY, "has expired")],
)
def test_an_end_is_spoken_of_two_weeks_before(left: float, said: str) -> None:
    assert ending(NOW + left, NOW) == said
    assert ending(0.0, NOW) == ""


def test_each_certificate_is_warned_of_once_a_day_and_anew_when_it_is_another(journal: Journal, tmp_path: Path) -> None:
    watch = ExpiryWatch(Announcements(settings_of(tmp_path / "rules.csv"), Alone(), journal.log))
    soon, old, fine = (Certificate(f"{name}.pem", not_after=NOW + left * DAY)
                       for name, left in (("soon", 10), ("old", -1), ("fine", 100)))  # fmt: skip
    rules = RuleSet((showing("web", soon, fine), showing("too", soon), showing("db", fine, to_target=old)))
    for now in (NOW, NOW + 1, NOW + DAY - 1, NOW + DAY):
        watch.look(rules, now)
    watch.look(RuleSet(), NOW + DAY + 1)
    renewed = Certificate("soon.pem", not_after=NOW + 11 * DAY)
    watch.look(RuleSet((showing("web", renewed),)), NOW + DAY + 2)
    lines = journal.finish()
    once = [("a certificate ends soon", "soon.pem", "web"), ("a certificate has expired", "old.pem", "db")]
    assert [(line["message"], line["file"], line["rule"]) for line in lines] == [*once, *once, once[0]]
    assert {line["level"] for line in lines} == {"warning"}
    assert [line["until"] for line in lines[::4]] == ["2027-01-25", "2027-01-26"]


def test_what_is_loaded_is_looked_at(live: Live, port: int, backend: socket.socket, tmp_path: Path) -> None:
    pem = tmp_path / "web.pem"

    def issue(left: datetime.timedelta) -> None:
        until = datetime.datetime.now(datetime.UTC) + left
        pem.write_bytes(
            authority("ours").issue_cert("a.example", not_after=until).private_key_and_cert_chain_pem.bytes()
        )

    issue(datetime.timedelta(days=3))
    life = live(f"{row(port, backend).strip()},tls=web.pem\n").ready()
    assert life.journal.wait_for("a certificate ends soon")["file"] == "web.pem"
    issue(datetime.timedelta(days=-3))
    send(signal.SIGHUP)
    assert life.journal.wait_for("a certificate has expired")["file"] == "web.pem"
