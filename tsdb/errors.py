"""The three kinds of error: the caller's fault, the world's fault; our own fault is an ``assert``.

::

    MeshpulseError
    ├── RejectedError            the caller's fault; ``reason`` is the metric label and the row in the docs
    │   └── LimitError           ... because a configured limit was passed
    └── UnavailableError         the world's fault; the same request may succeed later
        ├── OverloadedError      queues are full
        ├── DiskFullError        free space below the reserve
        ├── LogFailedError       the write-ahead log cannot write or sync
        └── ShardUnavailableError
    CorruptionError(path, offset)  stored bytes do not check out; caught where it can be contained
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path


class Reason(StrEnum):
    """Why something was refused: the ``reason`` label of ``meshpulse_rejected_total``, in the API and the docs."""

    # samples
    DUPLICATE = "duplicate_timestamp"
    OUT_OF_ORDER = "out_of_order"
    TOO_OLD = "too_old"
    FAR_FUTURE = "too_far_in_future"
    # series
    NO_METRIC_NAME = "missing_metric_name"
    NO_LABELS = "no_labels"
    DUPLICATE_LABEL = "duplicate_label_name"
    INVALID_UTF8 = "invalid_utf8"
    EMPTY_LABEL_NAME = "empty_label_name"
    LABEL_NAME_TOO_LONG = "label_name_too_long"
    LABEL_VALUE_TOO_LONG = "label_value_too_long"
    TOO_MANY_LABELS = "too_many_labels"
    SERIES_TOO_LONG = "series_too_long"
    SERIES_LIMIT = "series_limit"
    NATIVE_HISTOGRAM = "native_histogram_unsupported"
    REPLICA = "other_replica"
    EXPONENTIAL_HISTOGRAM = "exponential_histogram_unsupported"
    TEMPORALITY = "temporality_unsupported"
    NO_SAMPLES = "series_without_samples"
    EXEMPLAR_OUT_OF_ORDER = "exemplar_out_of_order"
    EXEMPLAR_TOO_LONG = "exemplar_too_long"
    METADATA_LIMIT = "metadata_limit"
    # log lines
    LINE_TOO_LONG = "line_too_long"
    METADATA_TOO_LARGE = "structured_metadata_too_large"
    RATE_LIMITED = "rate_limited"
    DELETE_LIMIT = "delete_limit"
    # reads
    QUERY_LIMIT = "query_limit"
    BAD_MATCHER = "bad_matcher"
    # requests
    MALFORMED_REQUEST = "malformed_request"
    HEADER_TOO_LARGE = "header_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    RESPONSE_TIMEOUT = "response_not_read"
    CONNECTIONS = "too_many_connections"
    TRUNCATED = "truncated_body"
    MALFORMED = "malformed_body"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_TYPE = "unsupported_media_type"
    TENANT = "tenant_refused"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    # servers
    OVERLOADED = "overloaded"
    DISK_FULL = "disk_nearly_full"
    LOG_FAILED = "log_failed"
    # scrapes
    SCRAPE_FAILED = "scrape_failed"
    SCRAPE_LIMIT = "scrape_limit"
    # followed files
    FILE_UNREADABLE = "file_unreadable"
    # datagrams
    RECEIVE_BUFFER = "receive_buffer_full"


class MeshpulseError(Exception):
    """Base of every error we raise on purpose."""


class RejectedError(MeshpulseError):
    """The caller asked for something we refuse; repeating the same request is refused again."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LimitError(RejectedError):
    """A configured limit was passed; the message names the offender, the limit and its config key."""


class UnavailableError(MeshpulseError):
    """We cannot do it now; the same request may succeed later."""

    reason: Reason = Reason.OVERLOADED
    retry_after_s: int = 1


class OverloadedError(UnavailableError):
    """A queue is full; nothing of the request was kept."""


class DiskFullError(UnavailableError):
    """Free space is below the reserve: writes stop before anything breaks."""

    reason = Reason.DISK_FULL
    retry_after_s = 10


class LogFailedError(UnavailableError):
    """The write-ahead log could not write or sync, so nothing was acknowledged."""

    reason = Reason.LOG_FAILED
    retry_after_s = 5


class ShardUnavailableError(UnavailableError):
    """A shard's writer has stopped."""


class CorruptionError(MeshpulseError):
    """Stored bytes do not check out."""

    def __init__(self, path: Path | str, offset: int, what: str) -> None:
        super().__init__(f"{path} at byte {offset}: {what}")
        self.path = path
        self.offset = offset
