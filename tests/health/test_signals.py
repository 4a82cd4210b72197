"""From series to increments per (service, observer, endpoint): what counts, restarts, latency, new series."""

from __future__ import annotations

import numpy as np
import pytest

from health.mapping import BUILT_IN, parse_mapping
from health.policy import Policy
from health.service import Service
from health.signals import SeriesReader
from health.verdicts import ServiceState
from tests.query.memory_storage import STALE, MemoryStorage

NOW = 1_000_000
PREFIX = "envoy_cluster_endpoint_"


class Bench:
    def __init__(self, mapping: object = "envoy_endpoint") -> None:
        self.storage = MemoryStorage()
        self.services: dict[str, Service] = {}
        self.now = NOW
        self.reader = SeriesReader(parse_mapping(mapping), self.service)

    def service(self, name: str) -> Service:
        if name not in self.services:
            self.services[name] = Service(name, Policy(), ServiceState(0))
            self.services[name].window.advance(self.now)
        return self.services[name]

    def put(self, metric: str, endpoint: str, at: int, value: float, observer: str = "p1", **labels: str) -> None:
        names = {"envoy_cluster_name": "svc", "envoy_endpoint_address": endpoint, "instance": observer}
        self.storage.add({"__name__": metric, **names, **labels}, [(at, value)])

    def read(self, now: int) -> None:
        self.now = now
        for service in self.services.values():
            service.window.advance(now)
        self.reader.read(self.storage, now - 65_000, now)

    def sums(self, name: str = "svc") -> dict[tuple[str, str], tuple[float, float, float]]:
        service = self.services[name]
        signals = service.window.signals(self.now)
        minute = next(w for w in signals.windows if w.window_s == 60)
        return {
            (o, e): (minute.errors[p, h], minute.attempts[p, h], signals.hard.errors[p, h])
            for p, o in enumerate(service.observers)
            for h, e in enumerate(service.endpoints)
        }


def test_attempts_are_success_plus_error_and_never_rq_total() -> None:
    bench = Bench()
    for at, good, bad in ((NOW, 100.0, 7.0), (NOW + 2000, 110.0, 9.0)):
        bench.put(PREFIX + "rq_success", "10.0.0.1:80", at, good)
        bench.put(PREFIX + "rq_error", "10.0.0.1:80", at, bad)
        bench.put(PREFIX + "rq_total", "10.0.0.1:80", at, 0.0)
        bench.put(PREFIX + "cx_connect_fail", "10.0.0.1:80", at, bad)
    bench.read(NOW + 2000)
    assert bench.sums() == {("p1", "10.0.0.1:80"): (2.0, 12.0, 2.0)}
    bench.read(NOW + 2000)  # the same samples again count once
    assert bench.sums() == {("p1", "10.0.0.1:80"): (2.0, 12.0, 2.0)}


def test_a_restart_counts_from_zero_and_a_stale_marker_ends_the_series() -> None:
    bench = Bench()
    for at, value in ((NOW, 50.0), (NOW + 1000, 3.0), (NOW + 2000, STALE), (NOW + 3000, 40.0), (NOW + 4000, 41.0)):
        bench.put(PREFIX + "rq_success", "10.0.0.1:80", at, value)
    bench.read(NOW + 4000)
    assert bench.sums() == {("p1", "10.0.0.1:80"): (0.0, 4.0, 0.0)}


def test_a_store_may_number_label_values_anew() -> None:
    bench = Bench()
    counts = {"10.0.0.1:80": (10.0, 13.0, 20.0), "10.0.0.2:80": (5.0, 50.0, 51.0)}
    for endpoint, values in counts.items():
        for k in (0, 1):
            bench.put(PREFIX + "rq_error", endpoint, NOW + 1000 * k, values[k])
    bench.read(NOW + 1000)
    bench.storage = MemoryStorage()
    bench.storage.symbols.intern("something else")
    for endpoint in reversed(counts):
        for k in (1, 2):
            bench.put(PREFIX + "rq_error", endpoint, NOW + 1000 * k, counts[endpoint][k])
    bench.read(NOW + 2000)
    assert {e: attempts for (_, e), (_, attempts, _) in bench.sums().items()} == {
        endpoint: values[2] - values[0] for endpoint, values in counts.items()
    }


def test_series_and_labels_that_come_later_keep_what_was_counted() -> None:
    bench = Bench()
    for at, value in ((NOW, 0.0), (NOW + 1000, 5.0)):
        bench.put(PREFIX + "rq_success", "b:80", at, value)
    bench.read(NOW + 1000)
    bench.put(PREFIX + "rq_success", "b:80", NOW + 2000, 9.0)
    for at, value in ((NOW + 1000, 0.0), (NOW + 2000, 2.0)):
        bench.put(PREFIX + "rq_success", "a:80", at, value, observer="p0", envoy_endpoint_hostname="x", extra="y")
        bench.put(PREFIX + "rq_error", "b:80", at, value, zone="z1")
    bench.read(NOW + 2000)
    assert bench.sums() == {
        ("p1", "b:80"): (2.0, 11.0, 0.0),
        ("p1", "a:80"): (0.0, 0.0, 0.0),
        ("p0", "b:80"): (0.0, 0.0, 0.0),
        ("p0", "a:80"): (0.0, 2.0, 0.0),
    }


