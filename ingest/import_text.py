"""Text import without HTTP: an exposition in, samples by series number out."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ingest.exemplars import keep_exemplars
from ingest.exposition import PAD, ExpositionParser
from ingest.gunzip import gunzip
from ingest.limits import WriteLimits
from ingest.reception import Reception, Refusals, SampleWriter
from ingest.store import Tenant
from tsdb.batch import SampleBatch
from tsdb.errors import Reason, RejectedError
from tsdb.index.registry import SeriesRegistry

_PARSERS_MAX = 16
"""Idle parsers kept: each remembers how one kind of sender spells its series."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the parameters of an import say.

    Attributes
    ----------
    extra_labels : put on every series, instead of a label of that name in the text
    time_ms : of samples that bring none; None = now
    gzip : whether the body is compressed
    openmetrics : whether it is OpenMetrics; else it is the text format
    """

    extra_labels: tuple[tuple[str, str], ...] = ()
    time_ms: int | None = None
    gzip: bool = False
    openmetrics: bool = False


class _Parser(ExpositionParser):
    def __init__(self, registry: SeriesRegistry, labels: tuple[tuple[str, str], ...], openmetrics: bool) -> None:
        super().__init__(registry, dict(labels))
        self.registry = weakref.ref(registry)
        self.labels = labels
        self.openmetrics = openmetrics

    def _with_target_labels(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """The sender of the request knows better than the text: nothing becomes ``exported_...``."""
        yield from ((label, value) for label, value in pairs if label not in self._target_labels)
        yield from self._target_labels.items()


class TextImporter:
    """Reads pushed expositions of any tenant; used by many threads at once.

    Parameters
    ----------
    writer : hands samples to the store
    limits : what one request may be
    """

    def __init__(self, writer: SampleWriter, limits: WriteLimits | None = None) -> None:
        self._writer = writer
        self._limits = limits or WriteLimits()
        self._idle: list[_Parser] = []  # used last = last
        self._lock = threading.Lock()

    def receive(self, tenant: Tenant, body: bytes, options: ImportOptions) -> Reception:
        """Parse an exposition and hand its samples to the store.

        Raises
        ------
        RejectedError       MALFORMED (the message names the line) or BODY_TOO_LARGE; nothing of it was kept
        UnavailableError    the store cannot take it now; nothing of it was kept
        """
        text = gunzip(body, self._limits.decoded_bytes_max) if options.gzip else body
        now_ms = self._writer.clock.now_ms() if options.time_ms is None else options.time_ms
        registry = tenant.registry
        parser = self._borrow(registry, options)
        try:
            seen = parser.parse(text + PAD, now_ms, options.openmetrics)
        except RejectedError as error:  # in the words of a scrape, but it is a push
            raise RejectedError(Reason.MALFORMED, str(error)) from None
        refusals = Refusals()
        for reason, count in seen.refused.items():
            refusals.add(reason, count)
        reception = self._writer.write(
            tenant,
            SampleBatch(seen.refs, seen.ts_ms, seen.bits, registry),
            None,
            refusals,
            sent=seen.scraped,
            newest_ms=int(np.max(seen.ts_ms, initial=now_ms)),
            unsorted=seen.own_times,
            metadata=seen.metadata,
        )
        if seen.exemplars:
            kept = keep_exemplars(tenant.exemplars, registry, seen.exemplars, self._writer.tally)
            reception.exemplars_written = kept.written
        self._give_back(parser)  # not after an error: it would take metadata for known that was not kept
        return reception

    def _borrow(self, registry: SeriesRegistry, options: ImportOptions) -> _Parser:
        wanted = (options.extra_labels, options.openmetrics)
        with self._lock:
            for i in range(len(self._idle) - 1, -1, -1):
                idle = self._idle[i]
                if (idle.labels, idle.openmetrics) == wanted and idle.registry() is registry:
                    return self._idle.pop(i)
        return _Parser(registry, *wanted)

    def _give_back(self, parser: _Parser) -> None:
        with self._lock:
            self._idle.append(parser)
            del self._idle[:-_PARSERS_MAX]
