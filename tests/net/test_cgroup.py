"""Tests of how much memory and how many cores there are to use."""

import math
import os
from pathlib import Path

import pytest

from veillink.net import cgroup
from veillink.net.cgroup import cpu_quota, memory_limit, usable_cpus

_V2 = "0::/a/b\n"
_V1 = "5:cpuset:/a\n4:cpu,cpuacct:/a/b\n"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        (_V2, {}, math.inf),
        (_V2, {"a/b/cpu.max": "max 100000\n"}, math.inf),
        (_V2, {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        (_V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        (_V2, {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "400000 100000\n"}, 3.0),
        (_V2, {"cpu.max": "200000 100000\n"}, 2.0),
        (_V2, {"a/b/cpu.max": "junk"}, math.inf),
        (_V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n"}, math.inf),
        (
            _V1,
            {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (_V1, {"cpu/a/cpu.cfs_quota_us": "10000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 0.1),
        ("", {"cpu.max": "100000 100000\n"}, math.inf),
    ],
)
def test_the_least_quota_of_a_group_and_those_above_it_counts(
    own: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert cpu_quota(tmp_path / "own", tmp_path / "groups") == quota


@pytest.mark.parametrize(("quota", "cores"), [(math.inf, None), (0.1, 1), (1.0, 1), (1.2, 2), (10_000.0, None)])
def test_cores_are_those_it_may_run_on_or_what_its_quota_is_worth(
    quota: float, cores: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    mine = len(os.sched_getaffinity(0))
    assert usable_cpus() == min(mine, cores or mine)


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "300", "memory.max": "400"}, 300),
        ("0::/", {"memory.max": "500"}, 500),
        ("0::/gone", {"memory.max": "600"}, 600),
        ("4:memory:/docker/1\n0::/", {"memory/memory.limit_in_bytes": "700"}, 700),
        ("4:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": "800", "memory.max": "100"}, 800),
        ("3:cpu:/a", {"memory/a/memory.limit_in_bytes": "900"}, 0),
        ("0::/", {"memory.max": "max"}, 0),
        (None, {}, 0),
    ],
    ids=["a parent's", "container", "another namespace", "version 1", "with others", "none", "max", "no /proc"],
)
def test_the_memory_limit_is_the_lowest_on_the_way_up(
    groups: str | None, files: dict[str, str], limit: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(f"{text}\n")
    if groups is not None:
        (tmp_path / "groups").write_text(f"{groups}\n")
    assert memory_limit(tmp_path / "groups", tmp_path / "fs") == limit
