"""Formats of pages: which are asked for, and which one came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from tsdb.errors import Reason, RejectedError


class ScrapeProtocol(StrEnum):
    """Formats of pages, by the names that Prometheus gives them."""

    OPENMETRICS_1_0_0 = "OpenMetricsText1.0.0"
    OPENMETRICS_0_0_1 = "OpenMetricsText0.0.1"
    TEXT_1_0_0 = "PrometheusText1.0.0"
    TEXT_0_0_4 = "PrometheusText0.0.4"


OPENMETRICS = "application/openmetrics-text"
_TEXT = "text/plain"
_PROTOBUF = "application/vnd.google.protobuf"
_MEDIA_TYPES: Mapping[ScrapeProtocol, str] = {
    ScrapeProtocol.OPENMETRICS_1_0_0: f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8",
    ScrapeProtocol.OPENMETRICS_0_0_1: f"{OPENMETRICS};version=0.0.1",
    ScrapeProtocol.TEXT_1_0_0: f"{_TEXT};version=1.0.0;escaping=allow-utf-8",
    ScrapeProtocol.TEXT_0_0_4: f"{_TEXT};version=0.0.4",
}
_WEIGHT_FIRST = 6  # as Prometheus 3 counts: one more than the formats it knows, protobuf among them


class ScrapeError(RejectedError):
    """The target did not answer with a page."""

    def __init__(self, what: str) -> None:
        super().__init__(Reason.SCRAPE_FAILED, what)


def accept_header(protocols: Sequence[ScrapeProtocol]) -> str:
    """The ``Accept`` header that prefers earlier formats, letter by letter as Prometheus 3 writes it."""
    kinds = [*(_MEDIA_TYPES[protocol] for protocol in protocols), "*/*"]
    return ",".join(f"{kind};q=0.{_WEIGHT_FIRST - i}" for i, kind in enumerate(kinds))


def media_type(content_type: str) -> str:
    """Type and subtype of a ``Content-Type``, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_openmetrics(content_type: str, fallback: ScrapeProtocol | None) -> bool:
    """Whether a page of this ``Content-Type`` is OpenMetrics (True) or the text format (False).

    Parameters
    ----------
    fallback : format of a page whose type is missing or unknown

    Raises
    ------
    ScrapeError    another format, and no fallback
    """
    kind = media_type(content_type)
    if kind in (OPENMETRICS, _TEXT):
        return kind == OPENMETRICS
    if kind == _PROTOBUF:
        raise ScrapeError("the target answers in Prometheus' protobuf format, which is not supported")
    if fallback is None:
        what = f"unsupported Content-Type {content_type!r}" if kind else "blank Content-Type"
        raise ScrapeError(f"received {what} and no fallback_scrape_protocol specified for target")
    return fallback in (ScrapeProtocol.OPENMETRICS_1_0_0, ScrapeProtocol.OPENMETRICS_0_0_1)
