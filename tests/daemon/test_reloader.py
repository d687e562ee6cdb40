"""Tests of reloads: applied whole, or refused whole."""

import signal
from pathlib import Path

import pytest
from gevent import socket

from tests.daemon.life import Live, row, send, talk
from tests.sockets import Journal, Sockets, eventually
from tests.system.harness import HOST, free_port, read_exactly
from tests.system.manager import Manager
from tests.tls import certificate
from veillink.config import schedule
from veillink.daemon import process as daemon
from veillink.model import Address
from veillink.server.server import Server


def test_told_to_reload_it_does_as_the_file_says_now(
    live: Live, sockets: Sockets, port: int, backend: socket.socket
) -> None:
    life = live(row(port, backend)).ready()
    other = free_port()
    life.path.write_text(row(other, backend))
    send(signal.SIGHUP)
    life.journal.wait_for("reloaded")
    talk(sockets, other, backend)
    with pytest.raises(ConnectionRefusedError):
        sockets.client(Address(HOST, port))


def test_a_slip_in_the_first_row_takes_nothing_away(
    live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal
) -> None:
    life = live(row(port, backend)).ready()
    life.path.write_text("l" + row(port, backend) + row(free_port(), backend))
    send(signal.SIGHUP)
    journal.wait_for("not reloaded")
    assert journal.lines()[-2]["message"].startswith(f"{life.path}:1:1: ")
    talk(sockets, port, backend)


@pytest.mark.parametrize("text", ["{row}1,db,70000\n", "# nothing\n", None], ids=["a typo", "no rule", "no file"])
def test_a_file_with_any_problem_takes_nothing_away(
    text: str | None, live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal
) -> None:
    life = live(row(port, backend)).ready()
    client, target = talk(sockets, port, backend)
    if text is None:
        life.path.unlink()
    else:
        life.path.write_text(text.format(row=row(free_port(), backend)))
    send(signal.SIGHUP)
    assert journal.wait_for("not reloaded")["level"] == "error"
    assert str(life.path) in journal.lines()[-2]["message"]
    talk(sockets, port, backend)
    client.sendall(b"still here")
    assert read_exactly(target, 10) == b"still here"


def test_more_listeners_than_there_are_descriptors_for_are_refused_whole(
    live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "raise_fd_limit", lambda: 100)
    life = live(row(port, backend)).ready()
    life.path.write_text(row(port, backend) + f"{HOST}:20000-20099,db,80\n")
    send(signal.SIGHUP)
    assert "file descriptors are needed at least, not 100" in journal.wait_for("not reloaded")["message"]
    talk(sockets, port, backend)


def test_a_renewed_certificate_that_does_not_work_is_one_line_with_its_name_and_the_old_one_stays(
    live: Live, sockets: Sockets, port: int, backend: socket.socket, journal: Journal, tmp_path: Path
) -> None:
    other, bad = free_port(), free_port()
    for name in ("a.pem", "bad.pem"):
        (tmp_path / name).write_bytes(certificate("a.example").private_key_and_cert_chain_pem.bytes())
        (tmp_path / name).chmod(0o600)
    (tmp_path / "bad.pem").write_bytes(b"nothing")
    text = row(port, backend) + row(other, backend)[:-1] + f",tls={tmp_path}/a.pem\n"
    live(text + row(bad, backend)[:-1] + f",tls={tmp_path}/bad.pem\n", watch=True).ready()
    (said,) = journal.lines("bad.pem")
    assert (said["level"], said["message"]) == ("error", f"{tmp_path}/bad.pem: holds no certificate")
    with pytest.raises(ConnectionRefusedError):
        sockets.client(Address(HOST, bad))
    (tmp_path / "bad.pem").write_bytes((tmp_path / "a.pem").read_bytes())
    journal.wait_for("reloaded")
    sockets.client(Address(HOST, bad))
    (tmp_path / "a.pem").write_bytes(b"nothing")
    journal.wait_for("not reloaded")
    assert [line["message"] for line in journal.lines("/a.pem")] == [f"{tmp_path}/a.pem: holds no certificate"]
    sockets.client(Address(HOST, other))


def test_a_reload_that_breaks_is_refused_told_and_tried_again(
    live: Live,
    port: int,
    backend: socket.socket,
    journal: Journal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(schedule, "_AGAIN", 0.2)
    life = live(row(port, backend)).ready()
    apply = Server.apply

    def broken(*_: object) -> None:
        monkeypatch.setattr(Server, "apply", apply)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Server, "apply", broken)
    life.path.write_text(row(port, backend) + row(free_port(), backend))
    send(signal.SIGHUP)
    assert "can't start new thread" in journal.wait_for("unforeseen error")["traceback"]
    eventually(lambda: [line for line in journal.lines("reloaded") if line.get("added") == 1])
    told = [manager.told() for _ in range(5)]
    assert ["READY" in each for each in told] == [True, False, True, False, True]
    assert "refused: RuntimeError: can't start new thread" in told[2]["STATUS"]
    assert told[4]["STATUS"] == "2 rules, 2 listeners"
    manager.close()
