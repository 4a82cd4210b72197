"""The configuration file: defaults, words of Prometheus, and errors one can act on."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from meshpulse.config import ConfigError, load_config, milliseconds, parse_config, split_listen
from tsdb.wal.log import SyncMode


def test_an_empty_file_is_the_default() -> None:
    config = parse_config("")
    assert config == parse_config("server:\nscrape_configs:\nglobal: {}\n")
    assert config.server.listen == "127.0.0.1:9090"
    assert config.wal.sync is SyncMode.ALWAYS
    assert not config.tenants.auto_create


def test_prometheus_words() -> None:
    config = parse_config("""
global:
  scrape_interval: 2s
  external_labels: {mesh: a}
scrape_configs:
  - job_name: envoy
    metrics_path: /stats/prometheus
    static_configs:
      - targets: ["127.0.0.1:9901"]
        labels: {zone: z1}
""")
    job = config.scrape_configs[0]
    assert config.global_.scrape_interval == timedelta(seconds=2)
    assert job.static_configs[0].targets == ["127.0.0.1:9901"]
    assert job.scrape_interval is None


@pytest.mark.parametrize(
    ("text", "ms"), [("500ms", 500), ("1h30m", 5_400_000), ("15d", 1_296_000_000), ("0", 0), ("1m500ms", 60_500)]
)
def test_durations(text: str, ms: int) -> None:
    assert milliseconds(parse_config(f"query: {{timeout: {text}}}").query.timeout) == ms


@pytest.mark.parametrize("text", ["5", "abc", "1ns", "-1s", "1.5h", '""', "true"])
def test_bad_durations_name_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"line 2: query\.timeout: is no duration"):
        parse_config(f"query:\n  timeout: {text}\n")


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 64 << 20), ("1GiB", 1 << 30), ("17", 17), ("2 KiB", 2048), ("3MB", 3 << 20), ("5B", 5)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_config(f"wal: {{segment_bytes: {text}}}").wal.segment_bytes == size


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("scrape_protocols: [PrometheusProto]", r"scrape_protocols\.0: .*OpenMetricsText1\.0\.0"),
        ("scrape_protocols: []", r"scrape_protocols: "),
        ("scrape_protocols: [PrometheusText0.0.4, PrometheusText0.0.4]", r"scrape_protocols: names a format twice"),
        ("fallback_scrape_protocol: text", r"fallback_scrape_protocol: "),
        ("label_limit: -1", r"label_limit: "),
        ("body_size_limit: 5XB", r"body_size_limit: is no size"),
    ],
)
def test_bad_keys_of_pages(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=rf"line 3: scrape_configs\.0\.{error}"):
        parse_config(f"scrape_configs:\n  - job_name: a\n    {text}\n")


def test_off_is_a_word() -> None:
    assert parse_config("wal: {sync: off}").wal.sync is SyncMode.OFF
    assert parse_config("server: {insecure: true}").server.insecure
    assert parse_config("server: {route_prefix: /a/b/}").server.route_prefix == "/a/b"
    assert parse_config("server: {route_prefix: /}").server.route_prefix == ""
    for wrong in ("a", "/a b", "/%2e"):
        with pytest.raises(ConfigError, match=r"line 1: server\.route_prefix"):
            parse_config(f"server: {{route_prefix: {wrong}}}")
    with pytest.raises(ConfigError, match="belong together"):
        parse_config("server: {tls_cert_file: x}")
    with pytest.raises(ConfigError, match="tls_client_ca_file needs"):
        parse_config("server: {tls_client_ca_file: x}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wal:\n  sink: always\n", "line 2: wal.sink: unknown key"),
        ("wall: {}\n", "line 1: wall: unknown key"),
        ("\nwal:\n  sync: sometimes\n", "line 3: wal.sync: Input should be 'always', 'interval' or 'off'"),
        ("limits:\n  series:\n    labels: 3\n", "line 3: limits.series.labels: unknown key"),
        ("storage:\n  shards: 3\n", "line 2: storage.shards: must be a power of two"),
        ("server:\n  listen: here\n", "line 2: server.listen: must be HOST:PORT"),
        ("scrape_configs:\n  - job_name: a\n    targets: [x]\n", "line 3: scrape_configs.0.targets: unknown key"),
        ("scrape_configs:\n  - metrics_path: /x\n", "line 2: scrape_configs.0.job_name: Field required"),
        ("scrape_configs:\n- job_name: a\n- job_name: a\n", "job_name 'a' is used twice"),
        (
            "scrape_configs:\n- job_name: a\n  dns_sd_configs: []\n",
            "line 3: scrape_configs.0.dns_sd_configs: is not supported",
        ),
        ("scrape_configs:\n- job_name: a\n  oauth: {}\n", "line 3: scrape_configs.0.oauth: unknown key"),
        ("scrape_configs:\n- job_name: a\n  oauth2: {}\n", "line 3: scrape_configs.0.oauth2: is not supported"),
        ("global:\n  evaluation_interval: 1s\n", "line 2: global.evaluation_interval: is not supported"),
        ("wal:\n  sync: off\n  sync: always\n", "line 3: wal.sync is written twice, first in 2"),
        ("wal: [\n", "line 2: "),
        ("- 1\n", "line 1: the file must be a mapping"),
        ("tenants:\n  max: 0\n", "line 2: tenants.max: Input should be greater than or equal to 1"),
    ],
)
def test_mistakes_name_line_and_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert message in str(caught.value)


def test_every_mistake_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("wal:\n  a: 1\n  b: 2\n")
    assert str(caught.value).splitlines() == ["line 2: wal.a: unknown key", "line 3: wal.b: unknown key"]


def test_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "meshpulse.yml"
    file.write_text("server: {listen: '127.0.0.1:1'}\nstorage: {retention: 1d}\n")
    config = load_config(
        file, {"server": {"listen": "127.0.0.1:2"}, "storage": {"path": tmp_path}, "log": {"level": None}}
    )
    assert config.server.listen == "127.0.0.1:2"
    assert config.storage.path == tmp_path
    assert config.storage.retention == timedelta(days=1)


def test_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "meshpulse.yml"
    file.write_text("a: 1\n")
    with pytest.raises(ConfigError, match=r"meshpulse\.yml: line 1: a: unknown key"):
        load_config(file)
    with pytest.raises(ConfigError, match="absent"):
        load_config(tmp_path / "absent")


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("localhost:9090", ("localhost", 9090))],
)
def test_listen(listen: str, address: tuple[str, int]) -> None:
    assert split_listen(listen) == address


JOB = """
scrape_configs:
- job_name: a
  KEY
