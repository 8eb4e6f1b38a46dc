"""An IDC whose log is a Kafka of three brokers that run already, under clients: each broker is
killed in turn, and one is paused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imctl.engines.binaries import Program
from imctl.testing.cast import Cast
from imctl.testing.kafka import Members, running_members
from imctl.testing.lab import Lab
from imctl.testing.onenode import one_idc

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

AWAY_S, STEADY_S = 8.0, 3.0


def on(members: Members) -> Callable[[dict[str, Any]], None]:
    settings = members.settings("im", deadline_s=5.0)

    def edit(spec: dict[str, Any]) -> None:
        one_idc(spec)
        kafka = {
            "brokers": list(settings.brokers),
            "ca_file": str(settings.ca_file),
            "cert_file": str(settings.cert_file),
            "key_file": str(settings.key_file),
        }
        spec["idcs"][0]["engines"] = {"log": {"kafka": kafka}}

    return edit


@asynccontextmanager
async def longest_stall(cast: Cast) -> AsyncIterator[list[float]]:
    """Of the block, in s: without an ack of anybody's message."""
    longest = [0.0]
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        acked, since = cast.recorder.counts.acked, loop.time()
        while True:
            await asyncio.sleep(0.02)
            longest[0] = max(longest[0], loop.time() - since)
            if cast.recorder.counts.acked != acked:
                acked, since = cast.recorder.counts.acked, loop.time()

    watching = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        watching.cancel()


async def test_each_broker_is_killed_and_one_paused_under_clients(
    kafka_program: Program,
    pki_dir: Path,
    tmp_path: Path,
    figures: Callable[[str, object], None],
) -> None:
    with running_members(kafka_program, tmp_path / "brokers", pki_dir) as members:
        async with Lab.up(tmp_path, on(members)) as lab, Cast(lab, tmp_path) as cast:
            (idc,) = lab.idcs
            couples = await cast.couples(6, idc, idc)
            async with cast.talking(couples):
                await asyncio.sleep(STEADY_S)
                for number, broker in enumerate(members.each, 1):
                    async with longest_stall(cast) as stall:
                        broker.kill()
                        await asyncio.sleep(AWAY_S)
                    await asyncio.to_thread(broker.start)
                    await asyncio.sleep(STEADY_S)
                    figures(f"longest time without an ack, broker {number} killed", stall[0])
                async with longest_stall(cast) as stall:
                    members[1].pause()
                    await asyncio.sleep(AWAY_S)
                members[1].resume()
                await asyncio.sleep(STEADY_S)
                figures("longest time without an ack, broker 1 paused", stall[0])
            report = await cast.judge()
            figures("missing, twice, out of order", report.sentence())
