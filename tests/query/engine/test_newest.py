"""Instant queries at the newest samples, which need no chunk, answer what decoding the chunks answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from query.engine.engine import Engine
from query.errors import BadDataError
from query.limits import QueryLimits
from query.result import ScalarResult, VectorResult
from tests.tsdb.test_db import bits_of, opened, put, series
from tsdb.batch import STALE_BITS
from tsdb.tenant import Tenant

T0 = 1_700_006_400_000
NEWEST = T0 + 20 * 15_000


@pytest.fixture(scope="module")
def tenant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    db = opened(tmp_path_factory.mktemp("newest"))
    made = db.tenant("default")
    put(made, [(series(i), T0 + 15_000 * k, bits_of(k * 1.5 - i)) for k in range(21) for i in range(12)])
    put(made, [(series(12), T0, bits_of(7.0)), (series(13), NEWEST, STALE_BITS), (series(14), NEWEST, bits_of(-0.0))])
    put(made, [(series(2), NEWEST - 1, bits_of(99.0)), (series(15), NEWEST + 1000, bits_of(float("nan")))])
    yield made
    db.close()


QUERIES = [
    'm0{instance="10.0.0.3"}',
    "m1",
    "sum(m0)",
    "sum by (job) (m0) / count(m1)",
    "timestamp(m2)",
    "m0 > 5 or m1",
    "topk(2, m1)",
    "absent(nothing)",
    "m2 offset 15s",
    "abs(-m0) + on (instance) group_left m0",
    '{job="mesh"}',
]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("at_ms", [NEWEST, NEWEST + 1000, NEWEST + 299_999, NEWEST + 300_000, T0 + 7_000, T0 - 1])
def test_both_ways_give_the_same(tenant: Tenant, query: str, at_ms: int) -> None:
    engine = Engine()
    quick = engine.instant(tenant, query, at_ms).value
    decoded = engine.instant(tenant, query, at_ms, per_step=True).value  # counting by step needs the chunks
    assert isinstance(quick, VectorResult)
    assert isinstance(decoded, VectorResult)
    assert list(quick.labels) == list(decoded.labels)
    assert np.array_equal(quick.values.view(np.uint64), decoded.values.view(np.uint64))
    assert np.array_equal(quick.present, decoded.present)


def test_what_is_light(tenant: Tenant) -> None:
    engine = Engine()
    assert engine.is_light(tenant, 'm0{instance="10.0.0.3"} + 1', NEWEST)
    assert engine.is_light(tenant, "1 + 1", 4000)
    assert not engine.is_light(tenant, 'm0{instance=~"10.0.0.3"}', NEWEST)
    assert not engine.is_light(tenant, "rate(m0[5m])", NEWEST)
    assert not engine.is_light(tenant, "max_over_time(m0[1h:1m])", NEWEST)
    assert not engine.is_light(tenant, "m0 offset 1h", NEWEST)
    assert not engine.is_light(tenant, " + ".join(["m0"] * 40), NEWEST)
    with pytest.raises(BadDataError):
        engine.is_light(tenant, "m0{", NEWEST)


def test_a_light_query_does_not_wait_for_a_turn(tenant: Tenant) -> None:
    engine = Engine(QueryLimits(concurrent_max=1))
    assert engine._gate.acquire(blocking=False)
    value = engine.instant(tenant, "1 + 1", NEWEST, gated=False).value
    assert isinstance(value, ScalarResult)
    assert value.value == 2
