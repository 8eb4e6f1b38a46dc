"""When an operator must look after a MirrorMaker 2. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SILENT_S = 30.0  # it says something every 3 s, and takes 10 to 20 to come back


def silent(idc: str, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """``figures``: of services.engines.kafka.mirror_lag. A flow that was never heard of says
    nothing (Strimzi makes no heartbeats), nor one that cannot be looked at: that is told by what
    reads the log."""
    return [
        f"the MirrorMaker 2 of {idc} has given no sign of life of its flow from {source} for "
        f"{flow['worker_age_s']:.0f} s: see its log, and restart it"
        for source, flow in figures.items()
        if not flow["problem"] and (flow["worker_age_s"] or 0.0) > SILENT_S
    ]
