"""What an IDC's process says stands in its status, and it is emptied before its object goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from imcore.errors import Unavailable
from imctl.reconcile.looks import LOOK_S
from imctl.reconcile.observed import Object
from imctl.reconcile.process import FINALIZER, process_of
from imctl.reconcile.reconciler import SOON_S, Key, Reconciler
from services.control.rules import Blocker
from services.policy.document import IdcState
from tests.unit.test_operator_objects import FIGURES, IDC, region
from tests.unit.test_operator_reconciler import NOW, Memory, running, until
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
        "lag": [{"peer": "dub", "ms": 40, "records": 2}], "applied": [],
        "alarms": ["the disk is full"],
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


async def test_how_far_logs_are_folded_stands_there_and_is_written_now_and_then(
    memory: Memory, world: World
) -> None:
    now = [NOW]
    reconciler = Reconciler(memory, FIGURES, lambda: now[0], world)

    async def look(lsn: int, at: str, **more: Any) -> list[int]:
        now[0] = f"2026-01-01T00:00:{at}Z"
        applied = {"fra.1": [lsn, 7], "dub.2": [3, 4]}
        world.said = {**SAID, "applied": applied, **more}
        await reconciler.reconcile(KEY)
        (dub, fra) = memory.status()["process"]["applied"]
        assert dub == {"origin": "dub.2", "lsns": [3, 4]} and fra["origin"] == "fra.1"
        return list(fra["lsns"])

    assert await look(5, "00") == [5, 7]
    written = len(memory.written)
    assert await look(6, "05") == [5, 7]
    assert len(memory.written) == written, "each message changes it"
    assert await look(7, "29") == [5, 7]
    assert await look(8, "30") == [8, 7]
    assert await look(9, "35", sessions=13) == [9, 7]
    assert await look(10, "40", sessions=13) == [9, 7]


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


@pytest.mark.parametrize("deletion", ["drain", "at_once"])
async def test_no_pod_is_made_before_its_object_waits_for_its_drain(
    memory: Memory, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch, deletion: str
) -> None:
    """Another queue asks the processes, and may be late."""
    keys = dict.fromkeys(("ca.crt", "tls.crt", "tls.key"), "")
    memory.put("Secret", "fra-certificate", data=keys)
    memory.put("Secret", "region-keys", data={"region-keys.json": ""})
    idc(memory)["spec"]["deletion"] = deletion
    workload = ("StatefulSet", "im-fra", "fra-idc")
    with monkeypatch.context() as patch:

        async def finalizers(document: Object, names: Sequence[str]) -> None:
            assert workload not in memory.held
            raise Unavailable("no answer")

        patch.setattr(memory, "finalizers", finalizers)
        if deletion == "drain":
            with pytest.raises(Unavailable):
                await reconciler.reconcile(KEY._replace(asks=False))
            assert workload not in memory.held
    await reconciler.reconcile(KEY._replace(asks=False))
    assert workload in memory.held
    held = [FINALIZER] if deletion == "drain" else []
    assert idc(memory)["metadata"].get("finalizers", []) == held


async def test_no_gateway_is_made_before_it_waits_for_the_drain(
    memory: Memory, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    idc(memory)["spec"]["gateways"] = "apart"
    memory.put("GatewayCluster", "fra", spec={"idc": "fra", "replicas": 1})
    await reconciler.reconcile(KEY)

    async def finalizers(document: Object, names: Sequence[str]) -> None:
        raise Unavailable("no answer")

    monkeypatch.setattr(memory, "finalizers", finalizers)
    with pytest.raises(Unavailable):
        await reconciler.reconcile(GATEWAYS)
    assert ("StatefulSet", "im-fra", "fra-gateway") not in memory.held


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


REGION = Key("Region", "im-fra", "two-idc")


def held_by(memory: Memory, key: Key = REGION) -> Any:
    return memory.held[key.kind, "im-fra", key.name]["metadata"].get("finalizers", [])


def delete_region(memory: Memory) -> None:
    memory.held["Region", "im-fra", "two-idc"]["metadata"]["deletionTimestamp"] = NOW
    memory.held["Namespace", "", "im-fra"] = {"metadata": {"name": "im-fra"}}


def drain(world: World) -> None:
    drained = replace(world.now.idcs["fra"], state=IdcState.DRAINED)
    world.now = replace(world.now, idcs={**world.now.idcs, "fra": drained})


async def test_a_region_stays_until_the_idc_that_names_it_is_drained(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    """As `helm uninstall` of charts/im-idc deletes them: both at once."""
    async for _ in running(reconciler):
        reconciler.look(KEY)
        await until(lambda: held_by(memory) == [FINALIZER])
    delete_region(memory)
    delete(memory)
    assert await reconciler.reconcile(REGION) is not None
    await reconciler.reconcile(KEY)
    assert [change.kind for change in world.begun] == ["drain"]
    assert held_by(memory) == held_by(memory, KEY) == [FINALIZER]
    drain(world)
    await reconciler.reconcile(KEY)
    assert await reconciler.reconcile(REGION) is None
    assert held_by(memory) == held_by(memory, KEY) == []


async def test_a_region_goes_with_its_namespace_and_lets_the_idc_go(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(REGION)
    delete_region(memory)
    memory.held["Namespace", "", "im-fra"]["metadata"]["deletionTimestamp"] = NOW
    assert await reconciler.reconcile(REGION) is None
    assert held_by(memory) == []


@pytest.mark.parametrize("change", [{"deletion": "at_once"}, {"role_certificate": None}])
async def test_only_an_idc_that_is_to_be_drained_keeps_its_region(
    memory: Memory, reconciler: Reconciler, change: dict[str, Any]
) -> None:
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(REGION)
    assert held_by(memory) == [FINALIZER]
    idc(memory)["spec"] |= change
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(REGION)
    assert held_by(memory) == []
    delete_region(memory)
    idc(memory)["metadata"]["finalizers"] = [FINALIZER]
    assert await reconciler.reconcile(REGION) is None
    assert held_by(memory) == [], "what is deleted takes no new finalizer"


async def test_another_region_is_kept_by_nobody(memory: Memory, reconciler: Reconciler) -> None:
    of = region().spec.model_dump(mode="json", exclude_defaults=True)
    memory.put("Region", "other", spec=of)
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(REGION._replace(name="other"))
    assert held_by(memory, REGION._replace(name="other")) == []


GATEWAYS = Key("GatewayCluster", "im-fra", "fra")


@pytest.mark.parametrize("first", ["GatewayCluster", "IDC"])
async def test_gateways_go_after_their_idc_is_drained(
    memory: Memory, world: World, reconciler: Reconciler, first: str
) -> None:
    idc(memory)["spec"]["gateways"] = "apart"
    memory.put("GatewayCluster", "fra", spec={"idc": "fra"})
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(GATEWAYS)
    assert held_by(memory, GATEWAYS) == [FINALIZER]
    memory.held["GatewayCluster", "im-fra", "fra"]["metadata"]["deletionTimestamp"] = NOW
    if first == "IDC":
        delete(memory)
    assert await reconciler.reconcile(GATEWAYS) is not None
    delete(memory)
    await reconciler.reconcile(KEY)
    late = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:10:00Z", world)
    assert await late.reconcile(GATEWAYS) is not None
    assert held_by(memory, GATEWAYS) == [FINALIZER]
    found = memory.status("GatewayCluster")["conditions"][0]
    assert (found["reason"], found["message"]) == ("Deleting", "IDC fra is drained first")
    drain(world)
    await reconciler.reconcile(KEY)
    assert await late.reconcile(GATEWAYS) is None
    assert held_by(memory, GATEWAYS) == []


async def test_gateways_that_go_alone_are_not_kept(
    memory: Memory, world: World, reconciler: Reconciler
) -> None:
    idc(memory)["spec"]["gateways"] = "apart"
    memory.put("GatewayCluster", "fra", spec={"idc": "fra"})
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(GATEWAYS)
    memory.held["GatewayCluster", "im-fra", "fra"]["metadata"]["deletionTimestamp"] = NOW
    assert await reconciler.reconcile(GATEWAYS) == SOON_S
    late = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:05Z", world)
    assert await late.reconcile(GATEWAYS) is None
    assert held_by(memory, GATEWAYS) == []


@pytest.mark.parametrize("document", [{}, {"policy": {}, "lag": {}}, {"policy": {"idcs": {}}}])
def test_a_process_that_has_just_begun_says_little(document: dict[str, Any]) -> None:
    found = process_of(document, "fra")
    assert (found.state, found.epoch, found.sessions, found.lag) == ("unknown", 0, 0, [])
