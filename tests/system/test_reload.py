"""A change of the rules' file touches the rules that it changes, and no client of any other notices."""

import contextlib
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .conftest import Forward, Serve, Start
from .ends import frozen
from .harness import (
    HOST,
    Backend,
    VeilLink,
    echo,
    eventually,
    exchange,
    free_port,
    nobody_listens,
    open_in,
    read_exactly,
    read_to_eof,
    saying,
)
from .load import Load


def reloads(veillink: VeilLink) -> int:
    return len(veillink.logged("^reloaded$"))


def refusals(veillink: VeilLink) -> int:
    return len(veillink.logged("^not reloaded"))


def text(veillink: VeilLink, rows: str) -> str:
    """Return what the rules' file has to be for these rows: the harness's own row comes first."""
    return veillink.config.read_text().splitlines()[0] + "\n" + rows.replace("{port}", str(veillink.port))


def listening(veillink: VeilLink) -> dict[int, str]:
    """Return its listening sockets by port: ``socket:[inode]`` is the same for as long as the socket is."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = {f"socket:[{line[9]}]": int(line[1].partition(":")[2], 16) for line in lines if line[3] == "0A"}
    own = open_in(veillink.pid)
    return {ports[link]: link for link in own if link in ports}


def state_of(veillink: VeilLink, rule: str) -> dict[str, Any]:
    """Return the totals of a rule as USR1 shows them."""

    def shown() -> list[dict[str, Any]]:
        return [line for line in veillink.logged("^state of rule$") if line["rule"] == rule]

    before = len(shown())
    veillink.send(signal.SIGUSR1)
    eventually(lambda: len(shown()) > before, what=f"the state of {rule}")
    return shown()[-1]


def answered(socks: list[socket.socket], seconds: float = 0.0) -> list[socket.socket]:
    return select.select(socks, [], [], seconds)[0]


def served(socks: list[socket.socket], count: int) -> list[socket.socket]:
    """Return those that are answered, once they are so many; fail when there are more."""
    eventually(lambda: len(answered(socks)) >= count, what=f"{count} of {len(socks)} clients are served")
    time.sleep(0.2)  # for those who ought to wait
    assert len(answered(socks)) == count
    return answered(socks)


class Visitors:
    """Threads of which each connects, is echoed and leaves, again and again.

    Args:
        port: where to.
        threads: how many.
    """

    def __init__(self, port: int, threads: int = 4) -> None:
        self.count = 0
        self.slowest = 0.0
        self.failed: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._visit, daemon=True) for _ in range(threads)]

    def _visit(self) -> None:
        while not self._stop.wait(0.004):
            began = time.monotonic()
            try:
                with socket.create_connection((HOST, self._port), timeout=10) as sock:
                    exchange(sock)
            except (OSError, AssertionError) as error:
                self.failed.append(repr(error))
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.count += 1

    def __enter__(self) -> "Visitors":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def assert_content(self, resets: int = 0) -> None:
        """Fail if one of them has failed, but for so many whose handshake met the closing of a listener."""
        assert [failed for failed in self.failed if "ConnectionResetError" not in failed] == []
        assert len(self.failed) <= resets
        assert self.count > 100


@contextlib.contextmanager
def sending(veillink: VeilLink, every: float, *numbers: signal.Signals) -> Iterator[Callable[[], int]]:
    """Send it these signals in turn at a steady pace meanwhile; the function given tells how many were sent."""
    stop, sent, began = threading.Event(), 0, time.monotonic()

    def send() -> None:
        nonlocal sent
        while not stop.wait(max(0.0, began + every * sent - time.monotonic())):
            veillink.send(numbers[sent % len(numbers)])
            sent += 1

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield lambda: sent
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def words(backend: Serve) -> Callable[[str], int]:
    """Return the port of a backend that says this word."""
    started: dict[str, Backend] = {}

    def _words(word: str) -> int:
        if word not in started:
            started[word] = backend(saying(word.encode()))
        return started[word].port

    return _words


Words = Callable[[str], int]


# --- the file is watched ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_a_changed_file_is_read_without_being_asked(how: str, start: Start, words: Words) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{words('old')}\n")
    assert veillink.heard() == b"old"
    rows = f"{HOST}:{{port}},{HOST},{words('new')}\n"
    if how == "in place":
        veillink.config.write_text(text(veillink, rows))
    else:
        veillink.write(rows)
    eventually(lambda: reloads(veillink), 1.5)
    assert veillink.heard() == b"new"


def test_a_symbolic_link_that_is_swapped_is_read_again(start: Start, words: Words, tmp_path: Path) -> None:
    """A ConfigMap's file is a link to ``..data/config.csv``, and ``..data`` a link that a new one is renamed over."""
    port = free_port()

    def publish(version: str) -> None:
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        (folder / "config.csv").write_text(f"{HOST}:{port},{HOST},{words(version)}\n")
        os.utime(folder / "config.csv", (1_700_000_000, 1_700_000_000))  # a change is more than a new time
        (tmp_path / "..data_tmp").symlink_to(folder.name)
        before = (tmp_path / "..data").resolve()
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        if before.name != "..data":
            (before / "config.csv").unlink()
            before.rmdir()

    publish("one")
    (tmp_path / "config.csv").symlink_to("..data/config.csv")
    veillink = start("", f"--config={tmp_path}/config.csv", canary=False)
    assert veillink.heard(port) == b"one"
    for count, version in enumerate(("two", "three"), 1):
        publish(version)
        eventually(lambda count=count: reloads(veillink) == count, 1.5)  # type: ignore[misc]
        assert veillink.heard(port) == version.encode()
    assert not refusals(veillink)


