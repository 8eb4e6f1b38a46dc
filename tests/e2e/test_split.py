"""An IDC whose gateways, ipconfs and core are processes of their own: each is killed alone under
load, a second core takes over, and gateways and ipconfs are restarted under their clients."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from imcore.region.rules import ipconf_addresses
from imctl import hotrestart, startup
from imctl.errors import Failed
from imctl.identity import token_for
from imctl.testing.cast import Cast
from imctl.testing.lab import Lab, row_of_ports, until
from imctl.testing.onenode import one_idc
from services.sdk import Client, IpconfClient
from services.sdk.ipconf import Lookup, NoAnswer

pytestmark = pytest.mark.e2e

VICTIM, OTHERS = "fra", ("iad", "sin")
RATE = 30.0
BEFORE_S = 1.0
AFTER_S = 2.0  # of load on what has just come back


def patient(spec: dict[str, Any]) -> None:
    """Nobody is declared failed while a process starts again, and the victim has two gateways."""
    spec["safety"] = {"hold_ms": 60_000}
    # Nor is a connection given up because the machine was busy with something else.
    spec["client"] = {"heartbeat_timeout_ms": 20_000}
    host, _, port = spec["idcs"][0]["endpoints"]["gateway"].rpartition(":")
    spec["idcs"][0]["gateways"] = 2
    assert spec["idcs"][0]["name"] == VICTIM
    assert port
    spec["idcs"][0]["endpoints"]["gateway"] = f"{host}:{row_of_ports(spec, 2)}"


def with_ipconfs(spec: dict[str, Any]) -> None:
    patient(spec)
    spec["idcs"][0]["ipconfs"] = 2
    spec["idcs"][0]["endpoints"]["ipconf"] = f"127.0.0.1:{row_of_ports(spec, 2)}"


@asynccontextmanager
async def newcomer(lab: Lab, uid: str) -> AsyncIterator[Client]:
    """Who knows the victim's ipconfs and no others; it is in when the block begins."""
    addresses = ipconf_addresses(lab.target.region.idc(VICTIM))
    urls = [f"https://{address}" for address in addresses]
    ipconf = IpconfClient(urls, lab.target.pki / "ca.pem", random.Random(1))
    token = token_for(lab.target, uid, "phone", lab.clock)
    try:
        async with Client(token=token, ipconf=ipconf, rng=random.Random(2)) as client:
            yield client
    finally:
        await ipconf.close()


async def names(lab: Lab, number: int, idcs: set[str]) -> None:
    """Until this ipconf of the victim names these IDCs and no others."""

    async def holds() -> bool:
        return await answer_of(lab, number) == idcs

    await until(holds, 60, f"ipconf {number} of {VICTIM} does not name {idcs} alone")


async def answer_of(lab: Lab, number: int) -> set[str]:
    """Which IDCs this ipconf of the victim names; none when it does not answer."""
    address = ipconf_addresses(lab.target.region.idc(VICTIM))[number - 1]
    ipconf = IpconfClient([f"https://{address}"], lab.target.pki / "ca.pem", random.Random(1))
    try:
        found = await ipconf.lookup(Lookup(token_for(lab.target, "asks", "phone", lab.clock)))
    except NoAnswer:
        return set()
    finally:
        await ipconf.close()
    return {gateway.idc for gateway in found.gateways}


def alone(spec: dict[str, Any]) -> None:
    """No other IDC: its clients have nowhere else to go."""
    one_idc(spec)
    patient(spec)


async def gateways_by_route(lab: Lab) -> int:
    """How many gateways of the victim are linked by a route instance."""
    return sum(row["gateways"] for row in (await lab.status(VICTIM))["routes"])


def changes(cast: Cast) -> list[str]:
    """Every connection that a client has made or lost so far."""
    cast.recorder.flush()
    lines = cast.path.read_text().splitlines()
    return [line for line in lines if '"connection"' in line]


def lost_one(line: str) -> bool:
    """A connection's end, with nothing in its place."""
    kind, *_, gateway = json.loads(line)
    return kind == "connection" and not gateway


