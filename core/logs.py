"""Structured logs: one JSON object a line on standard error, secrets redacted, correlation id where there is one."""

import logging
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from core.settings import Settings, unknown_variables

_SECRET_NAME = re.compile(r"key|secret|token|password|authorization|cookie", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s]*@")  # to the last @: an unescaped one may be part of the password


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blank values whose name sounds secret, and user:password@ in any URL."""
    for name, value in event.items():
        if _SECRET_NAME.search(name):
            event[name] = "[redacted]"
        elif isinstance(value, str) and "://" in value:
            event[name] = _URL_PASSWORD.sub("[redacted]@", value)
    return event


def configure(service: str, settings: Settings) -> None:
    """Set logging up for this process and say which settings it runs with."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    renderer: Any = (
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)  # what libraries log goes the same way
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=shared
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    structlog.contextvars.bind_contextvars(service=service)
    log = structlog.get_logger()
    log.info("starting", settings=settings.public())
    for name in unknown_variables():
        log.warning("unknown setting ignored", variable=name)


def get() -> structlog.typing.FilteringBoundLogger:
    """The logger; bind context at the call, not in module state."""
    return structlog.get_logger()  # type: ignore[no-any-return]
