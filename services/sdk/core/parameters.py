"""What ipconf tells the SDK about connecting; the same fields as the region file's ``client``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Parameters:
    heartbeat_ms: int = 5_000
    heartbeat_timeout_ms: int = 2_000
    connect_timeout_ms: int = 1_500
    timeout_max_ms: int = 0  # up to which a client may wait longer by itself; 0: as it is told
    backoff_base_ms: int = 100
    backoff_max_ms: int = 5_000
    fast_retries: int = 2
    idle_pull_ms: int = 15_000
    grace_ms: int = 10_000
    background_heartbeat_max_ms: int = 0  # of an ipconf that does not say: as in the foreground
    transports: tuple[str, ...] = ()  # in the order of preference; unknown ones are passed over

    @staticmethod
    def of(answer: Mapping[str, object]) -> Parameters:
        """Fields that an ipconf answer has; what is missing or no positive number is default."""
        known: dict[str, Any] = {}
        for field in fields(Parameters):
            value = answer.get(field.name)
            if (
                field.type == "int"
                and isinstance(value, int)
                and not isinstance(value, bool)
                and value >= 0
            ):
                known[field.name] = value
        transports = answer.get("transports")
        known["transports"] = (
            tuple(map(str, transports)) if isinstance(transports, list | tuple) else ()
        )
        return Parameters(**known)

    def with_heartbeat(self, heartbeat_ms: int) -> Parameters:
        """As the session was told when it connected; 0: no change."""
        return replace(self, heartbeat_ms=heartbeat_ms) if heartbeat_ms else self
