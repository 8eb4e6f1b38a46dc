"""The gateways of an IDC on Kubernetes: their objects as golden files, what is decided about them,
and the loop around it."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
import yaml

from imcore.errors import Unavailable
from imcore.region.model import Region
from imctl.api.gateways import Autoscaling, GatewayClusterSpec, Rollout
from imctl.api.kinds import GATEWAY_CLUSTER
from imctl.api.kinds import IDC as IDC_KIND
from imctl.api.model import IdcSpec, Resources, Toleration
from imctl.reconcile import reconciler as reconciling
from imctl.reconcile.beside import Decision
from imctl.reconcile.cluster import Rejected
from imctl.reconcile.gatewayobjects import Fronts, grace_s, objects
from imctl.reconcile.gateways import Seen, decide
from imctl.reconcile.objects import DOWN_UNTIL, TEMPLATE
from imctl.reconcile.objects import objects as idc_objects
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.reconciler import SOON_MAX_S, SOON_S, Key, Reconciler
from imctl.reconcile.steps import Step, step_of, template_of
from imctl.testing import golden
from tests.unit.test_operator_objects import BY_ISSUER, FIGURES, GOLDEN, IDC, region, with_quic
from tests.unit.test_operator_reconciler import Memory, Nobody
from tests.unit.test_operator_runs import World

OWNER = Owner("GatewayCluster", "im-fra", "fra", "0a1b", 3)
SPEC = GatewayClusterSpec(idc="fra")
APART = IDC.model_copy(update={"gateways": "apart"})
ASKED = APART.model_copy(update={"role_certificate": "imctl-viewer"})
DRILLED = APART.model_copy(update={"drills_from": ["im-fra"]})
RICH = GatewayClusterSpec(
    idc="fra",
    autoscaling=Autoscaling(min=3, max=4, connections=8000),
    image="imctl:2",
    resources=Resources(cpu="2", memory="3Gi"),
    rollout=Rollout(keep=1, min_ready_s=30, max_unavailable=2),
    node_selector={"edge": "yes"},
    tolerations=[Toleration(key="edge", operator="Exists")],
    priority_class="messages",
)
OUTSIDE = APART.model_copy(
    update={"service": "NodePort", "certificates": BY_ISSUER, "image_pull_secret": "registry"}
)
CASES: dict[str, tuple[GatewayClusterSpec, IdcSpec]] = {
    "gateways": (SPEC, APART),
    "gateways-with-all": (RICH, OUTSIDE),
}


def roomy(gateways: int = 4) -> Region:
    """With so many gateways in fra."""
    found = region()
    idcs = [
        each.model_copy(update={"gateways": gateways}) if each.name == "fra" else each
        for each in found.spec.idcs
    ]
    return found.model_copy(update={"spec": found.spec.model_copy(update={"idcs": idcs})})


def made(spec: GatewayClusterSpec = SPEC, idc: IdcSpec = APART) -> list[Object]:
    return objects(Fronts(OWNER, spec, idc, roomy()), FIGURES)


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    text = yaml.safe_dump_all(made(*CASES[case]), sort_keys=False, width=100)
    golden.check(text, GOLDEN / f"{case}.yaml")


def test_an_idc_with_its_gateways_apart_has_none_of_its_own() -> None:
    owner = Owner("IDC", "im-fra", "fra", "0a1b", 3)
    whole = idc_objects(owner, APART, roomy(), FIGURES)
    (container,) = whole[-1]["spec"]["template"]["spec"]["containers"]
    args = " ".join(container["args"])
    assert "--roles im,route,ipconf,control" in args
    assert [port["name"] for port in container["ports"]] == ["ipconf", "peer", "metrics"]
    # Its ipconf answers without gateways too: by its own word it would be out of service with them.
    ipconf = container["ports"][0]["containerPort"]
    assert container["readinessProbe"]["tcpSocket"]["port"] == ipconf
    (clients,) = [each for each in whole if each["metadata"]["name"] == "fra-idc-clients"]
    assert [port["name"] for port in clients["spec"]["ports"]] == ["ipconf"]


def test_each_gateway_has_a_service_at_the_port_that_ipconf_tells() -> None:
    first = int(roomy().idc("fra").endpoints.gateway.rpartition(":")[2])
    ports = {
        each["spec"]["selector"]["statefulset.kubernetes.io/pod-name"]: each["spec"]["ports"]
        for each in made()
        if each["kind"] == "Service" and "clusterIP" not in each["spec"]
    }
    assert {name: port["port"] for name, (port,) in ports.items()} == {
        "fra-gateway-1": first,
        "fra-gateway-2": first + 1,
    }


@pytest.mark.parametrize("idc", [APART, OUTSIDE], ids=["plain", "nodeport"])
def test_quic_needs_its_port_by_udp_too(idc: IdcSpec) -> None:
    of = with_quic(roomy())
    whole = objects(Fronts(OWNER, SPEC, idc, of), FIGURES)
    services = [
        each["spec"]["ports"]
        for each in whole
        if each["kind"] == "Service" and "clusterIP" not in each["spec"]
    ]
    for tcp, udp in services:
        assert (tcp["protocol"], udp["protocol"]) == ("TCP", "UDP")
        assert tcp["port"] == udp["port"] and tcp["targetPort"] == udp["targetPort"]
        assert tcp.get("nodePort") == udp.get("nodePort")
    (policy,) = [each for each in whole if each["kind"] == "NetworkPolicy"]
    assert {"protocol": "UDP", "port": 7443} in policy["spec"]["ingress"][0]["ports"]
    (container,) = whole[-1]["spec"]["template"]["spec"]["containers"]
    udp = {"name": "gateway-udp", "containerPort": 7443, "protocol": "UDP"}
    assert udp in container["ports"]
    # The other roles, in a pod of their own, take none.
    alone = idc_objects(Owner("IDC", "im-fra", "fra", "0a1b", 3), idc, of, FIGURES)
    assert "UDP" not in str(alone)


def test_it_is_given_time_for_all_its_clients_to_go() -> None:
    idc = roomy(2).idc("fra")
    full = idc.capacity.sessions / 2
    assert grace_s(idc, 500) >= full / 250 + 25
    (pod,) = [each["spec"]["template"]["spec"] for each in made() if each["kind"] == "StatefulSet"]
    assert pod["terminationGracePeriodSeconds"] == grace_s(roomy().idc("fra"), 500)


@pytest.mark.parametrize(("idc", "shared"), [(APART, None), (DRILLED, True)])
def test_those_of_an_idc_that_takes_drills_can_be_killed_from_inside(
    idc: IdcSpec, shared: bool | None
) -> None:
    pod = made(idc=idc)[-1]["spec"]["template"]["spec"]
    assert pod.get("shareProcessNamespace") is shared


# ----------------------------------------------------------------------------- what is decided


def workload(spec: GatewayClusterSpec = SPEC, **status: Any) -> Object:
    """The StatefulSet as it is wanted, or of other settings."""
    wanted = made(spec)[-1] | {"status": {"observedGeneration": 2, **status}}
    wanted["metadata"]["generation"] = 2
    return wanted


def decided(spec: GatewayClusterSpec = SPEC, gateways: int = 4, **seen: Any) -> Decision:
    found = {
        "idc": APART,
        "region": roomy(gateways).model_dump(mode="json", exclude_defaults=True)["spec"],
        **seen,
    }
    return decide(OWNER, spec, Seen(**found), FIGURES)


def test_what_is_missing_blocks_it_and_nothing_is_touched() -> None:
    missing: dict[str, dict[str, Any]] = {
        "IDC fra is not in this namespace": {"idc": None},
        "Region two-idc is not in this namespace": {"region": None},
        "IDC fra runs its own gateways: say `gateways: apart` there": {"idc": IDC},
        "IDC fra is blocked: Secret x is not there": {
            "idc_status": {"phase": "Blocked", "blocked_by": ["Secret x is not there"]},
        },
    }
    for why, seen in missing.items():
        decision = decided(**seen)
        assert decision.status["blocked_by"] == [why]
        assert (decision.apply, decision.reason) == ([], "Blocked")


def test_there_are_no_more_of_them_than_the_region_has_ports_for() -> None:
    said = "expected at most 1, the `gateways` of fra in Region two-idc, got"
    assert decided(gateways=1).status["blocked_by"] == [f"replicas: {said} 2"]
    assert decided(RICH, gateways=1).status["blocked_by"] == [f"autoscaling.max: {said} 4"]


def test_the_autoscaler_is_held_to_its_bounds() -> None:
    def replicas(wanted: int) -> int:
        spec = RICH.model_copy(update={"replicas": wanted})
        return int(made(spec)[-1]["spec"]["replicas"])

    assert [replicas(each) for each in (0, 3, 9)] == [3, 3, 4]


@pytest.mark.parametrize(
    ("phase", "ready", "rolled", "status"),
    [
        ("Starting", False, True, {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}),
        ("Serving", True, True, {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}),
        (
            "Rolling", True, False,
            {"replicas": 2, "updatedReplicas": 1, "readyReplicas": 2,
             "currentRevision": "a", "updateRevision": "b"},
        ),
    ],
)  # fmt: skip
def test_its_phase(phase: str, ready: bool, rolled: bool, status: dict[str, Any]) -> None:
    decision = decided(workload=workload(**status))
    assert (decision.reason, decision.ready, decision.rolled) == (phase, ready, rolled)
    assert decision.status["selector"] == (
        "app.kubernetes.io/name=imctl,app.kubernetes.io/component=gateway,"
        "app.kubernetes.io/instance=fra"
    )


def test_one_that_served_all_and_does_not_any_more_is_unready() -> None:
    status: dict[str, Any] = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}
    assert decided(workload=workload(**status), served=True).reason == "Unready"


@pytest.mark.parametrize("replicas", [1, 2])
def test_it_does_not_serve_before_a_change_is_seen(replicas: int) -> None:
    before = SPEC.model_copy(update={"replicas": replicas})
    changed = before.model_copy(update={"image": "imctl:2"})
    status: dict[str, Any] = dict.fromkeys(
        ("replicas", "updatedReplicas", "readyReplicas"), replicas
    )
    decision = decided(changed, workload=workload(before, **status))
    assert (decision.reason, decision.rolled) == ("Rolling", False)


def test_those_that_keep_their_settings_are_not_waited_for() -> None:
    spec = SPEC.model_copy(update={"rollout": Rollout(keep=1)})
    status = {"replicas": 2, "updatedReplicas": 1, "readyReplicas": 2}
    assert decided(spec, workload=workload(spec, **status)).reason == "Serving"


def test_what_a_pod_still_needs_is_kept() -> None:
    keep = decided(pods={"fra-gateway-3": "0123456789"}).keep
    assert ("Service", "fra-gateway-3") in keep
    assert ("ConfigMap", "fra-gateway-region-0123456789") in keep
    assert ("Service", "fra-gateway-4") not in keep


UNTIL = "2026-01-01T00:05:00Z"


def test_those_of_an_idc_that_a_drill_keeps_down_are_away_with_it() -> None:
    served: dict[str, Any] = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}
    decision = decided(idc=DRILLED, workload=workload(**served), down_until=UNTIL)
    assert decision.apply[-1]["spec"]["replicas"] == 0
    assert (decision.reason, decision.ready) == ("Down", False)
    assert UNTIL in decision.message
    # What leads to them stays, for when they come back.
    assert ("Service", "fra-gateway-2") in decision.keep


def test_a_rollout_goes_on_from_where_it_was_when_they_come_back() -> None:
    spec = SPEC.model_copy(update={"replicas": 3})
    template = objects(Fronts(OWNER, spec, DRILLED, roomy()), FIGURES)[-1]
    mark = template["spec"]["template"]["metadata"]["annotations"][TEMPLATE]
    stood = stands(mark, 2, 0, 0)
    decision = decided(spec, idc=DRILLED, workload=stood, down_until=UNTIL, step_clients=50)
    assert decision.apply[-1]["spec"]["updateStrategy"]["rollingUpdate"] == {"partition": 2}
    assert decision.status["step_clients"] == 50


# ------------------------------------------------------------------------------- the loop


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.put("IDC", "fra", spec=APART.model_dump(mode="json", exclude_none=True))
    found.put(
        "Region", "two-idc", spec=roomy().model_dump(mode="json", exclude_defaults=True)["spec"]
    )
    found.put("GatewayCluster", "fra", spec=SPEC.model_dump(mode="json"))
    return found


async def test_it_is_made_scaled_down_and_says_how_it_is(memory: Memory) -> None:
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", Nobody())
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")
    assert await reconciler.reconcile(key) == SOON_S
    assert memory.status("GatewayCluster")["phase"] == "Starting"
    assert ("Service", "im-fra", "fra-gateway-2") in memory.held
    assert [each["reason"] for each in memory.events] == ["Starting"]

    spec = SPEC.model_copy(update={"replicas": 1}).model_dump(mode="json")
    memory.held["GatewayCluster", "im-fra", "fra"]["spec"] = spec
    held = memory.held["StatefulSet", "im-fra", "fra-gateway"]
    held["metadata"]["generation"] = 1
    status = {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}
    held["status"] = status
    assert await reconciler.reconcile(key) is None
    assert ("Service", "im-fra", "fra-gateway-2") not in memory.held
    assert memory.status("GatewayCluster")["phase"] == "Serving"
    (condition, _) = memory.status("GatewayCluster")["conditions"]
    assert (condition["type"], condition["status"]) == ("Ready", "True")


async def test_a_mark_of_a_drill_at_its_idc_takes_them_away_until_its_time_is_over(
    memory: Memory,
) -> None:
    now = ["2026-01-01T00:00:00Z"]
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["spec"]["drills_from"] = ["im-fra"]
    reconciler = Reconciler(memory, FIGURES, lambda: now[0], Nobody())
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")

    def wanted() -> tuple[int, str]:
        workload = memory.held["StatefulSet", "im-fra", "fra-gateway"]["spec"]
        return workload["replicas"], memory.status("GatewayCluster")["phase"]

    await reconciler.reconcile(key)
    assert wanted() == (2, "Starting")
    idc["metadata"]["annotations"] = {DOWN_UNTIL: UNTIL}
    # Again and again: nothing else tells that the time is over.
    assert [await reconciler.reconcile(key) for _ in range(3)] == [SOON_S] * 3
    assert wanted() == (0, "Down")
    assert [each["type"] for each in memory.events] == ["Normal", "Warning"]
    now[0] = UNTIL
    await reconciler.reconcile(key)
    assert wanted() == (2, "Starting")


@pytest.mark.parametrize("change", ["paused", "blocked", "refused", "deleted"])
async def test_what_a_drill_took_comes_back_though_they_are_left_as_they_are(
    memory: Memory, change: str
) -> None:
    now = ["2026-01-01T00:00:00Z"]
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["spec"]["drills_from"] = ["im-fra"]
    idc["metadata"]["annotations"] = {DOWN_UNTIL: UNTIL}
    reconciler = Reconciler(memory, FIGURES, lambda: now[0], Nobody())
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")
    await reconciler.reconcile(key)
    workload = memory.held["StatefulSet", "im-fra", "fra-gateway"]
    assert workload["spec"]["replicas"] == 0
    own = memory.held["GatewayCluster", "im-fra", "fra"]
    if change == "paused":
        own["spec"]["paused"] = True
    elif change == "blocked":
        own["spec"]["replicas"] = 64
    elif change == "refused":
        idc["spec"]["service"], memory.refuses = "NodePort", "Service"
    else:
        own["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    if change == "refused":
        now[0] = UNTIL
        with pytest.raises(Rejected):
            await reconciler.reconcile(key)
    else:
        assert [await reconciler.reconcile(key) for _ in range(3)] == [SOON_S] * 3
        now[0] = UNTIL
        await reconciler.reconcile(key)
    after = memory.held["StatefulSet", "im-fra", "fra-gateway"]["spec"]
    assert after == workload["spec"] | {"replicas": 2}


async def test_what_stands_is_not_sent_again_and_what_is_not_watched_is_repaired(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "SWEEP_S", 0.05)
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", Nobody())
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")
    await reconciler.reconcile(key)
    memory.written.clear()
    await reconciler.reconcile(key)
    assert memory.written == []
    policy = "NetworkPolicy", "im-fra", "fra-gateway"
    wanted = memory.held.pop(policy)
    running = asyncio.ensure_future(reconciler.run())
    async with asyncio.timeout(15):
        while policy not in memory.held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()
    assert memory.held[policy] == wanted


def pod_of(memory: Memory, number: int) -> None:
    """As the StatefulSet makes it now."""
    template = memory.held["StatefulSet", "im-fra", "fra-gateway"]["spec"]["template"]
    memory.put("Pod", f"fra-gateway-{number}", status={})
    metadata = memory.held["Pod", "im-fra", f"fra-gateway-{number}"]["metadata"]
    metadata["annotations"] = template["metadata"]["annotations"]


async def test_a_gateway_is_found_where_its_pod_says_until_that_is_replaced(
    memory: Memory,
) -> None:
    before = with_quic(roomy()).model_dump(mode="json", exclude_defaults=True)["spec"]
    memory.held["Region", "im-fra", "two-idc"]["spec"] = before
    first = int(before["idcs"][0]["endpoints"]["gateway"].rpartition(":")[2])
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")
    wall = "2026-01-01T00:00:00Z"
    reconciler = Reconciler(memory, FIGURES, lambda: wall, Nobody())

    def found(number: int) -> set[tuple[str, int]]:
        ports = memory.held["Service", "im-fra", f"fra-gateway-{number}"]["spec"]["ports"]
        assert len({port["name"] for port in ports}) == len(ports)
        assert {port["targetPort"] for port in ports} == {7443}
        return {(port["protocol"], port["port"]) for port in ports}

    def policy() -> list[Object]:
        spec = memory.held["NetworkPolicy", "im-fra", "fra-gateway"]["spec"]
        ports: list[Object] = spec["ingress"][0]["ports"]
        return ports

    await reconciler.reconcile(key)
    for number in (1, 2):
        pod_of(memory, number)
    await reconciler.reconcile(key)
    assert found(2) == {("TCP", first + 1), ("UDP", first + 1)}
    after = copy.deepcopy(before)
    after["client"].pop("quic")
    after["idcs"][0]["endpoints"]["gateway"] = "10.0.0.1:9000"
    memory.held["Region", "im-fra", "two-idc"]["spec"] = after
    await reconciler.reconcile(key)
    assert found(1) == {("TCP", 9000), ("TCP", first), ("UDP", first)}
    assert {"protocol": "UDP", "port": 7443} in policy()
    pod_of(memory, 2)
    # Another operator goes on.
    reconciler = Reconciler(memory, FIGURES, lambda: wall, Nobody())
    await reconciler.reconcile(key)
    assert found(2) == {("TCP", 9001)}
    assert found(1) == {("TCP", 9000), ("TCP", first), ("UDP", first)}
    pod_of(memory, 1)
    await reconciler.reconcile(key)
    assert found(1) == {("TCP", 9000)} and "UDP" not in str(policy())


@pytest.mark.parametrize("name", ["debug", "fra-gateway-x", "other-1", "fra-gateway-"])
async def test_a_pod_that_somebody_made_by_hand_is_no_gateway(memory: Memory, name: str) -> None:
    """With their labels, as a copy of one has them."""
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", Nobody())
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")
    await reconciler.reconcile(key)
    pod_of(memory, 1)
    held = memory.held["Pod", "im-fra", "fra-gateway-1"]
    memory.held["Pod", "im-fra", name] = held | {"metadata": held["metadata"] | {"name": name}}
    await reconciler.reconcile(key)
    assert memory.status("GatewayCluster")["phase"] == "Starting"


async def test_no_two_services_have_one_node_port_while_ports_are_shifted(memory: Memory) -> None:
    spec = memory.held["Region", "im-fra", "two-idc"]["spec"]
    spec["idcs"][0]["endpoints"]["gateway"] = "10.0.0.1:30002"
    memory.held["IDC", "im-fra", "fra"]["spec"]["service"] = "NodePort"
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", Nobody())
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")

    def ports(number: int) -> set[int]:
        service = memory.held["Service", "im-fra", f"fra-gateway-{number}"]
        return {port["nodePort"] for port in service["spec"]["ports"]}

    await reconciler.reconcile(key)
    for number in (1, 2):
        pod_of(memory, number)
    spec["idcs"][0]["endpoints"]["gateway"] = "10.0.0.1:30001"
    await reconciler.reconcile(key)
    assert ports(1) == {30_001} and 30_002 in ports(2)
    assert not ports(1) & ports(2)


@pytest.mark.parametrize("why", ["kept", "not there yet"])
async def test_the_region_file_of_a_gateway_that_is_away_stays_while_it_may_come_back_with_it(
    memory: Memory, why: str
) -> None:
    """As while a node is drained, in the middle of a rollout."""
    held, revisions = memory.held, {"currentRevision": "a", "updateRevision": "a"}
    if why == "kept":
        held["GatewayCluster", "im-fra", "fra"]["spec"]["rollout"]["keep"] = 1
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", Nobody())

    async def files(**status: Any) -> int:
        metadata = held["StatefulSet", "im-fra", "fra-gateway"]["metadata"]
        seen = {"observedGeneration": metadata.setdefault("generation", 1), **revisions, **status}
        held["StatefulSet", "im-fra", "fra-gateway"]["status"] = seen
        await reconciler.reconcile(key)
        return len([name for kind, _, name in held if kind == "ConfigMap"])

    await reconciler.reconcile(key)
    pod_of(memory, 1)
    pod_of(memory, 2)
    assert await files(replicas=2, updatedReplicas=2, availableReplicas=2) == 1
    held["Region", "im-fra", "two-idc"]["spec"]["client"] = {"grace_ms": 11_000}
    revisions["updateRevision"] = "b"
    assert await files(replicas=2, updatedReplicas=0, availableReplicas=2) == 2
    pod_of(memory, 2)
    del held["Pod", "im-fra", "fra-gateway-1"]
    assert await files(replicas=1, updatedReplicas=1, availableReplicas=1) == 2
    held["GatewayCluster", "im-fra", "fra"]["spec"]["rollout"]["keep"] = 0
    for _ in range(3):
        last = await files(replicas=2, updatedReplicas=2, availableReplicas=2)
    assert last == 2, "the cluster has not said yet that it is over"
    revisions["currentRevision"] = "b"
    pod_of(memory, 1)
    assert await files(replicas=2, updatedReplicas=2, availableReplicas=2) == 1


@pytest.mark.parametrize("lacks", ["IDC", "nothing"])
async def test_one_that_stays_as_it_is_is_looked_at_less_and_less_often(
    memory: Memory, lacks: str
) -> None:
    idc = memory.held["IDC", "im-fra", "fra"]
    memory.held.pop((lacks, "im-fra", "fra"), None)
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", Nobody())
    key = Key(GATEWAY_CLUSTER.name, "im-fra", "fra")
    waits = [await reconciler.reconcile(key) for _ in range(9)]
    assert waits[:2] == [SOON_S, SOON_S * 1.5] and waits[-1] == SOON_MAX_S
    memory.held["IDC", "im-fra", "fra"] = idc
    held = memory.held["GatewayCluster", "im-fra", "fra"]
    held["metadata"]["generation"] += 1  # somebody has edited it
    assert await reconciler.reconcile(key) == SOON_S


@pytest.mark.parametrize("name", ["fra", "edge"])
async def test_a_change_of_its_idc_is_looked_at_at_once_whatever_its_name(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", Nobody())
    looked: list[Key] = []

    async def look(key: Key) -> None:
        looked.append(key)

    monkeypatch.setattr(reconciler, "reconcile", look)
    running = asyncio.ensure_future(reconciler.run())
    key = Key(GATEWAY_CLUSTER.name, "im-fra", name)
    metadata = {"name": name, "namespace": "im-fra"}
    reconciler.changed({"kind": key.kind, "metadata": metadata, "spec": {"idc": "fra"}})
    await asyncio.sleep(0.01)
    looked.clear()
    for namespace, other in (("im-fra", "iad"), ("im-iad", "fra")):
        place = {"name": other, "namespace": namespace}
        reconciler.changed({"kind": IDC_KIND.name, "metadata": place, "spec": {}})
    await asyncio.sleep(0.01)
    assert key not in looked
    reconciler.changed({**memory.held["IDC", "im-fra", "fra"], "kind": IDC_KIND.name})
    await asyncio.sleep(0.01)
    running.cancel()
    assert key in looked


# --------------------------------------------------------------------------- its steps


def stands(template: str, partition: int, updated: int, available: int = 3) -> Object:
    """A StatefulSet of three pods."""
    return {
        "metadata": {"generation": 2},
        "spec": {
            "updateStrategy": {"rollingUpdate": {"partition": partition}},
            "template": {"metadata": {"annotations": {TEMPLATE: template}}},
        },
        "status": {
            "observedGeneration": 2, "replicas": 3, "readyReplicas": available,
            "updatedReplicas": updated, "availableReplicas": available,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("workload", "clients", "before", "step"),
    [
        ({}, 50, None, Step(0)),
        (stands("old", 0, 3), 50, None, Step(2, 50)),
        (stands("new", 2, 0), 50, 50, Step(2, 50, "a pod is replaced")),
        (stands("new", 2, 1, 2), 50, 50, Step(2, 50, "not all gateways are ready")),
        (
            stands("new", 2, 1), 44, 50,
            Step(2, 50, "44 of 50 clients are there, 90 % are wanted"),
        ),
        (stands("new", 2, 1), 45, 50, Step(1, 50)),
        (stands("new", 2, 1), 45, None, Step(1, 45)),
        (stands("new", 2, 1), None, None, Step(1)),
        (stands("new", 1, 2), 45, 45, Step(0, 45)),
        # The last one is judged, too.
        (stands("new", 0, 2), 45, 45, Step(0, 45, "a pod is replaced")),
        (stands("new", 0, 3, 2), 45, 45, Step(0, 45, "not all gateways are ready")),
        (
            stands("new", 0, 3), 44, 50,
            Step(0, 50, "44 of 50 clients are there, 90 % are wanted"),
        ),
        (stands("new", 0, 3), 45, 50, Step(0)),
        (stands("new", 0, 3), None, 50, Step(0)),
        (stands("new", 0, 3, 2), 9, None, Step(0)),
        # Scaled down meanwhile.
        (stands("new", 5, 0), 45, 90, Step(2, 45)),
    ],
)  # fmt: skip
def test_the_next_pod_is_replaced_once_the_clients_of_the_last_are_back(
    workload: Object, clients: int | None, before: int | None, step: Step
) -> None:
    assert step_of(Rollout(), 3, "new", workload, clients, before) == step


SILENT = "nobody says"


@pytest.mark.parametrize(
    ("workload", "before", "step", "then"),
    [
        (stands("old", 0, 3), None, Step(3, None, SILENT), Step(2, 50)),
        (stands("new", 3, 0), None, Step(3, None, SILENT), Step(2, 50)),
        # Whether those that it has are ready: the new settings may be what mends them.
        (stands("new", 3, 0, 1), None, Step(3, None, SILENT), Step(2, 50)),
        (stands("new", 2, 1), 50, Step(2, 50, SILENT), Step(1, 50)),
        (stands("new", 0, 3), 50, Step(0, 50, SILENT), Step(0)),
        (stands("new", 0, 3), None, Step(0), Step(0)),
        ({}, None, Step(0), Step(0)),
    ],
)  # fmt: skip
def test_nothing_is_replaced_while_it_is_not_known_how_many_clients_there_are(
    workload: Object, before: int | None, step: Step, then: Step
) -> None:
    assert step_of(Rollout(), 3, "new", workload, None, before, SILENT) == step
    assert step_of(Rollout(), 3, "new", workload, 50, before) == then


def test_none_is_replaced_where_all_are_kept() -> None:
    assert step_of(Rollout(keep=3), 3, "new", stands("old", 0, 3), 9, None) == Step(3)
    assert step_of(Rollout(keep=3), 3, "new", stands("new", 3, 0), 9, None) == Step(3)


def test_those_that_are_kept_are_reached_when_they_are_not_kept_any_more() -> None:
    kept = Rollout(keep=2)
    assert step_of(kept, 3, "new", stands("old", 2, 3), 9, None).partition == 2
    assert step_of(kept, 3, "new", stands("new", 2, 1), 9, 9).partition == 2
    assert step_of(Rollout(), 3, "new", stands("new", 2, 1), 9, 9).partition == 1


def test_a_rollout_does_not_lose_ten_percent_with_every_step() -> None:
    stood, before = stands("new", 2, 1), 100
    assert step_of(Rollout(), 3, "new", stood, 90, before) == Step(1, before)
    lost = Step(1, before, "81 of 100 clients are there, 90 % are wanted")
    assert step_of(Rollout(), 3, "new", stands("new", 1, 2), 81, before) == lost


def test_the_last_of_those_that_are_not_kept_is_judged_too() -> None:
    stood = stands("new", 1, 2)
    waits = Step(1, 50, "44 of 50 clients are there, 90 % are wanted")
    assert step_of(Rollout(keep=1), 3, "new", stood, 44, 50) == waits
    assert step_of(Rollout(keep=1), 3, "new", stood, 45, 50) == Step(1)


def test_it_has_not_rolled_before_the_last_one_is_judged() -> None:
    spec = SPEC.model_copy(update={"replicas": 3})
    stood = stands(template_of(made(spec)[-1]), 0, 3)

    def judged(sessions: int) -> Decision:
        process = {"state": "active", "sessions": sessions}
        return decided(
            spec, workload=stood, step_clients=50, idc=ASKED, idc_status={"process": process},
            heard=True,
        )  # fmt: skip

    waits = judged(44)
    assert (waits.reason, waits.rolled, waits.status["step_clients"]) == ("Rolling", False, 50)
    assert waits.message.startswith("gateway 1 of 3 gets the settings that are wanted: 44 of 50 ")
    done = judged(45)
    assert (done.reason, done.rolled) == ("Serving", True)
    assert "step_clients" not in done.status


@pytest.mark.parametrize("why", ["paused", "blocked", "deleted"])
def test_what_a_rollout_is_measured_by_outlasts_a_pause(why: str) -> None:
    spec = SPEC.model_copy(update={"replicas": 3, "paused": why == "paused"})
    seen: dict[str, Any] = {"region": None} if why == "blocked" else {}
    rollout = {"step": 1, "of": 3, "waiting_for": "a pod is replaced"}
    found = Seen(**{"idc": ASKED, "step_clients": 50, "rollout": rollout, **seen})
    decision = decide(OWNER._replace(deleting=why == "deleted"), spec, found, FIGURES)
    assert decision.apply == [] and decision.status["step_clients"] == 50
    stands = {"step": 1, "of": 3, "waiting_for": decision.message}
    assert decision.status["rollout"] == stands


def test_what_it_waits_for_is_said() -> None:
    template = made(SPEC.model_copy(update={"replicas": 3}))[-1]
    mark = template["spec"]["template"]["metadata"]["annotations"][TEMPLATE]
    decision = decided(
        SPEC.model_copy(update={"replicas": 3}), workload=stands(mark, 2, 1), step_clients=50,
        idc=ASKED, idc_status={"process": {"state": "active", "sessions": 20}}, heard=True,
    )  # fmt: skip
    assert (decision.reason, decision.rolled) == ("Rolling", False)
    said = "gateway 3 of 3 gets the settings that are wanted: 20 of 50 clients are there, 90 % "
    assert decision.message == said + "are wanted"
    assert (decision.status["connections"], decision.status["step_clients"]) == (20, 50)
    assert decision.apply[-1]["spec"]["updateStrategy"]["rollingUpdate"] == {"partition": 2}
    waits = "20 of 50 clients are there, 90 % are wanted"
    assert decision.status["rollout"] == {"step": 1, "of": 3, "waiting_for": waits}


def test_why_a_pod_does_not_come_up_is_among_what_is_waited_for() -> None:
    template = made(SPEC.model_copy(update={"replicas": 2}))[-1]
    mark = template["spec"]["template"]["metadata"]["annotations"][TEMPLATE]
    workload = stands(mark, 1, 1)
    workload["status"]["availableReplicas"] = 1
    trouble = "fra-gateway-2: ImagePullBackOff"
    decision = decided(SPEC.model_copy(update={"replicas": 2}), workload=workload, trouble=trouble)
    waits = f"not all gateways are ready; {trouble}"
    assert decision.status["rollout"] == {"step": 1, "of": 2, "waiting_for": waits}


def test_how_far_a_rollout_is() -> None:
    def shown(workload: Object, **rollout: Any) -> Any:
        spec = SPEC.model_copy(update={"replicas": 3, "rollout": Rollout(**rollout)})
        return decided(spec, workload=workload).status.get("rollout")

    def at(step: int, of: int, waits: str = "") -> Object:
        return {"step": step, "of": of, "waiting_for": waits}

    def mark(**rollout: Any) -> str:
        spec = SPEC.model_copy(update={"replicas": 3, "rollout": Rollout(**rollout)})
        return template_of(made(spec)[-1])

    assert shown(stands("old", 0, 3)) == at(1, 3)
    assert shown(stands(mark(), 2, 0)) == at(1, 3, "a pod is replaced")
    assert shown(stands(mark(), 2, 1)) == at(2, 3)
    assert shown(stands(mark(keep=1), 2, 1), keep=1) == at(2, 2)
    assert shown(stands(mark(), 0, 3)) is None
    assert shown({}) is None


async def test_each_step_of_a_rollout_is_an_event_of_its_own(memory: Memory) -> None:
    """And what it waits for, which is another thing at each look, is none."""
    world = World()
    world.said = {"sessions": 50, "policy": {"idcs": {"fra": {"state": "active"}}}}
    memory.put("Secret", "imctl-viewer", data={})
    memory.held["IDC", "im-fra", "fra"]["spec"]["role_certificate"] = "imctl-viewer"
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", world)
    key = Key("GatewayCluster", "im-fra", "fra")

    async def look(sessions: int, updated: int) -> Any:
        held = memory.held["StatefulSet", "im-fra", "fra-gateway"]
        generation = held["metadata"].setdefault("generation", 1)
        held["status"] = {
            "observedGeneration": generation, "replicas": 2, "readyReplicas": 2,
            "availableReplicas": 2, "updatedReplicas": updated,
        }  # fmt: skip
        world.said["sessions"] = sessions
        await reconciler.reconcile(Key("IDC", "im-fra", "fra", asks=True))
        await reconciler.reconcile(key)
        return memory.status("GatewayCluster").get("rollout")

    await reconciler.reconcile(key)
    await look(50, 2)
    memory.held["GatewayCluster", "im-fra", "fra"]["spec"]["image"] = "imctl:2"
    memory.events.clear()
    waits = [(await look(sessions, 1))["waiting_for"] for sessions in (50, 20, 30, 40)]
    assert waits == ["", *(f"{n} of 50 clients are there, 90 % are wanted" for n in (20, 30, 40))]
    await look(50, 1)
    assert (await look(40, 2))["step"] == 2
    assert await look(50, 2) is None
    told = [each["message"] for each in memory.events if each["involvedObject"]["kind"] == key.kind]
    said = "gets the settings that are wanted"
    assert told == [f"gateway 2 of 2 {said}", f"gateway 1 of 2 {said}", "2 of 2 serve"]
    assert memory.status("GatewayCluster")["phase"] == "Serving"


@pytest.mark.parametrize("state", ["drained", "draining", "recovering", "failed"])
def test_clients_that_are_led_elsewhere_are_not_waited_for(state: str) -> None:
    """A deploy restarts the IDC while it is drained, and lets no client back before its gateways
    are as wanted: a count of before its drain was never reached again."""
    spec = SPEC.model_copy(update={"replicas": 3})
    mark = template_of(made(spec)[-1])
    process = {"state": state, "sessions": 0}
    decision = decided(
        spec, workload=stands(mark, 2, 1), step_clients=50, idc=ASKED, heard=True,
        idc_status={"process": process},
    )  # fmt: skip
    assert decision.apply[-1]["spec"]["updateStrategy"]["rollingUpdate"] == {"partition": 1}
    assert (decision.status["connections"], "step_clients" in decision.status) == (0, False)
    begun = decided(
        spec, workload=stands("old", 0, 3), idc=ASKED, idc_status={"process": process}, heard=True
    )
    assert "step_clients" not in begun.status
    assert begun.apply[-1]["spec"]["updateStrategy"]["rollingUpdate"] == {"partition": 2}


@pytest.mark.parametrize("state", ["active", "drained"])
def test_what_a_silent_process_said_last_is_not_gone_by(state: str) -> None:
    spec = SPEC.model_copy(update={"replicas": 3})
    mark = template_of(made(spec)[-1])
    why = {"type": "Reachable", "status": "False", "message": "fra does not answer"}
    status = {"process": {"state": state, "sessions": 50}, "conditions": [why]}

    def step(workload: Object, spec: GatewayClusterSpec = spec, **more: Any) -> Decision:
        found = {"idc": ASKED, "idc_status": status, "step_clients": 50, **more}
        return decided(spec, workload=workload, **found)

    decision = step(stands(mark, 2, 1))
    assert decision.apply[-1]["spec"]["updateStrategy"]["rollingUpdate"] == {"partition": 2}
    assert decision.status["step_clients"] == 50
    said = "gateway 3 of 3 gets the settings that are wanted: how many clients IDC fra has is not "
    assert decision.message == f"{said}known: fra does not answer"
    begins = step(stands("old", 0, 3))
    assert begins.apply[-1]["spec"]["updateStrategy"]["rollingUpdate"] == {"partition": 3}
    assert begins.message.startswith("gateway 3 of 3 gets ")
    begins = step(stands("old", 0, 3), heard=True, idc_status={"process": {"state": "unknown"}})
    assert begins.apply[-1]["spec"]["updateStrategy"]["rollingUpdate"] == {"partition": 3}
    # Where it is of no matter, or nobody could say.
    free = spec.model_copy(update={"rollout": Rollout(reconnected=0)})
    for other in (step(stands(mark, 2, 1), free), step(stands(mark, 2, 1), idc=APART)):
        assert other.apply[-1]["spec"]["updateStrategy"]["rollingUpdate"] == {"partition": 1}


async def test_a_rollout_waits_until_this_operator_has_heard_the_idc(memory: Memory) -> None:
    """What stands in its status may be of long ago: the operator was away, or leaves it alone."""
    now = ["2026-01-01T00:00:00Z"]
    world = World()
    world.said = {"sessions": 50, "policy": {"idcs": {"fra": {"state": "active"}}}}
    memory.put("Secret", "imctl-viewer", data={})
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["spec"]["role_certificate"] = "imctl-viewer"
    idc["status"] = {"process": {"state": "active", "sessions": 5}}
    reconciler = Reconciler(memory, FIGURES, lambda: now[0], world)
    asking, key = Key("IDC", "im-fra", "fra", asks=True), Key("GatewayCluster", "im-fra", "fra")
    stood = made(SPEC.model_copy(update={"image": "imctl:0"}))[-1]
    memory.held["StatefulSet", "im-fra", "fra-gateway"] = stood

    async def partition() -> int:
        await reconciler.reconcile(key)
        found = memory.held["StatefulSet", "im-fra", "fra-gateway"]["spec"]
        return int(found["updateStrategy"]["rollingUpdate"]["partition"])

    assert await partition() == 2
    await reconciler.reconcile(asking)
    now[0] = "2026-01-01T00:00:16Z"
    assert await partition() == 2
    await reconciler.reconcile(asking)
    world.trouble["status"] = Unavailable("fra does not answer")
    await reconciler.reconcile(asking)
    assert await partition() == 2
    del world.trouble["status"]
    await reconciler.reconcile(asking)
    assert await partition() == 1
    assert memory.status("GatewayCluster")["step_clients"] == 50


async def test_what_a_step_is_measured_by_is_written_before_it_begins(memory: Memory) -> None:
    """An operator that dies in between leaves no step without."""
    world = World()
    world.said = {"sessions": 50, "policy": {"idcs": {"fra": {"state": "active"}}}}
    memory.put("Secret", "imctl-viewer", data={})
    memory.held["IDC", "im-fra", "fra"]["spec"]["role_certificate"] = "imctl-viewer"
    reconciler = Reconciler(memory, FIGURES, lambda: "2026-01-01T00:00:00Z", world)
    await reconciler.reconcile(Key("IDC", "im-fra", "fra", asks=True))
    key = Key("GatewayCluster", "im-fra", "fra")
    await reconciler.reconcile(key)
    held = memory.held["GatewayCluster", "im-fra", "fra"]
    held["spec"]["image"] = "imctl:2"
    memory.written.clear()
    await reconciler.reconcile(key)
    first = memory.written.index("GatewayCluster")
    assert first < memory.written.index("StatefulSet")
    assert memory.status("GatewayCluster")["step_clients"] == 50
