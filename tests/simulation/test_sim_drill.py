"""Drills in simulated worlds: the same result for the same seed, a promise that does not hold is
found, and each action does to the world what it does to a deployment."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml

from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as pb
from imctl.drill import model
from imctl.drill.simulated import play
from services.sim.drill import SimMeans
from services.sim.region import Layout
from services.sim.run import simulated
from services.sim.world import World

ROOT = Path(__file__).parents[2]
SEED = 5

Row = tuple[str, dict[str, Any]]


def drill(folder: Path, method: list[Row], **ours: Any) -> Path:
    """Few people, and enough is little: a seed of it takes seconds."""

    def act(func: str, arguments: dict[str, Any]) -> dict[str, Any]:
        provider = {"type": "python", "module": model.ACTIONS, "func": func}
        return {"name": func, "type": "action", "provider": provider | {"arguments": arguments}}

    def probe(figure: str, most: float) -> dict[str, Any]:
        return {
            "name": figure, "type": "probe", "tolerance": {"type": "range", "range": [0, most]},
            "provider": {"type": "python", "module": model.PROBES, "func": figure},
        }  # fmt: skip

    settings = {
        "load": {"users": 6, "rate": 6, "group_rate": 1, "canary_every_s": 1},
        "enough": {"acked": 20, "canaries": 2},
    }
    document = {
        "title": "A short one",
        "description": "For tests.",
        "configuration": {"victim": "fra"},
        "extensions": [{"name": "imctl", **settings, **ours}],
        "controls": [{"name": "drill", "provider": {"type": "python", "module": model.CONTROL}}],
        "steady-state-hypothesis": {
            "title": "steady",
            "probes": [probe("longest_wait_s", 10), probe("epochs_disputed", 0)],
        },
        "method": [act(*row) for row in method],
        "rollbacks": [act("undo_faults", {})],
    }
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_same_seed_has_the_same_result_in_any_process(tmp_path: Path) -> None:
    path = drill(
        tmp_path,
        [
            ("hold", {"seconds": 1}),
            ("slow", {"a": "iad", "b": "sin", "delay_ms": 200, "jitter_ms": 50, "loss": 0.05}),
            ("partition", {"a": "${victim}", "b": "iad"}),
            ("hold", {"seconds": 3}),
            ("heal", {}),
            ("wait_canaries", {}),
            ("wait_steady", {"within_s": 40}),
        ],
    )

    def played(hash_seed: int) -> dict[str, Any]:
        command = ["drill", "simulate", path, "--from", SEED, "--seeds", 1, "--jobs", 1]
        done = subprocess.run(
            [sys.executable, "-m", "imctl", *map(str, command), "-o", "json"],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        [run] = json.loads(done.stdout)["runs"]
        return dict(run)

    first = played(1)
    assert first["outcome"] == "pass" and len(first["trace"]) == 32
    assert first == played(2)


def test_a_loss_is_measured_step_by_step_and_a_promise_that_does_not_hold_is_found(
    tmp_path: Path,
) -> None:
    path = drill(
        tmp_path,
        [
            ("kill_idc", {"idc": "${victim}"}),
            ("wait_state", {"idc": "${victim}", "state": "failed"}),
            ("wait_answered", {}),
            ("look_at_survivors", {"lost": "${victim}"}),
            ("start_idc", {"idc": "${victim}"}),
            ("failback", {"idc": "${victim}"}),
            ("wait_steady", {"within_s": 40}),
        ],
        promised={"rto_s": 0.01},
    )
    wanted = model.load_drill(path)
    found = play(SEED, wanted, wanted.variables)
    assert found.outcome == "deviated"
    assert found.reason.startswith("RTO of fra (99 % answered again): ")
    (loss,) = found.losses
    steps = loss.steps
    ordered = [steps["detected"], steps["decided"], steps["committed"], steps["steady"]]
    assert None not in ordered
    assert ordered == sorted(ordered, key=lambda value: value or 0)
    moved = [steps[step] for step in ("first moved", "50 % moved", "90 % moved", "99 % moved")]
    assert None not in moved
    assert moved == sorted(moved, key=lambda value: value or 0)
    assert found.looked_at > 0 and found.lost == 0


@pytest.mark.nightly
def test_an_action_that_fails_ends_the_method_and_what_it_left_is_undone(tmp_path: Path) -> None:
    path = drill(
        tmp_path,
        [
            ("partition", {"a": "fra", "b": "iad"}),
            ("wait_state", {"idc": "fra", "state": "failed", "within_s": 2}),
            ("kill_idc", {"idc": "fra"}),
        ],
    )
    found = play(SEED, wanted := model.load_drill(path), wanted.variables)
    assert found.outcome == "deviated"
    assert found.reason == "wait_state: fra was not declared failed within 2 s"
    assert found.losses == ()
    assert not any("restored" in finding for finding in found.findings), found.findings


@pytest.mark.nightly
def test_an_abort_condition_ends_it_at_once(tmp_path: Path) -> None:
    path = drill(
        tmp_path,
        # With one link cut, the third IDC's copies carry its messages within the 3 s.
        [("isolate", {"idc": "fra"}), ("hold", {"seconds": 60}), ("heal", {})],
        abort_above={"canary_delay_s": 3},
    )
    found = play(SEED, wanted := model.load_drill(path), wanted.variables)
    assert found.outcome == "deviated"
    assert found.reason.startswith("abort condition: canary_delay_s is ")
    assert found.simulated_s < 50


# ------------------------------------------------------------------------------------- means


def in_world(script: Callable[[World, SimMeans], Coroutine[Any, Any, None]]) -> None:
    with simulated(SEED, Layout()) as world:
        world.loop.run_until_complete(script(world, SimMeans(world)))


def test_a_link_is_cut_one_way_slowed_and_as_the_region_has_it_again() -> None:
    async def script(world: World, means: SimMeans) -> None:
        there, back = world.net.link("fra", "iad"), world.net.link("iad", "fra")
        usual = there.delay_s, there.jitter_s
        await means.link(pb.LinkFault(from_idc="fra", to_idc="iad", mode="drop"))
        assert (there.cut, back.cut) == (True, False)
        slow = pb.LinkFault(
            from_idc="fra", to_idc="iad", mode="pass", delay_ms=400, jitter_ms=100, loss=0.05,
            both_ways=True,
        )  # fmt: skip
        await means.link(slow)
        for link in (there, back):
            assert (link.delay_s, link.jitter_s, link.loss, link.cut) == (0.3, 0.2, 0.05, False)
        await means.link(pb.LinkFault(from_idc="fra", to_idc="iad", mode="pass", both_ways=True))
        assert (there.delay_s, there.jitter_s, there.loss) == (*usual, 0.0)

    in_world(script)


def test_lost_packets_come_later() -> None:
    async def script(world: World, means: SimMeans) -> None:
        link = world.net.link("fra", "iad")
        link.jitter_s = 0.0
        assert world.net.arrival(link, 100) == pytest.approx(link.delay_s)
        link.loss = 0.4
        late = [world.net.arrival(link, 100) / link.delay_s for _ in range(500)]
        assert {round(each) for each in late} >= {1, 3, 5}
        assert sum(each > 1.5 for each in late) / len(late) == pytest.approx(0.4, abs=0.08)

    in_world(script)


def test_a_process_is_killed_wiped_stopped_and_started_with_a_right_clock() -> None:
    async def script(world: World, means: SimMeans) -> None:
        assert means.state("sin") == "gone"
        with pytest.raises(Unavailable, match="does not run"):
            await means.pause("sin")
        await means.start("sin")
        await means.pause("sin")
        assert means.state("sin") == "paused"
        await means.resume("sin")
        assert means.state("sin") == "running"
        with pytest.raises(Unavailable, match="only what was killed can be wiped"):
            await means.wipe("sin")
        await means.clock("sin", 20_000)
        await means.disk("sin", True, 40)
        await asyncio.sleep(0.5)
        machine = world.machines["sin"]
        assert machine.clock.wall_ms() - world.clock.wall_ms() == 20_000
        await means.kill("sin")
        assert means.state("sin") == "gone" and machine.folder.exists()
        await means.wipe("sin")
        assert not machine.folder.exists()
        await means.start("sin")
        assert machine.clock.offset_ms == 0
        assert (machine.disk.faults.full, machine.disk.faults.fsync_delay_ms) == (False, 0)

    in_world(script)


@pytest.mark.nightly
@pytest.mark.parametrize("path", model.listed(ROOT / "regions" / "drills"), ids=lambda p: p.stem)
def test_every_ready_made_drill_passes(path: Path, figures: Callable[[str, object], None]) -> None:
    if path.stem == "mirror-stall":
        return  # tests/unit/test_drill_simulable.py: refused
    wanted = model.load_drill(path)
    for seed in (SEED, SEED + 1):
        found = play(seed, wanted, wanted.variables)
        figures(f"simulated {path.stem}, seed {seed}", found.outcome)
        assert found.outcome == "pass", found.findings
