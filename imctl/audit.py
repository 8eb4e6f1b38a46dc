"""The audit file of a deployment: what `imctl` decided and what it broke on purpose.

Refusals too. JSON lines. The controllers' decisions stand in their nodes' logs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGER = "im.audit"
FILE = "audit.jsonl"  # beside run.json


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Events of this block go where those of all earlier commands are."""
    logger = logging.getLogger(LOGGER)
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.close()


def fault(path: Path, at_ms: int, unit: str, outcome: str, sentence: str) -> None:
    """``outcome``: "done", "refused", "not done" (no answer), "unknown"."""
    row = {"at_ms": at_ms, "fault": unit, "outcome": outcome, "sentence": sentence}
    with kept(path):
        logging.getLogger(LOGGER).info("%s", json.dumps(row, ensure_ascii=False))