def test_a_deleted_file_is_missed_once_and_read_when_it_is_back(start: Start, words: Words) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{words('old')}\n")
    rules = text(veillink, f"{HOST}:{{port}},{HOST},{words('new')}\n")
    veillink.config.unlink()
    eventually(lambda: refusals(veillink), 1.5)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        assert veillink.heard() == b"old"
    assert [line["level"] for line in veillink.logged(r"cannot be read: No such file|^not reloaded")] == ["error"] * 2
    veillink.config.write_text(rules)
    eventually(lambda: reloads(veillink), 1.5)
    assert veillink.heard() == b"new"
    assert refusals(veillink) == 1


def test_a_file_that_is_still_being_written_is_left_alone(start: Start, words: Words) -> None:
    rows = [f"{HOST}:{free_port()},{HOST},{words('all')}\n" for _ in range(6)]
    veillink = start("")
    veillink.first_fds += len(rows)
    written = time.monotonic()
    for row in rows:
        with veillink.config.open("a") as file:
            file.write(row)
        pause, written = time.monotonic() - written, time.monotonic()
        assert not reloads(veillink), f"with {pause} s from row to row"
        time.sleep(0.2)  # so slow is the writer
    eventually(lambda: reloads(veillink), 2.0)
    assert 0.45 < time.monotonic() - written < 1.5
    assert veillink.logged("^reloaded$")[0]["added"] == len(rows)
    assert reloads(veillink) == 1


def test_changes_that_follow_quickly_are_one_reload(start: Start, words: Words) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{words('0')}\n")
    for number in range(1, 9):
        veillink.write(f"{HOST}:{{port}},{HOST},{words(str(number))}\n")
        time.sleep(0.05)
    eventually(lambda: veillink.heard() == b"8", 1.5)
    veillink.write(f"{HOST}:{{port}},{HOST},{words('last')}\n")
    eventually(lambda: reloads(veillink) > 1, 1.5)
    assert veillink.heard() == b"last"
    assert reloads(veillink) == 2


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_file_system_that_hangs_stops_neither_forwarding_nor_stopping(
    start: Start, backend: Serve, tmp_path: Path
) -> None:
    config = tmp_path / "hangs.csv"
    port = free_port()
    config.write_text(f"{HOST}:{port},{HOST},{backend(echo).port}\n")
    calls = "newfstatat,stat,statx"
    hang = f"inject={calls}:delay_enter=600000000:when=6+"  # microseconds; the start takes the first
    before = ("strace", "-f", "-qq", "-o", "/dev/null", "-P", str(config), "-e", f"trace={calls}", "-e", hang)
    veillink = start("", "--config", str(config), before=before, canary=False)
    with veillink.connect(port) as client:
        while not veillink.logged("no answer for 5 s"):
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
            time.sleep(0.01)
        veillink.send(signal.SIGHUP)
        client.sendall(b"y")
        assert read_exactly(client, 1) == b"y"
    status = Path(f"/proc/{veillink.pid}/status")
    veillink.send(signal.SIGTERM)
    eventually(lambda: "State:\tZ" in status.read_text(), 60, "the end, although strace keeps the one that hangs")
    veillink.kill()
    assert veillink.logged("^stopped$")
    assert len(veillink.logged("no answer")) == 1


