"""A connection's time is limited as its rule says, and by nothing else."""

import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from .conftest import Hold
from .ends import MIB, PROMPTLY, SIDES, Ends, Side, frozen, push, read_to_reset, refuses, wait_until_delivered
from .harness import HOST, VeilLink, eventually, free_port, read_exactly, read_to_eof, reset

KIB = 1 << 10


def ended(ends: Ends, end: str, count: int = 1) -> list[float]:
    """Return after how many seconds each connection ended; fail when one did for another reason."""
    lines = ends.veillink.access(count)
    assert [line["end"] for line in lines] == [end] * count
    return [line["duration_ms"] / 1000 for line in lines]


# --- idle_timeout ----------------------------------------------------------------------------------------------------


def test_a_connection_on_which_nothing_moves_is_closed(hold: Hold) -> None:
    ends = hold("idle_timeout=1s")
    client, target = ends.pair()
    assert read_to_reset(client) == read_to_reset(target) == b""
    assert 1 <= ended(ends, "idle_timeout")[0] < 5


def test_the_silence_counts_from_the_last_byte(hold: Hold) -> None:
    ends = hold("idle_timeout=1s")
    client, target = ends.pair()
    time.sleep(0.6)
    target.sendall(b"last")
    assert read_to_reset(client, 3) == b"last"
    assert read_to_reset(target) == b""
    assert 1.5 <= ended(ends, "idle_timeout")[0] < 5


def test_a_byte_now_and_then_in_one_direction_keeps_a_connection(hold: Hold) -> None:
    ends = hold("idle_timeout=1s")
    pairs = [ends.pair(side) for side in SIDES]
    for _ in range(4):
        time.sleep(0.4)
        for near, far in pairs:
            near.sendall(b".")
            assert read_exactly(far, 1) == b"."


def test_without_an_idle_timeout_silence_has_no_limit_and_the_log_says_so(hold: Hold) -> None:
    ends = hold()
    client, target = ends.pair()
    ends.veillink.wait_for_line('"warning".*limits are off: idle_timeout, max_lifetime')
    time.sleep(1)
    client.sendall(b"still there")
    assert read_exactly(target, 11) == b"still there"


def test_limits_that_are_set_need_no_warning(start: Callable[..., VeilLink]) -> None:
    veillink = start(f"{HOST}:{{port}},{HOST},{free_port()}\n", "--idle-timeout=1h", "--max-lifetime=24h")
    assert "limits are off" not in veillink.output


def test_a_reader_that_has_stopped_is_silence_too(hold: Hold) -> None:
    ends = hold("idle_timeout=2s")  # on a busy machine the kernel goes on taking bytes for over a second
    pairs = [ends.pair(side) for side in SIDES]
    with ThreadPoolExecutor() as pool:  # one after the other, the second could be silent for too long before it begins
        sent = list(pool.map(lambda pair: push(pair[0], 128 * MIB, quiet=0.2), pairs))
    stalled = time.monotonic() - 0.2
    assert min(ended(ends, "idle_timeout", 2)) >= 2
    assert time.monotonic() - stalled < 5
    for (near, far), data in zip(pairs, sent, strict=True):
        assert refuses(near)
        assert data.startswith(read_to_reset(far))  # a reset: what is missing must not look like the end


def test_a_sender_that_has_finished_learns_that_not_all_of_it_arrived(hold: Hold) -> None:
    ends = hold("idle_timeout=1s", receive_buffer=16 * KIB)
    pairs = [ends.pair(side) for side in SIDES]
    for near, _ in pairs:
        near.sendall(bytes(MIB))
        near.shutdown(socket.SHUT_WR)
    for near, _ in pairs:
        assert read_to_reset(near, 3) == b""
    ended(ends, "idle_timeout", 2)  # before that somebody who reads could still have got all of it
    for _, far in pairs:
        assert len(read_to_reset(far)) < MIB


def test_a_reader_that_is_only_slow_is_not_silence(hold: Hold) -> None:
    ends = hold("idle_timeout=1500ms", receive_buffer=64 * KIB)
    pairs = [ends.pair(side) for side in SIDES]
    sent = [push(near, 512 * KIB) for near, _ in pairs]
    received = [bytearray(), bytearray()]
    while len(received[0]) < 512 * KIB:
        for data, (_, far) in zip(received, pairs, strict=True):
            data += read_exactly(far, 32 * KIB)
        time.sleep(0.12)
    assert received == sent
    for near, far in pairs:
        assert read_to_reset(far, 5) == read_to_reset(near, 5) == b""
    assert min(ended(ends, "idle_timeout", 2)) > 1.9


