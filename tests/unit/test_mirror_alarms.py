"""A MirrorMaker that was heard of and is not any more is an alarm."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from imcore.runtime import SystemClock
from services.mirror.follow import Follower
from services.mirror.progress import Progress
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


class Silent(Follower):
    """Of a source that says nothing."""

    async def _sources(self) -> list[str]:
        return ["sin"]

    async def _follow_from(self, via: str) -> None:
        raise TimeoutError


async def test_a_source_that_falls_silent_is_called_silent() -> None:
    follower = Silent(
        "fra", "iad", 1, cast(Any, None), {}, Progress(lambda *told: None, 1),
        lambda origin: {}, lambda origin, partition: None, SystemClock(),
    )  # fmt: skip
    running = asyncio.create_task(follower.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert follower.alarm == "following fra via sin stopped: sin says nothing"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
