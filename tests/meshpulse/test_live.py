"""What of a changed configuration is in force."""

from __future__ import annotations

from meshpulse.config import parse_config
from meshpulse.live import changed_keys, in_force, is_at_once

OLD = "wal: {sync: always}\nstorage: {retention: 1d, shards: 2}\nglobal: {scrape_interval: 1s}\n"
NEW = """
wal: {sync: off}
storage: {retention: 2d, shards: 4}
global: {scrape_interval: 2s}
scrape_configs: [{job_name: a}]
auth: {tokens: [{name: a, token: 0123456789abcdef, roles: [read]}]}
limits: {query: {series_max: 3}, ingest: {scrape_bytes_max: 7, body_bytes_max: 8}}
"""


def test_what_differs_is_named_key_by_key() -> None:
    old, new = parse_config(OLD), parse_config(NEW)
    assert list(changed_keys(old, old)) == []
    assert list(changed_keys(old, new)) == [
        "global.scrape_interval",
        "auth.tokens",
        "storage.shards",
        "storage.retention",
        "wal.sync",
        "limits.ingest.body_bytes_max",
        "limits.ingest.scrape_bytes_max",
        "limits.query.series_max",
        "scrape_configs",
    ]


def test_only_what_changes_at_once_is_in_force() -> None:
    old, new = parse_config(OLD), parse_config(NEW)
    now = in_force(old, new)
    assert list(changed_keys(old, now)) == [key for key in changed_keys(old, new) if is_at_once(key)]
    assert list(changed_keys(now, new)) == ["storage.shards", "wal.sync", "limits.ingest.body_bytes_max"]
    assert in_force(now, old) == old
    assert not is_at_once("limits.querying")
