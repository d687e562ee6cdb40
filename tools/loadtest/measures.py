"""The measures: idle, connect, echo, bulk."""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Generator

from ..processes import clock
from .blocks import BLOCK, Blocks, send_block
from .lane import Address, Lane
from .loop import IN, LOST, OUT, Loop, Task
from .result import Result
from .tls import TlsSocket, shake_hands

Socket = socket.socket | TlsSocket
GRACE = 5.0  # seconds: what is under way when time is up may take this long to finish
OPENED_PER_S = 200  # slower is given up
_OPENING = 256  # at once: a listen queue may be short
_GIVE_UP = 10  # failures in a row: nobody is there, do not hammer


def _exchange(sock: Socket, payload: bytes, answer: bytearray) -> Task:
    """Send a payload and read it back; both at once, or a long one would jam."""
    size, sent, got = len(payload), 0, 0
    while got < size:
        if sent < size:
            with contextlib.suppress(BlockingIOError):
                sent += sock.send(memoryview(payload)[sent:] if sent else payload)
        yield
        try:
            count = sock.recv_into(memoryview(answer)[got:] if got else answer)
        except BlockingIOError:
            continue
        if not count:
            raise OSError("EOF")
        got += count
    if answer != payload:
        raise OSError("CORRUPT")


def _reach(loop: Loop, lane: Lane) -> Generator[None, int, Socket]:
    """Connect and have a byte echoed: that alone proves that the whole way is open."""
    dialled = lane.dial(loop)
    sock: Socket = dialled
    try:
        yield
        if lane.tls:
            sock = yield from shake_hands(dialled, lane.tls)
        yield from _exchange(sock, bytes([lane.dialled & 255]), bytearray(1))
    except BaseException:
        sock.close()
        raise
    return sock


def _open_all(loop: Loop, number: int, result: Result) -> list[Socket]:
    """Open connections, some at a time."""
    opened: list[Socket] = []
    tickets = iter(range(number))

    def open_one() -> Task:
        opened.append((yield from _reach(loop, result.lane)))

    def opener() -> Task:
        for _ in tickets:
            yield from result.counted(open_one())

    for _ in range(_OPENING):
        loop.spawn(opener())
    loop.run(clock() + GRACE + number / OPENED_PER_S)
    result.errors["ETIMEDOUT"] += number - len(opened) - result.errors.total()
    return opened


def idle(result: Result, number: int, seconds: float, _size: int) -> None:
    """Open connections, hold them, have each echo a byte at the end."""
    loop = Loop()
    opened = _open_all(loop, number, result)
    result.figures["open_s"] = clock() - result.started
    time.sleep(seconds)
    if result.lane.pid and opened:
        result.figures["rss_kib_each"] = (result.lane.usage()[1] - result.rss) / len(opened)

    def last_word(sock: Socket) -> Task:
        loop.watch(sock)
        yield from _exchange(sock, b"?", bytearray(1))
        result.count += 1

    for sock in opened:
        loop.spawn(result.counted(last_word(sock)))
    loop.run(clock() + GRACE)
    result.figures["still_echo"] = result.count
    for sock in opened:
        sock.close()


def connect(result: Result, number: int, seconds: float, _size: int) -> None:
    """Connect, have a byte echoed, close, again and again."""
    loop, lane, end = Loop(), result.lane, result.started + seconds

    def visit() -> Task:
        began = clock()
        with (yield from _reach(loop, lane)):
            result.took(began)

    def visitor() -> Task:
        in_a_row = 0
        while in_a_row < _GIVE_UP and clock() < end:
            in_a_row = 0 if (yield from result.counted(visit())) else in_a_row + 1

    for _ in range(number):
        loop.spawn(visitor())
    loop.run(end + GRACE)
    result.rate("conn_per_s", seconds, 50, 99)


def echo(result: Result, number: int, seconds: float, size: int) -> None:
    """Have messages echoed on connections held open."""
    loop = Loop()
    opened = _open_all(loop, number, result)
    payloads = [os.urandom(size) for _ in range(8)]
    result.start()
    end = result.started + seconds

    def talk(sock: Socket) -> Task:
        loop.watch(sock)
        answer = bytearray(size)
        with sock:
            for payload in itertools.cycle(payloads):
                if (began := clock()) >= end:
                    break
                yield from _exchange(sock, payload, answer)
                result.took(began)

    for sock in opened:
        loop.spawn(result.counted(talk(sock)))
    loop.run(end + GRACE)
    result.rate("rt_per_s", seconds, 50, 90, 99)


def _flood(loop: Loop, sock: Socket, end: float, way: str) -> Generator[None, int, int]:
    """Send, receive or do both until time is up; then BLOCKs are finished, and the peer has to end as well."""
    sent, blocks, finished = 0, Blocks(sock), False
    while True:
        events = yield
        with contextlib.suppress(BlockingIOError):
            if not finished and clock() >= end and not sent % len(BLOCK):
                sock.shutdown(socket.SHUT_WR)
                loop.watch(sock, IN)
                finished = True
            elif way != "down" and not finished and events & OUT:
                sent += send_block(sock, sent)
        with contextlib.suppress(BlockingIOError):  # a part of a record
            if events & (IN | LOST) and not blocks.read():
                break
    if not finished:
        raise OSError("EOF")
    if blocks.total != {"up": 0, "both": sent, "down": blocks.total}[way]:
        raise OSError("CUT_SHORT")
    return sent or blocks.total


def bulk(result: Result, number: int, seconds: float, _size: int) -> None:
    """Move as many bytes as will go, one way after the other; what fails has moved nothing."""
    lane, moved = result.lane, list[int]()

    def stream(loop: Loop, end: float, way: str, address: Address) -> Task:
        events = IN if way == "down" else IN | OUT
        dialled = lane.dial(loop, address, OUT if lane.tls else events)
        sock: Socket = dialled
        if lane.tls:
            yield
            loop.watch(dialled, IN)
            sock = yield from shake_hands(dialled, lane.tls)
            loop.watch(sock, events)
        with sock:
            moved.append((yield from _flood(loop, sock, end, way)))

    for way, address in lane.bulk.items():
        moved.clear()
        result.start()
        loop, end = Loop(), result.started + seconds
        for _ in range(number):
            loop.spawn(result.counted(stream(loop, end, way, address)))
        loop.run(end + GRACE)
        elapsed, spent, gigabytes = clock() - result.started, lane.usage()[0] - result.cpu, sum(moved) / 1e9
        result.figures[f"{way}_gbit_per_s"] = gigabytes * 8 / elapsed
        if lane.pid and gigabytes:
            result.figures[f"{way}_cpu_s_per_gb"] = spent / gigabytes
            result.figures[f"{way}_cpu_percent"] = 100 * spent / elapsed


# idle comes first: memory that another measure has given back would flatter it
MEASURES = {"idle": idle, "connect": connect, "echo": echo, "bulk": bulk}
