"""TrafficOperations: each is asked for once, whatever dies in between, and says what became of it.

After a change that is meant: `REWRITE_GOLDEN=1 pytest tests/unit/test_operator_runs.py`, and read
the difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from imcore.errors import BadInput, OutcomeUnknown, Unavailable
from imcore.region.model import Region
from imctl.api.operation import TrafficOperationSpec
from imctl.reconcile.cluster import MANAGER, Conflict
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.peers import Mover, Peers
from imctl.reconcile.reconciler import PEER_WORKERS, Key, Reconciler
from imctl.reconcile.runs import FOLLOW_S, WAIT_S
from imctl.reconcile.traffic import change_of, object_of
from imctl.testing import golden
from imctl.traffic import Judged
from services.control.evaluate import Decision
from services.control.evidence import Evidence
from services.control.operations import Operation, Step
from services.control.rules import Blocker, Change
from services.policy.document import (
    HISTORY_MAX,
    REQUESTS_MAX,
    OperationState,
    Outcome,
    Policy,
    initial,
)
from tests.unit.test_operator_objects import FIGURES, region
from tests.unit.test_operator_reconciler import NOW, Memory, until

GOLDEN = Path(__file__).parent / "operator_golden"
KEY = Key("TrafficOperation", "im-fra", "move", asks=True)
SPEC = {"region": "two-idc", "move": "drain", "idc": "fra", "certificate": "imctl-operator"}


class World(Peers):
    """A region in memory, which remembers requests as the policy does."""

    def __init__(self) -> None:
        self.now = initial(region(), 0)
        self.found: dict[str, Operation] = {}
        self.begun: list[Change] = []
        self.blockers: tuple[Blocker, ...] = ()
        self.trouble: dict[str, Exception] = {}  # by call
        self.hang = False
        self.permitted = True
        self.said: dict[str, Any] = {}  # as the process's status

    @asynccontextmanager
    async def steering(
        self, namespace: str, region: Region, secret: Object
    ) -> AsyncIterator[Mover]:
        if self.hang:
            await asyncio.Event().wait()
        self._check("steering")
        yield self

    def _check(self, call: str) -> None:
        if call in self.trouble:
            raise self.trouble[call]

    async def policy(self) -> Policy:
        self._check("policy")
        return self.now

    async def operation(self, name: str) -> Operation | None:
        self._check("operation")
        return self.found.get(name)

    async def status(self, region: Region, secret: Object, idc: str) -> dict[str, Any]:
        self._check("status")
        return self.said

    def permits(self, change: Change) -> bool:
        return self.permitted

    async def judge(self, change: Change) -> Judged:
        refused = Decision(None, "", self.blockers)
        taken = Decision(self.now, "")
        return Judged(self.now, Evidence(), refused if self.blockers else taken)

    async def submit(self, change: Change) -> Decision:
        self._check("submit")
        known = self.now.outcome(change.request_id)
        if known is not None:
            return Decision(self.now, known.sentence, operation=known.operation, repeated=True)
        if self.blockers:
            said = "; ".join(f"{each.rule}: {each.sentence}" for each in self.blockers)
            return Decision(None, f"{change.kind} is refused: {said}", self.blockers)
        self.begun.append(change)
        name = f"{change.kind}-{change.idc}-{self.now.epoch + 1}"
        sentence = f"{change.kind} of {change.idc} by {change.by}"
        self.commit(change.request_id, name, sentence)
        self.step(name, 1000, sentence, change)
        self._check("answer")
        return Decision(self.now, sentence, operation=name)

    def commit(self, request_id: str, name: str = "", sentence: str = "") -> None:
        epoch = self.now.epoch + 1
        requests = (*self.now.requests, Outcome(request_id, epoch, name, sentence))
        history = (*self.now.history, name)[-HISTORY_MAX:]
        self.now = replace(
            self.now, epoch=epoch, requests=requests[-REQUESTS_MAX:], history=history
        )

    def step(
        self,
        name: str,
        at_ms: int,
        sentence: str,
        change: Change,
        state: OperationState = OperationState.RUNNING,
    ) -> None:
        fra = {"age_ms": 40, "serving": True, "sessions": 7, "closed": 0, "stuck": {},
               "lag_ms": {"dub.1": 12}}  # fmt: skip
        step = Step(at_ms, self.now.epoch, sentence, {"idcs": {"fra": fra}}, change.kind)
        old = self.found.get(name)
        began = old or Operation(
            name, change.kind, change.idc, "", change.by, change.request_id, state, at_ms
        )
        ended = 0 if state is OperationState.RUNNING else at_ms
        self.found[name] = replace(began, state=state, steps=(*began.steps, step), ended_ms=ended)

    def end(self) -> None:
        (name,) = self.found
        self.commit(f"{name}/drained")
        done = Change("drained", "fra", "x", "controller fra")
        self.step(name, 4500, "fra is drained", done, OperationState.DONE)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.put("TrafficOperation", "move", spec=dict(SPEC))
    spec = region().spec.model_dump(mode="json", exclude_defaults=True)
    found.put("Region", "two-idc", spec=spec)
    found.put("Secret", "imctl-operator", data={})
    return found


@pytest.fixture
def reconciler(memory: Memory, world: World) -> Reconciler:
    return again(memory, world)


def again(memory: Memory, world: World) -> Reconciler:
    """An operator that knows nothing but what stands in the cluster and the region."""
    return Reconciler(memory, FIGURES, lambda: NOW, world)


def status(memory: Memory) -> Object:
    return memory.status("TrafficOperation", "move")


async def test_it_is_asked_for_once_and_followed_to_its_end(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    assert await reconciler.reconcile(KEY) == FOLLOW_S
    assert status(memory)["phase"] == "Running"
    assert status(memory)["operation"] == "drain-fra-2"
    assert await reconciler.reconcile(KEY) == FOLLOW_S
    world.end()
    assert await reconciler.reconcile(KEY) is None
    assert await reconciler.reconcile(KEY) is None
    assert len(world.begun) == 1
    assert status(memory)["outcome"] == "drain-fra-2 is done after 3.5 s"
    assert [each["reason"] for each in memory.events] == ["Step", "Step", "Done"]
    text = yaml.safe_dump(status(memory), sort_keys=False, width=100)
    golden.check(text, GOLDEN / "traffic-operation-status.yaml")


async def test_looked_at_again_it_writes_nothing(memory: Memory, reconciler: Reconciler) -> None:
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(KEY)
    memory.written.clear()
    await reconciler.reconcile(KEY)
    assert memory.written == []


async def test_an_answer_does_not_go_to_another_object_of_its_name(
    memory: Memory, world: World, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted and made anew while the answer was waited for: that one is another wish."""
    submit = world.submit

    async def slow(change: Change) -> Decision:
        decision = await submit(change)
        memory.parts.clear()
        memory.put("TrafficOperation", "move", spec={**SPEC, "idc": "dub"})
        memory.held["TrafficOperation", "im-fra", "move"]["metadata"]["uid"] = "uid-later"
        return decision

    monkeypatch.setattr(world, "submit", slow)
    with pytest.raises(Conflict):
        await reconciler.reconcile(KEY)
    assert "status" not in memory.held["TrafficOperation", "im-fra", "move"]
    monkeypatch.setattr(world, "submit", submit)
    await reconciler.reconcile(KEY)
    assert [each.idc for each in world.begun] == ["fra", "dub"]
    assert status(memory)["operation"] == "drain-dub-3"