def test_the_silence_counts_from_the_last_byte_that_the_reader_took(hold: Hold) -> None:
    ends = hold("idle_timeout=1500ms", receive_buffer=64 * KIB)
    client, target = ends.pair()
    push(client, 256 * KIB)
    time.sleep(0.8)
    read_exactly(target, 256 * KIB)
    assert read_to_reset(target, 5) == b""
    assert 2.2 < ended(ends, "idle_timeout")[0] < 5


def test_silence_after_a_reset_takes_nothing_from_who_has_still_to_read(hold: Hold) -> None:
    ends = hold("idle_timeout=1s", receive_buffer=64 * KIB)
    pairs = [ends.pair(side) for side in SIDES]
    sent = [push(near, MIB) for near, _ in pairs]
    for near, _ in pairs:
        wait_until_delivered(near)
        reset(near)
    time.sleep(2)
    for (_, far), data in zip(pairs, sent, strict=True):
        assert read_to_reset(far) == data
    assert {line["end"] for line in ends.veillink.access(2)} == {"client_reset", "target_reset"}


# --- half_close_timeout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "end"),
    [
        ("half_close_timeout=1s", "half_close_timeout"),
        ("half_close_timeout=1s,idle_timeout=1m", "half_close_timeout"),
        ("half_close_timeout=1m,idle_timeout=1s", "idle_timeout"),
        ("half_close_timeout=0,idle_timeout=1s", "idle_timeout"),
    ],
)
def test_one_side_that_has_finished_and_one_that_is_silent_are_closed(hold: Hold, row: str, end: str) -> None:
    ends = hold(row)
    pairs = [ends.pair(side) for side in SIDES]
    for near, far in pairs:
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert read_to_eof(far) == b"question"
    for near, far in pairs:
        assert read_to_reset(near) == b""  # the answer was not over: half of it must not look like all
        eventually(partial(refuses, far), PROMPTLY)
    assert all(1 <= seconds < 5 for seconds in ended(ends, end, 2))


def test_an_answer_that_comes_bit_by_bit_is_not_cut_by_the_half_close_timeout(hold: Hold) -> None:
    ends = hold("half_close_timeout=1s")
    pairs = [ends.pair(side) for side in SIDES]
    for near, _ in pairs:
        near.shutdown(socket.SHUT_WR)
    for _ in range(3):
        time.sleep(0.4)
        for near, far in pairs:
            far.sendall(b".")
            assert read_exactly(near, 1) == b"."
    for near, _ in pairs:
        assert read_to_reset(near, 5) == b""
    assert min(ended(ends, "half_close_timeout", 2)) > 1.2 + 0.9


def test_an_answer_that_is_read_slowly_is_not_cut_by_the_half_close_timeout(hold: Hold) -> None:
    ends = hold("half_close_timeout=1s", receive_buffer=64 * KIB)
    client, target = ends.pair()
    client.shutdown(socket.SHUT_WR)
    assert read_to_eof(target) == b""
    answer = push(target, 448 * KIB)
    received = bytearray()
    while len(received) < len(answer):
        received += read_exactly(client, min(len(answer) - len(received), 32 * KIB))
        time.sleep(0.15)
    target.close()
    assert received == answer
    assert read_to_eof(client) == b""
    ended(ends, "closed")


def test_while_both_sides_may_send_no_half_close_timeout_runs(hold: Hold) -> None:
    client, target = hold("half_close_timeout=300ms,max_lifetime=1m").pair()
    time.sleep(1)
    client.sendall(b"still there")
    assert read_exactly(target, 11) == b"still there"


# --- max_lifetime ----------------------------------------------------------------------------------------------------


def test_a_connection_is_cut_at_its_max_lifetime_whatever_moves(hold: Hold) -> None:
    ends = hold("max_lifetime=1s")
    moving = ends.pair()
    stalled = ends.pair()
    silent = ends.pair()
    stalled[0].sendall(bytes(16 * KIB))

    def move() -> None:
        with contextlib.suppress(OSError):
            while True:
                moving[0].sendall(b"....")
                read_exactly(moving[1], 4)

    mover = threading.Thread(target=move)
    mover.start()
    assert all(1 <= seconds < 5 for seconds in ended(ends, "max_lifetime", 3))
    mover.join(5)
    for sock in (*stalled, *silent):  # a reset: it was cut
        read_to_reset(sock)


