"""DrillRuns: one at a time, each once, undone whoever dies, and judged."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from imcore import pki
from imcore.errors import Unavailable
from imctl.drill import model
from imctl.reconcile.cluster import Conflict, Rejected
from imctl.reconcile.driller import Done, Job
from imctl.reconcile.drillrun import FINALIZER, OBJECT_BYTES, STOP, report_object
from imctl.reconcile.drillruns import AGAIN_S, FOLLOW_S, WAIT_S
from imctl.reconcile.lease import NotLeading
from imctl.reconcile.observed import Owner
from imctl.reconcile.reconciler import Key, Reconciler
from tests.unit.test_operator_objects import FIGURES, region
from tests.unit.test_operator_reconciler import NOW, Memory, Nobody

PAUSES = model.find("idc-loss").read_text().replace("func: kill_idc", "func: pause_idc")
USERS = model.find("idc-loss").read_text().replace("users: 18", "users: 501")
KEY = Key("DrillRun", "im-fra", "loss", asks=True)
SPEC: dict[str, Any] = {
    "region": "two-idc", "drill": "idc-loss", "certificate": "imctl-admin",
    "region_keys": "region-keys", "var": {"victim": "dub"},
}  # fmt: skip
REPORT: dict[str, Any] = {
    "outcome": "pass", "reason": "everything held", "left": [],
    "recoveries": [{"idc": "dub", "steps": {"99 % answered": 4.126}}],
    "run": {"moves": [{"what": "switchover", "moved_ms": 1234.0}]},
    "ledger": [{"lost": 0, "delayed": 2}, {"lost": 0, "delayed": 1}],
}  # fmt: skip


class Beside:
    """Drills that end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[Job] = []
        self.undone: list[Job] = []
        self.stopped: list[str] = []
        self.hurried = False
        self.known: dict[str, Done | None] = {}

    def begin(self, uid: str, job: Job) -> None:
        self.begun.append(job)
        self.known[uid] = None

    def undo(self, uid: str, job: Job) -> None:
        self.undone.append(job)
        self.known[uid] = None

    def runs(self, uid: str) -> bool:
        return uid in self.known

    def done(self, uid: str) -> Done | None:
        return self.known.get(uid)

    def stop(self, uid: str, hurry: bool = False) -> None:
        self.stopped.append(uid)
        self.hurried = hurry

    def forget(self, uid: str) -> None:
        self.known.pop(uid, None)

    def end(self, status: int, said: str = "", **report: Any) -> None:
        files = {"report.json": json.dumps(REPORT | report), "report.md": "# x"} if report else {}
        self.known["uid-loss"] = Done(status, said, files)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pki")
    pki.init(folder, {"admin": ()}, pki.utc_now(1_767_225_600_000))
    files = {"ca.crt": "ca.pem", "tls.crt": "admin.pem", "tls.key": "admin.key"}
    return {
        key: base64.b64encode((folder / name).read_bytes()).decode() for key, name in files.items()
    }


@pytest.fixture
def memory(secret: dict[str, str]) -> Memory:
    found = Memory()
    found.put(
        "Region", "two-idc", spec=region().spec.model_dump(mode="json", exclude_defaults=True)
    )
    found.put("Secret", "imctl-admin", data=secret)
    found.put("Secret", "region-keys", data={"region-keys.json": base64.b64encode(b"{}").decode()})
    for idc in ("fra", "dub"):
        found.put("IDC", idc, spec={"region": "two-idc", "idc": idc, "drills_from": ["im-fra"]})
    found.put("DrillRun", "loss", spec=dict(SPEC))
    return found


@pytest.fixture
def beside() -> Beside:
    return Beside()


def operator(memory: Memory, beside: Beside | None, runner: str = "op-1") -> Reconciler:
    return Reconciler(memory, FIGURES, lambda: NOW, Nobody(), beside, runner, ["im-fra"])


def status(memory: Memory, name: str = "loss") -> dict[str, Any]:
    return memory.status("DrillRun", name)


