"""Lists of targets, well and badly written, in files and from a server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ingest.scraping.discovery import FileSource, HttpSource
from ingest.scraping.groups import FILE_NAME, DiscoveryError, FileSdConfig, HttpSdConfig, TargetGroup, parse_groups
from ingest.scraping.http_client import BasicAuth, HttpClientConfig
from tests.ingest.site import Site

YAML = """
- targets: [h:1, "h:2"]
  labels: {port: 80, yes: true, "a b": null}
- targets:
    - h:3
-
  labels:
"""


def test_yaml_takes_every_scalar_as_text(tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text(YAML)
    source = FileSource(FileSdConfig((str(file),)))
    assert source.look()
    path = {"__meta_filepath": str(file)}
    assert source.groups() == [
        TargetGroup(["h:1", "h:2"], {"port": "80", "yes": "true", "a b": "", **path}, f"{file}:0"),
        TargetGroup(["h:3"], path, f"{file}:1"),
        TargetGroup([], path, f"{file}:2"),
    ]
    assert not source.look()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "is no list of target groups"),
        ([None], r"nil target group item found \(index 0\)"),
        ([[]], "group 0 must have targets and labels"),
        ([{"targets": [], "lables": {}}], "group 0 must have targets and labels, and no other fields"),
        ([{"targets": ["a"]}, {"targets": "h:1"}], "the targets of group 1 must be a list of texts"),
        ([{"targets": [1]}], "the targets of group 0 must be a list of texts"),
        ([{"targets": ["\ud800"]}], "the targets of group 0 must be a list of texts"),
        ([{"labels": ["a"]}], "the labels of group 0 must be a mapping"),
        ([{"labels": {"": "a"}}], "'' is not a valid label name"),
        ([{"labels": {"a": 1}}], "the value of label 'a' must be a text, not 1"),
        ([{"labels": {"a": "\udfff"}}], "the value of label 'a' must be a text"),
    ],
)
def test_bad_groups_say_what_is_wrong(data: Any, words: str) -> None:
    with pytest.raises(DiscoveryError, match=words):
        parse_groups(data, "s", {})


def test_files_come_change_break_and_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = FileSource(FileSdConfig((f"{tmp_path}/*.json", f"{tmp_path}/one.yaml")))

    def targets() -> list[str]:
        return [target for group in source.groups() for target in group.targets]

    assert not source.look()
    (tmp_path / "b.json").write_text('[{"targets": ["h:2"]}]')
    (tmp_path / "a.json").write_text('[{"targets": ["h:1"]}]')
    (tmp_path / "c.yaml").write_text("- targets: [h:9]")  # no pattern fits
    assert source.look()
    assert targets() == ["h:1", "h:2"]
    for broken in ('[{"targets": ["h:3"]}', '[{"targets": [3]}]', b"\xff", '["\\ud800"]', "[" * 100_000):
        (tmp_path / "a.json").write_bytes(broken if isinstance(broken, bytes) else broken.encode())
        assert not source.look()
        assert f"targets of {tmp_path}/a.json cannot be read, those from before stay" in caplog.text
        caplog.clear()
    assert targets() == ["h:1", "h:2"]
    (tmp_path / "a.json").write_text("[]")
    assert source.look()
    assert targets() == ["h:2"]
    (tmp_path / "b.json").unlink()
    (tmp_path / "one.yaml").write_text("")
    assert source.look()
    assert targets() == []


def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    """As a mounted ConfigMap is renewed: the name stays, what it leads to is another file of the same age and size."""
    for name, port in (("old", 1), ("new", 2)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "a.json"
        file.write_text(f'[{{"targets": ["h:{port}"]}}]')
        os.utime(file, (1000, 1000))
    (tmp_path / "data").symlink_to("old")
    source = FileSource(FileSdConfig((f"{tmp_path}/data/a.json",)))
    assert source.look()
    (tmp_path / "data.tmp").symlink_to("new")
    (tmp_path / "data.tmp").rename(tmp_path / "data")
    assert source.look()
    assert source.groups()[0].targets == ["h:2"]


@pytest.mark.parametrize("name", ["a.json", "/x/y.yml", "d/*.yaml", "d/a*b.JSON"])
def test_names_that_may_be_watched(name: str) -> None:
    assert FILE_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["a", "a.txt", "*/a.json", "a*/*.json"])
def test_names_that_may_not(name: str) -> None:
    assert not FILE_NAME.fullmatch(name)


def _answer(text: str, kind: str = "application/json", status: int = 200) -> Callable[..., Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=text.encode(), headers={"Content-Type": kind}, status=status)

    return answer


def test_a_server_is_asked_as_prometheus_asks() -> None:
    async def run() -> None:
        text = '[{"targets": ["h:1"], "labels": {"a": "b", "__meta_dc": "x"}}, {"targets": []}]'
        async with Site(_answer(text)) as site, aiohttp.ClientSession(auto_decompress=False) as session:
            url = f"http://{site.address}/sd?x=1"
            client = HttpClientConfig(basic_auth=BasicAuth("u", password="p"))
            source = HttpSource(HttpSdConfig(url, 90.0, client), session)
            assert await source.ask() == [
                TargetGroup(["h:1"], {"a": "b", "__meta_dc": "x", "__meta_url": url}, f"{url}:0"),
                TargetGroup([], {"__meta_url": url}, f"{url}:1"),
            ]
            (request,) = site.requests
            assert request.headers["Accept"] == "application/json"
            assert request.headers["X-Prometheus-Refresh-Interval-Seconds"] == "90"
            assert request.headers["Authorization"] == "Basic dTpw"
            for kind in ("application/json; charset=utf-8", 'APPLICATION/JSON;charset="UTF-8"'):
                site.answer = _answer("[]", kind)
                assert await source.ask() == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_answer("[]", status=503), "server returned HTTP status 503 Service Unavailable"),
        (_answer("[]", "text/html"), 'unsupported content type "text/html"'),
        (_answer("[]", "application/json; charset=latin-1"), "unsupported content type"),
        (_answer("[1"), "Expecting ',' delimiter"),
        (_answer("{}"), "is no list of target groups"),
    ],
)
def test_answers_of_no_use(answer: Callable[..., Awaitable[web.Response]], words: str) -> None:
    async def run() -> None:
        async with Site(answer) as site, aiohttp.ClientSession() as session:
            with pytest.raises(DiscoveryError, match=words):
                await HttpSource(HttpSdConfig(f"http://{site.address}/"), session).ask()

    asyncio.run(run())


def test_a_server_that_fails_keeps_its_targets(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []

    async def run() -> None:
        async with Site(_answer('[{"targets": ["h:1"]}]')) as site, aiohttp.ClientSession() as session:
            source = HttpSource(HttpSdConfig(f"http://u:secret@{site.address}/", 0.05), session)
            task = asyncio.create_task(source.run(told.append))
            while len(site.requests) < 3:
                await asyncio.sleep(0.01)
            assert [[group.targets for group in groups] for groups in told] == [[["h:1"]]]  # told once
            site.answer = _answer("", status=500)
            while told[-1] is not None:
                await asyncio.sleep(0.01)
            site.answer = _answer("[]")
            while told[-1] != []:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 30))
    assert "secret" not in caplog.text
    assert "server returned HTTP status 500" in caplog.text
