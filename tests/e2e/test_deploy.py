"""A changed region file under load, by an imctl that is killed twice on the way."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imctl.rollout import store
from imctl.rollout.record import Kind, Rollout, State
from imctl.target.places import free_ports
from imctl.testing import schema
from imctl.testing.lab import Lab, until

pytestmark = pytest.mark.e2e

RATE = 60.0
CHANGED = ("fra", "sin")


def with_other_gateways(region: Path) -> tuple[Path, dict[str, int]]:
    """The same file with other gateway ports for two of the IDCs."""
    document = yaml.safe_load(region.read_text())
    ports = dict(zip(CHANGED, free_ports(len(CHANGED)), strict=True))
    for idc in document["spec"]["idcs"]:
        if idc["name"] in ports:
            idc["endpoints"]["gateway"] = f"127.0.0.1:{ports[idc['name']]}"
    wanted = region.with_name("wanted.yaml")
    wanted.write_text(yaml.safe_dump(document, sort_keys=False))
    return wanted, ports


async def deploy_killed(lab: Lab, wanted: Path, when: Callable[[Rollout], bool]) -> Rollout:
    """Returns the record as the killed one left it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imctl", "deploy", str(wanted), "--yes", "--soak", "1",
        "--canary", "fra", "--max-ack", "30000", "--data", str(lab.target.data),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip

    async def come() -> bool:
        assert process.returncode is None, "it ended before it could be killed"
        found = store.read(lab.target.data)
        return found is not None and when(found)

    await until(come, 120, "the rollout does not get so far", 0.02)
    process.kill()
    await process.wait()
    found = store.read(lab.target.data)
    assert found is not None and found.state is State.RUNNING
    return found


async def deploy_killed_at_each_step(lab: Lab, wanted: Path) -> tuple[Rollout, int]:
    """Each imctl lives until it has written one more step. Returns how it ended, after how many
    of them."""
    kills, rows = 0, 0
    while True:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "imctl", "deploy", str(wanted), "--yes", "--soak", "1",
            "--data", str(lab.target.data),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        ended = asyncio.ensure_future(process.wait())
        while not ended.done():
            found = store.read(lab.target.data)
            if found is not None and len(found.rows) > rows and not found.ended:
                process.kill()
                await ended
                kills += 1
            await asyncio.sleep(0.02)
        found = store.read(lab.target.data)
        assert found is not None
        rows = len(found.rows)
        if found.state is not State.RUNNING:
            assert process.returncode == 0
            return found, kills


def said(unit: str, words: str) -> Callable[[Rollout], bool]:
    return lambda found: any(row.unit == unit and words in row.sentence for row in found.rows)


async def document(lab: Lab, *arguments: str) -> tuple[int, Any]:
    status, out = await lab.imctl(*arguments, "-o", "json")
    schema.check_output((*arguments, "json"), out)
    return status, json.loads(out)


async def test_a_deploy_killed_twice_is_finished_and_no_client_notices(
    stage, chat, tmp_path: Path, figures
) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(6, "fra", "iad", "sin")
        wanted, ports = with_other_gateways(tmp_path / "region.yaml")

        async def alone_at_fra() -> bool:
            """Of whoever was taken there first and then handed over a session may be left."""
            return bool((await lab.status("fra"))["sessions"] == len(couples))

        await until(alone_at_fra, 60, "fra has other sessions than those of its clients")
        async with chat(couples, RATE):
            status, plan = await document(lab, "plan", str(wanted), "--canary", "fra")
            assert (status, plan["order"]) == (2, ["fra", "sin"])
            assert {row["takes"] for row in plan["changes"]} == {"restart"}
            assert plan["restarts"][0]["sessions"] == 6
            status, refused = await lab.imctl("destroy", "--yes-name", "three-idc")
            assert (status, "clients are connected" in refused) == (3, True)

            # Once while the clients leave fra, once while sin, restarted, is not back yet.
            first = await deploy_killed(lab, wanted, said("fra", "handed over"))
            assert (first.done, first.found) == ((), {"fra": "active"})
            second = await deploy_killed(lab, wanted, said("sin", "restarted"))
            assert (second.done, second.restarting) == (("fra",), "sin")
            status, out = await lab.imctl("deploy", str(wanted), "--yes")
            assert status == 0, out
            assert f"continuing {first.id}" in out

            done = store.read(lab.target.data)
            assert done is not None
            assert (done.id, done.state, done.done) == (first.id, State.DONE, CHANGED)
            status, plan = await document(lab, "plan", str(wanted))
            assert (status, plan["changes"]) == (0, [])

            async def home() -> bool:
                return all(couple.here.idc == "fra" for couple in couples)

            await until(home, 60, "the clients do not come back to fra")
        assert cast.refusals == []
        for idc, port in ports.items():
            found = await lab.status(idc)
            assert [row["port"] for row in found["gateways"]] == [port]
            assert found["origin"] == f"{idc}.1"
        await cast.judge()
        figures("messages acked during the deploy", len(cast.acked))
        figures("seconds of the deploy", (done.ended_ms - done.started_ms) / 1000)


