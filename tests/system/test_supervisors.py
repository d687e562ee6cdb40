"""VeilLink under the supervisors that people run: each starts it, brings it back, and lets it drain."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from veillink.config.values import parse_admin
from veillink.model import Address

from .admin_client import AdminClient
from .conftest import Forward, Serve
from .harness import HOST, VEILLINK, echo, eventually, free_port, read_exactly

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(VEILLINK).parent


class Supervised:
    """A supervisor with a VeilLink below it.

    Args:
        command: that starts it in the foreground.
        folder: for its sockets and the rules.
        target: port that is forwarded to.
    """

    def __init__(self, command: list[str], folder: Path, target: int) -> None:
        self.port = free_port()
        self.config = folder / "config.csv"
        self.config.write_text(f"{HOST}:{self.port},{HOST},{target}\n")
        env = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "VEILLINK_CONFIG": str(self.config),
            "RUNTIME_DIRECTORY": str(folder),
        }
        log = (folder / "log").open("wb")
        self.child = subprocess.Popen(
            command, env=os.environ | env, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        log.close()
        self.log = folder / "log"
        self.wait_until_served()

    def wait_until_served(self) -> None:
        """Wait until a client is served."""
        eventually(self._serves, 15, "a client that is served")

    def _serves(self) -> bool:
        assert self.child.poll() is None, self.log.read_text()
        try:
            with socket.create_connection((HOST, self.port), 1) as sock:
                sock.sendall(b"x")
                return sock.recv(1) == b"x"
        except OSError:
            return False

    def veillink(self) -> int:
        """Return the pid of its VeilLink."""
        for connection in Path("/proc").iterdir():
            try:
                arguments = (connection / "cmdline").read_bytes().split(b"\0")
            except (OSError, ValueError):
                continue
            if str(self.config).encode() in arguments and any(a.endswith(b"/veillink") for a in arguments):
                return int(connection.name)
        raise AssertionError(f"no VeilLink in {self.log.read_text()}")


Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise(backend: Serve) -> Iterator[Supervise]:
    children: list[Supervised] = []
    with tempfile.TemporaryDirectory(prefix="vl") as folder:  # short: there are UNIX sockets in it

        def _supervise(*command: object) -> Supervised:
            children.append(Supervised([str(part) for part in command], Path(folder), backend(echo).port))
            return children[-1]

        yield _supervise
        for each in children:
            if each.child.poll() is None:
                each.child.terminate()
            each.child.wait(20)


COMMANDS: dict[str, list[str | Path]] = {
    "supervisord": [BIN / "supervisord", "-c", DEPLOY / "supervisord.conf"],
    "circus": [BIN / "circusd", DEPLOY / "circus.ini"],
    "honcho": [BIN / "honcho", "-f", DEPLOY / "Procfile", "-d", ".", "start"],
}
supervisors = pytest.mark.parametrize("name", COMMANDS)


@supervisors
def test_when_the_supervisor_is_told_to_stop_connections_finish(name: str, supervise: Supervise) -> None:
    supervised = supervise(*COMMANDS[name])
    with socket.create_connection((HOST, supervised.port), 10) as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        supervised.child.terminate()
        eventually(lambda: "stopping" in supervised.log.read_text(), 10, "the drain")
        sock.sendall(b"y")
        assert read_exactly(sock, 1) == b"y"
    supervised.child.wait(15)
    assert "stopped" in supervised.log.read_text()
    assert "Traceback" not in supervised.log.read_text()


@pytest.mark.parametrize("name", ["supervisord", "circus"])
def test_a_killed_veillink_comes_back(name: str, supervise: Supervise) -> None:
    supervised = supervise(*COMMANDS[name])
    first = supervised.veillink()
    os.kill(first, signal.SIGKILL)
    supervised.wait_until_served()
    assert supervised.veillink() != first


def test_supervisorctl_makes_it_read_the_rules(supervise: Supervise, backend: Serve) -> None:
    supervised = supervise(*COMMANDS["supervisord"])
    other = free_port()
    with supervised.config.open("a") as file:
        file.write(f"{HOST}:{other},{HOST},{backend(echo).port}\n")
    env = os.environ | {"RUNTIME_DIRECTORY": str(supervised.config.parent), "VEILLINK_CONFIG": str(supervised.config)}
    control: list[str | Path] = [BIN / "supervisorctl", "-c", DEPLOY / "supervisord.conf", "signal", "HUP", "veillink"]
    subprocess.run(control, env=env, check=True, capture_output=True)
    eventually(lambda: "reloaded" in supervised.log.read_text(), 5, "the reload")
    socket.create_connection((HOST, other), 5).close()


# --- images and manifests --------------------------------------------------------------------------------------------


def test_the_manifests_are_what_kubernetes_takes() -> None:
    done = subprocess.run(
        [BIN / "kubernetes-validate", "--strict", DEPLOY / "kubernetes.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("passed") + done.stdout.count("passed") == 4


def has_engine() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(
    not has_engine(), reason="needs a running Docker engine; what can be seen without one is tested below"
)
def test_the_image_runs() -> None:
    subprocess.run(["docker", "build", "-q", "-f", DEPLOY / "Dockerfile", ROOT], check=True)


def test_what_the_image_copies_is_there_and_it_does_not_run_as_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    files = {source for sources in copied for source in sources}
    assert {"LICENSE", "README.md", "pyproject.toml", "veillink"} <= files  # what the package is made of
    assert all((ROOT / source).exists() for source in files)
    assert any(re.fullmatch(r"USER [1-9]\d*", line) for line in lines)


def health_check(**env: str) -> int:
    """Return the exit code of the image's health check."""
    (check,) = re.findall(r"^  CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    python, *arguments = json.loads(check)
    assert python == "python"
    return subprocess.run([sys.executable, *arguments], env=os.environ | env, check=False, timeout=30).returncode


def test_the_image_s_health_check_asks_where_it_shows_its_state_and_no_proxy(
    forward: Forward, admin: AdminClient
) -> None:
    proxy = {name: f"http://{HOST}:{free_port()}" for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY")}
    veillink = forward(echo, "", admin.option)
    asked = {"VEILLINK_ADMIN": f"{HOST}:{admin.port}"} | proxy
    assert health_check(**asked) == 0
    assert health_check(**asked, VEILLINK_ADMIN_TOKEN="another") == 0
    assert health_check(**proxy) == 0  # nothing is shown
    veillink.stop()
    assert health_check(**asked) == 1


def test_the_manifest_can_be_scraped_and_reached() -> None:
    """An annotation knows no token, and a cluster may have IPv6 alone."""
    text = (DEPLOY / "kubernetes.yaml").read_text()
    (address,) = re.findall(r'VEILLINK_ADMIN, value: "(.*)"', text)
    assert parse_admin(address) == (Address("", 8079), "")
    assert ("VEILLINK_ADMIN_TOKEN" in text, "prometheus.io/scrape:" in text) == (True, False)


# --- a clone's environment -------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose .venv is as scripts/venv leaves it; what it needs is borrowed from ours, not from an index."""
    clone = tmp_path / "clone"
    for name in ("scripts/venv", "pyproject.toml", "requirements.txt", "veillink/__init__.py"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    venv.create(clone / ".venv", with_pip=False, symlinks=True)
    (packages,) = (clone / ".venv").glob("lib/python3*/site-packages")
    (packages / "clone.pth").write_text(f"{clone}\n")
    (packages / "zlast.pth").write_text(f"{Path(gevent.__file__).parents[1]}\n")
    (clone / ".venv/.installed").touch()
    return clone


def made_anew(clone: Path, tmp_path: Path) -> bool:
    """Run scripts/venv with a Python that says what it is to do, and does not do it; return whether that was asked."""
    told = tmp_path / "told"
    told.unlink(missing_ok=True)
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "$@" > {told}\nexit 1\n')
    fake.chmod(0o755)
    command = [clone / "scripts/venv"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(fake)}, capture_output=True, text=True, check=False)
    assert done.returncode == told.exists(), done.stderr
    return told.exists() and told.read_text() == "-m venv .venv\n"


@pytest.mark.parametrize("harm", ["none", "moved", "copied", "python gone"])
def test_an_environment_that_does_not_run_this_clone_is_made_anew(harm: str, clone: Path, tmp_path: Path) -> None:
    if harm == "moved":
        clone = clone.rename(tmp_path / "elsewhere")
    elif harm == "copied":
        clone = Path(shutil.copytree(clone, tmp_path / "elsewhere", symlinks=True))
    elif harm == "python gone":
        (clone / ".venv/bin/python").unlink()
        (clone / ".venv/bin/python").symlink_to(tmp_path / "nothing")
    assert made_anew(clone, tmp_path) is (harm != "none")


# --- the package -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "dist"))
    command: list[str | Path] = [sys.executable, "-m", "build", "--outdir", folder, source]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return folder


def test_wheel_and_source_have_what_is_needed_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    needed = (".py", ".html", ".typed")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "veillink").rglob("*") if path.suffix in needed}
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert any(name.endswith("/LICENSE") for name in names)
    (source,) = built.glob("*.tar.gz")
    listing = subprocess.run(["tar", "-tzf", source], capture_output=True, text=True, check=True).stdout
    assert "/veillink/admin/dashboard.html" in listing
    assert "/README.md" in listing
    assert "/LICENSE" in listing


def test_what_pip_installs_runs(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    install: list[str | Path] = [
        tmp_path / "venv/bin/pip",
        "install",
        "-q",
        "--constraint",
        ROOT / "requirements.txt",
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=240)
    veillink = tmp_path / "venv/bin/veillink"
    assert subprocess.run([veillink, "--version"], capture_output=True, text=True, check=True).stdout.startswith(
        "veillink "
    )
    (tmp_path / "config.csv").write_text("8080,127.0.0.1,8000\n")
    done = subprocess.run([veillink, "--check"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "1 rules, 0 problems" in done.stdout
