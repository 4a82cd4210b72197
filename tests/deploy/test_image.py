"""What the image promises, without docker: the wheel in a read-only place, an unprivileged user, no compiling.

The steps are those of the Dockerfile: a wheel in a virtual environment, kernels compiled for the image's CPU,
everything read-only, another user.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.e2e.bodies import write_body
from tests.house.test_lint import ROOT, tracked_files

DOCKERFILE = (ROOT / "Dockerfile").read_text()
NOBODY = 65534
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
    *("env", "-i", "PATH=/usr/bin:/bin"),
)
PACKAGES = ("tsdb", "ingest", "query", "health", "meshpulse")
COUNT = """
from meshpulse.warm import warm
from tsdb.kernels import _jit
warm()
found = [d.stats for d, _ in _jit._registry]
print(sum(sum(s.cache_misses.values()) for s in found), sum(sum(s.cache_hits.values()) for s in found), len(found))
"""


def environment() -> dict[str, str]:
    """``ENV`` lines of the last stage, with the defaults of its arguments."""
    stage = DOCKERFILE.rpartition("\nFROM ")[2]
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", stage, re.MULTILINE))
    found: dict[str, str] = {}
    for line in re.findall(r"^ENV (.*)$", stage, re.MULTILINE):
        for pair in shlex.split(line):
            name, _, value = pair.partition("=")
            found[name] = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], value)
    return found


def test_the_file_says_what_is_promised() -> None:
    stages = re.findall(r"^FROM ", DOCKERFILE, re.MULTILINE)
    assert len(stages) == 2
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER \d+:\d+$", last, re.MULTILINE)
    assert "meshpulse warm" in DOCKERFILE
    assert set(environment()) >= {"NUMBA_CPU_NAME", "MESHPULSE_KERNEL_CACHE", "PYTHONDONTWRITEBYTECODE"}
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied >= {*PACKAGES, "pyproject.toml", "constraints.txt"}
    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    command = json.loads(re.findall(r"^CMD (.*)$", last, re.MULTILINE)[-1])
    said = subprocess.run(
        [Path(sys.executable).parent / "meshpulse", command[0], "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(flag in said for flag in command if flag.startswith("--"))


@dataclass
class Image:
    """An installation as the image holds it."""

    place: Path
    data: Path

    def command(self, *words: str | Path) -> list[str]:
        """The command as an unprivileged user who sees the place read-only."""
        settings = environment() | {"MESHPULSE_KERNEL_CACHE": str(self.place / "kernels"), "HOME": "/nonexistent"}
        given = [f"{name}={value}" for name, value in settings.items()]
        inner = [*AS_NOBODY, *given, *map(str, words)]
        place = shlex.quote(str(self.place))
        mount = f"mount --bind {place} {place} && mount -o remount,bind,ro {place} && exec {shlex.join(inner)}"
        return ["unshare", "-m", "sh", "-c", mount]

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False, cwd="/")


def other_python() -> str:
    """An interpreter of our version that others may run."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for candidate in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        command = [*AS_NOBODY, candidate, "-c", "import ssl"]
        if Path(candidate).exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.skip(f"needs a python{version} that every user may run")


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if os.geteuid() or not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("needs root, setpriv and unshare to become another user before a read-only mount")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs mount namespaces")
    python = other_python()
    # not pytest's folder: others may not enter that
    root = Path(tempfile.mkdtemp(prefix="meshpulse-image-"))
    try:
        root.chmod(0o755)
        source, place, data = root / "source", root / "place", root / "data"
        for path in tracked_files():
            name = path.relative_to(ROOT)
            if name.parts[0] in PACKAGES or name.name in ("pyproject.toml", "README.md", "LICENSE"):
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, source / name)
        quiet = ("-q", "--disable-pip-version-check", "--no-deps", "--no-index")
        build = [sys.executable, "-m", "pip", "wheel", *quiet, "--no-build-isolation", "-w", root, source]
        subprocess.run(list(map(str, build)), check=True)
        (wheel,) = root.glob("*.whl")
        subprocess.run([python, "-m", "venv", "--without-pip", place], check=True)
        site = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        # dependencies are those of the tests: a path in a .pth file brings no editable meshpulse along
        (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).resolve().parents[1]}\n")
        install = [sys.executable, "-m", "pip", f"--python={place}/bin/python", "install", *quiet, wheel]
        subprocess.run(list(map(str, install)), check=True)
        settings = environment() | {"MESHPULSE_KERNEL_CACHE": str(place / "kernels"), "PATH": os.environ["PATH"]}
        subprocess.run([place / "bin" / "meshpulse", "warm"], env=settings, cwd="/", check=True)
        subprocess.run(["chmod", "-R", "a+rX", place], check=True)
        data.mkdir()
        os.chown(data, NOBODY, NOBODY)
        yield Image(place, data)
    finally:
        shutil.rmtree(root)


@pytest.mark.slow
def test_the_place_is_read_only_and_ours(image: Image) -> None:
    touched = image.run("touch", image.place / "x")
    assert "Read-only file system" in touched.stderr
    found = image.run(image.place / "bin" / "python", "-c", "import meshpulse, tsdb; print(meshpulse.__file__)")
    assert found.stdout.startswith(str(image.place)), found.stderr


@pytest.mark.slow
def test_no_kernel_is_compiled(image: Image) -> None:
    done = image.run(image.place / "bin" / "python", "-c", COUNT)
    assert done.returncode == 0, done.stderr
    compiled, loaded, declared = map(int, done.stdout.split())
    assert (compiled, loaded) == (0, declared)
    assert declared > 30


@pytest.mark.slow
def test_it_serves_as_nobody(image: Image) -> None:
    log_path = image.data.parent / "server.log"
    words = (
        image.place / "bin" / "meshpulse",
        "serve",
        "--config",
        image.data / "meshpulse.yml",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        image.data / "tsdb",
    )
    (image.data / "meshpulse.yml").write_text("storage: {free_bytes_min: 0, free_fraction_min: 0}\n")
    with log_path.open("wb") as log:
        process = subprocess.Popen(image.command(*words), stdout=log, stderr=log, cwd="/")
    try:
        until = time.monotonic() + 120
        url = ""
        while time.monotonic() < until:
            assert process.poll() is None, log_path.read_text()
            said = re.search(r"url=(http://127.0.0.1:\d+)", log_path.read_text())
            if said and " ready " in log_path.read_text():
                url = said[1]
                break
            time.sleep(0.1)
        assert url, log_path.read_text()
        assert psutil.Process(process.pid).uids().effective == NOBODY
        now = time.time_ns() // 1_000_000
        body = write_body([({"__name__": "imaged"}, [(now, 1.0)])])
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}
        request = urllib.request.Request(f"{url}/api/v1/write", body, headers)
        assert urllib.request.urlopen(request, timeout=30).status == 204
        with urllib.request.urlopen(f"{url}/api/v1/query?query=imaged", timeout=30) as reply:
            assert json.load(reply)["status"] == "success"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
