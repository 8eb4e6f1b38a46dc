"""The operator's loop against a store of objects in memory: what it applies, says and leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from imcore.errors import Unavailable
from imctl.api.kinds import API_VERSION
from imctl.reconcile import reconciler as module
from imctl.reconcile.applied import Name
from imctl.reconcile.cluster import MANAGER, Cluster, Conflict, Rejected
from imctl.reconcile.lease import NotLeading
from imctl.reconcile.objects import DOWN_UNTIL, hash_of
from imctl.reconcile.observed import Object
from imctl.reconcile.peers import Peers
from imctl.reconcile.reconciler import SOON_MAX_S, SOON_S, Key, Reconciler
from tests.unit.test_operator_objects import FIGURES, IDC, region

NOW = "2026-01-01T00:00:00Z"
KEY = Key("IDC", "im-fra", "fra")
NAMES = {
    "ServiceAccount",
    "ConfigMap",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
    "StatefulSet",
}


class Memory(Cluster):
    """Keeps whole documents; no defaults, no schemas."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, str], Object] = {}
        self.parts: dict[tuple[tuple[str, str, str], str], Object] = {}  # of statuses, by manager
        self.events: list[Object] = []
        self.written: list[str] = []
        self.asked: list[str] = []  # whose an object of this kind is
        self.trouble: Exception | None = None
        self.refuses = ""  # this kind

    def put(self, kind: str, name: str, **body: Any) -> None:
        metadata = {"namespace": "im-fra", "name": name, "uid": f"uid-{name}", "generation": 1}
        document = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, **body}
        self.held[kind, "im-fra", name] = document

    async def get(
        self, api: str, kind: str, namespace: str, name: str, limit_s: float = 0
    ) -> Object | None:
        return self.held.get((kind, namespace, name))

    async def serves(self, api: str) -> bool:
        return False

    async def list(self, api: str, kind: str, namespace: str, labels: str = "") -> list[Object]:
        return [each for (k, ns, _), each in self.held.items() if (k, ns) == (kind, namespace)]

    async def named(self, wanted: Object) -> Object | None:
        self.asked.append(wanted["kind"])
        metadata = wanted["metadata"]
        return self.held.get((wanted["kind"], metadata["namespace"], metadata["name"]))

    async def apply(self, wanted: Object, status: bool = False, manager: str = MANAGER) -> Object:
        if self.trouble is not None:
            raise self.trouble
        if wanted["kind"] == self.refuses:
            raise Rejected(f"{self.refuses} is refused")
        metadata = wanted["metadata"]
        key = wanted["kind"], metadata["namespace"], metadata["name"]
        there = self.held.get(key, {}).get("metadata", {})
        if "uid" in metadata and metadata["uid"] != there.get("uid"):
            raise Conflict(f"{metadata['name']}: another one has its name, or it is gone")
        self.written.append(wanted["kind"])
        if status:
            self.parts[key, manager] = wanted["status"]
            self.held[key] = {**self.held[key], "status": self._merged(key)}
        elif manager != MANAGER and key in self.held:  # a few fields of what is there
            held = self.held[key]
            spec = {**held.get("spec", {}), **wanted.get("spec", {})}
            self.held[key] = {**held, "metadata": _over(held["metadata"], metadata), "spec": spec}
        else:
            version = hash_of(wanted)
            uid = f"uid-{metadata['name']}"
            given = {"uid": uid, **metadata, "resourceVersion": version}
            self.held[key] = {**wanted, "metadata": given}
        return self.held[key]

    def _merged(self, key: tuple[str, str, str]) -> Object:
        """Each manager has fields and conditions of its own."""
        parts = [part for (of, _), part in self.parts.items() if of == key]
        conditions = [each for part in parts for each in part.get("conditions", ())]
        merged: Object = {}
        for part in parts:
            merged |= part
        return merged | ({"conditions": conditions} if conditions else {})

    async def finalizers(self, document: Object, names: Sequence[str]) -> None:
        metadata = document["metadata"]
        held = self.held[document["kind"], metadata["namespace"], metadata["name"]]
        held["metadata"] = held["metadata"] | {"finalizers": list(names)}

    async def annotate(self, document: Object, annotations: dict[str, str]) -> None:
        metadata = document["metadata"]
        held = self.held[document["kind"], metadata["namespace"], metadata["name"]]
        held["metadata"] = held["metadata"] | {"annotations": annotations}

    async def event(self, body: Object) -> None:
        self.events.append(body)

    async def delete(
        self, api: str, kind: str, namespace: str, name: str, at_once: bool = False
    ) -> None:
        del self.held[kind, namespace, name]

    def status(self, kind: str = "IDC", name: str = "fra") -> Object:
        found: Object = self.held[kind, "im-fra", name]["status"]
        return found

    def serve(self) -> None:
        """The pod that a cluster would make."""
        template = self.held["StatefulSet", "im-fra", "fra-idc"]["spec"]["template"]
        self.put("Pod", "fra-idc-0", status={"conditions": [{"type": "Ready", "status": "True"}]})
        metadata = self.held["Pod", "im-fra", "fra-idc-0"]["metadata"]
        metadata["annotations"] = template["metadata"]["annotations"]


