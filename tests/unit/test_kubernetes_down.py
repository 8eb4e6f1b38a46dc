"""`imctl down` on Kubernetes, against objects in memory and an operator that looks at them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from imcore import pki
from imctl.api.kinds import API_VERSION
from imctl.errors import Failed
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.observed import Object
from imctl.reconcile.reconciler import Key, Reconciler
from imctl.target import kubernetes as module
from imctl.target.kubernetes import Kubernetes
from imctl.target.places import Places
from imctl.target.runfile import RunFile
from services.control.rules import Blocker
from tests.unit.test_operator_objects import FIGURES, REGIONS, region
from tests.unit.test_operator_reconciler import NOW, Memory
from tests.unit.test_operator_runs import World

NAMESPACE = "im-fra"
SITES = {
    "sites": {name: {"namespace": NAMESPACE} for name in ("fra", "dub", "witness")},
    "spec": {"image": "imctl:1"},
}


class Server(Memory):
    """What is deleted goes when no finalizer holds it; pods as long after as they take."""

    def __init__(self) -> None:
        super().__init__()
        self.ending: dict[tuple[str, str, str], float] = {}  # pods, and until when

    def pod(self, name: str, grace_s: int, **labels: str) -> None:
        self.put("Pod", name, spec={"terminationGracePeriodSeconds": grace_s})
        self.held["Pod", NAMESPACE, name]["metadata"]["labels"] = labels

    async def get(
        self, api: str, kind: str, namespace: str, name: str, limit_s: float = 0
    ) -> Object | None:
        self.end()
        return await super().get(api, kind, namespace, name)

    async def list(self, api: str, kind: str, namespace: str, labels: str = "") -> list[Object]:
        self.end()
        wanted = [one.partition("=")[::2] for one in labels.split(",") if one]
        return [
            each
            for each in await super().list(api, kind, namespace)
            if all(each["metadata"].get("labels", {}).get(key) == said for key, said in wanted)
        ]

    def end(self) -> None:
        for key, until in list(self.ending.items()):
            if time.monotonic() > until:
                del self.ending[key]
                self.held.pop(key, None)

    async def finalizers(self, document: Object, names: Any) -> None:
        await super().finalizers(document, names)
        key = document["kind"], NAMESPACE, document["metadata"]["name"]
        if not names and "deletionTimestamp" in self.held[key]["metadata"]:
            self.gone(key)

    async def delete(
        self, api: str, kind: str, namespace: str, name: str, at_once: bool = False
    ) -> None:
        key = kind, namespace, name
        if key not in self.held:
            return
        metadata = self.held[key]["metadata"]
        metadata["deletionTimestamp"] = NOW
        if not metadata.get("finalizers"):
            self.gone(key)

    def gone(self, key: tuple[str, str, str]) -> None:
        """With its pods, which take three fifths of their time."""
        del self.held[key]
        for each, document in self.held.items():
            mine = key[2] in document["metadata"].get("labels", {}).values()
            if each[0] == "Pod" and (each[2].startswith(key[2]) or mine):
                grace_s = document["spec"]["terminationGracePeriodSeconds"]
                self.ending.setdefault(each, time.monotonic() + grace_s * 0.6)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "POD_S", 0.5)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    found = Server()
    spec = region().spec.model_dump(mode="json", exclude_defaults=True)
    found.put("Region", "two-idc", spec=spec)
    found.put("Secret", "imctl-operator", data={})
    yield found


@pytest.fixture
def world() -> World:
    found = World()
    sentence = "the last active IDC"
    found.blockers = (Blocker("active-idcs-min", "0", "1", sentence),)
    return found


@pytest.fixture
def target(
    server: Server, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Kubernetes:
    """Whatever it asks for, an operator has looked at since when it asks again."""
    pki.init(tmp_path / "pki", {"admin": ()}, pki.utc_now(1_767_225_600_000))
    (tmp_path / "sites.yaml").write_text(yaml.safe_dump(SITES))
    run = RunFile(str(REGIONS / "two-idc.yaml"), False, "", elsewhere=True, sites=SITES)
    reconciler = Reconciler(server, FIGURES, lambda: NOW, world)

    async def looked(work: Callable[[Cluster], Awaitable[Any]]) -> Any:
        done = await work(server)
        for name in ("fra", "dub"):
            await reconciler.reconcile(Key("IDC", NAMESPACE, name, asks=True))
        return done

    monkeypatch.setattr(Kubernetes, "_at", lambda _, __, work: asyncio.run(looked(work)))
    return Kubernetes(region(), tmp_path, run, Places(tmp_path))


def deploy(target: Kubernetes, server: Server, **spec: Any) -> None:
    for name in ("fra", "dub"):
        own = {
            "region": "two-idc", "idc": name, "image": "imctl:1",
            "certificates": {"secret": "x", "region_keys": "y"},
        }  # fmt: skip
        server.put("IDC", name, spec=own | spec)
    server.put("Witness", "witness", spec={"region": "two-idc"})
    target._look("fra")


def test_all_idcs_go_though_none_may_be_drained_last(target: Kubernetes, server: Server) -> None:
    deploy(target, server, role_certificate="imctl-operator")
    assert server.held["IDC", NAMESPACE, "fra"]["metadata"]["finalizers"]
    target.stop()
    assert {kind for kind, _, _ in server.held} == {"Region", "Secret"}


def test_what_keeps_an_idc_is_said(
    target: Kubernetes, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(target, server, role_certificate="imctl-operator")
    asyncio.run(server.delete(API_VERSION, "IDC", NAMESPACE, "fra"))
    target._look("fra")
    assert target.trouble("fra").startswith("active-idcs-min: the last active IDC")


@pytest.mark.parametrize("pods", ["fra-idc-0", "fra-gateway-1"])
def test_pods_have_the_time_that_they_are_given_to_end(
    target: Kubernetes, server: Server, pods: str
) -> None:
    deploy(target, server)
    labels = {"component": "gateway", "instance": "fra"} if "gateway" in pods else {}
    named = {f"app.kubernetes.io/{key}": said for key, said in labels.items()}
    server.pod(pods, 2, **named)
    target.stop()
    assert ("Pod", NAMESPACE, pods) not in server.held


def test_one_that_does_not_end_is_said(target: Kubernetes, server: Server) -> None:
    deploy(target, server)
    server.pod("fra-idc-0", 0)
    server.ending["Pod", NAMESPACE, "fra-idc-0"] = time.monotonic() + 60
    with pytest.raises(Failed, match="fra waits for its end"):
        target.stop()
