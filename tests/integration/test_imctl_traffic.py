"""Changes of traffic that `imctl` asks for, of a whole node in this process."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from imcore.runtime import SystemClock
from imctl.target.local import Local
from imctl.testing import schema
from imctl.testing.onenode import running
from imctl.traffic import Control
from services.control.rules import Change, Kind
from services.node.node import Node
from services.policy.document import IdcState

SOON_S = 30.0
LONG_S = 120.0  # one command may watch what several others do


class Result(NamedTuple):
    status: int
    document: Any
    errors: str


async def imctl(folder: Path, *arguments: object, json_too: bool = True) -> Result:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("imctl"),
        *map(str, arguments),
        *(("-o", "json") if json_too else ()),
        env={**os.environ, "IMCTL_DATA": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LONG_S):
        out, errors = await process.communicate()
    assert process.returncode is not None
    if json_too:
        schema.check_output((*arguments, "-o", "json"), out.decode())
    document = json.loads(out) if out and json_too else out.decode()
    return Result(process.returncode, document, errors.decode())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - the node's own loops
            await asyncio.sleep(0.02)


def state(node: Node) -> IdcState | None:
    policy = node.traffic.holder.policy
    return policy.state("fra") if policy else None


def operation(node: Node) -> tuple[str, str]:
    """That is under way as this node knows it, and its state."""
    status = node.traffic.policy_status()
    return status["operation"], status["operation_state"]


def audit(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


async def test_every_decision_asked_for_leaves_an_event_whoever_asks(tmp_path: Path) -> None:
    """The demo and the drills asked without the command's own preparation: theirs left none."""
    async with (
        running(tmp_path, faults=False),
        Control(Local.open(tmp_path), SystemClock(), random.Random(3)) as control,
    ):
        wish = Change(Kind.CORDON, "fra", "r1", "drill", overrides=("active-idcs-min",))
        done = await control.submit(wish)
        assert done.policy is not None, done.sentence
        refused = await control.submit(Change(Kind.CORDON, "fra", "r2", "drill"))
        assert refused.policy is None
    assert [(row["request_id"], row["decision"]) for row in audit(tmp_path)] == [
        ("r1", "committed"),
        ("r2", "refused"),
    ]


async def test_an_idc_is_retired_by_the_command_and_taken_in_again(tmp_path: Path) -> None:
    """There was no command for it, though the documents named it."""
    async with running(tmp_path, faults=False) as node:
        refused = await imctl(tmp_path, "retire", "fra", "--yes")
        assert refused.status == 3
        assert [blocker["rule"] for blocker in refused.document["blockers"]] == ["transition"]
        over = ("--override", "active-idcs-min")
        drained = await imctl(tmp_path, "drain", "fra", "--yes", "--no-wait", *over)
        assert drained.status == 0, drained
        await until(lambda: state(node) is IdcState.DRAINED)

        would = await imctl(tmp_path, "retire", "fra", "--dry-run")
        assert (would.status, would.document["decision"]) == (0, "would commit")
        late = await imctl(tmp_path, "retire", "fra", "--yes", "--expect-epoch", 1)
        assert late.status == 3
        assert state(node) is IdcState.DRAINED

        done = await imctl(tmp_path, "retire", "fra", "--yes")
        assert (done.status, done.document["decision"]) == (0, "committed")
        await until(lambda: state(node) is IdcState.RETIRED)
        assert audit(tmp_path)[-1]["sentence"].endswith("retire of fra by operator")

        asked = await imctl(tmp_path, "failback", "fra", "--dry-run", "--hashes")
        assert asked.status == 0, asked
        apart = asked.document["divergence"]
        assert (apart["origin"], apart["others"], apart["silent"]) == ("fra.1", [], [])
        assert apart["origins"]["fra.1"]["only_here"] > 0  # ticks, which nobody else holds
        assert not any(asked.document["state_hashes"]["equal"].values())  # equal to whom?
        told = await imctl(tmp_path, "failback", "fra", "--dry-run", json_too=False)
        assert "divergence of fra (fra.1) from none that answer" in told.errors

        back = await imctl(tmp_path, "failback", "fra", "--yes", "--no-wait")
        assert back.status == 0, back
        await until(lambda: state(node) is IdcState.RECOVERING)
        shown = (await imctl(tmp_path, "op", "show", back.document["operation"])).document
        assert shown["steps"][0]["evidence"]["divergence"]["origins"]["fra.1"]["only_here"] > 0
        seen = await imctl(tmp_path, "op", "show", back.document["operation"], json_too=False)
        assert "only here" in seen.document


