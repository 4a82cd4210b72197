"""The series that verdicts are written to."""

from __future__ import annotations

from health.series import EJECTIONS, VerdictWriter
from tests.ingest.fakes import NOW, FakeTenant


def test_the_numbers_of_series_may_change_between_writes() -> None:
    store = FakeTenant()
    for number in range(5):
        store.registry.resolve({"__name__": "gone", "n": str(number)})
    writer = VerdictWriter(store, 1000)
    labels = {"__name__": EJECTIONS, "service": "svc", "detector": "errors", "mode": "enforce"}
    writer._ejections["svc", "errors", "enforce"] = 3
    for k in range(3):
        writer.write({}, NOW + 1000 * k, moved=True)
        assert list(store.stored) == [store.registry.resolve(labels)]
        store.forget([labels] if k else [])
