"""What a Replication and a GeoPolicy show of a region; they change nothing of it."""

from __future__ import annotations

from typing import Any

import pytest

from imcore.errors import Unavailable
from imcore.region.model import Region
from imctl.reconcile.observed import Object
from imctl.reconcile.peers import Peers
from imctl.reconcile.reconciler import Key, Reconciler
from imctl.reconcile.views import LOOK_S
from tests.unit.test_operator_objects import FIGURES, region
from tests.unit.test_operator_reconciler import NOW, Memory

FLOWS = Key("Replication", "im-fra", "flows", asks=True)
POLICY = Key("GeoPolicy", "im-fra", "policy", asks=True)
SPEC = {"region": "two-idc", "certificate": "imctl-viewer"}


def answer(idc: str, epoch: int = 7, ms: int = 40, stale: bool = False) -> dict[str, Any]:
    other = "dub" if idc == "fra" else "fra"
    active = {"state": "active", "ramp": 100}
    return {
        "policy": {"epoch": epoch, "stale": stale, "idcs": {"fra": active, "dub": active},
                   "operation": ""},
        "lag": {f"{other}.1": {"ms": ms, "records": 3}},
    }  # fmt: skip


class Told(Peers):
    def __init__(self) -> None:
        self.answers: dict[str, dict[str, Any]] = {idc: answer(idc) for idc in ("fra", "dub")}

    async def status(self, region: Region, secret: Object, idc: str) -> dict[str, Any]:
        if idc not in self.answers:
            raise Unavailable(f"{idc} does not answer")
        return self.answers[idc]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.put(
        "Region", "two-idc", spec=region().spec.model_dump(mode="json", exclude_defaults=True)
    )
    found.put("Secret", "imctl-viewer", data={})
    found.put("Replication", "flows", spec={**SPEC, "lag_slo_ms": 100})
    found.put("GeoPolicy", "policy", spec=dict(SPEC))
    return found


@pytest.fixture
def reconciler(memory: Memory, told: Told) -> Reconciler:
    return Reconciler(memory, FIGURES, lambda: NOW, told)


def condition(memory: Memory, key: Key) -> tuple[str, str]:
    (found,) = memory.status(key.kind, key.name)["conditions"]
    return found["status"], found["message"]


async def test_flows_and_their_objective(
    memory: Memory, reconciler: Reconciler, told: Told
) -> None:
    assert await reconciler.reconcile(FLOWS) == LOOK_S
    status = memory.status("Replication", "flows")
    assert status["flows"][0] == {
        "source": "dub", "target": "fra", "engine": "builtin", "lag_ms": 40, "records": 3,
    }  # fmt: skip
    assert (status["worst_lag_ms"], condition(memory, FLOWS)[0]) == (40, "True")
    written = len(memory.written)
    await reconciler.reconcile(FLOWS)
    assert len(memory.written) == written  # nothing has changed

    told.answers["dub"] = answer("dub", ms=101)
    await reconciler.reconcile(FLOWS)
    assert condition(memory, FLOWS) == ("False", "fra -> dub lags 101 ms, at most 100 are meant")
    del told.answers["dub"]
    await reconciler.reconcile(FLOWS)
    status = memory.status("Replication", "flows")
    assert status["silent"] == ["dub: dub does not answer"] and len(status["flows"]) == 1
    assert condition(memory, FLOWS)[0] == "False"
    assert [each["reason"] for each in memory.events] == ["Holds", "Late"]


async def test_the_policy_that_is_committed_and_served(
    memory: Memory, reconciler: Reconciler, told: Told
) -> None:
    await reconciler.reconcile(POLICY)
    status = memory.status("GeoPolicy", "policy")
    assert (status["epoch"], condition(memory, POLICY)) == (7, ("True", "all of it"))
    assert status["idcs"][1] == {
        "idc": "dub", "state": "active", "ramp": 100, "epoch": 7, "stale": False,
    }  # fmt: skip
    told.answers["fra"] = answer("fra", epoch=6, stale=True)
    await reconciler.reconcile(POLICY)
    said = "fra serves epoch 6 of 7, and no majority confirms it"
    assert condition(memory, POLICY) == ("False", said)
    del told.answers["fra"]
    await reconciler.reconcile(POLICY)
    row = memory.status("GeoPolicy", "policy")["idcs"][0]
    assert row == {"idc": "fra", "state": "active", "ramp": 100, "stale": False}
    told.answers.clear()
    await reconciler.reconcile(POLICY)
    assert "epoch" not in memory.status("GeoPolicy", "policy")


@pytest.mark.parametrize("key", [FLOWS, POLICY])
async def test_what_is_missing_is_told_and_waited_for(
    memory: Memory, reconciler: Reconciler, key: Key
) -> None:
    secret = memory.held.pop(("Secret", "im-fra", "imctl-viewer"))
    assert await reconciler.reconcile(key) == LOOK_S
    why = "Secret imctl-viewer is not there"
    assert memory.status(key.kind, key.name)["blocked_by"] == [why]
    memory.held["Secret", "im-fra", "imctl-viewer"] = secret
    await reconciler.reconcile(key)
    assert memory.status(key.kind, key.name)["blocked_by"] == []


@pytest.mark.parametrize("key", [FLOWS, POLICY])
@pytest.mark.parametrize("lacks", ["Secret", "Region", "valid Region"])
async def test_what_nobody_can_judge_any_more_is_unknown(
    memory: Memory, reconciler: Reconciler, key: Key, lacks: str
) -> None:
    await reconciler.reconcile(key)
    shown = memory.status(key.kind, key.name)
    assert condition(memory, key)[0] == "True"
    if lacks == "Secret":
        del memory.held["Secret", "im-fra", "imctl-viewer"]
    elif lacks == "Region":
        del memory.held["Region", "im-fra", "two-idc"]
    else:
        memory.held["Region", "im-fra", "two-idc"]["spec"].pop("witness")
    await reconciler.reconcile(key)
    status = memory.status(key.kind, key.name)
    assert condition(memory, key) == ("Unknown", status["blocked_by"][0])
    assert status["conditions"][0]["reason"] == "Blocked"
    told = [name for name in ("flows", "epoch") if name in shown]
    assert [status[name] for name in told] == [shown[name] for name in told]
    written = len(memory.written)
    await reconciler.reconcile(key)
    assert len(memory.written) == written
    assert [each["type"] for each in memory.events] == ["Normal", "Warning"]
