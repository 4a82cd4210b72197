"""Kill -9 while blocks are merged: each start finds the old blocks or the new one, and every sample."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tsdb.test_compaction import DAY, WEEK0, fill, new_store, objects, shard_of, spans
from tests.tsdb.test_db import read

CHILD = """
import sys
from pathlib import Path
from tests.tsdb.test_compaction import new_store
from tsdb.block import merge
merge.SAMPLES_AT_ONCE_MAX = 100  # many pauses
db = new_store(Path(sys.argv[1]))
print("ready", flush=True)
db.compact(0.5)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_kill_loop_while_blocks_are_merged(tmp_path: Path) -> None:
    cycles = 12
    pristine, data = tmp_path / "pristine", tmp_path / "data"
    db = new_store(pristine)
    content = fill(db, WEEK0, WEEK0 + 7 * DAY + 12 * 3_600_000)
    db.close()
    chance = random.Random(cycles)
    merging_s = 1.0  # how long a child took when it was let finish
    killed_between = 0
    seen = [168]
    for cycle in range(cycles):
        if 168 in seen:  # there is nothing left to merge
            shutil.rmtree(data, ignore_errors=True)
            shutil.copytree(pristine, data)
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            begin = time.monotonic()
            if cycle == 0:
                assert child.stdout.readline() == "done\n"
                merging_s = time.monotonic() - begin
            else:
                time.sleep(chance.uniform(0, merging_s))
            child.kill()
        left = objects(data)
        db = new_store(data)
        listed = {live.meta.key for live in shard_of(db).blocks}
        assert listed <= left
        killed_between += left != listed or (24 in spans(db) and 168 not in spans(db))
        assert objects(data) == listed
        assert read(db.tenant("default")) == content
        seen = spans(db)
        db.close()
    assert killed_between, "no child was killed in the middle of its work"