def finalizers(memory: Memory) -> Any:
    return memory.held["DrillRun", "im-fra", "loss"]["metadata"].get("finalizers", [])


def delete(memory: Memory) -> None:
    memory.held["DrillRun", "im-fra", "loss"]["metadata"]["deletionTimestamp"] = NOW


async def test_it_is_begun_once_and_judged(memory: Memory, beside: Beside) -> None:
    first = operator(memory, beside)
    assert await first.reconcile(KEY) == FOLLOW_S
    (job,) = beside.begun
    assert (job.name, job.var, job.namespaces) == (
        "idc-loss", {"victim": "dub"}, {"witness": "im-fra", "fra": "im-fra", "dub": "im-fra"},
    )  # fmt: skip
    assert set(job.pki) == {"ca.pem", "admin.pem", "admin.key", "region-keys.json"}
    assert status(memory)["phase"] == "Running" and finalizers(memory) == [FINALIZER]
    written = len(memory.written)
    assert await first.reconcile(KEY) == FOLLOW_S
    assert len(memory.written) == written and len(beside.begun) == 1

    beside.end(0, outcome="pass")
    assert await first.reconcile(KEY) == 0
    found = status(memory)
    assert (found["phase"], found["verdict"], found["rto_s"]) == ("Ended", "pass", 4.13)
    assert (found["lost"], found["delayed"], found["ended"]) == (0, 3, NOW)
    assert found["moved_s"] == 1.23
    report = memory.held["ConfigMap", "im-fra", found["report"]]
    assert set(report["data"]) == {"report.json", "report.md"}
    assert report["metadata"]["ownerReferences"][0]["uid"] == "uid-loss"
    assert await first.reconcile(KEY) is None
    assert finalizers(memory) == [] and not beside.known
    assert [each["reason"] for each in memory.events] == ["Begun", "Pass"]