def test_with_no_watch_only_a_hup_has_the_file_read(start: Start, words: Words) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{words('old')}\n", "--no-watch")
    veillink.write(f"{HOST}:{{port}},{HOST},{words('new')}\n")
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        assert veillink.heard() == b"old"
    assert not reloads(veillink)
    veillink.send(signal.SIGHUP)
    eventually(lambda: reloads(veillink), 1.0)
    assert veillink.heard() == b"new"


# --- what changes, and what does not ---------------------------------------------------------------------------------


def test_a_rule_that_is_added_is_there_soon(start: Start, words: Words) -> None:
    other = free_port()
    veillink = start(f"{HOST}:{{port}},{HOST},{words('old')}\n")
    veillink.first_fds += 1
    veillink.write(f"{HOST}:{{port}},{HOST},{words('old')}\n{HOST}:{other},{HOST},{words('added')}\n")
    eventually(lambda: not nobody_listens(veillink, other), 1.5)
    assert veillink.heard(other) == b"added"
    assert veillink.heard() == b"old"


def test_a_rule_that_is_removed_refuses_new_clients_and_keeps_those_it_has(forward: Forward) -> None:
    veillink = forward(echo)
    with ExitStack() as stack:
        clients = [stack.enter_context(veillink.connect()) for _ in range(20)]
        for sock in clients:
            exchange(sock)
        veillink.write("")
        eventually(lambda: nobody_listens(veillink, veillink.port), 1.5)
        for sock in clients:
            exchange(sock, b"x" * 100_000)
            sock.shutdown(socket.SHUT_WR)
            assert read_to_eof(sock) == b""
    assert [line["end"] for line in veillink.access(20)[-20:]] == ["closed"] * 20


def test_a_new_target_is_for_new_connections(start: Start, backend: Serve, words: Words) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{backend(echo).port}\n")
    with veillink.connect() as old:
        exchange(old)
        veillink.reload(f"{HOST}:{{port}},{HOST},{words('new')}\n")
        for _ in range(5):
            assert veillink.heard() == b"new"
            exchange(old)


def test_a_rule_that_stays_keeps_its_socket_and_its_totals_although_its_row_moves(start: Start, backend: Serve) -> None:
    port, other, third = backend(echo).port, free_port(), free_port()
    kept, changed = f"{HOST}:{{port}},{HOST},{port},name=kept\n", f"{HOST}:{other},{HOST},{port},name=changed"
    veillink = start(f"{kept}{changed}\n")
    veillink.first_fds += 1
    before = listening(veillink)
    for _ in range(3):
        veillink.seconds_to_echo()
    veillink.seconds_to_echo(other)
    veillink.access(4)
    assert state_of(veillink, "kept")["total"] == 3
    veillink.reload(f"{HOST}:{third},{HOST},{port}\n# moved\n\n{changed},idle_timeout=1h\n{kept}")
    reloaded = veillink.logged("^reloaded$")[0]
    assert {name: reloaded[name] for name in ("added", "removed", "changed", "same")} == {
        "added": 1,
        "removed": 0,
        "changed": 1,
        "same": 2,
    }
    assert {number: link for number, link in listening(veillink).items() if number != third} == before
    for number in (0, 0, other):
        veillink.seconds_to_echo(number)
    veillink.access(7)
    assert state_of(veillink, "kept")["total"] == state_of(veillink, "kept")["bytes_out"] == 5
    assert state_of(veillink, "changed")["total"] == 2


def _faulty(path: Path) -> list[str]:
    path.write_text(
        f"{HOST}:{free_port()},{HOST},1\n{HOST}:99999,{HOST},1\n{HOST}:{free_port()},{HOST},0,name=x,wait=1\n"
    )
    return [rf"{path}:2:1: port .*99999", rf"{path}:3:3: port .*0", rf"{path}:3:5: unknown option"]


def _empty(path: Path) -> list[str]:
    path.write_text("")
    return [rf"{path}: has no rule"]


def _directory(path: Path) -> list[str]:
    path.unlink()
    path.mkdir()
    return [rf"{path}: cannot be read: it is a directory"]


