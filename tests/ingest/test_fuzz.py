"""Damaged bodies, in each protocol: read or refused by name, and the next good body is read as ever.

In the bounds lane a kernel that reads or writes beside its arrays raises an IndexError here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.import_text import ImportOptions, TextImporter
from ingest.limits import WriteLimits
from ingest.logs.limits import PushLimits
from ingest.logs.push import PushReceiver
from ingest.otlp import OtlpReceiver
from ingest.otlp_json import to_protobuf
from ingest.reception import SampleWriter
from ingest.remote_write import RemoteWriteReceiver
from ingest.remote_write_v2 import RemoteWriteV2Receiver
from tests import pushes
from tests.damage import Cut, damaged, damages
from tests.ingest.bodies import snappy
from tests.ingest.fakes import NOW, FakeTenant
from tsdb.clock import ManualClock
from tsdb.errors import RejectedError
from tsdb.index.registry import SeriesRegistry
from tsdb.labels import Labels
from tsdb.limits import SeriesLimits
from tsdb.tally import Tally

pytestmark = pytest.mark.kernel

EXAMPLES = int(os.environ.get("MESHPULSE_FUZZ_EXAMPLES", "300"))  # more of them find more
if os.environ.get("NUMBA_DISABLE_JIT") == "1":
    EXAMPLES = 40
LIMITS = {"body_bytes_max": 1 << 16, "decoded_bytes_max": 1 << 20}


class FakeStreams:
    """A log store that takes everything."""

    def __init__(self) -> None:
        self.registry = SeriesRegistry(SeriesLimits())

    def resolve(self, labels: Labels) -> int:
        canonical = np.frombuffer(labels.canonical, np.uint8)
        return int(self.registry.adopt(canonical, np.array([0, len(canonical)], np.int64))[0])

    def append(self, batch: Any) -> Future[int]:
        future: Future[int] = Future()
        future.set_result(len(batch.ts_ns))
        return future


class Readers:
    """Every parser, each behind ``read(plain body) -> what was refused``, as text."""

    def __init__(self) -> None:
        tally = Tally()
        clock = ManualClock(NOW)
        writer = SampleWriter(clock, tally)
        limits = WriteLimits(**LIMITS)
        tenant, streams = FakeTenant(), FakeStreams()
        v1, v2 = RemoteWriteReceiver(writer, limits), RemoteWriteV2Receiver(writer, limits)
        otlp, text = OtlpReceiver(writer, limits), TextImporter(writer, limits)
        logs = PushReceiver(clock, tally, PushLimits(**LIMITS))

        def told(reception: Any) -> str:
            return reception.refused(reception.future.result() if reception.future else None)

        self.by_name: dict[str, Callable[[bytes], str]] = {
            "remote-write 1.0": lambda plain: told(v1.receive(tenant, snappy(plain))),
            "remote-write 2.0": lambda plain: told(v2.receive(tenant, snappy(plain))),
            "text": lambda plain: told(text.receive(tenant, plain, ImportOptions((), None, False))),
            "OTLP": lambda plain: told(otlp.receive(tenant, plain)),
            "OTLP JSON": lambda plain: told(otlp.receive(tenant, to_protobuf(plain))),
            "Loki": lambda plain: logs.protobuf(streams, "default", snappy(plain)).refusals.text(),
            "Loki JSON": lambda plain: logs.json(streams, "default", plain).refusals.text(),
            "OTLP logs": lambda plain: logs.otlp(streams, "default", plain).refusals.text(),
        }
        self.snappy = SimpleNamespace(read=lambda body: told(v1.receive(tenant, body)))


@pytest.mark.parametrize("name", list(Readers().by_name))
def test_damaged_bodies(name: str) -> None:
    readers = Readers()
    read = readers.by_name[name]
    good = pushes.PUSHES[name].plain(NOW)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(damages)
    def check(damage: list[Cut]) -> None:
        with contextlib.suppress(RejectedError):
            read(damaged(good, damage))
        assert read(good) == ""

    check()


@settings(max_examples=EXAMPLES, deadline=None)
@given(damages, st.booleans())
def test_damaged_snappy(damage: list[Cut], is_repetitive: bool) -> None:
    """Long copies as well as literals."""
    plain = pushes.remote_write(NOW) * (20 if is_repetitive else 1)
    with contextlib.suppress(RejectedError):
        SNAPPY.read(damaged(snappy(plain), damage))
    assert SNAPPY.read(snappy(plain)) == ""


SNAPPY = Readers().snappy
