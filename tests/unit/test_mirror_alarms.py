"""A MirrorMaker that was heard of and is not any more is an alarm."""

from __future__ import annotations

from typing import Any

from services.node.mirror_alarms import silent


def flow(age_s: float | None, problem: str = "") -> dict[str, Any]:
    return {"behind": 1, "worker_age_s": age_s, "problem": problem}


def test_only_a_flow_that_has_fallen_silent_is_named() -> None:
    found = {
        "iad": flow(31.2),
        "sin": flow(29.0),
        "lhr": flow(None),  # never heard of
        "nrt": flow(90.0, "nrt's Kafka does not answer"),
    }
    (said,) = silent("fra", found)
    assert said.startswith(
        "the MirrorMaker 2 of fra has given no sign of life of its flow from iad"
    )
    assert "for 31 s" in said
