"""What an IDC's process says stands in its status, and it is emptied before its object goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from imcore.errors import Unavailable
from imctl.reconcile.looks import LOOK_S
from imctl.reconcile.observed import Object
from imctl.reconcile.process import FINALIZER, process_of
from imctl.reconcile.reconciler import Key, Reconciler
from services.control.rules import Blocker
from services.policy.document import IdcState
from tests.unit.test_operator_objects import FIGURES, IDC, region
from tests.unit.test_operator_reconciler import NOW, Memory
from tests.unit.test_operator_runs import World

KEY = Key("IDC", "im-fra", "fra", asks=True)
SAID = {
    "serving": True,
    "sessions": 12,
    "policy": {"epoch": 4, "idcs": {"fra": {"state": "active"}}},
    "lag": {"dub.1": {"ms": 3, "records": 0}, "dub.2": {"ms": 40, "records": 2}},
    "alarms": ["the disk is full"],
}


@pytest.fixture
def world() -> World:
    found = World()
    found.said = SAID
    return found


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    spec = IDC.model_copy(update={"role_certificate": "imctl-operator"})
    found.put("IDC", "fra", spec=spec.model_dump(mode="json", exclude_none=True))
    of = region().spec.model_dump(mode="json", exclude_defaults=True)
    found.put("Region", "two-idc", spec=of)
    found.put("Secret", "imctl-operator", data={})
    return found


@pytest.fixture
def reconciler(memory: Memory, world: World) -> Reconciler:
    return Reconciler(memory, FIGURES, lambda: NOW, world)


def idc(memory: Memory) -> Object:
    return memory.held["IDC", "im-fra", "fra"]


def delete(memory: Memory) -> None:
    idc(memory)["metadata"]["deletionTimestamp"] = NOW


def reachable(memory: Memory) -> tuple[str, str]:
    (found,) = [each for each in memory.status()["conditions"] if each["type"] == "Reachable"]
    return found["status"], found["message"]


async def test_the_status_shows_what_the_process_says(
    memory: Memory, reconciler: Reconciler
) -> None:
    assert await reconciler.reconcile(KEY) == LOOK_S
    assert memory.status()["process"] == {
        "state": "active", "epoch": 4, "serving": True, "sessions": 12,
        "lag": [{"peer": "dub", "ms": 40, "records": 2}], "alarms": ["the disk is full"],
    }  # fmt: skip
    assert reachable(memory)[0] == "True"
    memory.written.clear()
    await reconciler.reconcile(KEY)
    assert memory.written == []


async def test_both_parts_of_the_status_stand_beside_each_other(
    memory: Memory, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(KEY._replace(asks=False))
    kinds = {each["type"] for each in memory.status()["conditions"]}
    assert kinds == {"Ready", "Reachable"}
    memory.written.clear()
    await reconciler.reconcile(KEY._replace(asks=False))
    await reconciler.reconcile(KEY)
    assert "IDC" not in memory.written


async def test_one_that_falls_silent_keeps_what_it_said_last(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    world.trouble["status"] = Unavailable("fra does not answer")
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(KEY)
    assert reachable(memory) == ("False", "fra does not answer")
    assert memory.status()["process"]["sessions"] == 12
    assert [each["reason"] for each in memory.events] == ["Answers", "Silent"]


async def test_without_a_certificate_nobody_is_asked(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    del idc(memory)["spec"]["role_certificate"]
    assert await reconciler.reconcile(KEY) is None
    assert "process" not in memory.status()
    assert idc(memory)["metadata"]["finalizers"] == []


async def test_it_is_drained_before_it_goes(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    assert idc(memory)["metadata"]["finalizers"] == [FINALIZER]
    delete(memory)
    assert await reconciler.reconcile(KEY) == LOOK_S
    (change,) = world.begun
    assert (change.kind, change.idc) == ("drain", "fra")
    assert memory.status()["kept_by"] == ["drain-fra-2 is running"]
    assert memory.status()["process"]["sessions"] == 12
    drained = replace(world.now.idcs["fra"], state=IdcState.DRAINED)
    world.now = replace(world.now, idcs={**world.now.idcs, "fra": drained})
    assert await reconciler.reconcile(KEY) is None
    assert idc(memory)["metadata"]["finalizers"] == []
    assert [each["reason"] for each in memory.events] == ["Answers", "Kept", "LetGo"]


async def test_what_stands_against_its_drain_is_told_and_not_asked_for(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    delete(memory)
    world.blockers = (Blocker("headroom", "20", "8", "dub would carry 20 sessions"),)
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(KEY)
    assert memory.status()["kept_by"] == [
        "headroom: dub would carry 20 sessions", "`spec.deletion: at_once` lets it go as it is",
    ]  # fmt: skip
    assert [each["reason"] for each in memory.events] == ["Answers", "Kept"]
    assert world.begun == []
    idc(memory)["spec"]["deletion"] = "at_once"
    assert await reconciler.reconcile(KEY) is None
    assert idc(memory)["metadata"]["finalizers"] == []


async def test_a_drain_that_people_took_back_is_not_begun_again(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    delete(memory)
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(KEY)
    assert len(world.begun) == 1
    assert "drain-fra-2 is over, and fra is active" in memory.status()["kept_by"][0]


async def test_a_region_that_is_not_reached_keeps_it(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    delete(memory)
    world.trouble["policy"] = Unavailable("no majority")
    assert await reconciler.reconcile(KEY) == LOOK_S
    assert memory.status()["kept_by"][0] == "no majority"


@pytest.mark.parametrize("why", ["the region is gone", "a viewer may not drain"])
async def test_what_cannot_be_drained_by_it_goes(
    memory: Memory, world: World, reconciler: Reconciler, why: str
) -> None:
    await reconciler.reconcile(KEY)
    delete(memory)
    if why == "the region is gone":
        del memory.held["Region", "im-fra", "two-idc"]
    world.permitted = False
    assert await reconciler.reconcile(KEY) is None
    assert idc(memory)["metadata"]["finalizers"] == []


@pytest.mark.parametrize("document", [{}, {"policy": {}, "lag": {}}, {"policy": {"idcs": {}}}])
def test_a_process_that_has_just_begun_says_little(document: dict[str, Any]) -> None:
    found = process_of(document, "fra")
    assert (found.state, found.epoch, found.sessions, found.lag) == ("unknown", 0, 0, [])