# --- time in which it was stopped ------------------------------------------------------------------------------------


def test_time_in_which_it_was_stopped_counts_for_no_limit(hold: Hold) -> None:
    ends = hold("idle_timeout=1s,half_close_timeout=1s")
    speaking, silent, finished = ends.pair(), ends.pair(), ends.pair()
    finished[0].shutdown(socket.SHUT_WR)
    assert read_to_eof(finished[1]) == b""
    with frozen(ends.veillink):
        speaking[0].sendall(b"meanwhile")
        time.sleep(2)
    assert read_exactly(speaking[1], 9) == b"meanwhile"
    for client, target in (speaking, silent, finished):
        target.sendall(b"afterwards")
        assert read_exactly(client, 10) == b"afterwards"
    ended_by = [line["end"] for line in ends.veillink.access(3)]  # who is silent after it ends as ever
    assert sorted(ended_by) == ["half_close_timeout", "idle_timeout", "idle_timeout"]


# --- the clock -------------------------------------------------------------------------------------------------------

# What asks for the time of day gets it with the seconds in the file $CLOCK_SHIFT added.
SHIFTED_CLOCK = """
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_SHIFT"), "r");
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    int result = syscall(SYS_gettimeofday, now, zone);
    if (!result) now->tv_sec += shift();
    return result;
}
time_t time(time_t *now) {
    struct timespec here;
    clock_gettime(CLOCK_REALTIME, &here);
    if (now) *now = here.tv_sec;
    return here.tv_sec;
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_jump_of_the_clock_ends_nothing_early_or_late(hold: Hold, tmp_path: Path) -> None:
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=SHIFTED_CLOCK, text=True, check=True)
    shift.write_text("0")
    ends = hold("idle_timeout=2s", env={"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)})
    client, target = ends.pair()
    for count, seconds in enumerate((3600, -3600), 1):
        shift.write_text(str(seconds))
        time.sleep(0.6)
        ends.veillink.assert_healthy()
        lines = ends.veillink.access(count, "canary")
    assert read_to_reset(client, 5) == read_to_reset(target) == b""
    assert 2 <= ended(ends, "idle_timeout")[0] < 5
    assert lines[0]["time"] > lines[1]["time"]  # it did jump


# --- TCP -------------------------------------------------------------------------------------------------------------


def keepalive_timers(ends: Ends) -> list[int]:
    """Return the seconds until TCP asks the peer whether it is there, for each leg that does (ss(8))."""
    legs = f"( sport = :{ends.veillink.port} or dport = :{ends.port} )"
    listing = subprocess.run(["ss", "-tnoH", "state", "established", legs], capture_output=True, text=True, check=True)
    return [int(seconds) for seconds in re.findall(r"timer:\(keepalive,(\d+)sec,", listing.stdout)]


def test_both_peers_are_asked_whether_they_are_still_there(hold: Hold) -> None:
    ends = hold("keepalive=40s")
    ends.pair()
    timers = eventually(lambda: len(found := keepalive_timers(ends)) == 2 and found, 1, "a timer on both legs")
    assert all(30 <= seconds <= 40 for seconds in timers)


def test_nobody_is_asked_when_keepalive_is_off(hold: Hold) -> None:
    ends = hold("keepalive=0")
    ends.pair()
    time.sleep(0.5)  # the target's is set a moment later
    assert keepalive_timers(ends) == []


@pytest.mark.parametrize("side", SIDES)
def test_small_writes_are_not_held_back(hold: Hold, side: Side) -> None:
    near, far = hold().pair(side)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(40):  # past the first segments, which are acknowledged at once whatever the options
        near.sendall(b"?")
        assert read_exactly(far, 1) == b"?"
        far.sendall(b"!")
        assert read_exactly(near, 1) == b"!"
    began = time.monotonic()
    for _ in range(50):
        near.sendall(b"1")
        assert read_exactly(far, 1) == b"1"
        near.sendall(b"2")
        assert read_exactly(far, 1) == b"2"
        far.sendall(b"!")
        assert read_exactly(near, 1) == b"!"
    assert time.monotonic() - began < 0.04 * 50  # so long an acknowledgement may be delayed each time
