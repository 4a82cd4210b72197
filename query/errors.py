"""What can go wrong with a query, by the ``errorType`` of the HTTP API.

::

    QueryError(error_type, message)
    ├── BadDataError          the expression or its parameters are wrong
    │   └── UnsupportedError  valid PromQL that this engine does not speak (names the construct and its place)
    ├── ExecutionError        evaluation failed: duplicate series in a match group, a limit, an invalid regex
    └── QueryTimeoutError     the query ran, or waited for its turn, longer than it may
"""

from __future__ import annotations

from enum import StrEnum

from query.promql.ast import Span, line_col


class ErrorType(StrEnum):
    """``errorType`` of the HTTP API; the HTTP layer maps each to its status."""

    BAD_DATA = "bad_data"
    EXECUTION = "execution"
    TIMEOUT = "timeout"
    CANCELED = "canceled"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"


class QueryError(Exception):
    """A query that has no answer; ``str()`` is the ``error`` text of the API."""

    def __init__(self, error_type: ErrorType, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class BadDataError(QueryError):
    """The caller's expression or parameters are wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorType.BAD_DATA, message)


class UnsupportedError(BadDataError):
    """Valid PromQL that we do not evaluate: refused by name rather than answered wrongly."""

    def __init__(self, construct: str, text: str, span: Span) -> None:
        line, col = line_col(text, span.start)
        super().__init__(f"{line}:{col}: unsupported: {construct}")
        self.construct = construct


class ExecutionError(QueryError):
    """Evaluation of a valid expression failed."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorType.EXECUTION, message)


class QueryTimeoutError(QueryError):
    """The query ran longer than its timeout."""

    def __init__(self, where: str = "query execution") -> None:
        super().__init__(ErrorType.TIMEOUT, f"query timed out in {where}")
