"""What a measure has found on a lane."""

import array
import errno
import math
import random
from collections import Counter
from collections.abc import Generator

from ..processes import clock
from .lane import Lane
from .loop import Task

_SAMPLES = 1_000_000


class Result:
    """What a measure found on a lane: figures, failures by name, and how long each success took."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.figures: dict[str, float] = {}
        self.errors: Counter[str] = Counter()
        self.count, self.longest = 0, 0.0
        self.samples = array.array("d")
        self.start()

    def start(self) -> None:
        """Start the clock."""
        self.cpu, self.rss = self.lane.usage()
        self.started = self.last = clock()

    def took(self, since: float) -> None:
        """Note a success that began then; of more than a million a fair sample is kept."""
        self.last = clock()
        seconds = self.last - since
        self.count += 1
        self.longest = max(self.longest, seconds)
        if self.count <= _SAMPLES:
            self.samples.append(seconds)
        elif (slot := int(random.random() * self.count)) < _SAMPLES:  # noqa: S311
            self.samples[slot] = seconds

    def counted(self, story: Task) -> Generator[None, int, bool]:
        """Tell a story; should it fail, count that under its errno's name."""
        try:
            yield from story
        except OSError as error:
            self.errors[errno.errorcode.get(error.errno or 0) or str(error)] += 1
            return False
        return True

    def rate(self, unit: str, seconds: float, *percents: int) -> None:
        """Add successes a second and the percentiles of their times (nearest rank)."""
        elapsed = max(seconds, self.last - self.started)
        self.figures |= {unit: self.count / elapsed, "count": self.count}
        ordered = sorted(self.samples)
        if ordered:
            for percent in percents:
                self.figures[f"p{percent}_ms"] = ordered[math.ceil(len(ordered) * percent / 100) - 1] * 1000
            self.figures["max_ms"] = self.longest * 1000
        if self.lane.pid:
            self.figures["cpu_percent"] = 100 * (self.lane.usage()[0] - self.cpu) / elapsed
