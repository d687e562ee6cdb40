"""What stops the start of a master is told before anything is forked."""

import socket
from pathlib import Path

import pytest

from tests.system.harness import HOST, free_port
from veillink.config.settings import parser, settings
from veillink.fleet.launch import _Application, _check_listeners
from veillink.fleet.worker import Forwarder, Worker
from veillink.model import Address, Settings, StartupError


def asked(tmp_path: Path, port: int, *arguments: str) -> Settings:
    path = tmp_path / "config.csv"
    path.write_text(f"{HOST}:{port},{HOST},80\n")
    return settings(parser().parse_args(["--config", str(path), "--workers=3", *arguments]))


@pytest.mark.parametrize("handed_over", [False, True])
def test_an_address_that_another_master_shares_stops_the_start(handed_over: bool, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((HOST, port))
        other.listen()
        if handed_over:
            _check_listeners(asked(tmp_path, port), {Address(HOST, port): other})
        else:
            with pytest.raises(StartupError, match="another VeilLink's"):
                _check_listeners(asked(tmp_path, port), {})


def test_gunicorn_is_told_what_the_options_say(tmp_path: Path) -> None:
    wanted = asked(tmp_path, free_port(), "--worker-timeout=1500ms", "--drain-timeout=2s")
    app = _Application(wanted)
    assert app.cfg.workers == 3
    assert app.cfg.worker_class is Worker
    assert app.cfg.timeout == 2
    assert app.cfg.graceful_timeout == 7
    assert app.cfg.reuse_port
    loaded = app.load()
    assert isinstance(loaded, Forwarder)
    assert loaded.settings() is wanted
