"""MirrorMaker 2 as a Replication has it run: its objects as golden files, and when they come and
go.

After a change that is meant: `REWRITE_GOLDEN=1 pytest tests/unit/test_operator_mirrors.py`, and
read the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from imcore.errors import Unavailable
from imcore.region.model import Region
from imctl.api.views import Mirror
from imctl.reconcile import mirrorobjects
from imctl.reconcile.cluster import Rejected
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.peers import Peers
from imctl.reconcile.reconciler import Key, Reconciler
from imctl.testing import golden
from tests.unit.test_operator_objects import FIGURES, region
from tests.unit.test_operator_reconciler import NOW, Memory

GOLDEN = Path(__file__).parent / "operator_golden"
FLOWS = Key("Replication", "im-fra", "flows", asks=True)
NAME = "mm2-into-fra"
WISH = {"idc": "fra", "secret": "kafka-client"}
SPEC = {"region": "two-idc", "certificate": "imctl-viewer", "mirror": WISH}
DEPLOYMENT, STRIMZI = ("Deployment", NAME), ("KafkaMirrorMaker2", NAME)


def on_kafka(mirror: Any = None, **more: str) -> Region:
    """Both IDCs. ``mirror``: of fra; ``more``: of its Kafka."""
    document = region().model_dump(mode="json", exclude_defaults=True)
    for idc in document["spec"]["idcs"]:
        kafka = {"brokers": [f"{idc['name']}:9093"], "ca_file": "/k/ca"}
        kafka |= {"cert_file": "/k/crt", "key_file": "/k/key"}
        idc["engines"] = {"log": {"kafka": kafka}, "mirror": {"mirrormaker2": {}}}
    fra = document["spec"]["idcs"][0]["engines"]
    fra["log"]["kafka"] |= more
    if mirror is not None:
        fra["mirror"] = mirror
    return Region.model_validate(document)


def made(of: Region, strimzi: bool) -> list[Object]:
    owner, wish = Owner("Replication", "im-fra", "flows", "0a1b", 3), Mirror.model_validate(WISH)
    shown = mirrorobjects.credentials(of, wish)
    assert shown is not None
    return mirrorobjects.objects(owner, wish, of, shown, strimzi)


@pytest.mark.parametrize("strimzi", [True, False])
def test_the_objects_are_as_they_were_read_and_found_good(strimzi: bool) -> None:
    text = yaml.safe_dump_all(made(on_kafka(), strimzi), sort_keys=False)
    golden.check(text, GOLDEN / f"mirror-{'strimzi' if strimzi else 'deployment'}.yaml")


def test_other_settings_are_another_pod() -> None:
    """It reads them when it starts."""
    pods = [
        made(of, False)[-1]["spec"]["template"]
        for of in (on_kafka(), on_kafka(), on_kafka(topic_prefix="chat"))
    ]
    assert pods[0] == pods[1] != pods[2]


def test_what_strimzi_cannot_show_is_left_to_a_deployment() -> None:
    of = on_kafka(username="im", password_file="/k/password")
    assert [each["kind"] for each in made(of, True)] == ["ConfigMap", "Deployment"]


# ---------------------------------------------------------------------------------- brought


class Nobody(Peers):
    """No IDC answers: it is of no matter here."""

    def __init__(self) -> None: ...

    async def status(self, region: Region, secret: Object, idc: str) -> dict[str, Any]:
        raise Unavailable(f"{idc} does not answer")


class WithKinds(Memory):
    strimzi = False

    async def knows(self, api: str, kind: str) -> bool:
        return self.strimzi

    def region(self, of: Region) -> None:
        self.put("Region", "two-idc", spec=of.spec.model_dump(mode="json", exclude_defaults=True))

    def mirrors(self) -> set[tuple[str, str]]:
        kinds = {kind for _, kind in mirrorobjects.KINDS}
        return {(kind, name) for kind, _, name in self.held if kind in kinds}

    def is_ready(self, kind: str) -> None:
        found = self.held[kind, "im-fra", NAME]
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        found["status"] = {"updatedReplicas": 1, "readyReplicas": 1, **ready}

    def mirrored(self) -> tuple[str, str, str]:
        (found,) = [
            each
            for each in self.status("Replication", "flows")["conditions"]
            if each["type"] == "Mirrored"
        ]
        return found["status"], found["reason"], found["message"]


@pytest.fixture
def memory() -> WithKinds:
    found = WithKinds()
    found.region(on_kafka())
    found.put("Secret", "imctl-viewer", data={})
    found.put("Secret", "kafka-client", data=dict.fromkeys(("ca.crt", "tls.crt", "tls.key"), ""))
    found.put("Replication", "flows", spec=SPEC)
    return found


@pytest.fixture
def reconciler(memory: WithKinds) -> Reconciler:
    return Reconciler(memory, FIGURES, lambda: NOW, Nobody())


@pytest.mark.parametrize("strimzi", [True, False])
async def test_it_is_made_repaired_and_said_to_be_ready(
    memory: WithKinds, reconciler: Reconciler, strimzi: bool
) -> None:
    memory.strimzi = strimzi
    kind = STRIMZI[0] if strimzi else DEPLOYMENT[0]
    await reconciler.reconcile(FLOWS)
    assert memory.mirrors() == ({STRIMZI} if strimzi else {DEPLOYMENT, ("ConfigMap", NAME)})
    assert memory.mirrored() == ("False", "NotReady", f"{kind} {NAME}: it was made just now")
    memory.is_ready(kind)
    await reconciler.reconcile(FLOWS)
    assert memory.mirrored() == ("True", "Ready", f"{kind} {NAME}")
    assert memory.status("Replication", "flows")["mirror"] == f"{kind} {NAME}"
    written = len(memory.written)
    await reconciler.reconcile(FLOWS)
    assert len(memory.written) == written  # nothing has changed

    wanted = memory.held.pop((kind, "im-fra", NAME))
    await reconciler.reconcile(FLOWS)
    assert memory.held[kind, "im-fra", NAME]["spec"] == wanted["spec"]
    if not strimzi:
        del memory.held["ConfigMap", "im-fra", NAME]
        await reconciler.reconcile(FLOWS)
        assert ("ConfigMap", NAME) in memory.mirrors()
    edited = memory.held[kind, "im-fra", NAME]
    edited["spec"] = edited["spec"] | {"replicas": 2}
    edited["metadata"] = edited["metadata"] | {"resourceVersion": "edited"}
    await reconciler.reconcile(FLOWS)
    assert memory.held[kind, "im-fra", NAME]["spec"]["replicas"] == 1


async def test_it_goes_with_the_wish_of_the_region(
    memory: WithKinds, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(FLOWS)
    memory.put("ConfigMap", "mm2-of-others", data={})
    memory.region(on_kafka(mirror="embedded"))
    await reconciler.reconcile(FLOWS)
    assert memory.mirrors() == {("ConfigMap", "mm2-of-others")}
    assert memory.mirrored()[:2] == ("False", "NotWanted")
    assert "mirror" not in memory.status("Replication", "flows")


async def test_it_goes_with_the_wish_of_the_replication(
    memory: WithKinds, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(FLOWS)
    spec = {name: part for name, part in SPEC.items() if name != "mirror"}
    memory.held["Replication", "im-fra", "flows"]["spec"] = spec
    again = Reconciler(memory, FIGURES, lambda: NOW, Nobody())  # one that has made nothing
    await again.reconcile(FLOWS)
    assert memory.mirrors() == set()
    conditions = memory.status("Replication", "flows")["conditions"]
    assert [each["type"] for each in conditions] == ["WithinObjective"]


async def test_there_is_one_of_it_when_strimzi_comes(
    memory: WithKinds, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(FLOWS)
    memory.strimzi = True
    await reconciler.reconcile(FLOWS)
    assert memory.mirrors() == {STRIMZI}
    memory.strimzi = False
    del memory.held["KafkaMirrorMaker2", "im-fra", NAME]  # as its kind goes
    await reconciler.reconcile(FLOWS)
    assert DEPLOYMENT in memory.mirrors()


@pytest.mark.parametrize(
    ("put", "said"),
    [
        ({"idc": "sin"}, "mirror.idc: expected one of fra, dub, got 'sin'"),
        ({"secret": "none"}, "Secret none is not there"),
        ({"secret": "imctl-viewer"}, "Secret imctl-viewer has no ca.crt, tls.crt, tls.key"),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_is_touched(
    memory: WithKinds, reconciler: Reconciler, put: dict[str, str], said: str
) -> None:
    await reconciler.reconcile(FLOWS)
    before = memory.mirrors()
    memory.held["Replication", "im-fra", "flows"]["spec"] = SPEC | {"mirror": WISH | put}
    await reconciler.reconcile(FLOWS)
    assert memory.mirrored() == ("False", "Blocked", said)
    assert memory.mirrors() == before
    memory.held["Replication", "im-fra", "flows"]["spec"] = SPEC
    del memory.held["Region", "im-fra", "two-idc"]
    await reconciler.reconcile(FLOWS)
    assert memory.mirrors() == before
    unknown = "Region two-idc is not in this namespace"
    assert memory.mirrored() == ("Unknown", "Blocked", unknown)


async def test_it_needs_no_viewer(memory: WithKinds, reconciler: Reconciler) -> None:
    del memory.held["Secret", "im-fra", "imctl-viewer"]
    await reconciler.reconcile(FLOWS)
    assert DEPLOYMENT in memory.mirrors()
    assert memory.mirrored()[1] == "NotReady"
    said = memory.status("Replication", "flows")["blocked_by"]
    assert said == ["Secret imctl-viewer is not there"]


async def test_what_the_api_server_does_not_take_is_said(
    memory: WithKinds, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def apply_all(*_: object) -> None:
        raise Rejected("no pods here")

    monkeypatch.setattr(memory, "apply_all", apply_all)
    await reconciler.reconcile(FLOWS)
    assert memory.mirrored() == ("False", "Rejected", "no pods here")
