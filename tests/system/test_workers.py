"""All cores: a master and its workers, what they share, and what happens when one of them ends."""

import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from veillink.net.cgroup import usable_cpus

from .admin_client import AdminClient
from .conftest import Serve, Start
from .harness import (
    HOST,
    VEILLINK,
    VeilLink,
    echo,
    eventually,
    exchange,
    free_port,
    nobody_listens,
    read_to_eof,
    saying,
)
from .load import Load
from .manager import Manager
from .namespace import Network
from .test_reload import Visitors

CONF = Path(__file__).parents[2] / "deploy" / "gunicorn.conf.py"


class Fleet:
    """A running master."""

    def __init__(self, veillink: VeilLink) -> None:
        self.veillink = veillink

    def workers(self) -> list[int]:
        """Return the pids of its workers, the oldest first."""
        return children(self.veillink.pid)

    def is_rid_of(self, pid: int) -> bool:
        """Return whether a worker has ended and was taken note of."""
        return pid not in self.workers()

    def holders(self, socks: list[socket.socket]) -> list[int]:
        """Return for each client's socket the pid of the worker that serves it."""
        owners = {link: pid for pid in self.workers() for link in sockets_of(pid)}
        return [owners[link] for link in accepted(socks, self.veillink.port)]

    def all_answer(self, word: bytes, port: int = 0) -> bool:
        """Return whether every one of many clients is told that."""
        return {self.veillink.heard(port) for _ in range(30)} == {word}


