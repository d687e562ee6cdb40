"""What a master and its workers decide by: descriptors that are opened before the fork and that nobody can remove.

Rule: nobody waits. Each field has one writer, and is written whole.
"""

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

_FLEET: Final = struct.Struct("=QQ")
_SERVED_AT: Final = _FLEET.size
_LEAD_AT: Final = 0  # a lock of this byte, which is not the byte's content
_BEAT: Final = struct.Struct("=d")
_STATE: Final = struct.Struct("=16sQ")
_LONGEST_LOOK: Final = 1.5  # seconds; the arbiter looks once a second


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the master publishes of all.

    Args:
        workers: how many there are to be.
        draining: whether all of them stop.
    """

    workers: int
    draining: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """How far a worker is, for its master.

    Args:
        phase: ``starting``, ``running``, ``draining``, or how it has ended.
        reads: how often it has read the rules' file.
    """

    phase: str
    reads: int = 0


class Control:
    """What all of them have in common: what the master publishes, whether anybody has served, and who leads.

    Raises:
        OSError: no descriptor is left.

    Source: memfd_create(2).
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("veillink-control")
        self.publish_fleet(Fleet(1))
        self._leads = False

    @property
    def fleet(self) -> Fleet:
        """What the master has published last."""
        workers, draining = _FLEET.unpack(os.pread(self._fd, _FLEET.size, 0))
        return Fleet(workers, bool(draining))

    def publish_fleet(self, fleet: Fleet) -> None:
        """Publish something, as the master."""
        os.pwrite(self._fd, _FLEET.pack(fleet.workers, fleet.draining), 0)

    @property
    def has_served(self) -> bool:
        """Whether any worker has ever got as far as running."""
        return bool(os.pread(self._fd, 1, _SERVED_AT))

    def mark_served(self) -> None:
        """Keep for all that one has."""
        os.pwrite(self._fd, b"1", _SERVED_AT)

    @property
    def leads(self) -> bool:
        """Whether this process does what only one may do."""
        return self._leads

    def lead(self) -> bool:
        """Try to become the one that leads; return whether it now is, and was not before.

        The kernel gives the lead back when the process ends, however it ends. It is a lock of the process: one of the
        open file (flock(2), or F_OFD_SETLK) would be all workers' at once, since they have inherited it
        (fcntl_locking(2), advisory record locking).
        """
        if self._leads:
            return False
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LEAD_AT)
        except OSError:
            return False
        self._leads = True
        return True

    def resign(self) -> None:
        """Let somebody else lead."""
        self._leads = False
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _LEAD_AT)


class Heartbeat:
    """What a master sees of one worker: that it lives, and how far it is.

    It takes the place of gunicorn's ``WorkerTmp``, which needs a folder with room in it.

    Args:
        cfg: gunicorn's; ``timeout`` counts.
        clock: returns monotonic seconds, the same for all processes.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self, cfg: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._fd = os.memfd_create("veillink-worker")
        self._last = State("starting")
        self._longest_look = max(_LONGEST_LOOK, cfg.timeout / 2)
        self._looked = self._since = clock()
        os.pwrite(self._fd, _BEAT.pack(0), 0)
        self.enter(self._last)

    def notify(self) -> None:
        """Give a sign of life."""
        os.pwrite(self._fd, _BEAT.pack(self._clock()), 0)

    def last_update(self) -> float:
        """Return when the last one came, in monotonic seconds; before the first one it is always now.

        When the master comes late to look, it has not run itself, as while all of them are paused: then each worker has
        its whole time from now on (before, ``docker pause`` for 7 s had all of them killed with a timeout of 4 s).
        """
        now = self._clock()
        if now - self._looked > self._longest_look:
            self._since = now
        self._looked = now
        (beat,) = _BEAT.unpack(os.pread(self._fd, _BEAT.size, 0))
        return max(beat or now, self._since)

    def enter(self, state: State) -> None:
        """Write how far the worker is."""
        os.pwrite(self._fd, _STATE.pack(state.phase.encode(), state.reads), _BEAT.size)

    @property
    def state(self) -> State:
        """How far it is, or was when this was closed."""
        if self._fd >= 0:
            phase, reads = _STATE.unpack(os.pread(self._fd, _STATE.size, _BEAT.size))
            return State(phase.rstrip(b"\0").decode(), reads)
        return self._last

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Let go of it; the last state is kept."""
        if self._fd >= 0:
            self._last = self.state
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
