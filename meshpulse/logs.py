"""What the program says on standard error: one line an event, readable or JSON."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.types import EventDict, Processor


def _utc(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Move the time to the front, so that lines read in the order one looks for things."""
    return {"timestamp": event.pop("timestamp"), "level": event.pop("level"), "event": event.pop("event"), **event}


Level = Literal["debug", "info", "warning", "error"]


def configure_logs(level: Level, style: Literal["text", "json"]) -> None:
    """Send the records of structlog and of :mod:`logging` (uvicorn, aiohttp) to standard error in one style."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _utc,
    ]
    render: Processor
    if style == "json":
        shared.append(structlog.processors.format_exc_info)
        render = structlog.processors.JSONRenderer()
    else:
        render = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),  # the level may change under way
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)


def set_level(level: Level) -> None:
    """Say less or more from now on."""
    number = getattr(logging, level.upper())
    logging.getLogger().setLevel(number)
    logging.getLogger("uvicorn").setLevel(max(number, logging.WARNING))  # our own events say the same better
