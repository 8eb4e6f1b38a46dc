"""An IDC whose gateways and core are processes of their own: each is killed alone under load, and
its gateways are restarted under their clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from imctl import hotrestart
from imctl.testing.cast import Cast
from imctl.testing.lab import row_of_ports

pytestmark = pytest.mark.e2e

VICTIM, OTHERS = "fra", ("iad", "sin")
RATE = 30.0
BEFORE_S = 1.0
AFTER_S = 2.0  # of load on what has just come back


def patient(spec: dict[str, Any]) -> None:
    """Nobody is declared failed while a process starts again, and the victim has two gateways."""
    spec["safety"] = {"hold_ms": 60_000}
    host, _, port = spec["idcs"][0]["endpoints"]["gateway"].rpartition(":")
    spec["idcs"][0]["gateways"] = 2
    assert spec["idcs"][0]["name"] == VICTIM
    assert port
    spec["idcs"][0]["endpoints"]["gateway"] = f"{host}:{row_of_ports(spec, 2)}"


def changes(cast: Cast) -> list[str]:
    """Every connection that a client has made or lost so far."""
    cast.recorder.flush()
    lines = cast.path.read_text().splitlines()
    return [line for line in lines if '"connection"' in line]


def lost_one(line: str) -> bool:
    """A connection's end, with nothing in its place."""
    kind, *_, gateway = json.loads(line)
    return kind == "connection" and not gateway


async def test_each_process_of_an_idc_is_killed_alone_and_nothing_is_lost(stage, chat) -> None:
    async with stage(edit=patient, split=True) as (lab, cast):
        couples = await cast.couples(6, VICTIM, *OTHERS)
        assert {couple.here.idc for couple in couples} == {VICTIM}
        names = [row["gateway"] for row in (await lab.status(VICTIM))["gateways"]]
        assert len({name.partition(".")[0] for name in names}) == 2
        async with chat(couples, RATE):
            await asyncio.sleep(BEFORE_S)
            before = changes(cast)
            killed = await asyncio.to_thread(lab.target.kill_role, VICTIM, "im")
            assert killed == [VICTIM]
            await lab.start(VICTIM)
            await lab.wait_gateways(VICTIM, 2)
            await asyncio.sleep(AFTER_S)
            assert changes(cast) == before, "a connection did not survive the core's restart"

            killed = await asyncio.to_thread(lab.target.kill_role, VICTIM, "gateway")
            assert killed == [f"{VICTIM}.gateway-1", f"{VICTIM}.gateway-2"]
            await lab.start(VICTIM)
            await lab.wait_gateways(VICTIM, 2)
            await asyncio.sleep(AFTER_S)
            assert changes(cast) != before

            before = changes(cast)
            await hotrestart.restart(lab.target, VICTIM, [1, 2], lambda number, row: None)
            await asyncio.sleep(AFTER_S)
            lost = [line for line in changes(cast)[len(before) :] if lost_one(line)]
            assert lost == [], "a client was not moved before its gateway restarted"
        assert cast.refusals == []
        report = await cast.judge()
        assert report.clean, (report.sentence(), report.examples)
        await lab.converged()
        assert (await lab.status(VICTIM))["origin"] == f"{VICTIM}.1"