def _over(held: Object, given: Object) -> Object:
    annotations = {**held.get("annotations", {}), **given.get("annotations", {})}
    return {**held, **given} | ({"annotations": annotations} if annotations else {})


class Nobody(Peers):
    """No region is reached, nor asked for."""

    def __init__(self) -> None: ...


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.put("IDC", "fra", spec=IDC.model_dump(mode="json", exclude_none=True))
    spec = region().spec.model_dump(mode="json", exclude_defaults=True)
    found.put("Region", "two-idc", spec=spec)
    found.put("Secret", "fra-certificate", data=dict.fromkeys(("ca.crt", "tls.crt", "tls.key"), ""))
    found.put("Secret", "region-keys", data={"region-keys.json": ""})
    return found


@pytest.fixture
def reconciler(memory: Memory) -> Reconciler:
    return Reconciler(memory, FIGURES, lambda: NOW, Nobody())


async def test_an_idc_comes_to_serve(memory: Memory, reconciler: Reconciler) -> None:
    assert await reconciler.reconcile(KEY) == SOON_S
    assert {kind for kind, _, _ in memory.held} >= NAMES
    assert memory.status()["phase"] == "Starting"
    memory.serve()
    assert await reconciler.reconcile(KEY) is None
    status = memory.status()
    assert (status["phase"], status["ready"], status["pod"]) == ("Serving", True, "fra-idc-0")
    assert [each["reason"] for each in memory.events] == ["Starting", "Serving"]


