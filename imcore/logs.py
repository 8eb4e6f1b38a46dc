"""Logs of the processes: a JSON object a line, which a person reads as text and a trace id finds.

Fields: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``; ``error``, with a stack trace,
where there is one; of a hop of a followed message ``trace_id``, ``span_id``, ``parent_id``,
``name``, ``ms`` and what else is known of it.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

FIELDS = "fields"  # `extra` of a log call: a dict that goes into the line


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        line |= getattr(record, FIELDS, {})
        return json.dumps(line, ensure_ascii=False)


def set_up() -> None:
    """For a process of a deployment: to its standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def parse(line: str) -> dict[str, Any] | None:
    """None: not a line of ``JsonLines``; engines, and Python itself, write what they like."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "message" in found else None


def as_text(line: str) -> str:
    """As a person reads it."""
    found = parse(line)
    if found is None:
        return line
    said = (found.get(key, "") for key in ("time", "level", "logger", "message"))
    text = " ".join(str(one) for one in said)
    return f"{text}\n{found['error']}" if "error" in found else text