async def test_each_process_of_an_idc_is_killed_alone_and_nothing_is_lost(
    stage, chat, monkeypatch
) -> None:
    async with stage(edit=patient, split=True, routes=2) as (lab, cast):
        couples = await cast.couples(6, VICTIM, *OTHERS)
        assert {couple.here.idc for couple in couples} == {VICTIM}
        assert await gateways_by_route(lab) == 2
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
            assert await gateways_by_route(lab) == 2

            await asyncio.to_thread(lab.target.kill, f"{VICTIM}.route-1")
            await lab.wait_gateways(VICTIM, 2)
            await asyncio.sleep(AFTER_S)
            assert await gateways_by_route(lab) == 2, "the other route instance has not all of them"
            killed = await asyncio.to_thread(lab.target.kill_role, VICTIM, "route")
            assert killed == [f"{VICTIM}.route-1", f"{VICTIM}.route-2"]
            await lab.wait_gateways(VICTIM, 2)
            await asyncio.sleep(AFTER_S)
            assert await gateways_by_route(lab) == 0
            assert changes(cast) == before, "a connection did not survive the end of its route"

            killed = await asyncio.to_thread(lab.target.kill_role, VICTIM, "gateway")
            assert killed == [f"{VICTIM}.gateway-1", f"{VICTIM}.gateway-2"]
            await lab.start(VICTIM)
            await lab.wait_gateways(VICTIM, 2)
            await asyncio.sleep(AFTER_S)
            assert changes(cast) != before

            before, restarted = changes(cast), list[int]()
            await hotrestart.restart_routes(lab.target, VICTIM, restarted.append)
            assert restarted == [1, 2] and changes(cast) == before
            with monkeypatch.context() as newer:
                command = [sys.executable, "-m", "services.node", "--of-another-release"]
                newer.setattr(lab.target, "_command", lambda unit: command)
                with pytest.raises(Failed, match="could not start on what is installed, and goes"):
                    await asyncio.to_thread(lab.target.renew_route, VICTIM, 1)
            assert len((await lab.status(VICTIM))["routes"]) == 2
            await hotrestart.restart(lab.target, VICTIM, [1, 2], lambda number, row: None)
            await asyncio.sleep(AFTER_S)
            lost = [line for line in changes(cast)[len(before) :] if lost_one(line)]
            assert lost == [], "a client was not moved before its gateway restarted"
        assert cast.refusals == []
        await cast.judge()
        await lab.converged()
        assert (await lab.status(VICTIM))["origin"] == f"{VICTIM}.1"


async def test_clients_come_in_by_an_ipconf_whatever_else_of_its_idc_is_killed(stage, chat) -> None:
    async with stage(edit=with_ipconfs, split=True) as (lab, cast):
        states = {unit.name: unit.state for unit in lab.target.units()}
        ipconfs = [f"{VICTIM}.ipconf-1", f"{VICTIM}.ipconf-2"]
        assert {states[name] for name in ipconfs} == {"running"}
        assert [row["instance"] for row in (await lab.status(VICTIM))["ipconfs"]] == [1, 2]
        couples = await cast.couples(6, VICTIM, *OTHERS)
        async with chat(couples, RATE):
            await asyncio.sleep(BEFORE_S)
            before = changes(cast)
            await asyncio.to_thread(lab.target.kill, ipconfs[0])
            assert await answer_of(lab, 1) == set()
            async with newcomer(lab, "first") as client:
                await client.send("d:ann:first", b"by the other ipconf")

            killed = await asyncio.to_thread(lab.target.kill_role, VICTIM, "im")
            assert killed == [VICTIM]
            await names(lab, 2, set(OTHERS))  # once the leases of its gateways are over
            async with newcomer(lab, "second") as client:
                await client.send("d:ann:second", b"while the core is down")
            # Started without its core it answers too: by the registries of the other IDCs.
            await asyncio.to_thread(lab.target.start, [ipconfs[0]])
            await names(lab, 1, set(OTHERS))
            await lab.start(VICTIM)
            await lab.wait_gateways(VICTIM, 2)
            await asyncio.sleep(AFTER_S)

            killed = await asyncio.to_thread(lab.target.kill_role, VICTIM, "ipconf")
            assert killed == ipconfs
            await lab.start(VICTIM)
            await hotrestart.restart_ipconfs(lab.target, VICTIM, lambda number: None)
            for number in (1, 2):
                await names(lab, number, {VICTIM, *OTHERS})
            assert changes(cast) == before, "a connection did not survive"
        assert cast.refusals == []
        await cast.judge()
        await lab.converged()


async def until_stands_by(lab: Lab) -> None:
    """Until the second core of the victim has nothing to do but to take over."""

    async def holds() -> bool:
        return lab.target.stands_by(VICTIM)

    await until(holds, 60, f"no core of {VICTIM} stands by")


async def test_a_core_that_stands_by_takes_over_and_nothing_is_lost(stage, chat) -> None:
    """From one that is killed, and from one that is restarted."""
    async with stage(edit=alone, split=True, standby=True) as (lab, cast):
        couples = await cast.couples(6, VICTIM, VICTIM)
        async with chat(couples, RATE):
            await asyncio.sleep(BEFORE_S)
            before = changes(cast)
            for _ in range(2):  # the second time by the one that is there for the first
                await until_stands_by(lab)
                served = (await lab.status(VICTIM))["pid"]
                assert await asyncio.to_thread(lab.target.kill_role, VICTIM, "im") == [VICTIM]
                await startup.wait_serving(lab.target, [VICTIM], lambda name, serving: None)
                serves = await lab.status(VICTIM)
                units = {unit.name: unit for unit in lab.target.units()}
                assert units[VICTIM].pid == serves["pid"] != served
                assert units[f"{VICTIM}.standby"].state == "gone"
                await lab.start(VICTIM)
                await asyncio.sleep(AFTER_S)
            served = lab.target.units()
            await hotrestart.restart_core(lab.target, VICTIM)
            await until_stands_by(lab)
            pids = {unit.name: unit.pid for unit in lab.target.units()}
            assert (await lab.status(VICTIM))["pid"] == pids[VICTIM]
            cores = {VICTIM, f"{VICTIM}.standby"}
            assert not {pids[name] for name in cores} & {one.pid for one in served}
            await asyncio.sleep(AFTER_S)
            assert changes(cast) == before, "a connection did not survive the change of cores"
        assert cast.refusals == []
        await cast.judge()
        await lab.converged()
        assert (await lab.status(VICTIM))["origin"] == f"{VICTIM}.1"
