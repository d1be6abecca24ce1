"""Structured logs: one JSON object a line on standard output, never with a text unless the user asks."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType

import structlog

from serving.settings import LogLevel


def configure(level: LogLevel) -> None:
    """Sets up this process's log lines at the least severe level that is written."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # Ray Serve turns sys.stdout and print of its replicas to a log file of its own.
        logger_factory=structlog.WriteLoggerFactory(sys.__stdout__),
        cache_logger_on_first_use=False,
    )


def places(trace: TracebackType | None) -> list[str]:
    """Where an exception was raised, outermost first, without its message, which may hold a user's text."""
    return [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in traceback.extract_tb(trace)]