async def test_a_verdict_does_not_go_to_another_object_of_its_name(
    memory: Memory, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own was given up (its finalizer by hand), and another one made, at that moment."""
    first = operator(memory, beside)
    await first.reconcile(KEY)
    beside.end(0, outcome="pass")
    done = beside.done

    def late(uid: str) -> Done | None:
        memory.parts.clear()
        memory.put("DrillRun", "loss", spec=dict(SPEC))
        memory.held["DrillRun", "im-fra", "loss"]["metadata"]["uid"] = "uid-later"
        return done(uid)

    monkeypatch.setattr(beside, "done", late)
    with pytest.raises(Conflict):
        await first.reconcile(KEY)
    assert "status" not in memory.held["DrillRun", "im-fra", "loss"]


@pytest.mark.parametrize("trouble", [Unavailable("429"), Conflict("another"), Rejected("full")])
async def test_an_event_that_is_not_taken_stops_no_drill(
    memory: Memory, beside: Beside, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    async def event(_: object) -> None:
        raise trouble

    monkeypatch.setattr(memory, "event", event)
    first = operator(memory, beside)
    assert await first.reconcile(KEY) == FOLLOW_S
    assert len(beside.begun) == 1
    assert await first.reconcile(KEY) == FOLLOW_S
    assert status(memory)["phase"] == "Running" and not beside.undone


async def test_an_event_of_who_does_not_lead_any_more_ends_it(
    memory: Memory, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def event(_: object) -> None:
        raise NotLeading("lost")

    monkeypatch.setattr(memory, "event", event)
    with pytest.raises(NotLeading):
        await operator(memory, beside).reconcile(KEY)
    assert not beside.begun


async def test_one_that_is_to_stop_is_told_and_keeps_its_report(
    memory: Memory, beside: Beside
) -> None:
    first = operator(memory, beside)
    await first.reconcile(KEY)
    memory.held["DrillRun", "im-fra", "loss"]["metadata"]["annotations"] = {STOP: "a fair"}
    assert await first.reconcile(KEY) == FOLLOW_S
    assert beside.stopped == ["uid-loss"] and not beside.hurried
    beside.end(6, outcome="aborted", reason="ended by hand")
    await first.reconcile(KEY)
    found = status(memory)
    assert (found["phase"], found["verdict"], found["reason"]) == ("Ended", "aborted", "a fair")
    assert found["report"]


async def test_one_that_is_to_stop_does_not_begin(memory: Memory, beside: Beside) -> None:
    memory.held["DrillRun", "im-fra", "loss"]["metadata"]["annotations"] = {STOP: "a fair"}
    assert await operator(memory, beside).reconcile(KEY) is None
    assert (status(memory)["phase"], status(memory)["blockers"]) == ("Refused", ["a fair"])
    assert not beside.begun


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("Region", "two-idc", "Region two-idc is not in this namespace"),
        ("Secret", "imctl-admin", "Secret imctl-admin is not there"),
        ("Secret", "region-keys", "Secret region-keys is not there"),
        ("IDC", "dub", "IDC dub is not in the namespace im-fra"),
    ],
)
async def test_it_waits_for_what_it_needs(
    memory: Memory, beside: Beside, kind: str, name: str, why: str
) -> None:
    del memory.held[kind, "im-fra", name]
    assert await operator(memory, beside).reconcile(KEY) == WAIT_S
    assert (status(memory)["phase"], status(memory)["blocked_by"]) == ("Waiting", [why])
    assert not beside.begun and finalizers(memory) == []


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        ({"drills_from": []}, "takes no drills from here"),
        ({"drills_from": ["im-dub"]}, "takes no drills from here"),
        ({"region": "other"}, "is another one's"),
    ],
)
async def test_only_who_is_allowed_there_breaks_an_idc(
    memory: Memory, beside: Beside, theirs: dict[str, Any], why: str
) -> None:
    memory.held["IDC", "im-fra", "dub"]["spec"] |= theirs
    await operator(memory, beside).reconcile(KEY)
    (said,) = status(memory)["blocked_by"]
    assert why in said and not beside.begun


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"var": {"foe": "dub"}}, "--var foe: the drill idc-loss has these variables: victim"),
        ({"drill": None, "experiment": PAUSES}, "which is what can be done to pods"),
        (
            {"drill": None, "experiment": USERS},
            "loss: extensions[0].load.users: expected at most 500, got 501",
        ),
        ({"drill": "nothing"}, "expected a drill file, or one of"),
        ({"drill": None, "experiment": "- 1"}, "loss: expected an experiment"),
        ({"namespaces": {"sin": "im-sin"}}, "spec.namespaces: expected some of"),
    ],
)
async def test_what_is_wrong_in_it_is_refused_for_good(
    memory: Memory, beside: Beside, wrong: dict[str, Any], why: str
) -> None:
    memory.held["DrillRun", "im-fra", "loss"]["spec"] |= wrong
    assert await operator(memory, beside).reconcile(KEY) is None
    found = status(memory)
    assert (found["phase"], found["verdict"]) == ("Refused", "refused")
    assert any(why in each for each in found["blockers"]), found
    assert not beside.begun


async def test_a_preflight_that_refuses_is_told_rule_by_rule(
    memory: Memory, beside: Beside
) -> None:
    await operator(memory, beside).reconcile(KEY)
    said = "error: the preflight checks of idc-loss failed:\n  no-alarms: x\n  all-active: y"
    beside.end(3, said)
    await (again := operator(memory, beside)).reconcile(KEY)
    assert status(memory)["blockers"] == ["no-alarms: x", "all-active: y"]
    assert await again.reconcile(KEY) is None and finalizers(memory) == []


async def test_one_at_a_time(memory: Memory, beside: Beside) -> None:
    first = operator(memory, beside)
    await first.reconcile(KEY)
    memory.put("DrillRun", "next", spec=dict(SPEC))
    other = KEY._replace(name="next")
    assert await first.reconcile(other) == WAIT_S
    assert status(memory, "next")["blocked_by"] == ["DrillRun im-fra/loss is under way"]
    beside.end(0, outcome="pass")
    await first.reconcile(KEY)
    assert await first.reconcile(other) == FOLLOW_S and len(beside.begun) == 2


async def test_deleted_it_ends_and_undoes_before_it_goes(memory: Memory, beside: Beside) -> None:
    only = operator(memory, beside)
    await only.reconcile(KEY)
    delete(memory)
    assert await only.reconcile(KEY) == FOLLOW_S
    assert beside.stopped == ["uid-loss"] and finalizers(memory) == [FINALIZER]
    assert beside.hurried, "nobody waits for its judgement"
    beside.end(6, outcome="aborted", reason="ended by hand")
    await only.reconcile(KEY)
    await only.reconcile(KEY)
    assert status(memory)["verdict"] == "aborted" and finalizers(memory) == []


async def test_one_that_has_not_begun_goes_at_once(memory: Memory, beside: Beside) -> None:
    delete(memory)
    assert await operator(memory, beside).reconcile(KEY) is None
    assert not beside.begun and "status" not in memory.held["DrillRun", "im-fra", "loss"]


async def test_what_a_dead_operator_ran_is_undone_and_not_begun_again(memory: Memory) -> None:
    await operator(memory, Beside()).reconcile(KEY)
    beside = Beside()
    following = operator(memory, beside, "op-2")
    assert await following.reconcile(KEY) == FOLLOW_S
    found = status(memory)
    assert (found["phase"], found["verdict"], found["runner"]) == ("Undoing", "aborted", "op-2")
    assert "op-1 ended while it ran" in found["reason"]
    assert len(beside.undone) == 1 and not beside.begun

    beside.end(1, "error: dub does not answer")
    assert await following.reconcile(KEY) == AGAIN_S
    assert status(memory)["blocked_by"] == ["dub does not answer"]
    assert await following.reconcile(KEY) == FOLLOW_S and len(beside.undone) == 2
    beside.end(0)
    await following.reconcile(KEY)
    found = status(memory)
    assert (found["phase"], found["verdict"], found["blocked_by"]) == ("Ended", "aborted", [])
    assert await following.reconcile(KEY) is None and finalizers(memory) == []


@pytest.mark.parametrize("gone", ["Region", "Secret", "drills.enabled"])
async def test_deleted_it_goes_though_what_its_undoing_needs_is_gone_for_good(
    memory: Memory, beside: Beside, gone: str
) -> None:
    """As in a namespace that is given up. By then every fault is over by itself."""
    now = ["2026-01-01T00:00:00Z"]
    await operator(memory, beside).reconcile(KEY)
    memory.held.pop((gone, "im-fra", {"Region": "two-idc"}.get(gone, "region-keys")), None)
    following = Reconciler(
        memory, FIGURES, lambda: now[0], Nobody(), None if "." in gone else Beside(), "op-2",
        ["im-fra"],
    )  # fmt: skip
    await following.reconcile(KEY)
    now[0] = "2026-01-01T02:00:00Z"
    await following.reconcile(KEY)
    assert status(memory)["phase"] != "Ended", "it may come back, while nobody deletes the run"
    now[0] = "2026-01-01T03:00:00Z"
    delete(memory)
    await following.reconcile(KEY)
    for _ in range(2):
        await following.reconcile(KEY)
    found = status(memory)
    assert (found["phase"], found["verdict"], found["blocked_by"]) == ("Ended", "aborted", [])
    (left,) = found["left"]
    assert left.startswith("what it did may not be undone: ") and gone in left
    assert (memory.events[-1]["reason"], memory.events[-1]["message"]) == ("Left", left)
    assert finalizers(memory) == []


async def test_what_its_undoing_needs_is_waited_for_as_long_as_a_fault_may_last(
    memory: Memory,
) -> None:
    now = ["2026-01-01T00:00:00Z"]
    text = model.find("idc-loss").read_text()
    longer = text.replace("name: imctl", "name: imctl\n    fault_max_s: 900", 1)
    assert longer != text
    memory.held["DrillRun", "im-fra", "loss"]["spec"] |= {"drill": None, "experiment": longer}
    await operator(memory, Beside()).reconcile(KEY)
    delete(memory)
    region = memory.held.pop(("Region", "im-fra", "two-idc"))
    beside = Beside()
    following = Reconciler(memory, FIGURES, lambda: now[0], Nobody(), beside, "op-2", ["im-fra"])
    assert await following.reconcile(KEY) == WAIT_S
    now[0] = "2026-01-01T00:15:00Z"
    assert await following.reconcile(KEY) == WAIT_S
    assert status(memory)["phase"] == "Undoing"
    memory.held["Region", "im-fra", "two-idc"] = region
    assert await following.reconcile(KEY) == FOLLOW_S
    beside.end(1, "error: dub does not answer")
    await following.reconcile(KEY)
    del memory.held["Region", "im-fra", "two-idc"]
    now[0] = "2026-01-01T00:20:00Z"
    assert await following.reconcile(KEY) == WAIT_S, "since it is gone again"
    now[0] = "2026-01-01T00:35:01Z"
    assert await following.reconcile(KEY) == 0
    assert status(memory)["phase"] == "Ended"


async def test_faults_that_are_left_are_undone_and_the_verdict_stays(
    memory: Memory, beside: Beside
) -> None:
    only = operator(memory, beside)
    await only.reconcile(KEY)
    beside.end(5, outcome="deviated", reason="dub is down still", left=["dub is down still"])
    await only.reconcile(KEY)
    assert (status(memory)["phase"], status(memory)["left"]) == ("Undoing", ["dub is down still"])
    await only.reconcile(KEY)
    assert len(beside.undone) == 1
    beside.end(0)
    await only.reconcile(KEY)
    found = status(memory)
    assert (found["phase"], found["verdict"], found["left"]) == ("Ended", "deviated", [])
    assert found["report"]


async def test_one_without_a_report_shows_nothing(memory: Memory, beside: Beside) -> None:
    only = operator(memory, beside)
    await only.reconcile(KEY)
    beside.end(1, "error: no memory")
    await only.reconcile(KEY)
    found = status(memory)
    assert (found["phase"], found["verdict"]) == ("Undoing", "inconclusive")
    assert found["reason"] == "error: no memory"


async def test_one_of_a_schedule_does_not_wait_for_ever(memory: Memory, beside: Beside) -> None:
    held = memory.held["DrillRun", "im-fra", "loss"]
    held["spec"]["begin_within_s"] = 300
    held["metadata"]["creationTimestamp"] = "2025-12-31T23:56:00Z"
    del memory.held["IDC", "im-fra", "dub"]
    assert await operator(memory, beside).reconcile(KEY) == WAIT_S
    held = memory.held["DrillRun", "im-fra", "loss"]
    held["metadata"]["creationTimestamp"] = "2025-12-31T23:54:00Z"
    assert await operator(memory, beside).reconcile(KEY) is None
    (said,) = status(memory)["blockers"]
    assert said == ("it could not begin within 300 s: IDC dub is not in the namespace im-fra")


async def test_an_operator_that_runs_none_says_so(memory: Memory) -> None:
    assert await operator(memory, None).reconcile(KEY) is None
    assert "runs no drills" in status(memory)["blocked_by"][0]


def test_a_report_is_cut_to_what_an_object_holds() -> None:
    files = {"report.md": "x", "report.json": "{}", "report.html": "x" * OBJECT_BYTES}
    made = report_object(Owner("DrillRun", "im-fra", "loss", "0a1b2c3d4e", 1), files)
    assert set(made["data"]) == {"report.md", "report.json"}
    assert made["metadata"]["name"] == "loss-report-0a1b2c3d"


def test_the_ready_made_drills_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model.find("idc-loss").is_file()