def _fifo(path: Path) -> list[str]:
    path.unlink()
    os.mkfifo(path)
    return [rf"{path}: cannot be read: it is no regular file"]


@pytest.mark.parametrize("spoil", [_faulty, _empty, _directory, _fifo])
def test_a_file_with_any_problem_is_refused_whole_and_what_runs_goes_on(
    spoil: Callable[[Path], list[str]], forward: Forward
) -> None:
    veillink = forward(echo)
    before, good = listening(veillink), veillink.config.read_text()
    with veillink.connect() as sock:
        exchange(sock)
        problems = spoil(veillink.config)
        eventually(lambda: refusals(veillink), 1.5)
        for problem in problems:
            (line,) = veillink.logged(problem)
            assert line["level"] == "error"
        exchange(sock)
        assert veillink.seconds_to_echo() < 1
        assert listening(veillink) == before
        if veillink.config.is_dir():
            veillink.config.rmdir()
        else:
            veillink.config.unlink()
        veillink.config.write_text(good)
        eventually(lambda: reloads(veillink), 2.0)
        assert listening(veillink) == before
        exchange(sock)


def test_who_waits_in_the_queue_of_a_removed_listener_is_accepted_first(start: Start) -> None:
    number = min(2000, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    with Load() as load:
        veillink = start(load.rows(f"{HOST}:{{port}}"), "--no-access-log", "--no-watch")
        veillink.write("")
        veillink.send(signal.SIGHUP)  # it is obeyed a tenth of a second later, so with a queue
        with frozen(veillink):
            load.begin([("echo", veillink.port)], number, number)
            eventually(lambda: waiting_at(veillink.port) == number, 10, "a queue")
            assert not reloads(veillink)
        assert load.end()[1] == {"echo ok": number}
        eventually(lambda: reloads(veillink))
        assert nobody_listens(veillink, veillink.port)


def waiting_at(port: int) -> int:
    """Return how many connections nobody has accepted yet (proc(5), tcp: a listener's receive queue)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = [line for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    return sum(int(line[4].partition(":")[2], 16) for line in own)


def test_a_port_that_is_taken_at_a_reload_is_reported_and_listened_on_when_it_is_free(
    start: Start, words: Words
) -> None:
    added = free_port()
    veillink = start(f"{HOST}:{{port}},{HOST},{words('old')}\n")
    veillink.first_fds += 2
    with socket.create_server((HOST, free_port())) as other:
        taken = other.getsockname()[1]
        rows = [(veillink.port, "new"), (taken, "late"), (added, "added")]
        veillink.reload("".join(f"{HOST}:{port},{HOST},{words(word)}\n" for port, word in rows))
        (error,) = veillink.logged("cannot listen")
        assert error["message"].startswith(f"{veillink.config}:3: cannot listen on {HOST}:{taken}: ")
        assert error["level"] == "error"
        assert [veillink.heard(), veillink.heard(added)] == [b"new", b"added"]
    eventually(lambda: veillink.logged("^listening at last$"), 1.5)
    assert veillink.heard(taken) == b"late"
    assert len(veillink.logged("cannot listen")) == 1


# --- no client notices -----------------------------------------------------------------------------------------------


@pytest.mark.unmeasured
def test_ten_reloads_in_five_seconds_are_noticed_by_no_client_of_a_rule_that_stays(start: Start) -> None:
    """A machine that is busy with other things delays a direct connection as well: so much more than it is allowed."""
    other = free_port()
    with Load() as load, ExitStack() as stack:
        kept, another = load.rows(f"{HOST}:{{port}}"), f"{HOST}:{other},{HOST},{load.ports[0]}"
        steps = [kept, f"{kept}{another}\n", f"{kept}{another},name=changed\n", f"{kept}{HOST}:x,y,z\n", kept]
        veillink = start(kept, "--no-access-log")
        clients = [stack.enter_context(veillink.connect()) for _ in range(20)]
        with Visitors(veillink.port) as visitors, Visitors(load.ports[0]) as direct:
            began, slowest = time.monotonic(), 0.0
            for count, rows in enumerate(steps * 2, 1):
                veillink.reload(rows, "^not reloaded" if ":x," in rows else "^reloaded$")
                while time.monotonic() < began + count * 0.5:
                    for sock in clients:
                        sent = time.monotonic()
                        exchange(sock)
                        slowest = max(slowest, time.monotonic() - sent)
                    time.sleep(0.01)
        for found in (visitors, direct):
            found.assert_content()
        assert max(visitors.slowest, slowest) < 0.1 + direct.slowest
        assert (reloads(veillink), refusals(veillink)) == (8, 2)


def test_two_hundred_hups_in_two_seconds_are_a_few_reloads_and_the_last_file_counts(
    start: Start, backend: Serve
) -> None:
    port, ports = backend(echo).port, [free_port() for _ in range(5)]
    row = f"{HOST}:{{port}},{HOST},{port}\n"
    veillink = start(row, "--no-access-log")
    veillink.first_fds += 1
    with Visitors(veillink.port, 2) as visitors:
        with sending(veillink, 0.01, signal.SIGHUP) as sent:
            for number, other in enumerate(ports, 1):
                veillink.write(f"{row}{HOST}:{other},{HOST},{port}\n")
                eventually(lambda number=number: sent() >= 40 * number)  # type: ignore[misc]
        eventually(lambda: not nobody_listens(veillink, ports[-1]), 2.0)
    visitors.assert_content()
    assert reloads(veillink) <= 6
    assert not refusals(veillink)
    assert set(listening(veillink)) == {veillink.echo_port, veillink.port, ports[-1]}


def test_a_steady_stream_of_hups_does_not_put_a_reload_off_for_ever(start: Start, words: Words) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{words('old')}\n", "--no-watch")
    with sending(veillink, 0.05, signal.SIGHUP) as sent:
        eventually(lambda: sent() > 2)
        for word in ("one", "two"):
            veillink.write(f"{HOST}:{{port}},{HOST},{words(word)}\n")
            eventually(lambda word=word: veillink.heard() == word.encode(), 2.5)  # type: ignore[misc]


def test_a_thousand_signals_in_five_seconds_fail_no_connection(forward: Forward) -> None:
    veillink = forward(echo, "", "--no-access-log")
    with veillink.connect() as long, Visitors(veillink.port, 2) as visitors:
        with sending(veillink, 0.005, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP) as sent:
            while sent() < 1000:
                exchange(long)
                time.sleep(0.01)
        eventually(lambda: reloads(veillink))
        exchange(long)
    visitors.assert_content()
    assert len(veillink.logged("^state$")) > 50


def test_fifty_changes_back_and_forth_leave_no_descriptor_and_no_probe(start: Start, backend: Serve) -> None:
    port, probed, other = backend(echo).port, backend(echo), free_port()
    kept = f"{HOST}:{{port}},{HOST},{port}\n"
    probing = f"{HOST}:{other},{HOST},{probed.port},health=tcp,health_interval=100ms\n"
    files = [
        (f"{kept}{probing}", "^reloaded$"),
        (f"{kept}{HOST}:{other},{HOST},{port},max_connections=1\n", "^reloaded$"),
        (f"{kept}{HOST}:{other},{HOST},0\n", "^not reloaded"),
        (f"{HOST}:{{port}},{HOST},{port},name=other\n{probing}", "^reloaded$"),
        (kept, "^reloaded$"),
    ]
    veillink = start(kept)
    with veillink.connect() as sock:
        exchange(sock)
        fds = veillink.fds()
        for _ in range(10):
            for rows, said in files:
                veillink.reload(rows, said)
            exchange(sock)
        eventually(lambda: veillink.fds() == fds, what=f"{fds} descriptors")
        assert probed.accepted > 0
        probes = probed.accepted
        time.sleep(0.5)  # for five probes, were there any
        assert probed.accepted == probes
        exchange(sock)
    assert set(listening(veillink)) == {veillink.echo_port, veillink.port}


# --- limits ----------------------------------------------------------------------------------------------------------


def test_at_its_limit_a_rule_lets_clients_wait_and_other_rules_alone(forward: Forward) -> None:
    veillink = forward(saying(b"hello"), "max_connections=2")
    with ExitStack() as stack:
        waiting = [stack.enter_context(veillink.connect()) for _ in range(8)]
        while waiting:
            both = served(waiting, min(2, len(waiting)))
            assert veillink.seconds_to_echo(veillink.echo_port) < 5
            for sock in both:
                assert read_exactly(sock, 5) == b"hello"
                waiting.remove(sock)
                sock.close()
    assert len(veillink.access(8)) == 8


def test_clients_who_wait_for_a_full_rule_take_no_place_from_others(start: Start, words: Words) -> None:
    narrow = free_port()
    veillink = start(
        f"{HOST}:{{port}},{HOST},{words('wide')}\n{HOST}:{narrow},{HOST},{words('narrow')},max_connections=1\n",
        "--max-connections=3",
    )
    with ExitStack() as stack:
        queue = [stack.enter_context(veillink.connect(narrow)) for _ in range(3)]
        first = served(queue, 1)[0]
        queue.remove(first)
        others = [stack.enter_context(veillink.connect()) for _ in range(3)]
        leaving = served(others, 2)[0]
        others.remove(leaving)
        leaving.close()
        served(others, 2)
        assert not answered(queue)
        first.close()
        served(queue, 1)


def neighbours() -> int:
    """Return a free port whose next one is free too."""
    first, second = free_port(), free_port()
    while second != first + 1:
        first, second = second, free_port()
    return first


def test_a_place_that_a_full_rule_cannot_take_goes_to_another_rule(start: Start, words: Words) -> None:
    """Two listeners of the rule have clients who wait; when one of them is served, the other's go on waiting."""
    range_ = neighbours()
    veillink = start(
        f"{HOST}:{{port}},{HOST},{words('wide')}\n"
        f"{HOST}:{range_}-{range_ + 1},{HOST},{words('narrow')},max_connections=1\n",
        "--max-connections=2",
    )
    with ExitStack() as stack:

        def client(port: int = 0) -> socket.socket:
            return stack.enter_context(veillink.connect(port))

        wide, narrow = [client(), client()], [client(range_), client(range_ + 1)]
        served(wide + narrow, 2)
        for _ in range(4):
            answered(wide)[0].close()
            wide = [client(), *(sock for sock in wide if sock.fileno() >= 0)]
            served(wide + narrow, 2)


def test_a_lower_limit_cuts_nobody_and_lets_new_clients_wait_until_there_is_room(start: Start, backend: Serve) -> None:
    row = f"{HOST}:{{port}},{HOST},{backend(echo).port},max_connections="
    veillink = start(f"{row}5\n")
    with ExitStack() as stack:
        clients = [stack.enter_context(veillink.connect()) for _ in range(3)]
        for sock in clients:
            exchange(sock)
        veillink.reload(f"{row}1\n")
        new = stack.enter_context(veillink.connect())
        new.sendall(b"in?")
        while clients:
            assert not answered([new], 0.2)
            for sock in clients:
                exchange(sock)
            clients.pop().close()
        assert read_exactly(new, 3) == b"in?"


def test_a_higher_limit_lets_in_who_waits(start: Start, words: Words) -> None:
    row = f"{HOST}:{{port}},{HOST},{words('hello')},max_connections="
    veillink = start(f"{row}1\n")
    with ExitStack() as stack:
        clients = [stack.enter_context(veillink.connect()) for _ in range(6)]
        served(clients, 1)
        for limit, count in ((3, 3), (4, 4), (0, 6)):
            veillink.reload(f"{row}{limit}\n")
            served(clients, count)


def test_a_rule_that_was_away_knows_of_the_connections_that_it_still_has(start: Start, backend: Serve) -> None:
    row = f"{HOST}:{{port}},{HOST},{backend(echo).port},max_connections=1\n"
    veillink = start(row)
    with veillink.connect() as held:
        exchange(held)
        veillink.reload(f"{HOST}:{free_port()},{HOST},1\n")
        veillink.reload(row)
        with veillink.connect() as late:
            late.sendall(b"x")
            assert served([late], 0) == []
            exchange(held)
            held.close()
            assert served([late], 1) == [late]


def test_who_waits_at_a_full_rule_is_let_in_when_another_rule_takes_its_port_over(start: Start, words: Words) -> None:
    port = neighbours()
    veillink = start(f"{HOST}:{port},{HOST},{words('hello')},max_connections=1\n")
    veillink.first_fds += 1
    with veillink.connect(port) as one, veillink.connect(port) as other:
        served([one, other], 1)
        veillink.reload(f"{HOST}:{port}-{port + 1},{HOST},{words('hello')}\n")
        served([one, other], 2)
