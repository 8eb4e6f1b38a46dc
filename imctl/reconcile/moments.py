"""Times of day as objects in a cluster have them: RFC 3339."""

from __future__ import annotations

from datetime import datetime


def passed_s(since: str, now: str) -> float:
    """Raises ValueError or TypeError for what is no time, or has no zone."""
    return (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()