class Dies(Exception):
    pass


@pytest.mark.parametrize("write", range(3))
async def test_an_operator_that_dies_is_continued_by_the_next(
    memory: Memory, world: World, write: int
) -> None:
    """Before its first write, between asking and the answer's write, or while it follows."""

    class Mortal(Memory):
        left = write

        async def apply(
            self, wanted: Object, status: bool = False, manager: str = MANAGER
        ) -> Object:
            if self.left == 0:
                raise Dies
            self.left -= 1
            return await super().apply(wanted, status, manager)

    mortal = Mortal()
    mortal.held = memory.held
    first = again(mortal, world)
    with pytest.raises(Dies):
        for _ in range(3):
            await first.reconcile(KEY)
    second = again(memory, world)
    await second.reconcile(KEY)
    await second.reconcile(KEY)
    assert len(world.begun) == 1
    assert status(memory)["operation"] == "drain-fra-2"
    assert status(memory)["steps"]


async def test_an_answer_that_is_lost_is_asked_for_again(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    world.trouble["answer"] = OutcomeUnknown("nobody answered")
    assert await reconciler.reconcile(KEY) == WAIT_S
    assert status(memory)["blocked_by"] == ["nobody answered"]
    assert status(memory)["phase"] == "Asking"
    await reconciler.reconcile(KEY)
    assert (status(memory)["phase"], status(memory)["blocked_by"]) == ("Running", [])
    assert len(world.begun) == 1


async def test_one_that_may_have_been_begun_and_is_forgotten_is_not_begun_again(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    world.trouble["answer"] = OutcomeUnknown("nobody answered")
    await reconciler.reconcile(KEY)
    for number in range(REQUESTS_MAX - 1):
        world.commit(f"other-{number}")
    await reconciler.reconcile(KEY)
    assert status(memory)["phase"] == "Running"  # the last moment at which it is known
    status(memory).update(phase="Asking")
    world.commit("one-more")
    await reconciler.reconcile(KEY)
    assert (status(memory)["phase"], status(memory)["state"]) == ("Ended", "unknown")
    assert len(world.begun) == 1


async def test_a_refused_one_names_all_that_stands_against_it(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    world.blockers = (
        Blocker("active-idcs-min", "0", "1", "0 active IDCs would be left of 1"),
        Blocker("headroom", "20", "8", "dub would carry 20 sessions"),
    )
    assert await reconciler.reconcile(KEY) is None
    assert [each["rule"] for each in status(memory)["blockers"]] == ["active-idcs-min", "headroom"]
    assert status(memory)["phase"] == "Refused"
    (event,) = memory.events
    assert (event["type"], event["reason"]) == ("Warning", "Refused")
    world.blockers = ()
    assert await reconciler.reconcile(KEY) is None  # refused is refused
    assert world.begun == []


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({"idc": "sin"}, "spec.idc"),
        ({"move": "switchover", "target": "sin"}, "spec.target"),
        ({"max_lag_ms": 60_000}, "spec.max_lag_ms"),
    ],
)
async def test_a_wish_that_fits_no_such_region_is_refused(
    memory: Memory, world: World, reconciler: Reconciler, spec: dict[str, Any], rule: str
) -> None:
    memory.put("TrafficOperation", "move", spec=SPEC | spec)
    await reconciler.reconcile(KEY)
    assert [each["rule"] for each in status(memory)["blockers"]] == [rule]
    assert world.begun == []


@pytest.mark.parametrize("missing", ["Region", "Secret"])
async def test_what_is_missing_is_waited_for(
    memory: Memory, world: World, reconciler: Reconciler, missing: str
) -> None:
    (held,) = [key for key in memory.held if key[0] == missing]
    taken = memory.held.pop(held)
    assert await reconciler.reconcile(KEY) == WAIT_S
    assert status(memory)["phase"] == "Waiting"
    assert held[2] in status(memory)["blocked_by"][0]
    memory.held[held] = taken
    await reconciler.reconcile(KEY)
    assert (status(memory)["phase"], status(memory)["blocked_by"]) == ("Running", [])


@pytest.mark.parametrize("trouble", [Unavailable("no majority"), BadInput("not a certificate")])
async def test_a_region_that_is_not_reached_is_said_once(
    memory: Memory, world: World, reconciler: Reconciler, trouble: Exception
) -> None:
    world.trouble["policy"] = trouble
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(KEY)
    assert status(memory)["blocked_by"] == [str(trouble)]
    assert len(memory.events) == 1
    world.trouble.clear()
    await reconciler.reconcile(KEY)
    assert status(memory)["phase"] == "Running"


async def test_an_operation_goes_on_in_the_status_when_the_region_falls_silent(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    world.trouble["operation"] = Unavailable("no majority")
    await reconciler.reconcile(KEY)
    assert (status(memory)["phase"], status(memory)["blocked_by"]) == ("Running", ["no majority"])


async def test_regions_that_do_not_answer_hold_nobody_up(memory: Memory, world: World) -> None:
    world.hang = True
    for number in range(PEER_WORKERS):
        memory.put("TrafficOperation", f"silent-{number}", spec=SPEC)
    reconciler = again(memory, world)
    task = asyncio.create_task(reconciler.run())
    for number in range(PEER_WORKERS):
        reconciler.look(KEY._replace(name=f"silent-{number}"))
    await asyncio.sleep(0.05)
    reconciler.look(Key("Region", "im-fra", "two-idc"))
    await until(lambda: "status" in memory.held["Region", "im-fra", "two-idc"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_is_asked_is_what_the_command_would_ask() -> None:
    owner = Owner("TrafficOperation", "im-fra", "move", "0a1b", 1)
    spec = TrafficOperationSpec.model_validate(
        SPEC | {"move": "switchover", "target": "dub", "overrides": ["headroom"], "rate": 9,
                "max_lag_ms": 7, "expect_epoch": 3}
    )  # fmt: skip
    assert change_of(owner, spec) == Change(
        kind="switchover", idc="fra", request_id="0a1b", by="TrafficOperation im-fra/move",
        target="dub", expect_epoch=3, overrides=("headroom",), max_lag_ms=7, rate=9,
    )  # fmt: skip


def test_who_asked_is_said_and_the_object_is_found_by_it() -> None:
    owner = Owner("TrafficOperation", "im-fra", "move", "0a1b", 1)
    spec = TrafficOperationSpec.model_validate(SPEC | {"asked_by": "ada@laptop", "reason": "fans"})
    by = change_of(owner, spec).by
    assert by == "TrafficOperation im-fra/move, for ada@laptop"
    assert object_of(by) == object_of("TrafficOperation im-fra/move") == "im-fra/move"
    assert object_of("operator") == ""
    with pytest.raises(ValidationError, match="asked_by"):
        TrafficOperationSpec.model_validate(SPEC | {"asked_by": "ada, by TrafficOperation x"})
