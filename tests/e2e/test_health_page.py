"""``/health`` in a real browser: what a person sees there is what the API says."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.server import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


def page(count: int) -> str:
    return "".join(
        f'endpoint_attempts_{kind}_total{{service="cart",endpoint="10.0.0.{h}:80",instance="p{p}"}} {value}\n'
        for h in (1, 2, 3)
        for p in (1, 2)
        for kind, value in (("success", count), ("error", 0))
    )


def dom(url: str, profile: Path) -> str:
    """Text of the page after its scripts have run for some seconds."""
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
        "--virtual-time-budget=4000", "--dump-dom", url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    body = done.stdout.partition("<script>")[0]
    return html.unescape(re.sub(r"<[^>]*>", " ", body.partition("</style>")[2]))


def test_a_person_sees_states_reasons_and_an_explanation(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        assert "Nothing is judged yet" in dom(f"{server.url}/health", tmp_path / "browser")
        for count in range(20, 160, 20):
            assert server.request("POST", "/api/v1/import/prometheus", page(count).encode()).status == 204
            time.sleep(1)
        text = dom(f"{server.url}/health?service=cart&endpoint=10.0.0.2:80", tmp_path / "browser")
    assert "cart" in text
    assert "dry run: no proxy is told" in text
    assert "2 of 2 observers report" in text
    assert "nobody lists its endpoints" in text
    assert len(re.findall(r"10\.0\.0\.\d:80", text)) >= 3
    assert "nothing is decided: warm-up" in text  # the event, in words
    assert "would the guards let it be ejected now?" in text
    assert re.search(r"no\s+data_fresh\s+reason warm-up", text)
    assert "rate(endpoint_attempts_error_total" in text
    assert "no answer" not in text
