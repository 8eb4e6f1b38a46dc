"""Drills of a schedule: a DrillRun at each time, once, and none in a blackout."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from imctl.reconcile.admission import answer
from imctl.reconcile.cluster import Conflict
from imctl.reconcile.drillrun import STOP, stop_of
from imctl.reconcile.observed import Object
from imctl.reconcile.reconciler import Key, Reconciler
from imctl.reconcile.schedules import LOOK_S
from tests.unit.test_operator_drillruns import SPEC as RUN
from tests.unit.test_operator_drillruns import Beside
from tests.unit.test_operator_objects import FIGURES
from tests.unit.test_operator_reconciler import Memory, Nobody

KEY = Key("Drill", "im-fra", "weekly")
SPEC: dict[str, Any] = {"cron": "0 10 * * TUE", "timezone": "Europe/Berlin", "run": RUN}
TUESDAY = datetime.fromisoformat("2026-12-01T09:00:00Z")  # ten o'clock in Berlin


class Clocked(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.time = TUESDAY - timedelta(hours=1)
        self.put("Drill", "weekly", spec=dict(SPEC))
        metadata = self.held["Drill", "im-fra", "weekly"]["metadata"]
        metadata["creationTimestamp"] = "2026-11-30T00:00:00Z"

    def wall(self) -> str:
        return self.time.isoformat().replace("+00:00", "Z")

    async def create(self, body: Object) -> None:
        key = body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]
        if key in self.held:
            raise Conflict("it is there")
        self.held[key] = body

    @property
    def drill(self) -> Any:
        return self.held["Drill", "im-fra", "weekly"]

    def runs(self) -> list[str]:
        return [name for kind, _, name in self.held if kind == "DrillRun"]

    def end(self, name: str, verdict: str) -> None:
        status = {"phase": "Ended", "verdict": verdict}
        self.held["DrillRun", "im-fra", name]["status"] = status


@pytest.fixture
def memory() -> Clocked:
    return Clocked()


@pytest.fixture
def reconciler(memory: Clocked) -> Reconciler:
    return Reconciler(memory, FIGURES, memory.wall, Nobody(), Beside(), "op-1", ["im-fra"])


async def test_a_run_is_made_at_its_time_and_once(memory: Clocked, reconciler: Reconciler) -> None:
    assert await reconciler.reconcile(KEY) == LOOK_S
    assert (memory.drill["status"]["next"], memory.runs()) == ("2026-12-01T09:00:00Z", [])
    memory.time = TUESDAY - timedelta(seconds=2)
    assert await reconciler.reconcile(KEY) == 2.0
    memory.time = TUESDAY + timedelta(seconds=1)
    for _ in range(3):
        await reconciler.reconcile(KEY)
    assert memory.runs() == ["weekly-202612010900"]
    run = memory.held["DrillRun", "im-fra", "weekly-202612010900"]
    assert run["spec"] == RUN | {"begin_within_s": 300}
    assert run["metadata"]["ownerReferences"][0]["uid"] == "uid-weekly"
    status = memory.drill["status"]
    assert status["next"] == "2026-12-08T09:00:00Z"
    assert status["last_due"] == "2026-12-01T09:00:00Z"
    assert [each["reason"] for each in memory.events] == ["Due"]


async def test_an_operator_that_died_before_it_said_so_makes_no_second(
    memory: Clocked, reconciler: Reconciler
) -> None:
    memory.time = TUESDAY
    await reconciler.reconcile(KEY)
    del memory.drill["status"]
    await reconciler.reconcile(KEY)
    assert memory.runs() == ["weekly-202612010900"]


async def test_none_begins_late(memory: Clocked, reconciler: Reconciler) -> None:
    memory.time = TUESDAY + timedelta(minutes=6)
    await reconciler.reconcile(KEY)
    assert memory.runs() == []
    assert memory.drill["status"]["next"] == "2026-12-08T09:00:00Z"


async def test_none_begins_in_a_blackout(memory: Clocked, reconciler: Reconciler) -> None:
    window = {"start": "2026-12-01T00:00:00Z", "end": "2026-12-02T00:00:00Z", "reason": "a fair"}
    memory.drill["spec"]["blackouts"] = [window]
    memory.time = TUESDAY
    await reconciler.reconcile(KEY)
    assert memory.runs() == []
    assert "a fair" in memory.drill["status"]["left_out"]
    assert [each["reason"] for each in memory.events] == ["LeftOut"]


async def test_none_goes_on_into_a_blackout(memory: Clocked, reconciler: Reconciler) -> None:
    window = {"start": "2026-12-01T09:00:05Z", "end": "2026-12-02T00:00:00Z", "reason": "a fair"}
    memory.drill["spec"]["blackouts"] = [window]
    memory.time = TUESDAY
    assert await reconciler.reconcile(KEY) == 5.0
    (name,) = memory.runs()
    run = memory.held["DrillRun", "im-fra", name]
    assert stop_of(run) == ""
    memory.time = TUESDAY + timedelta(seconds=5)
    memory.drill["spec"]["paused"] = True  # which stops none by itself
    await reconciler.reconcile(KEY)
    assert stop_of(run) == "a blackout: a fair, until 2026-12-02T00:00:00Z"
    run["metadata"]["annotations"] = {STOP: "told before"}
    await reconciler.reconcile(KEY)
    assert stop_of(run) == "told before"


async def test_none_begins_while_it_is_paused(memory: Clocked, reconciler: Reconciler) -> None:
    memory.drill["spec"]["paused"] = True
    memory.time = TUESDAY
    await reconciler.reconcile(KEY)
    assert (memory.drill["status"]["phase"], memory.runs()) == ("Paused", [])


async def test_the_last_verdict_is_shown_and_old_runs_go(
    memory: Clocked, reconciler: Reconciler
) -> None:
    memory.drill["spec"]["keep"] = 1
    for week in range(3):
        memory.time = TUESDAY + timedelta(weeks=week)
        await reconciler.reconcile(KEY)
        memory.end(memory.runs()[-1], "pass" if week < 2 else "deviated")
    await reconciler.reconcile(KEY)
    assert memory.runs() == ["weekly-202612150900"]
    status = memory.drill["status"]
    assert (status["last_run"], status["last_verdict"]) == ("weekly-202612150900", "deviated")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"cron": "daily"}, "spec.cron: expected a cron line"),
        ({"timezone": "Mars/Base"}, "spec.timezone: expected a time zone"),
        ({"run": RUN | {"var": {"foe": "x"}}}, "these variables: victim"),
        (
            {"blackouts": [{"start": "x", "end": "2026-12-02T00:00:00Z", "reason": "r"}]},
            "spec.blackouts.0.start: ",
        ),
    ],
)
async def test_what_is_wrong_is_told_by_the_status_and_by_the_webhook(
    memory: Clocked, reconciler: Reconciler, wrong: dict[str, Any], why: str
) -> None:
    memory.drill["spec"] |= wrong
    assert await reconciler.reconcile(KEY) is None
    status = memory.drill["status"]
    assert status["phase"] == "Invalid" and any(why in each for each in status["problems"])
    request = {"uid": "1", "kind": {"kind": "Drill"}, "object": memory.drill, "oldObject": None}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    said = answer(review)["response"]
    assert why in said["status"]["message"]


def test_a_webhook_judges_runs_too() -> None:
    metadata = {"name": "loss"}
    request: dict[str, Any] = {
        "uid": "1", "kind": {"kind": "DrillRun"}, "oldObject": None,
        "object": {"metadata": metadata, "spec": RUN | {"var": {"foe": "x"}}},
    }  # fmt: skip
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    assert "these variables: victim" in answer(review)["response"]["status"]["message"]
    request["object"]["spec"] = RUN
    assert answer(review)["response"]["allowed"]


async def test_an_operator_without_drills_makes_no_runs(memory: Clocked) -> None:
    memory.time = TUESDAY
    none = Reconciler(memory, FIGURES, memory.wall, Nobody())
    await none.reconcile(KEY)
    assert memory.runs() == []
    assert "runs no drills" in memory.drill["status"]["problems"][0]