async def test_done_again_it_writes_the_same_and_says_nothing(
    memory: Memory, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    held, events = dict(memory.held), len(memory.events)
    memory.written.clear()
    await reconciler.reconcile(KEY)
    assert memory.held == held
    assert len(memory.events) == events
    assert "IDC" not in memory.written  # no status: it would come back as an event


async def test_what_somebody_deleted_or_edited_is_repaired(
    memory: Memory, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    wanted = dict(memory.held)
    del memory.held["Service", "im-fra", "fra-idc-peer"]
    memory.held["StatefulSet", "im-fra", "fra-idc"] = {"spec": {"replicas": 0}}
    reconciler.owned(KEY, Name("Service", "im-fra", "fra-idc-peer"), "")  # kopf watches these
    reconciler.owned(KEY, Name("StatefulSet", "im-fra", "fra-idc"), "7")
    await reconciler.reconcile(KEY)
    assert memory.held == wanted


async def test_what_is_not_watched_is_repaired_within_a_minute(
    memory: Memory, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.05)
    await reconciler.reconcile(KEY)
    wanted = dict(memory.held)
    del memory.held["NetworkPolicy", "im-fra", "fra-idc"]
    await reconciler.reconcile(KEY)
    assert memory.held != wanted
    running = asyncio.ensure_future(reconciler.run())
    await asyncio.sleep(0.3)
    running.cancel()
    assert memory.held == wanted


async def test_what_stands_is_not_sent_again(memory: Memory, reconciler: Reconciler) -> None:
    await reconciler.reconcile(KEY)
    memory.written.clear()
    await reconciler.reconcile(KEY)
    assert memory.written == []
    name = Name("StatefulSet", "im-fra", "fra-idc")
    version = memory.held[name]["metadata"]["resourceVersion"]
    reconciler.owned(KEY, name, version)  # of what it has just applied itself
    await reconciler.reconcile(KEY)
    assert memory.written == []
    reconciler.owned(KEY, name, "other")
    memory.held["IDC", "im-fra", "fra"]["spec"]["service"] = "LoadBalancer"
    await reconciler.reconcile(KEY)
    assert memory.written == ["Service", "Service", "StatefulSet"]


@pytest.mark.parametrize("kind", ["Service", "ServiceAccount", "NetworkPolicy", "StatefulSet"])
async def test_what_somebody_else_has_made_is_not_written_over(
    memory: Memory, reconciler: Reconciler, kind: str
) -> None:
    name = "fra-idc-peer" if kind == "Service" else "fra-idc"
    memory.put(kind, name, spec={"of": "theirs"})
    theirs = memory.held[kind, "im-fra", name]
    said = (
        f"{kind} {name} is somebody else's: delete it, or label it "
        "app.kubernetes.io/managed-by=imctl-operator to have it taken over"
    )
    for _ in range(2):
        with pytest.raises(Rejected):
            await reconciler.reconcile(KEY)
        assert memory.status()["blocked_by"] == [said]
        assert memory.held[kind, "im-fra", name] == theirs
    theirs["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "imctl-operator"}
    await reconciler.reconcile(KEY)
    assert memory.status()["phase"] == "Starting"
    assert memory.held[kind, "im-fra", name].get("spec") != {"of": "theirs"}


async def test_whose_an_object_is_is_asked_once(memory: Memory, reconciler: Reconciler) -> None:
    await reconciler.reconcile(KEY)
    assert len(memory.asked) == len(memory.written) - 1  # the status
    memory.asked.clear()
    memory.held["IDC", "im-fra", "fra"]["spec"]["service"] = "LoadBalancer"
    await reconciler.reconcile(KEY)
    assert memory.asked == []
    name = Name("Service", "im-fra", "fra-idc-peer")
    memory.put("Service", "fra-idc-peer", spec={"of": "theirs"})
    reconciler.owned(KEY, name, "")  # ours was deleted, and one made in its place
    with pytest.raises(Rejected, match="Service fra-idc-peer is somebody else's"):
        await reconciler.reconcile(KEY)
    assert memory.asked == ["Service"]


async def test_what_was_made_for_it_is_taken_by_another_operator(memory: Memory) -> None:
    """Also when somebody has taken the label away."""
    await Reconciler(memory, FIGURES, lambda: NOW, Nobody()).reconcile(KEY)
    wanted = dict(memory.held)
    held = memory.held["Service", "im-fra", "fra-idc-peer"]
    mine = {name: held["metadata"][name] for name in ("name", "namespace", "ownerReferences")}
    memory.held["Service", "im-fra", "fra-idc-peer"] = {**held, "metadata": mine}
    await Reconciler(memory, FIGURES, lambda: NOW, Nobody()).reconcile(KEY)
    assert memory.held == wanted


async def test_what_does_not_change_is_looked_at_less_and_less_often(
    memory: Memory, reconciler: Reconciler
) -> None:
    waits = [await reconciler.reconcile(KEY) for _ in range(9)]
    assert waits[:2] == [SOON_S, SOON_S * 1.5] and waits[-1] == SOON_MAX_S
    memory.serve()
    assert await reconciler.reconcile(KEY) is None
    del memory.held["Pod", "im-fra", "fra-idc-0"]
    assert await reconciler.reconcile(KEY) == SOON_S


async def test_a_mark_of_a_drill_takes_the_pod_away_and_no_longer_brings_it_back(
    memory: Memory, reconciler: Reconciler
) -> None:
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["spec"]["drills_from"] = ["im-fra"]
    idc["metadata"]["annotations"] = {DOWN_UNTIL: "2026-01-01T00:05:00Z"}
    assert await reconciler.reconcile(KEY) == SOON_S  # by itself, when the time is over
    workload = memory.held["StatefulSet", "im-fra", "fra-idc"]["spec"]
    assert (workload["replicas"], memory.status()["phase"]) == (0, "Down")
    del memory.held["IDC", "im-fra", "fra"]["metadata"]["annotations"]
    await reconciler.reconcile(KEY)
    workload = memory.held["StatefulSet", "im-fra", "fra-idc"]["spec"]
    assert (workload["replicas"], memory.status()["phase"]) == (1, "Starting")


async def test_what_a_drill_took_comes_back_though_the_rest_is_refused(memory: Memory) -> None:
    now = ["2026-01-01T00:00:00Z"]
    reconciler = Reconciler(memory, FIGURES, lambda: now[0], Nobody())
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["spec"]["drills_from"] = ["im-fra"]
    idc["metadata"]["annotations"] = {DOWN_UNTIL: "2026-01-01T00:05:00Z"}
    await reconciler.reconcile(KEY)
    memory.held["IDC", "im-fra", "fra"]["spec"]["service"] = "NodePort"
    memory.refuses = "Service"
    now[0] = "2026-01-01T00:05:00Z"
    with pytest.raises(Rejected):
        await reconciler.reconcile(KEY)
    assert memory.held["StatefulSet", "im-fra", "fra-idc"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("change", ["paused", "blocked", "deleted"])
async def test_what_a_drill_took_comes_back_though_its_idc_is_left_as_it_is(
    memory: Memory, change: str
) -> None:
    now = ["2026-01-01T00:00:00Z"]
    reconciler = Reconciler(memory, FIGURES, lambda: now[0], Nobody())
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["spec"]["drills_from"] = ["im-fra"]
    idc["metadata"]["annotations"] = {DOWN_UNTIL: "2026-01-01T00:05:00Z"}
    await reconciler.reconcile(KEY)
    before = memory.held["StatefulSet", "im-fra", "fra-idc"]
    idc = memory.held["IDC", "im-fra", "fra"]
    if change == "paused":
        idc["spec"]["paused"] = True
    elif change == "blocked":
        del memory.held["Secret", "im-fra", "region-keys"]
    else:
        idc["metadata"]["deletionTimestamp"] = NOW
    assert [await reconciler.reconcile(KEY) for _ in range(3)] == [SOON_S] * 3
    assert memory.held["StatefulSet", "im-fra", "fra-idc"]["spec"]["replicas"] == 0
    now[0] = "2026-01-01T00:05:00Z"
    await reconciler.reconcile(KEY)
    after = memory.held["StatefulSet", "im-fra", "fra-idc"]["spec"]
    assert after == before["spec"] | {"replicas": 1}

    memory.held["StatefulSet", "im-fra", "fra-idc"]["spec"]["replicas"] = 0  # by hand
    await reconciler.reconcile(KEY)
    assert memory.held["StatefulSet", "im-fra", "fra-idc"]["spec"]["replicas"] == 0


async def test_region_files_go_when_no_pod_uses_them(
    memory: Memory, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(KEY)
    memory.serve()
    memory.put("ConfigMap", "somebody-elses")
    spec = memory.held["Region", "im-fra", "two-idc"]["spec"]
    spec["client"] = {"grace_ms": 11_000}
    await reconciler.reconcile(KEY)
    maps = [name for kind, _, name in memory.held if kind == "ConfigMap"]
    assert len(maps) == 3  # the pod's, the next one's, and what is not ours
    assert memory.status()["outdated"]
    memory.serve()  # it was deleted, and came back
    await reconciler.reconcile(KEY)
    assert len([name for kind, _, name in memory.held if kind == "ConfigMap"]) == 2
    assert not memory.status()["outdated"]


async def test_a_missing_secret_is_told_and_waited_for(
    memory: Memory, reconciler: Reconciler
) -> None:
    del memory.held["Secret", "im-fra", "region-keys"]
    assert await reconciler.reconcile(KEY) == SOON_S
    assert memory.status()["blocked_by"] == ["Secret region-keys is not there"]
    assert memory.events[-1]["type"] == "Warning"
    memory.put("Secret", "region-keys", data={"region-keys.json": ""})
    await reconciler.reconcile(KEY)
    assert memory.status()["phase"] == "Starting"


async def test_an_invalid_region_says_what_is_wrong(memory: Memory, reconciler: Reconciler) -> None:
    memory.held["Region", "im-fra", "two-idc"]["spec"].pop("witness")
    await reconciler.reconcile(Key("Region", "im-fra", "two-idc"))
    status = memory.status("Region", "two-idc")
    assert status["phase"] == "Invalid"
    assert any("a witness, because two IDCs alone" in each for each in status["problems"])


async def test_a_ready_condition_keeps_its_time(memory: Memory) -> None:
    times = iter(f"2026-01-01T00:00:{second:02}Z" for second in range(60))
    reconciler = Reconciler(memory, FIGURES, lambda: next(times), Nobody())
    await reconciler.reconcile(KEY)
    first = memory.status()["conditions"][0]["lastTransitionTime"]
    del memory.held["Secret", "im-fra", "region-keys"]
    await reconciler.reconcile(KEY)
    assert memory.status()["conditions"][0]["lastTransitionTime"] == first
    assert memory.status()["conditions"][0]["reason"] == "Blocked"


async def test_one_that_is_gone_is_forgotten(memory: Memory, reconciler: Reconciler) -> None:
    del memory.held["IDC", "im-fra", "fra"]
    assert await reconciler.reconcile(KEY) is None
    assert memory.written == []


async def running(reconciler: Reconciler) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(reconciler.run())
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(what: Any) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("trouble", [Unavailable("no"), KeyError("a mistake of ours")])
async def test_what_fails_is_tried_again_and_holds_nobody_up(
    memory: Memory, reconciler: Reconciler, trouble: Exception
) -> None:
    memory.trouble = trouble
    async for _ in running(reconciler):
        reconciler.look(KEY)
        await asyncio.sleep(0.05)
        memory.trouble = None
        reconciler.look(Key("Region", "im-fra", "two-idc"))
        await until(lambda: "status" in memory.held["Region", "im-fra", "two-idc"])
        await until(lambda: "status" in memory.held["IDC", "im-fra", "fra"])


async def test_a_rejected_object_is_said_in_the_status(
    memory: Memory, reconciler: Reconciler
) -> None:
    class Picky(Memory):
        async def apply(
            self, wanted: Object, status: bool = False, manager: str = MANAGER
        ) -> Object:
            if wanted["kind"] == "StatefulSet":
                raise Rejected("storage is forbidden")
            return await super().apply(wanted, status, manager)

    picky = Picky()
    picky.held = memory.held
    with pytest.raises(Rejected):
        await Reconciler(picky, FIGURES, lambda: NOW, Nobody()).reconcile(KEY)
    assert picky.status()["blocked_by"] == ["storage is forbidden"]
    assert picky.status()["phase"] == "Blocked"


async def test_who_does_not_lead_any_more_ends(memory: Memory, reconciler: Reconciler) -> None:
    memory.trouble = NotLeading("lost")
    reconciler.look(KEY)
    with pytest.raises(ExceptionGroup) as raised:
        await reconciler.run()
    assert raised.group_contains(NotLeading)