def test_the_proxys_own_view() -> None:
    bench = Bench()
    for observer, value in (("p1", 0.0), ("p2", 0.0), ("p3", 1.0)):
        for at in (NOW - 1000, NOW):
            bench.put(PREFIX + "healthy", "a:80", at, value, observer)
            bench.put(PREFIX + "healthy", "b:80", at, 1.0, observer)
    bench.read(NOW)
    service = bench.services["svc"]
    assert service.usable.tolist() == [[0, 1], [0, 1], [1, 1]]
    topology = service.topology({}, np.array([True, True]), NOW)
    assert dict(zip(topology.endpoints, topology.unavailable, strict=True)) == {"a:80": True, "b:80": False}


def test_labels_decide_and_latency_is_made_plain() -> None:
    bench = Bench("envoy_access_log")
    labels = {"upstream_cluster": "svc", "upstream_host": "a:80", "instance": "p1"}
    for at, n in ((NOW, 0.0), (NOW + 1000, 1.0)):
        for code, flags, count in (
            ("200", "-", 10),
            ("503", "-", 3),
            ("0", "UF", 2),
            ("0", "URX,UF", 1),
            ("404", "-", 4),
        ):
            bench.storage.add({"__name__": "envoy_up_rq", **labels, "code": code, "flags": flags}, [(at, n * count)])
        for le, count in (("5", 10.0), ("10", 14.0), ("+Inf", 20.0)):
            for method in ("GET", "PUT"):
                name = {"__name__": "envoy_up_rq_time_bucket", **labels, "le": le, "method": method}
                bench.storage.add(name, [(at, n * count)])
    bench.read(NOW + 1000)
    assert bench.sums() == {("p1", "a:80"): (6.0, 20.0, 3.0)}
    service = bench.services["svc"]
    assert service.bounds == ("5", "10", "+Inf")
    latency = service.window.signals(bench.now).latency[-1]
    assert latency.buckets.sum(axis=(0, 1)).tolist() == [20.0, 8.0, 12.0]


def test_a_bound_that_comes_later_makes_room() -> None:
    bench = Bench("envoy_access_log")
    labels = {"__name__": "envoy_up_rq_time_bucket", "upstream_cluster": "svc", "upstream_host": "a:80"}
    for le in ("5", "+Inf"):
        bench.storage.add({**labels, "le": le}, [(NOW, 0.0), (NOW + 1000, 4.0)])
    bench.read(NOW + 1000)
    bench.storage.add({**labels, "le": "7"}, [(NOW + 1000, 0.0), (NOW + 2000, 2.0)])
    for le, value in (("5", 5.0), ("+Inf", 7.0)):
        bench.storage.add({**labels, "le": le}, [(NOW + 2000, value)])
    bench.read(NOW + 2000)
    service = bench.services["svc"]
    assert service.bounds == ("5", "7", "+Inf")
    assert service.window.signals(bench.now).latency[-1].buckets.sum(axis=(0, 1)).tolist() == [1.0, 1.0, 1.0]


def test_many_services_are_kept_apart() -> None:
    bench = Bench()
    for s in range(5):
        for at, value in ((NOW, 0.0), (NOW + 1000, float(s + 1))):
            for e in range(3):
                bench.put(PREFIX + "rq_error", f"e{e}:80", at, value, envoy_cluster_name=f"s{s}")
    bench.read(NOW + 1000)
    assert set(bench.services) == {f"s{s}" for s in range(5)}
    for s in range(5):
        assert set(bench.sums(f"s{s}").values()) == {(s + 1.0, s + 1.0, 0.0)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing", "no built-in mapping 'nothing'"),
        ({"name": "m", "counters": [{"metric": "x"}]}, "m needs either service"),
        ({"name": "m", "service": "s"}, "m needs counters or latency"),
        ({"name": "m", "service": "s", "counters": [{"metric": "x", "counts": "luck"}]}, "must be one of success"),
        ({"name": "m", "service": "s", "latency": "x", "colour": "red"}, "m.colour: unknown key"),
        (
            {"name": "m", "service": "s", "counters": [{"metric": "x", "where": [{"label": "l", "matches": "("}]}]},
            r"where\[0\].matches",
        ),
        (7, "must be the name"),
    ],
)
def test_mistakes_in_mappings(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mapping(data)


def test_a_mapping_that_is_written_out() -> None:
    mapping = parse_mapping(
        {
            "name": "gateway",
            "service_name": "checkout",
            "endpoint": "upstream",
            "observer": ["pod", "zone"],
            "counters": [
                {"metric": "tries_total", "counts": "attempt"},
                {"metric": "failed_tries_total", "counts": "error_of_attempts"},
            ],
        }
    )
    bench = Bench()
    bench.reader = SeriesReader(mapping, bench.service)
    for at, n in ((NOW, 0.0), (NOW + 1000, 1.0)):
        labels = {"upstream": "a:80", "pod": "p", "zone": "z"}
        bench.storage.add({"__name__": "tries_total", **labels}, [(at, 10 * n)])
        bench.storage.add({"__name__": "failed_tries_total", **labels}, [(at, 4 * n)])
    bench.read(NOW + 1000)
    assert bench.sums("checkout") == {("p/z", "a:80"): (4.0, 10.0, 0.0)}


def test_built_in_names_are_their_keys() -> None:
    assert all(name == mapping.name for name, mapping in BUILT_IN.items())