# The 30 s that a gate is given beyond the soak would be most of the test.
IMPATIENT = """
from imctl.main import main
from imctl.rollout import driver
driver.SOAK_MORE_S = 3.0
main()
"""


async def deploy_while_acks_are_late(lab: Lab, file: Path, unit: str, late: str) -> tuple[int, str]:
    """The disk of ``late`` becomes slow when ``unit`` is restarted."""
    last = store.read(lab.target.data)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", IMPATIENT, "deploy", str(file), "--yes", "--soak", "1",
        "--max-ack", "1000", "--max-lag", "60000", "--data", str(lab.target.data),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    ended = asyncio.ensure_future(process.communicate())

    async def restarted() -> bool:
        found = store.read(lab.target.data)
        if found is None or (last is not None and found.id == last.id):
            return ended.done()
        return ended.done() or said(unit, "restarted")(found)

    await until(restarted, 120, "the rollout does not get so far", 0.02)
    await lab.disk_slow(late, 1_500)
    out, _ = await ended
    await lab.disk_slow(late, 0)
    return process.returncode or 0, out.decode()


async def test_an_idc_gets_a_second_gateway_and_a_deploy_with_late_acks_is_undone(
    stage, chat, tmp_path: Path
) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(2, "fra", "iad", "sin")
        words = ("scale", "iad", "gateway=2")
        status, plan = await document(lab, *words, "--dry-run")
        assert (status, plan["order"], plan["silent"]) == (2, ["iad"], [])
        status, out = await lab.imctl(*words, "--yes", "--soak", "1", "--max-ack", "30000")
        assert status == 0, out
        lab.target.look_again()
        assert len((await lab.status("iad"))["gateways"]) == 2
        assert lab.target.region.idc("iad").gateways == 2
        status, out = await lab.imctl(*words, "--yes")
        assert (status, "no difference" in out) == (0, True)
        status, plan = await document(lab, "plan", str(tmp_path / "region.yaml"))
        assert [change["field"] for change in plan["changes"]] == ["spec.idcs[iad].gateways"]

        # A drained IDC is restarted at once, and stays drained.
        status, out = await lab.imctl("drain", "sin", "--yes")
        assert status == 0, out
        before, wanted = lab.target.own_region(), tmp_path / "wanted.yaml"
        spec = yaml.safe_load((lab.target.data / "region.yaml").read_text())
        (port,) = free_ports(1)
        spec["spec"]["idcs"][2]["endpoints"]["gateway"] = f"127.0.0.1:{port}"
        wanted.write_text(yaml.safe_dump(spec, sort_keys=False))
        async with chat(couples, RATE):
            status, out = await deploy_while_acks_are_late(lab, wanted, "sin", late="fra")
            assert status == 3, out
            paused = store.read(lab.target.data)
            assert paused is not None
            assert (paused.state, paused.gate, paused.done) == (State.PAUSED, True, ())
            # That gate fails, and no other.
            why = paused.why.removeprefix("sin: ").split("; ")
            assert "acks: fra" in paused.why and all(each.startswith("acks: ") for each in why)
            assert [row["port"] for row in (await lab.status("sin"))["gateways"]] == [port]
            status, out = await lab.imctl("rollout", "undo", "--yes")
            assert status == 0, out
        undone = store.read(lab.target.data)
        assert undone is not None
        assert (undone.kind, undone.state, undone.done) == (Kind.UNDO, State.DONE, ("sin",))
        lab.target.look_again()
        assert lab.target.own_region() == before == lab.target.region_of("sin")
        assert [row["port"] for row in (await lab.status("sin"))["gateways"]] != [port]

        async def drained() -> bool:
            return await lab.policy_state("sin") in ("drained", "recovering")

        # On a busy machine a restart takes longer than the hold time: it is failed for a while, and
        # then it says that it is back.
        await until(drained, 60, "sin is not drained any more")


@pytest.mark.nightly
async def test_a_deploy_killed_at_each_step_is_finished_and_no_client_notices(
    stage, chat, tmp_path: Path, figures
) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(6, "fra", "iad", "sin")
        document = yaml.safe_load((tmp_path / "region.yaml").read_text())
        document["spec"]["client"] = {"grace_ms": 9_000}
        wanted = tmp_path / "wanted.yaml"
        wanted.write_text(yaml.safe_dump(document, sort_keys=False))
        async with chat(couples, RATE):
            done, kills = await deploy_killed_at_each_step(lab, wanted)
        assert (done.state, set(done.done)) == (State.DONE, set(lab.idcs)), done.why
        assert kills >= 4 * len(lab.idcs)
        assert cast.refusals == []
        lab.target.look_again()
        assert {(await lab.status(idc))["origin"] for idc in lab.idcs} == {
            f"{idc}.1" for idc in lab.idcs
        }
        assert {await lab.policy_state(idc) for idc in lab.idcs} == {"active"}
        await cast.judge()
        figures("imctl killed", f"{kills} times in one deploy")