def children(pid: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def sockets_of(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found.add(str(descriptor.readlink()))
    return found


def accepted(socks: list[socket.socket], port: int) -> list[str]:
    """Return the other ends of those connections that were accepted, as /proc names them (proc(5), tcp)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {line[2][-4:]: line[9] for line in lines if line[9] != "0" and line[1].endswith(f":{port:04X}")}
    ports = [f"{sock.getsockname()[1]:04X}" for sock in socks]
    return [f"socket:[{inodes[port]}]" for port in ports if port in inodes]


Flock = Callable[..., Fleet]


@pytest.fixture
def fleet(start: Start) -> Flock:
    """Start workers: ``fleet(rows, "--admin=…", workers=3)``."""

    def _fleet(rows: str, *options: str, workers: int = 2, **more: Any) -> Fleet:
        veillink = start(rows, f"--workers={workers}", *options, **more)
        veillink.wait_for_line("is ready")
        veillink.first_fds = veillink.fds()
        return Fleet(veillink)

    return _fleet


@pytest.fixture
def words(backend: Serve) -> Callable[[str], int]:
    """Return the port of a backend that says this word."""
    return lambda word: backend(saying(word.encode())).port


@contextmanager
def clients(veillink: VeilLink, count: int, port: int = 0) -> Iterator[list[socket.socket]]:
    """Hold connections that have been echoed."""
    with ExitStack() as stack:
        socks = [stack.enter_context(veillink.connect(port)) for _ in range(count)]
        for sock in socks:
            exchange(sock)
        yield socks


def echoes_at(path: str) -> bool:
    """Return whether a client of a UNIX socket is served."""
    with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
        sock.settimeout(5)
        sock.connect(path)
        exchange(sock)
        return True
    return False


# --- together --------------------------------------------------------------------------------------------------------


def test_clients_are_spread_and_no_worker_has_twice_its_share(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", workers=4)
    with clients(flock.veillink, 1000) as socks:
        shares = Counter(flock.holders(socks))
    assert len(shares) == 4
    assert max(shares.values()) < 2 * 1000 / 4
    lines = flock.veillink.access(1000)
    assert len({line["id"] for line in lines}) == 1000
    assert Counter(line["id"] // 1_000_000_000 for line in lines).keys() == {1, 2, 3, 4}


def test_what_concerns_all_is_said_once_and_each_says_that_it_is_ready(fleet: Flock) -> None:
    veillink = fleet(f"{HOST}:{{port}},{HOST},1,name=web\n{HOST}:{{port}},db,0\n", workers=3).veillink
    # The master's word of it may come before theirs, which wait for a moment in their logs.
    eventually(lambda: sorted(line["worker"] for line in veillink.logged("^ready$")) == [1, 2, 3])
    assert len(veillink.logged("^rule$")) == 2
    assert len(veillink.logged(":3:3: port")) == 1


@pytest.mark.parametrize("concurrency", ["3", "auto", ""])
def test_auto_is_a_worker_for_each_core_whatever_is_meant_for_gunicorn_alone(concurrency: str, start: Start) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},1\n", "--workers=auto", env={"WEB_CONCURRENCY": concurrency})
    veillink.wait_for_line(f'is ready".*"workers": {usable_cpus()}')


def test_a_reload_is_applied_in_place_by_every_worker_and_no_client_notices(
    fleet: Flock, backend: Serve, words: Callable[[str], int]
) -> None:
    second = free_port()
    kept = f"{HOST}:{{port}},{HOST},{backend(echo).port}\n"
    flock = fleet(f"{kept}{HOST}:{second},{HOST},{words('old')}\n", workers=3)
    veillink, before = flock.veillink, flock.workers()
    with clients(veillink, 20) as socks, Visitors(veillink.port) as visitors:
        for word in ("one", "two", "three"):
            veillink.reload(f"{kept}{HOST}:{second},{HOST},{words(word)}\n")
            eventually(partial(flock.all_answer, word.encode(), second), what=f"{word} from all workers")
        veillink.reload(kept)
        eventually(lambda: nobody_listens(veillink, second), what="the end of a rule in all workers")
        for sock in socks:
            exchange(sock)
    visitors.assert_content()
    assert flock.workers() == before


def test_a_change_of_the_file_is_applied_by_every_worker(fleet: Flock, words: Callable[[str], int]) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{words('old')}\n")
    flock.veillink.write(f"{HOST}:{{port}},{HOST},{words('new')}\n")
    eventually(lambda: flock.all_answer(b"new"), what="the new target from all workers")


def test_no_worker_writes_into_the_lines_of_another(start: Start) -> None:
    """Through a pipe that is full for a while: there a write of more than 4 KiB goes in pieces."""
    reads, writes = os.pipe()
    with Load() as load, os.fdopen(reads) as reader:
        rows = load.rows(f"{HOST}:{{port}}")
        veillink = start(rows, "--workers=4", stdout=writes, ready=False, canary=False)
        os.close(writes)
        eventually(lambda: not nobody_listens(veillink, veillink.port), what="somebody listens")
        assert load.run([("echo", veillink.port)], 4000, 200)[1] == {"echo ok": 4000}
        veillink.first_fds = veillink.fds()
        ids: list[int] = []
        while len(ids) < 4000:
            line = json.loads(reader.readline())
            ids += [line["id"]] if line.get("bytes_in") else []
        assert len(set(ids)) == 4000


# --- workers that end, come and hang ---------------------------------------------------------------------------------


def test_a_killed_worker_takes_its_own_connections_alone_and_is_replaced_at_once(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", workers=3)
    with clients(flock.veillink, 60) as socks:
        holders = flock.holders(socks)
        victim = holders[0]
        os.kill(victim, signal.SIGKILL)
        for sock, holder in zip(socks, holders, strict=True):
            if holder == victim:
                with suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
            else:
                exchange(sock)
        eventually(lambda: len(set(flock.workers()) - {victim}) == 3, 3.0, "a third worker")
        eventually(lambda: len(flock.veillink.logged("^ready$")) == 4, 3.0, "a third worker that is ready")
        for _ in range(30):
            flock.veillink.seconds_to_echo()
    assert len(flock.veillink.logged(f"{victim}.*SIGKILL")) == 1


def test_a_worker_that_hangs_is_replaced_and_tells_where_it_hung(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", "--worker-timeout=1s")
    with clients(flock.veillink, 30) as socks:
        holders = flock.holders(socks)
        victim = holders[0]
        os.kill(victim, signal.SIGSTOP)
        eventually(lambda: victim not in flock.workers() and len(flock.workers()) == 2, 10.0, "another worker")
        for sock, holder in zip(socks, holders, strict=True):
            if holder != victim:
                exchange(sock)
    assert flock.veillink.logged(f"TIMEOUT.*{victim}")


def test_ttin_adds_a_worker_and_ttou_lets_one_drain(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    veillink, first = flock.veillink, flock.workers()
    veillink.send(signal.SIGTTIN)
    eventually(lambda: len(veillink.logged("^ready$")) == 3, what="a third worker")
    with clients(veillink, 60) as socks:
        (leaving,) = [line["pid"] for line in veillink.logged(" starts$") if line["worker"] == 1]
        assert leaving in first
        assert leaving in flock.holders(socks)
        veillink.send(signal.SIGTTOU)
        eventually(lambda: veillink.logged("^stopping$"), what="the first one drains")
        with Visitors(veillink.port) as visitors:
            for sock in socks:
                exchange(sock)
            time.sleep(0.5)
        visitors.assert_content()
        assert leaving in flock.workers()
    eventually(lambda: leaving not in flock.workers(), what="the first one has gone")
    assert len(flock.workers()) == 2


def test_a_unix_socket_is_served_by_one_of_them_and_by_another_when_that_one_goes(fleet: Flock, backend: Serve) -> None:
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        path = f"{folder}/listen"
        flock = fleet(f"unix:{path},{HOST},{backend(echo).port}\n{HOST}:{{port}},{HOST},1\n")

        served = partial(echoes_at, path)
        assert served()
        flock.veillink.send(signal.SIGTTIN)
        eventually(lambda: len(flock.veillink.logged("^ready$")) == 3, what="a third worker")
        flock.veillink.send(signal.SIGTTOU)  # the first one goes, which is the one that had it
        eventually(lambda: len(flock.workers()) == 2, what="the first one has gone")
        eventually(served, what="the socket is served again")
        assert not flock.veillink.logged("cannot listen")
        os.kill(flock.workers()[0], signal.SIGKILL)
        os.kill(flock.workers()[-1], signal.SIGKILL)
        eventually(served, what="the socket is served by new ones")
        assert flock.veillink.stop() == 0
        assert not Path(path).exists()


def test_a_worker_that_cannot_start_takes_nobody_with_it(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", "--no-watch")
    veillink, good = flock.veillink, flock.veillink.config.read_text()
    with clients(veillink, 20) as socks:
        holders = flock.holders(socks)
        veillink.config.write_text("nonsense,,\n")
        os.kill(holders[0], signal.SIGKILL)
        eventually(lambda: len(veillink.logged("not started: no rule")) >= 2, what="it is tried again and again")
        assert len(veillink.logged("not started: no rule")) < 5
        for sock, holder in zip(socks, holders, strict=True):
            if holder != holders[0]:
                exchange(sock)
        veillink.seconds_to_echo()
    veillink.config.write_text(good)
    eventually(lambda: len(veillink.logged("^ready$")) == 3, what="the second worker")


def test_a_worker_is_added_while_another_one_still_drains(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    veillink = flock.veillink
    with clients(veillink, 30):
        veillink.send(signal.SIGTTOU)
        eventually(lambda: veillink.logged("^stopping$"), what="one drains")
        veillink.send(signal.SIGTTIN)
        eventually(lambda: len(veillink.logged("^ready$")) == 3, what="another one")
        assert len(flock.workers()) == 3
    eventually(lambda: len(flock.workers()) == 2, what="the one that drained has gone")


def test_a_master_without_descriptors_goes_on_when_it_has_some_again(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    veillink = flock.veillink
    soft, hard = resource.prlimit(veillink.pid, resource.RLIMIT_NOFILE)
    with clients(veillink, 20) as socks:
        holders = flock.holders(socks)
        resource.prlimit(veillink.pid, resource.RLIMIT_NOFILE, (3, hard))
        veillink.send(signal.SIGHUP)
        os.kill(holders[0], signal.SIGKILL)
        eventually(lambda: veillink.logged("no worker can be started now: .*Too many open files"), what="it is told")
        for sock, holder in zip(socks, holders, strict=True):
            if holder != holders[0]:
                exchange(sock)
        resource.prlimit(veillink.pid, resource.RLIMIT_NOFILE, (soft, hard))
        eventually(lambda: len(flock.workers()) == 2, what="the second worker")


def test_workers_do_without_what_they_share_when_somebody_removes_it(
    fleet: Flock, backend: Serve, admin: AdminClient
) -> None:
    """None of what decides is in that folder: how many they are, who leads, and whether any has ever served."""
    echoes, limited = backend(echo).port, free_port()
    with tempfile.TemporaryDirectory(prefix="vl") as folder, ExitStack() as stack:
        path = f"{folder}/listen"
        rows = f"{HOST}:{{port}},{HOST},{echoes},name=web\nunix:{path},{HOST},{echoes}\n"
        rows += f"{HOST}:{limited},{HOST},{echoes},max_connections=2\n"
        flock = fleet(rows, admin.option, "--no-watch")
        veillink, good = flock.veillink, flock.veillink.config.read_text()
        scoreboard = scoreboard_of(veillink.pid)
        leader = veillink.logged("^rule$")[0]["worker"]
        (follower,) = [line["pid"] for line in veillink.logged(" starts$") if line["worker"] != leader]
        waiting = [stack.enter_context(veillink.connect(limited)) for _ in range(30)]
        for sock in waiting:
            sock.sendall(b"x")
        first = eventually(
            lambda: (found := answered(waiting)) and len(found) == 2 and found, what="one of each worker"
        )
        for sock in first:
            assert sock.recv(1) == b"x"
        with clients(veillink, 20) as socks:
            holders = flock.holders(socks)
            shutil.rmtree(scoreboard)
            eventually(lambda: scoreboard.exists() and admin.get("/readyz")[0] == 200, what="it is there again")
            veillink.config.write_text("nonsense,,\n")
            shutil.rmtree(scoreboard)
            os.kill(follower, signal.SIGKILL)
            eventually(lambda: len(veillink.logged("not started: no rule")) >= 2, what="it is tried again and again")
            veillink.config.write_text(good)
            eventually(lambda: len(veillink.logged("^ready$")) == 3, what="the second worker")
            shutil.rmtree(scoreboard, ignore_errors=True)
            veillink.send(signal.SIGHUP)
            eventually(lambda: admin.get("/readyz")[0] == 200, what="ready")
            for sock, holder in zip(socks, holders, strict=True):
                if holder != follower:
                    exchange(sock)
            others = sum(holder != follower for holder in holders)
            eventually(lambda: admin.rule("web")["active"] == others, what="all are shown")
        assert echoes_at(path)
        assert not veillink.logged("cannot listen")
        more = [stack.enter_context(veillink.connect(limited)) for _ in range(30)]
        for sock in more:
            sock.sendall(b"x")
        eventually(lambda: answered(more), what="one of the new worker")
        time.sleep(1)  # they look twice in that time at how many they are
        kept = [sock for sock in first if sock not in answered(first)]  # whose worker was not killed
        assert (len(kept), len(answered(more))) == (1, 1)


def answered(socks: list[socket.socket]) -> list[socket.socket]:
    """Return those that there is something to read from."""
    return select.select(socks, [], [], 0)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
@pytest.mark.parametrize("other", ["another place", "no other place"])
def test_a_full_place_for_what_is_shown_costs_a_line_at_most_and_no_readiness(
    other: str, fleet: Flock, backend: Serve, admin: AdminClient, tmp_path: Path
) -> None:
    fill = 'mount -t tmpfs -o size=8k tmpfs /dev/shm && head -c 4k /dev/zero > /dev/shm/full && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", fill, "sh")
    env = {"TMPDIR": str(tmp_path) if other == "another place" else "/dev/shm"}
    rows = f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n"
    rows += "".join(f"{HOST}:{free_port()},{HOST},1,name={'x' * 90}{each}\n" for each in range(20))
    flock = fleet(rows, admin.option, before=before, env=env)
    with clients(flock.veillink, 20) as socks:
        if other == "another place":
            eventually(lambda: admin.rule("web")["active"] == 20, what="all are shown")
        for _ in range(20):
            assert admin.get("/readyz")[0] == 200
        for sock in socks:
            exchange(sock)
    lines = flock.veillink.logged("cannot show")
    assert len(lines) == (0 if other == "another place" else 2)
    assert "Traceback" not in flock.veillink.output


# --- the end ---------------------------------------------------------------------------------------------------------


def test_told_to_stop_all_of_them_drain(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    veillink = flock.veillink
    with clients(veillink, 20) as socks:
        assert len(set(flock.holders(socks))) == 2
        veillink.send(signal.SIGTERM)
        eventually(lambda: nobody_listens(veillink, veillink.port), what="listeners are closed")
        for sock in socks:
            exchange(sock)
    assert veillink.child.wait(5) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_cuts_what_still_drains(second: signal.Signals, fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    veillink = flock.veillink
    with clients(veillink, 20) as socks:
        veillink.send(signal.SIGTERM)
        eventually(lambda: len(veillink.logged("^stopping$")) == 2, what="both drain")
        veillink.send(second)
        for sock in socks:
            with pytest.raises(ConnectionResetError):
                read_to_eof(sock)
        assert veillink.child.wait(5) == 1
    assert {line["end"] for line in veillink.access(20)} == {"drained"}


def test_two_signals_at_once_are_two(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    veillink = flock.veillink
    with clients(veillink, 20) as socks:
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            veillink.send(number)
        for sock in socks:
            with pytest.raises(ConnectionResetError):
                read_to_eof(sock)
        assert veillink.child.wait(5) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_all_of_them_get_lets_them_drain_all_the_same(
    number: signal.Signals, fleet: Flock, backend: Serve
) -> None:
    """As Ctrl+C on a terminal, or ``KillMode=control-group`` of systemd."""
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    veillink = flock.veillink
    with clients(veillink, 20) as socks:
        for pid in (*flock.workers(), veillink.pid):
            os.kill(pid, number)
        eventually(lambda: len(veillink.logged("^stopping$")) == 2, what="both drain")
        time.sleep(0.5)
        for sock in socks:
            exchange(sock)
    assert veillink.child.wait(5) == 0


def test_without_their_master_they_drain_and_leave_nothing_behind(
    fleet: Flock, backend: Serve, admin: AdminClient
) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", admin.option)
    veillink, workers, scoreboard = flock.veillink, flock.workers(), scoreboard_of(flock.veillink.pid)
    with clients(veillink, 20) as socks:
        os.kill(veillink.pid, signal.SIGKILL)
        eventually(lambda: len(veillink.logged("^stopping$")) == 2, what="both drain")
        for sock in socks:
            exchange(sock)
        veillink.child.wait(5)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), what="the end of both")
    assert not scoreboard.exists()


def test_what_killed_ones_have_left_the_next_one_removes(fleet: Flock, admin: AdminClient) -> None:
    """As when systemd's watchdog kills all of them; while one of them lives it is theirs."""
    killed, alive = fleet(f"{HOST}:{{port}},{HOST},1\n", admin.option), fleet(f"{HOST}:{{port}},{HOST},1\n")
    scoreboard, other = scoreboard_of(killed.veillink.pid), scoreboard_of(alive.veillink.pid)
    for pid in (killed.veillink.pid, *killed.workers()):
        os.kill(pid, signal.SIGKILL)
    killed.veillink.child.wait(10)
    eventually(lambda: nobody_listens(killed.veillink, killed.veillink.port), what="the end of all")
    fleet(f"{HOST}:{{port}},{HOST},1\n")
    assert not scoreboard.exists()
    assert other.exists()


def scoreboard_of(pid: int) -> Path:
    """Return the folder that a master holds open."""
    (folder,) = [link for link in sockets_of(pid) if "/veillink-fleet-" in link]
    return Path(folder)


def test_a_worker_that_was_just_forked_heeds_that_it_is_one_too_many(start: Start) -> None:
    before = slowly("util._setproctitle")  # what it does first
    veillink = start(f"{HOST}:{{port}},{HOST},1\n", "--workers=2", before=before, ready=False, canary=False)
    eventually(lambda: len(children(veillink.child.pid)) == 2, 10, "both workers")
    veillink.child.send_signal(signal.SIGTTOU)
    eventually(lambda: len(children(veillink.child.pid)) == 1, what="the end of one of them")
    veillink.wait_for_line("is ready")
    assert veillink.stop() == 0


def test_a_worker_that_is_killed_while_it_drains_has_cut_connections(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    with clients(flock.veillink, 20):
        flock.veillink.send(signal.SIGTERM)
        eventually(lambda: len(flock.veillink.logged("^stopping$")) == 2, what="both drain")
        for pid in flock.workers():
            os.kill(pid, signal.SIGKILL)
        assert flock.veillink.child.wait(5) == 1


def test_a_stop_that_comes_early_leaves_nothing_behind(start: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        veillink = start(f"{HOST}:{{port}},{HOST},1\n", "--workers=2", ready=False, canary=False)
        scoreboard = eventually(partial(_early_board, veillink.child.pid), what="its folder")
        veillink.child.send_signal(number)
        assert veillink.child.wait(10) == 0
        assert not scoreboard.exists()


def _early_board(pid: int) -> Path | None:
    with suppress(ValueError):
        return scoreboard_of(pid)
    return None


def test_it_leaves_no_file_behind(fleet: Flock, tmp_path: Path) -> None:
    veillink = fleet(f"{HOST}:{{port}},{HOST},1\n", f"--pidfile={tmp_path / 'pid'}").veillink
    scoreboard = scoreboard_of(veillink.pid)
    assert (tmp_path / "pid").read_text() == f"{veillink.pid}\n"
    assert scoreboard.exists()
    assert veillink.stop() == 0
    assert not scoreboard.exists()
    assert not list(tmp_path.glob("pid*"))


@pytest.mark.parametrize(
    ("rows", "options", "why"),
    [
        ("", (), "no rule could be started"),
        ("nonsense,,\n", ("--strict",), "has problems and --strict was given"),
        ("{port},db,80\n", ("--pidfile=/nowhere/pid",), "cannot write /nowhere/pid"),
        ("{port},db,80\n", ("--admin=192.0.2.1:80", "--admin-token=x"), "cannot show the state at 192.0.2.1:80"),
    ],
)
def test_when_none_can_start_it_says_why_and_ends_with_1(
    rows: str, options: tuple[str, ...], why: str, start: Start
) -> None:
    veillink = start(rows, "--workers=3", *options, ready=False, canary=False)
    assert veillink.child.wait(10) == 1
    eventually(lambda: veillink.logged(f"not started: .*{why}"), what=why)
    assert not veillink.logged("is ready")


def test_a_second_fleet_does_not_take_the_first_ones_clients(
    fleet: Flock, start: Start, words: Callable[[str], int]
) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{words('first')}\n")
    other = start(f"{HOST}:{flock.veillink.port},{HOST},{words('other')}\n", "--workers=2", ready=False, canary=False)
    assert other.child.wait(10) == 1
    eventually(lambda: other.logged(f"not started: {HOST}:{flock.veillink.port} is another VeilLink's"))
    assert flock.all_answer(b"first")


def test_a_reload_does_not_take_the_clients_of_another_fleet(fleet: Flock, words: Callable[[str], int]) -> None:
    """Each worker looks before it listens: the file is watched, and no master is asked."""
    ours, theirs = (
        fleet(f"{HOST}:{{port}},{HOST},{words('ours')}\n"),
        fleet(f"{HOST}:{{port}},{HOST},{words('theirs')}\n"),
    )
    port, mine = theirs.veillink.port, f"{HOST}:{{port}},{HOST},{words('ours')}\n"
    ours.veillink.reload(f"{mine}{HOST}:{port},{HOST},{words('ours')}\n", "cannot listen")
    eventually(lambda: len(ours.veillink.logged("cannot listen .*another VeilLink")) == 2, what="both say so")
    assert theirs.all_answer(b"theirs")
    assert theirs.veillink.stop() == 0
    eventually(lambda: len(ours.veillink.logged("listening at last")) == 2, 20, "both listen there")
    assert ours.all_answer(b"ours", port)


def test_without_a_working_directory_it_says_so(tmp_path: Path) -> None:
    gone = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    (tmp_path / "gone").mkdir()
    command = ["sh", "-c", gone, "sh", str(tmp_path / "gone"), str(VEILLINK), "--workers=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("veillink: error: --workers needs a working directory")
    assert "Traceback" not in done.stderr


def test_without_gunicorn_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.py").write_text("raise ModuleNotFoundError('no', name='gunicorn')\n")
    done = subprocess.run(
        [VEILLINK, "--workers=2"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 2
    assert done.stderr == "veillink: error: --workers needs gunicorn: pip install 'gunicorn>=27,<28'\n"


# --- a new program ---------------------------------------------------------------------------------------------------


def successor(veillink: VeilLink) -> int:
    """Return the pid of the new master, once it is ready."""
    ready = eventually(lambda: veillink.logged("is ready")[1:], what="a new master that is ready")
    return int(ready[0]["pid"])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def ended(pid: int) -> Iterator[None]:
    """End a process that is nobody's child any more when the test is over."""
    try:
        yield
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: gone(pid), what="the end of the new master")
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("by_module", [False, True], ids=["veillink", "python -m veillink"])
def test_usr2_puts_a_new_program_in_the_place_of_the_old_one(
    by_module: bool, fleet: Flock, backend: Serve, tmp_path: Path, admin: AdminClient
) -> None:
    more: dict[str, Any] = {}
    if by_module:
        more["before"] = (str(VEILLINK.with_name("python")), "-c", _AS_MODULE)
    pidfile = tmp_path / "pid"
    options = (f"--pidfile={pidfile}", admin.option)
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", *options, **more)
    veillink, old = flock.veillink, flock.workers()
    with clients(veillink, 20) as socks, Visitors(veillink.port) as visitors:
        veillink.send(signal.SIGUSR2)
        new = successor(veillink)
        with ended(new):
            eventually(lambda: len(veillink.logged("^stopping$")) == 2, what="the old ones drain")
            for sock in socks:
                exchange(sock)
                sock.close()
            assert veillink.child.wait(10) == 0
            eventually(lambda: all(gone(pid) for pid in old), what="the old ones have gone")
            assert pidfile.read_text() == f"{new}\n"
            assert len(children(new)) == 2
            assert admin.get("/readyz")[0] == 200
            os.kill(new, signal.SIGHUP)
            eventually(lambda: veillink.logged("^reloaded$"), what="the new ones reload")
            for _ in range(20):
                veillink.seconds_to_echo()
            visitors.__exit__()
    visitors.assert_content(resets=2)  # see docs/workers.md


def test_the_first_stop_after_an_upgrade_lets_the_old_ones_drain_on_and_the_second_cuts(
    fleet: Flock, backend: Serve
) -> None:
    """As the manuals of gunicorn and nginx have it: USR2, a look, TERM to the old one."""
    veillink = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n").veillink
    name = Path(f"/proc/{veillink.pid}/comm").read_text()
    assert name == "veillink\n"
    with clients(veillink, 20) as socks:
        veillink.send(signal.SIGUSR2)
        new = successor(veillink)
        with ended(new):
            assert Path(f"/proc/{new}/comm").read_text() == name
            eventually(lambda: len(veillink.logged("^stopping$")) == 2, what="the old ones drain")
            veillink.send(signal.SIGTERM)
            time.sleep(0.5)
            for sock in socks:
                exchange(sock)
            veillink.send(signal.SIGTERM)
            for sock in socks:
                with pytest.raises(ConnectionResetError):
                    read_to_eof(sock)
            assert veillink.child.wait(10) == 1


def test_no_worker_is_killed_for_time_in_which_its_master_did_not_run(fleet: Flock, backend: Serve) -> None:
    """As with ``docker pause``, and with a suspended machine."""
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", "--worker-timeout=3s")
    veillink, workers = flock.veillink, flock.workers()

    def pause(seconds: float) -> None:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in (veillink.pid, *workers):
                os.kill(pid, number)
                time.sleep(0.1 if number is signal.SIGCONT else 0)  # the master first
            time.sleep(seconds if number is signal.SIGSTOP else 0)

    with clients(veillink, 20) as socks:
        pause(5)
        time.sleep(1.5)  # it looks once a second
        for sock in socks:
            exchange(sock)
    assert flock.workers() == workers
    assert not veillink.logged("TIMEOUT")


_AS_MODULE = "import os, sys; os.execv(sys.executable, [sys.executable, '-m', 'veillink', *sys.argv[2:]])"


def test_a_new_program_that_cannot_start_leaves_the_old_one_as_it_was(fleet: Flock, backend: Serve) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", "--no-watch")
    veillink, good, workers = flock.veillink, flock.veillink.config.read_text(), flock.workers()
    with clients(veillink, 20) as socks:
        veillink.config.write_text("")
        veillink.send(signal.SIGUSR2)
        eventually(lambda: veillink.logged("the new program has ended: this one goes on"), what="the failure is told")
        for sock in socks:
            exchange(sock)
    assert flock.workers() == workers
    veillink.config.write_text(good)
    veillink.send(signal.SIGUSR2)
    with ended(successor(veillink)):
        assert veillink.child.wait(10) == 0


def test_a_new_program_that_is_not_there_leaves_the_old_one_as_it_was(
    fleet: Flock, backend: Serve, admin: AdminClient, tmp_path: Path
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    change = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    before = (str(VEILLINK.with_name("python")), "-c", change, str(folder))
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", admin.option, before=before)
    veillink, workers = flock.veillink, flock.workers()
    with clients(veillink, 20) as socks:
        folder.rmdir()
        veillink.send(signal.SIGUSR2)
        eventually(lambda: veillink.logged("the new program has ended: this one goes on"), what="the failure is told")
        assert veillink.logged("the new program cannot be started: .*No such file")
        for sock in socks:
            exchange(sock)
    assert flock.workers() == workers
    assert admin.get("/readyz")[0] == 200


# A program that dawdles where the test says so.
_SLOWLY = """\
import os, sys, time
from gunicorn import util
def slowly(function):
    return lambda *arguments: (time.sleep(1), function(*arguments))
{}
sys.argv = sys.argv[1:]
from veillink.__main__ import main
main()
"""


def slowly(function: str) -> tuple[str, ...]:
    return str(VEILLINK.with_name("python")), "-c", _SLOWLY.format(f"{function} = slowly({function})")


@pytest.mark.parametrize(
    "before", [(), slowly("os.execvpe")], ids=["as it comes", "forked and not yet the new program"]
)
def test_a_stop_during_an_upgrade_stops_both_and_lets_connections_finish(
    before: tuple[str, ...], fleet: Flock, backend: Serve
) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", before=before)
    veillink, old = flock.veillink, set(flock.workers())
    with clients(veillink, 20) as socks:
        veillink.send(signal.SIGUSR2)
        new = eventually(lambda: set(flock.workers()) - old, what="the new master").pop()
        veillink.send(signal.SIGTERM)
        eventually(lambda: len(veillink.logged("^stopping$")) >= 2, what="the workers drain")
        time.sleep(0.5)
        for sock in socks:
            exchange(sock)
    assert veillink.child.wait(5) == 0
    eventually(lambda: gone(new), what="the end of the new master")


@pytest.mark.parametrize("rule", ["unix alone", "unix and tcp"])
def test_unix_sockets_go_over_to_the_new_program(rule: str, fleet: Flock, backend: Serve) -> None:
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        target = backend(echo).port
        rows = f"unix:{folder}/listen,{HOST},{target},name=web\n" + (
            f"{HOST}:{{port}},{HOST},{target}\n" if "tcp" in rule else ""
        )
        option = f"--admin=unix:{folder}/admin"
        veillink = fleet(rows, option, canary=False).veillink
        veillink.send(signal.SIGUSR2)
        with ended(successor(veillink)):
            assert veillink.child.wait(10) == 0

            eventually(partial(echoes_at, f"{folder}/listen"), what="the socket is served again")
            command = [str(VEILLINK), "--status", "--json", option]
            eventually(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, what="status")


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["process", "rule"])
def test_limits_are_divided_among_them_and_anew_when_their_number_changes(
    where: str, fleet: Flock, backend: Serve
) -> None:
    options = ("--max-connections=8",) if where == "process" else ()
    row = f"{HOST}:{{port}},{HOST},{backend(echo).port}" + (",max_connections=8" if where == "rule" else "")
    flock = fleet(f"{row}\n", *options, canary=False)
    veillink = flock.veillink
    with ExitStack() as stack:
        socks = [stack.enter_context(veillink.connect()) for _ in range(60)]
        for sock in socks:
            sock.sendall(b"x")

        def breakdown() -> list[int]:
            owners = {link: pid for pid in flock.workers() for link in sockets_of(pid)}
            return sorted(Counter(owners[link] for link in accepted(socks, veillink.port) if link in owners).values())

        eventually(lambda: breakdown() == [4, 4], what="four for each")
        veillink.send(signal.SIGTTOU)
        eventually(lambda: breakdown()[-1] == 8, what="eight for the one that stays")
        for sock in socks:
            sock.close()


def test_each_of_them_lets_a_client_have_its_part_rounded_up(fleet: Flock, backend: Serve) -> None:
    port, rated = backend(echo).port, free_port()
    row = f"{HOST}:{{port}},{HOST},{port},max_connections_per_client=5\n"
    flock = fleet(f"{row}{HOST}:{rated},{HOST},{port},name=rated,connection_rate_per_client=6/h:3\n", canary=False)
    with ExitStack() as stack:

        def served(port: int) -> Counter[int]:
            """Return how many of one client's many connections each worker serves."""
            socks = []
            for _ in range(60):
                with suppress(OSError):  # reset before connect() has returned, or after
                    socks.append(stack.enter_context(flock.veillink.connect(port)))
                    socks[-1].sendall(b"x")
            kept = [sock for sock in socks if echoed(sock)]
            owners = {link: pid for pid in flock.workers() for link in sockets_of(pid)}
            return Counter(owners[link] for link in accepted(kept, port))

        assert list(served(flock.veillink.port).values()) == [3, 3]
        assert list(served(rated).values()) == [2, 2]


def echoed(sock: socket.socket) -> bool:
    """Return whether a byte that was sent has come back; else it was reset."""
    with suppress(ConnectionResetError):
        return sock.recv(1) == b"x"
    return False


def test_the_kernel_hands_those_who_wait_to_another_worker_where_it_is_allowed_to(
    network: Network, fleet: Flock, backend: Serve
) -> None:
    network.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_migrate_req")
    row = f"{HOST}:{{port}},{HOST},{backend(echo).port},max_connections=2\n"
    flock = fleet(row, canary=False)
    with ExitStack() as stack:
        socks = [stack.enter_context(flock.veillink.connect()) for _ in range(40)]
        flock.veillink.send(signal.SIGTTOU)
        waiting = set(socks)
        while waiting:
            for sock in select.select(waiting, waiting, [], 0.01)[1]:
                with suppress(BlockingIOError):
                    sock.send(b"x", socket.MSG_DONTWAIT)
            for sock in select.select(waiting, [], [], 5)[0]:
                assert sock.recv(1) == b"x"
                waiting.remove(sock)
                sock.close()


# --- what they show --------------------------------------------------------------------------------------------------


def test_each_answers_for_all_and_no_counter_ever_falls(fleet: Flock, backend: Serve, admin: AdminClient) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n", admin.option, workers=3)
    falls: list[str] = []
    stop = threading.Event()
    asked = 0

    def look() -> None:
        nonlocal asked
        last: dict[Any, float] = {}
        while not stop.is_set():
            try:
                now = admin.metrics()
            except ConnectionError:  # it was a killed worker that was asked
                continue
            asked += 1
            for key, value in last.items():
                if key[0].endswith(("_total", "_count", "_bucket", "_sum")) and now.get(key, 0) < value:
                    falls.append(f"{key}: {value} -> {now.get(key)}")
            assert now["veillink_connections_active", (("rule", "web"),)] >= 0
            last = now

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for round_ in range(4):
            with clients(flock.veillink, 30) as socks:
                eventually(lambda: admin.rule("web")["active"] == 30, what="all are shown")
                eventually(lambda: len(admin.json("/api/connections")) == 30, what="all are listed")
                if round_ == 1:
                    victim = flock.workers()[0]
                    os.kill(victim, signal.SIGKILL)
                    # a thread of it may hold the listener for a moment longer than the process lives
                    eventually(partial(flock.is_rid_of, victim), what="its end")
                elif round_ == 2:
                    flock.veillink.send(signal.SIGHUP)
                del socks
            eventually(lambda: admin.rule("web")["active"] == 0, what="none is left")
    finally:
        stop.set()
        looker.join()
    assert falls == []
    assert asked > 20
    assert admin.rule("web")["total"] == 120
    status = admin.json("/api/status")
    assert (status["phase"], len(status["workers"])) == ("running", 3)
    assert {each["pid"] for each in status["workers"]} == set(flock.workers())
    eventually(lambda: max(each["age"] for each in admin.json("/api/status")["workers"]) < 1, what="fresh states")
    assert status["limits"]["connections"] > 1000


def test_connections_of_all_are_listed_with_numbers_of_their_own(
    fleet: Flock, backend: Serve, admin: AdminClient
) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n", admin.option)
    with clients(flock.veillink, 30) as socks:
        found = eventually(lambda: (f := admin.json("/api/connections")) and len(f) == 30 and f, what="all of them")
        assert {each["client"] for each in found} == {f"{HOST}:{sock.getsockname()[1]}" for sock in socks}
        assert len({each["id"] for each in found}) == 30
        status = subprocess.run([str(VEILLINK), "--status", admin.option], capture_output=True, text=True, check=True)
        assert "30 of at most" in status.stdout
        assert "2 workers" in status.stdout


def test_a_window_at_a_unix_socket_is_kept_open_by_another_worker(fleet: Flock, backend: Serve) -> None:
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        option = f"--admin=unix:{folder}/admin"
        flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n", option)

        def shown() -> dict[str, Any] | None:
            command = [str(VEILLINK), "--status", "--json", option]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
            return json.loads(done.stdout) if done.returncode == 0 else None

        first = eventually(shown, what="the admin")
        assert len(first["workers"]) == 2
        with clients(flock.veillink, 30):
            eventually(lambda: (now := shown()) and now["totals"]["active"] == 30, what="those of both")
        os.kill(flock.workers()[0], signal.SIGKILL)
        eventually(lambda: (now := shown()) and len(now["workers"]) == 2, what="the admin of another")


def test_a_target_that_is_down_for_one_is_shown_as_down(fleet: Flock, backend: Serve, admin: AdminClient) -> None:
    dead = free_port()
    rows = f"{HOST}:{{port}},{HOST},{dead},health=tcp,health_interval=100ms,name=web\n"
    fleet(rows, admin.option)
    eventually(lambda: not admin.rule("web")["targets"][0]["up"], what="it is shown as down")


def test_readiness_is_that_of_all(fleet: Flock, admin: AdminClient) -> None:
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        flock = fleet(f"{HOST}:{taken},{HOST},1,name=down\n", admin.option)
        assert admin.get("/readyz")[2] == b"not listening: down\n"
    eventually(lambda: admin.get("/readyz")[0] == 200, what="ready")
    flock.veillink.assert_healthy()


# --- the service manager ---------------------------------------------------------------------------------------------


def test_the_manager_hears_of_them_from_the_master(fleet: Flock, backend: Serve, manager: Manager) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", "--drain-timeout=5s", env=manager.env)
    assert manager.told() == {"READY": "1", "STATUS": "2 workers"}
    flock.veillink.wait_for_line('"message": "ready"', count=2)
    flock.veillink.send(signal.SIGHUP)
    assert "RELOADING" in manager.told()
    assert manager.told()["READY"] == "1"
    flock.veillink.wait_for_line('"message": "reloaded"')
    flock.veillink.send(signal.SIGUSR2)
    new = successor(flock.veillink)
    with ended(new):
        told = [manager.told()]
        while "MAINPID" not in told[-1]:
            told.append(manager.told())
        assert told[-1]["MAINPID"] == str(new)
        assert flock.veillink.child.wait(10) == 0
        while "READY" not in manager.told():
            pass
    while "STOPPING" not in (last := manager.told()):
        pass
    assert 5_000_000 <= int(last["EXTEND_TIMEOUT_USEC"]) <= 10_000_000


def test_the_watchdog_hears_from_the_master_and_from_its_successor(fleet: Flock, manager: Manager) -> None:
    watched = "import os, sys; os.environ['WATCHDOG_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
    before = (str(VEILLINK.with_name("python")), "-c", watched)
    env = manager.env | {"WATCHDOG_USEC": "600000"}
    veillink = fleet(f"{HOST}:{{port}},{HOST},1\n", env=env, before=before).veillink

    def alive() -> None:
        for _ in range(5):
            while "WATCHDOG" not in manager.told():
                pass

    alive()
    veillink.send(signal.SIGUSR2)
    with ended(successor(veillink)):
        assert veillink.child.wait(10) == 0
        while "MAINPID" not in manager.told():
            pass
        alive()


def test_a_reload_that_comes_early_does_not_make_them_ready(start: Start, manager: Manager) -> None:
    before = slowly("util._setproctitle")
    veillink = start(f"{HOST}:{{port}},{HOST},1\n", "--workers=2", before=before, env=manager.env, ready=False)
    eventually(lambda: len(children(veillink.child.pid)) == 2, 10, "both workers")
    veillink.child.send_signal(signal.SIGHUP)
    assert manager.told() == {"READY": "1", "STATUS": "2 workers"}
    eventually(lambda: len(veillink.logged("^ready$")) == 2, what="both serve")
    assert veillink.stop() == 0


def test_a_reload_is_done_although_a_worker_drains(fleet: Flock, backend: Serve, manager: Manager) -> None:
    flock = fleet(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n", workers=3, env=manager.env)
    assert "READY" in manager.told()
    with clients(flock.veillink, 30):
        flock.veillink.send(signal.SIGTTOU)
        eventually(lambda: flock.veillink.logged("^stopping$"), what="one drains")
        flock.veillink.send(signal.SIGHUP)
        assert "RELOADING" in manager.told()
        assert "READY" in manager.told()


def test_sockets_that_were_handed_over_are_shared_by_all(fleet: Flock, backend: Serve) -> None:
    """Also with the program that takes over after USR2: a socket of its own would not get the clients."""
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        path = f"{folder}/given"
        before = (str(VEILLINK.with_name("python")), "-c", _GIVEN, path)
        flock = fleet(f"unix:{path},{HOST},{backend(echo).port}\n", before=before)

        def workers_of(count: int) -> int:
            with ExitStack() as stack:
                for _ in range(count):
                    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                    sock.connect(path)
                    exchange(sock)
            return len({line["id"] // 1_000_000_000 for line in flock.veillink.access(count)})

        assert workers_of(60) == 2
        flock.veillink.send(signal.SIGUSR2)
        with ended(successor(flock.veillink)):
            assert flock.veillink.child.wait(10) == 0
            workers_of(10)


_GIVEN = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen(100)
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


# --- gunicorn's own command ------------------------------------------------------------------------------------------


def test_gunicorns_own_command_runs_them_too(backend: Serve, tmp_path: Path) -> None:
    target, port = backend(echo).port, free_port()
    config, log = tmp_path / "config.csv", tmp_path / "log"
    config.write_text(f"{HOST}:{port},{HOST},{target}\n")
    admin = AdminClient()
    env = {"VEILLINK_CONFIG": str(config), "VEILLINK_ADMIN": f"{HOST}:{admin.port}", "VEILLINK_DRAIN_TIMEOUT": "3s"}
    command = [str(VEILLINK.with_name("gunicorn")), "-c", str(CONF), "-w", "2", "veillink.workers:app"]
    with log.open("wb") as out:
        child = subprocess.Popen(command, env=os.environ | env, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: log.read_text().count(" ready ") == 2, 10, "both workers")
        before = children(child.pid)
        with socket.create_connection((HOST, port), 5) as sock:
            exchange(sock)
            child.send_signal(signal.SIGHUP)
            eventually(lambda: log.read_text().count(" ready ") == 4, 10, "new workers")
            exchange(sock)
        eventually(lambda: not set(before) & set(children(child.pid)), 10, "the old ones have gone")
        assert len(children(child.pid)) == 2
        eventually(lambda: admin.json("/api/status")["totals"]["connections"] == 1, what="the account goes on")
        workers = children(child.pid)
        child.send_signal(signal.SIGUSR2)
        eventually(lambda: log.read_text().count(" ready ") == 6, 10, "those of a new program")
        (new,) = set(children(child.pid)) - set(workers)
        with ended(new):
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 0
            with socket.create_connection((HOST, port), 5) as sock:
                exchange(sock)
    finally:
        child.kill()
        child.wait(10)
    assert "Traceback" not in log.read_text()
    assert not re.search("ERROR|error", log.read_text())
