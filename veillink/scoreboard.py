"""Share each worker's state with its siblings, through files in a folder of their own.

Rule: without locks. A file has one writer and is replaced whole; who reads sees the last whole one. What the dead have
counted is kept. The files are in Python's own format: 3,000 rules are written in 2.5 ms, as JSON in 20 ms.
"""

import contextlib
import errno
import fcntl
import marshal
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from .merge import bury, merge

# Files there are memory; a disk under load would hold up who writes to it.
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the folder made there is our own
_STATE: Final = ".state"
_STATUS: Final = ".status"
_CONNECTIONS: Final = ".connections"
# For so many seconds after somebody has asked for live connections, all workers tell them.
_ASKED: Final = 5.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the master says of all.

    Args:
        workers: how many there are to be.
        draining: whether all of them stop.
    """

    workers: int
    draining: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What a worker says to the master.

    Args:
        phase: ``starting``, ``running``, ``draining``, or how it has ended.
        reads: how often it has read the rules' file.
    """

    phase: str
    reads: int = 0


class Scoreboard:
    """The folder.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._one_has_served = False
        self._told = Fleet(1)

    @classmethod
    def make(cls) -> "Scoreboard":
        """Make one, for a master and the workers that it will start.

        Raises:
            OSError: there is no place for temporary files.
        """
        home = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None
        return cls(Path(tempfile.mkdtemp(prefix="veillink-", dir=home)))

    def keep(self) -> None:
        """Make the folder again when somebody has removed it, as systemd-logind does (RemoveIPC in logind.conf(5)).

        Raises:
            OSError: it is somebody else's, or there is no place for it.
        """
        try:
            self.folder.mkdir(mode=0o700)
        except FileExistsError:
            if self.folder.stat().st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, f"{self.folder} is somebody else's") from None
        else:
            self.tell(self._told)

    def remove(self) -> None:
        """Remove it, with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def fleet(self) -> Fleet:
        """What the master has said last."""
        said = _read(self.folder / "fleet")
        return Fleet(**_loaded(said)) if said else Fleet(1)

    def tell(self, fleet: Fleet) -> None:
        """Say something as the master.

        Raises:
            OSError: there is no place for it.
        """
        self._told = fleet
        _write(self.folder / "fleet", marshal.dumps(asdict(fleet)))

    @property
    def has_served(self) -> bool:
        """Whether any worker has ever got as far as running, as the master knows it."""
        numbers = (int(path.stem) for path in self._of_workers(_STATE))
        return self._one_has_served or any(self.state(number).phase != "starting" for number in numbers)

    def state(self, number: int) -> State:
        """Return what a worker has said last, if it can be known."""
        try:
            said = _read(self.folder / f"{number}{_STATE}")
        except OSError:  # no descriptor is left
            said = b""
        return State(**_loaded(said)) if said else State("starting")

    def read(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Return the state of each worker, and what the dead have left, at one and the same time."""
        while True:
            buried = _read(self.folder / "buried")
            gone = _loaded(buried) if buried else {"last": None, "remains": None}
            last = gone["last"]  # its own file is there for a moment longer
            found = [_read(path) for path in self._of_workers(_STATUS) if path.stem != last]
            if _read(self.folder / "buried") == buried:
                return [_loaded(status) for status in found if status], gone["remains"]

    def bury(self, number: int) -> None:
        """Keep what a worker that is no more has counted; for the master alone.

        Raises:
            OSError: there is no place for it.
        """
        self._one_has_served = self.has_served
        file = self.folder / f"{number}{_STATUS}"
        said = _read(file)
        if said:
            buried = _read(self.folder / "buried")
            remains = bury(_loaded(said), _loaded(buried)["remains"] if buried else None)
            _write(self.folder / "buried", marshal.dumps({"last": str(number), "remains": remains}))
        for suffix in (_STATUS, _CONNECTIONS, _STATE):
            (self.folder / f"{number}{suffix}").unlink(missing_ok=True)

    def status(self) -> dict[str, Any] | None:
        """Return the state of all workers as if they were one, and under ``workers`` who they are, if any shows it."""
        live, gone = self.read()
        if not live:
            return None
        live.sort(key=lambda each: (each["phase"] != "running", each["worker"]))
        now = time.monotonic()
        workers = [
            {
                "worker": each["worker"],
                "pid": each["pid"],
                "phase": each["phase"],
                "active": each["totals"]["active"],
                "age": round(now - each["published"], 2),
            }
            for each in live
        ]
        phase = "draining" if self.fleet.draining else live[0]["phase"]
        return merge(live, gone) | {"phase": phase, "workers": workers}

    def ask_for_connections(self) -> None:
        """Have every worker tell its live connections from now on."""
        with contextlib.suppress(OSError):
            (self.folder / "asked").touch()

    def is_asked_for_connections(self) -> bool:
        """Return whether somebody wants to know them."""
        try:
            return time.time() - (self.folder / "asked").stat().st_mtime < _ASKED
        except OSError:
            return False

    def connections(self, since: float) -> list[dict[str, Any]] | None:
        """Return the live connections of all workers, or ``None`` while one has not told them since then.

        Args:
            since: monotonic seconds.
        """
        workers = [path.stem for path in self._of_workers(_STATUS)]
        found = [_read(self.folder / f"{worker}{_CONNECTIONS}") for worker in workers]
        nothing: dict[str, Any] = {"published": 0.0, "connections": []}
        told = [_loaded(part) if part else nothing for part in found]
        if any(each["published"] < since for each in told):
            return None
        return [connection for each in told for connection in each["connections"]]

    def _of_workers(self, suffix: str) -> list[Path]:
        return sorted(self.folder.glob(f"[0-9]*{suffix}"), key=lambda path: int(path.stem))


class Seat:
    """A worker's place at the scoreboard.

    Args:
        board: of its fleet.
        number: of the worker; none has it again.
    """

    def __init__(self, board: Scoreboard, number: int) -> None:
        self.board = board
        self.number = number
        self.leads = False
        """Whether it does what only one may do."""
        self._lock = os.open(board.folder / "lead", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def lead(self) -> bool:
        """Try to become the one that leads; return whether it now is, and was not before.

        The kernel gives the lead back when the process ends, however it ends (fcntl(2), advisory record locking).
        """
        if self.leads:
            return False
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self.leads = True
        return True

    def resign(self) -> None:
        """Let somebody else lead."""
        self.leads = False
        fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def enter(self, state: State) -> None:
        """Tell the master how far this worker is."""
        self._write(_STATE, asdict(state))

    def publish(self, status: dict[str, Any]) -> None:
        """Show the worker's state, as ``Report.status`` returns it."""
        own = {"worker": self.number, "pid": os.getpid(), "published": time.monotonic()}
        self._write(_STATUS, status | own)

    def publish_connections(self, connections: list[dict[str, Any]]) -> None:
        """Show its live connections."""
        self._write(_CONNECTIONS, {"published": time.monotonic(), "connections": connections})

    def _write(self, suffix: str, value: dict[str, Any]) -> None:
        with contextlib.suppress(FileNotFoundError):  # the master has been killed, and the folder is gone with it
            _write(self.board.folder / f"{self.number}{suffix}", marshal.dumps(value))


def _loaded(data: bytes) -> Any:
    return marshal.loads(data)  # noqa: S302 - the folder is ours alone


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(data)
    fresh.replace(path)