"""


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("relabel_configs: [{action: keep, regex: '('}]", "relabel_configs.0: error parsing regexp: missing ): "),
        ("relabel_configs: [{action: hashmod, target_label: x}]", "hashmod requires non-zero modulus"),
        ("metric_relabel_configs: [{regex: a}]", "replace action requires 'target_label' value"),
        ("basic_auth: {username: u, username_file: f}", "at most one of basic_auth username & username_file"),
        ("basic_auth: {password: p, password_file: f}", "at most one of basic_auth password & password_file"),
        ("authorization: {credentials: c, credentials_file: f}", "at most one of authorization credentials &"),
        ("authorization: {type: Basic}", 'authorization type cannot be set to "basic", use "basic_auth" instead'),
        ("{authorization: {}, basic_auth: {}}", "at most one of basic_auth, oauth2 & authorization"),
        ("tls_config: {cert_file: f}", "cert_file and key_file belong together"),
        ("tls_config: {min_version: TLS9}", "line 4: scrape_configs.0.tls_config.min_version: Input should be"),
        ("proxy_url: 'socks5://h:1'", "must begin with http://"),
        ("static_configs: [{targets: ['http://h:1']}]", '"http://h:1" is not a valid hostname'),
        ("file_sd_configs: [{files: []}]", "file_sd_configs.0.files: List should have at least 1 item"),
        ("file_sd_configs: [{files: [a.txt]}]", 'path name "a.txt" is not valid for file discovery'),
        ("file_sd_configs: [{files: [a.json], refresh_interval: 0}]", "refresh_interval must be above zero"),
        ("http_sd_configs: [{url: ''}]", "URL is missing"),
        ("http_sd_configs: [{url: 'ftp://h/'}]", "URL scheme must be 'http' or 'https'"),
        ("http_sd_configs: [{url: 'http:///x'}]", "host is missing in URL"),
    ],
)
def test_mistakes_in_a_job_have_prometheus_words(key: str, words: str) -> None:
    text = JOB.replace("KEY", key if not key.startswith("{") else key[1:-1].replace(", basic", "\n  basic"))
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("line ")


def test_paths_of_a_job_begin_beside_the_file_and_texts_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "meshpulse.yml"
    file.write_text("""
scrape_configs:
- job_name: a
  tls_config: {ca_file: ca.pem}
  basic_auth: {username: 1, password_file: /secret}
  file_sd_configs: [{files: ['targets/*.json', /abs.yml]}]
  static_configs: [{targets: [], labels: {port: 80, ready: true, none: null}}]
  relabel_configs: [{target_label: a, regex:, replacement: 8080}]
""")
    (job,) = load_config(file).scrape_configs
    assert job.tls_config.ca_file == tmp_path / "ca.pem"
    assert job.basic_auth is not None
    assert (job.basic_auth.username, job.basic_auth.password_file) == ("1", Path("/secret"))
    assert job.file_sd_configs[0].source().files == (f"{tmp_path}/targets/*.json", "/abs.yml")
    assert job.static_configs[0].labels == {"port": "80", "ready": "true", "none": ""}
    assert (job.relabel_configs[0].regex, job.relabel_configs[0].replacement) == ("", "8080")


def test_no_secret_is_shown() -> None:
    config = parse_config("""
auth: {tokens: [{name: a, token: hush-0123456789abcdef, roles: [read]}]}
scrape_configs:
- job_name: a
  basic_auth: {username: me, password: hush}
  proxy_url: http://me:hush@proxy:1/
  http_sd_configs: [{url: "http://me:hush@h/x", authorization: {credentials: hush}}]
- {job_name: b, authorization: {credentials: ""}}
""")
    shown = str(config.model_dump(mode="json", by_alias=True))
    assert "hush" not in shown
    assert shown.count("<secret>") == 5
    assert "http://me:<secret>@h/x" in shown
    assert "hush" not in repr(config.scrape_configs[0].basic_auth)
    assert "'retention': '15d'" in shown