async def test_an_operation_is_paused_resumed_aborted_and_watched_by_other_commands(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, faults=False) as node:
        none = await imctl(tmp_path, "op", "pause", "--yes")
        assert none.status == 1
        assert "no operation is under way" in none.errors
        over = ("--override", "active-idcs-min")
        drained = await imctl(tmp_path, "drain", "fra", "--yes", *over)
        assert drained.status == 0, drained
        assert "drain-fra-2 is done after" in drained.errors
        assert "drained of fra by controller fra" in drained.errors

        # Alone, it never finds its tail held elsewhere: the failback stays under way.
        asked = ("failback", "fra", "--yes", "--no-wait", "--rate", 7, "--max-lag", 900)
        loose = await imctl(tmp_path, "failback", "fra", "--max-lag", 5_001)
        assert loose.status == 2
        assert "--max-lag: expected at most 5000, got 5001" in loose.errors
        name = (await imctl(tmp_path, *asked, json_too=False)).document.strip()
        assert name == "failback-fra-4"  # alone on its line, for scripts
        begun = (await imctl(tmp_path, "op", "show", name)).document
        assert (begun["rate"], begun["max_lag_ms"]) == (7, 900)
        watching = asyncio.create_task(imctl(tmp_path, "op", "watch", name, json_too=False))
        would = await imctl(tmp_path, "op", "pause", "--dry-run")
        assert (would.status, would.document["decision"]) == (0, "would commit")
        assert (await imctl(tmp_path, "op", "pause", name, "--yes")).status == 0
        shown = (await imctl(tmp_path, "op", "show", name)).document
        assert shown["state"] == "paused by operator"
        again = await imctl(tmp_path, "op", "pause", name, "--yes")
        assert (again.status, again.document["decision"]) == (3, "refused")
        await until(lambda: operation(node) == (name, "paused by operator"))
        assert (await imctl(tmp_path, "op", "resume", name, "--yes")).status == 0
        aborted = await imctl(tmp_path, "op", "abort", "--yes")
        assert aborted.status == 0, aborted
        assert state(node) is IdcState.RECOVERING  # stopped where it was

        watched = await watching
        assert watched.status == 6
        for word in (f"pause of {name}", f"resume of {name}", f"abort of {name}", "was aborted"):
            assert word in watched.errors
        listed = (await imctl(tmp_path, "op", "list")).document
        assert [(each["id"], each["state"]) for each in listed] == [
            ("drain-fra-2", "done"),
            (name, "aborted"),
        ]
        missing = await imctl(tmp_path, "op", "abort", "drain-fra-99", "--yes")
        assert missing.status == 1
        assert "imctl op list" in missing.errors
        late = await imctl(tmp_path, "op", "abort", "drain-fra-2", "--yes")
        assert late.status == 3
        assert "no operation is under way" in late.errors


async def test_a_move_that_needs_approval_waits_for_it(tmp_path: Path) -> None:
    def edit(spec: dict[str, Any]) -> None:
        spec["safety"] = {"approval": ["drain"]}

    async with running(tmp_path, faults=False, edit=edit) as node:
        over = ("--override", "active-idcs-min")
        begun = await imctl(tmp_path, "drain", "fra", "--yes", "--no-wait", *over)
        assert begun.document["sentence"].endswith("waiting for approval")
        name = begun.document["operation"]
        await until(lambda: operation(node) == (name, "waiting for approval"))
        assert state(node) is IdcState.ACTIVE
        refused = await imctl(tmp_path, "op", "approve", name, "--yes")
        assert refused.status == 3  # an override holds for one request only
        assert state(node) is IdcState.ACTIVE
        approved = await imctl(tmp_path, "op", "approve", name, "--yes", *over)
        assert approved.status == 0, approved
        watched = await imctl(tmp_path, "op", "watch", name, json_too=False)
        assert watched.status == 0, watched
        await until(lambda: state(node) is IdcState.DRAINED)
        shown = (await imctl(tmp_path, "op", "show", name)).document
        assert [step["sentence"].split(": ")[1].split(" by ")[0] for step in shown["steps"]] == [
            "drain of fra",
            f"approve of {name}",
            "drained of fra",
        ]
