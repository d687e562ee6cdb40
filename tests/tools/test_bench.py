"""scripts/bench: what it measures, what it says is missing, and that nothing stays behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools.bench.rounds import Tally

from ..system.harness import eventually

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts/bench"
SHORT = ["--rounds=1", "--seconds=0.3", "--idle=100"]
MISSING = [program for program in ("wrk", "nginx") if not shutil.which(program)]
with_load = pytest.mark.skipif(
    bool(MISSING) and "CI" not in os.environ, reason=f"to run it: apt-get install {' '.join(MISSING)}"
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH with what the load needs and without HAProxy, and a temporary directory to look into."""
    programs, temporary = tmp_path / "programs", tmp_path / "temporary"
    programs.mkdir()
    temporary.mkdir()
    for program in ("wrk", "nginx"):
        programs.joinpath(program).symlink_to(shutil.which(program) or pytest.fail(f"there is no {program}"))
    return {**os.environ, "PATH": str(programs), "TMPDIR": str(temporary)}


@with_load
def test_a_run_has_the_figures_of_what_is_there_and_names_what_is_not(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "--work=keep50,bulk1,idle", "--proxies=veillink,gevent,haproxy", *SHORT, "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.endswith("bench: haproxy is not there: apt-get install haproxy\n")
    assert list((tmp_path / "temporary").iterdir()) == []
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["missing"] == {"haproxy": "apt-get install haproxy"}
    assert found["machine"].keys() >= {"cpu", "cores", "kernel", "python"}
    assert found["versions"].keys() == {"veillink", "gevent", "wrk", "nginx-http"}
    assert found["failures"] == []
    expected = {"keep50": {"rate", "busy", "p50_ms", "p99_ms"}, "bulk1": {"rate", "busy"}, "idle": {"rss"}}
    assert found["works"].keys() == expected.keys()
    for name, work in found["works"].items():
        assert work["proxies"].keys() == {"veillink", "gevent", "direct"}
        for proxy in ("veillink", "gevent"):
            row = work["proxies"][proxy]
            assert row.keys() == {"cost", "ratio", "failures"} | expected[name]
            assert row["ratio"] is None  # there is no HAProxy
            for figure in expected[name]:
                (value,) = row[figure]["rounds"]
                assert row[figure]["min"] == row[figure]["median"] == row[figure]["max"] == value > 0
    assert found["works"]["keep50"]["proxies"]["direct"].keys() == {"rate", "p50_ms", "p99_ms", "ratio", "failures"}
    assert found["works"]["idle"]["proxies"]["direct"] == {"skipped": "there is no proxy to look at"}
    assert found["burst"]["connects"] == 2000
    assert 0 < found["burst"]["seconds"] < found["burst"]["carried_seconds"]
    kept = tmp_path / "found.json"
    kept.write_text(done.stdout)
    again: list[str | Path] = [sys.executable, "-m", "tools.bench.replay", kept]
    shown = subprocess.check_output(again, text=True, timeout=30, cwd=ROOT)
    assert "idle: idle connections, 100\n" in shown
    assert len(re.findall("^plain gevent pump  .*[1-9]", shown, re.MULTILINE)) == 3
    assert "direct, no proxy: there is no proxy to look at\n" in shown
    assert "÷ HAProxy" not in shown


@with_load
def test_works_in_tls_are_those_of_programs_that_terminate_it() -> None:
    works = {"tls_down": "rate", "tls_up": "rate", "tls_keep50": "rate", "tls_idle": "rss"}
    works |= dict.fromkeys(("tls_p256", "tls_rsa2048", "tls_resumed"), "rate")
    command = [sys.executable, str(BENCH), f"--work={','.join(works)}", "--proxies=veillink,gevent", *SHORT, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["failures"] == []
    assert found["works"].keys() == works.keys()
    for name, figure in works.items():
        rows = found["works"][name]["proxies"]
        assert rows["veillink"]["cost"]["median"] > 0
        assert rows["veillink"][figure]["median"] > 0
        assert rows["gevent"] == {"skipped": "it terminates no TLS here"}
        assert rows["direct"] == {"skipped": "there is no proxy to look at"}


@with_load
def test_stopping_it_ends_what_it_has_started(environment: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, BENCH, "--work=keep50", "--proxies=veillink", "--seconds=60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        until = time.monotonic() + 30
        while len(started := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()) < 3:
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.endswith("bench: stopped by SIGINT\n")
    # the backend, VeilLink, wrk: those that the kernel kills with their parent may end a moment after it
    eventually(lambda: not any(Path("/proc", pid).exists() for pid in started))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_ratio_is_median_to_median() -> None:
    haproxy = Tally([{"cost": cost, "rate": 1.0} for cost in (9.0, 2.0, 4.0)])
    other = Tally([{"cost": cost, "rate": 2.0} for cost in (6.0, 5.0, 7.0)], ["3 errors"])
    found = other.sum_up(haproxy)
    assert found["cost"] == {"median": 6, "min": 5, "max": 7, "rounds": [6, 5, 7]}
    assert (found["ratio"], found["failures"]) == (1.5, ["3 errors"])
    assert haproxy.sum_up(haproxy)["ratio"] == 1
    assert other.sum_up(Tally())["ratio"] is None
    assert Tally().sum_up(haproxy) == {"ratio": None, "failures": []}
