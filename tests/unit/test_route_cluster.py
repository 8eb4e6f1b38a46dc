"""The route instances of an IDC on Kubernetes: their objects as golden files, what is decided about
them, and the loop around it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from imctl.api.kinds import IDC as IDC_KIND
from imctl.api.kinds import ROUTE_CLUSTER
from imctl.api.model import IdcSpec, Resources, Toleration
from imctl.api.routes import RouteAutoscaling, RouteClusterSpec, RouteRollout
from imctl.reconcile.applied import Name
from imctl.reconcile.beside import Around, Decision
from imctl.reconcile.cluster import Rejected
from imctl.reconcile.gatewayobjects import Fronts
from imctl.reconcile.gatewayobjects import objects as gateway_objects
from imctl.reconcile.objects import DOWN_UNTIL
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.reconciler import SOON_S, Key, Reconciler
from imctl.reconcile.routeobjects import Routes, objects
from imctl.reconcile.routes import decide
from imctl.testing import golden
from tests.unit import test_gateway_cluster as gateways
from tests.unit.test_gateway_cluster import APART, DRILLED, OUTSIDE, UNTIL, roomy
from tests.unit.test_operator_objects import FIGURES, GOLDEN, IDC
from tests.unit.test_operator_reconciler import Memory, Nobody

OWNER = Owner("RouteCluster", "im-fra", "fra", "0a1b", 3)
SPEC = RouteClusterSpec(idc="fra")
RICH = RouteClusterSpec(
    idc="fra",
    autoscaling=RouteAutoscaling(min=3, max=4, cpu=70),
    image="imctl:2",
    resources=Resources(cpu="2", memory="3Gi"),
    rollout=RouteRollout(min_ready_s=30, max_surge=2, max_unavailable=2),
    node_selector={"edge": "yes"},
    tolerations=[Toleration(key="edge", operator="Exists")],
    priority_class="messages",
)
CASES: dict[str, tuple[RouteClusterSpec, IdcSpec]] = {
    "routes": (SPEC, APART),
    "routes-with-all": (RICH, OUTSIDE),
}
NOW = "2026-01-01T00:00:00Z"
KEY = Key(ROUTE_CLUSTER.name, "im-fra", "fra")


def made(spec: RouteClusterSpec = SPEC, idc: IdcSpec = APART) -> list[Object]:
    return objects(Routes(OWNER, spec, idc, roomy()), FIGURES)


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    text = yaml.safe_dump_all(made(*CASES[case]), sort_keys=False, width=100)
    golden.check(text, GOLDEN / f"{case}.yaml")


def test_only_the_gateways_of_its_idc_reach_it() -> None:
    (policy,) = [each for each in made() if each["kind"] == "NetworkPolicy"]
    served, _ = policy["spec"]["ingress"]
    wanted = served["from"][0]["podSelector"]["matchLabels"]
    fronts = gateway_objects(Fronts(gateways.OWNER, gateways.SPEC, APART, roomy()), FIGURES)[-1]
    labels = fronts["spec"]["template"]["metadata"]["labels"]
    assert wanted.items() <= labels.items()
    other = Owner("GatewayCluster", "im-fra", "dub", "0a1b", 3)
    fronts = gateway_objects(Fronts(other, gateways.SPEC, APART, roomy()), FIGURES)[-1]
    assert not wanted.items() <= fronts["spec"]["template"]["metadata"]["labels"].items()
    (container,) = made()[-1]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert served["ports"] == [{"protocol": "TCP", "port": ports["route"]}]
    args = " ".join(container["args"])
    said = f"--roles route --listen 0.0.0.0 --route-port {ports['route']}"
    assert f"{said} --advertise $(POD_IP):{ports['route']} --monitor-port 7444" in args


@pytest.mark.parametrize(("idc", "shared"), [(APART, None), (DRILLED, True)])
def test_those_of_an_idc_that_takes_drills_can_be_killed_from_inside(
    idc: IdcSpec, shared: bool | None
) -> None:
    pod = made(idc=idc)[-1]["spec"]["template"]["spec"]
    assert pod.get("shareProcessNamespace") is shared


# ----------------------------------------------------------------------------- what is decided


def workload(spec: RouteClusterSpec = SPEC, **status: Any) -> Object:
    """The Deployment as it is wanted, or of other settings."""
    wanted = made(spec)[-1] | {"status": {"observedGeneration": 2, **status}}
    wanted["metadata"]["generation"] = 2
    return wanted


def decided(spec: RouteClusterSpec = SPEC, **seen: Any) -> Decision:
    found = {
        "idc": APART,
        "region": roomy().model_dump(mode="json", exclude_defaults=True)["spec"],
        **seen,
    }
    return decide(OWNER, spec, Around(**found), FIGURES)


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
        ("Rolling", True, False, {"replicas": 3, "updatedReplicas": 1, "readyReplicas": 2}),
        # The cluster has not seen it yet.
        (
            "Rolling", True, False,
            {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2},
        ),
    ],
)  # fmt: skip
def test_its_phase(phase: str, ready: bool, rolled: bool, status: dict[str, Any]) -> None:
    decision = decided(workload=workload(**status))
    assert (decision.reason, decision.ready, decision.rolled) == (phase, ready, rolled)
    assert decision.status["selector"] == (
        "app.kubernetes.io/name=imctl,app.kubernetes.io/component=route,"
        "app.kubernetes.io/instance=fra"
    )


def test_none_at_all_may_be_wanted() -> None:
    spec = SPEC.model_copy(update={"replicas": 0})
    assert decided(spec, workload=workload(spec)).reason == "Serving"


def test_one_that_served_all_and_does_not_any_more_is_unready() -> None:
    status: dict[str, Any] = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}
    assert decided(workload=workload(**status), served=True).reason == "Unready"


def test_it_does_not_serve_before_a_change_is_seen() -> None:
    status: dict[str, Any] = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}
    changed = SPEC.model_copy(update={"image": "imctl:2"})
    decision = decided(changed, workload=workload(**status))
    assert (decision.reason, decision.rolled) == ("Rolling", False)
    assert decision.message == "0 of 2 have the settings that are wanted"


def test_why_the_cluster_makes_no_pod_is_said() -> None:
    why = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    decision = decided(workload=workload(conditions=[why]))
    assert decision.message == "0 of 2 serve; exceeded quota"


def test_a_region_file_stays_for_as_long_as_a_pod_may_need_it() -> None:
    done: dict[str, Any] = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}
    keep = decided(workload=workload(**done), pods={"x": "0123456789"}).keep
    assert ("ConfigMap", "fra-route-region-0123456789") in keep
    assert ("ConfigMap", "") not in keep
    assert ("ConfigMap", "") in decided(workload=workload(**done | {"updatedReplicas": 1})).keep


def test_those_of_an_idc_that_a_drill_keeps_down_are_away_with_it() -> None:
    served: dict[str, Any] = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}
    decision = decided(idc=DRILLED, workload=workload(**served), down_until=UNTIL)
    assert decision.apply[-1]["spec"]["replicas"] == 0
    assert (decision.reason, decision.ready) == ("Down", False)
    assert UNTIL in decision.message


# ------------------------------------------------------------------------------- the loop


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.put("IDC", "fra", spec=APART.model_dump(mode="json", exclude_none=True))
    found.put(
        "Region", "two-idc", spec=roomy().model_dump(mode="json", exclude_defaults=True)["spec"]
    )
    found.put("RouteCluster", "fra", spec=SPEC.model_dump(mode="json"))
    return found


def reconciler_of(memory: Memory, now: list[str] | None = None) -> Reconciler:
    times = now or [NOW]
    return Reconciler(memory, FIGURES, lambda: times[0], Nobody())


async def test_it_is_made_scaled_and_says_how_it_is(memory: Memory) -> None:
    reconciler = reconciler_of(memory)
    memory.held["RouteCluster", "im-fra", "fra"]["spec"] = RICH.model_dump(mode="json")
    assert await reconciler.reconcile(KEY) == SOON_S
    assert memory.status("RouteCluster")["phase"] == "Starting"
    scaler = memory.held["HorizontalPodAutoscaler", "im-fra", "fra-route"]["spec"]
    assert scaler["scaleTargetRef"]["kind"] == "RouteCluster"

    memory.held["RouteCluster", "im-fra", "fra"]["spec"] = SPEC.model_dump(mode="json")
    await reconciler.reconcile(KEY)
    assert ("HorizontalPodAutoscaler", "im-fra", "fra-route") not in memory.held
    held = memory.held["Deployment", "im-fra", "fra-route"]
    assert held["spec"]["replicas"] == 2
    held["metadata"]["generation"] = 1
    held["status"] = {
        "observedGeneration": 1, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2,
    }  # fmt: skip
    assert await reconciler.reconcile(KEY) is None
    assert memory.status("RouteCluster")["phase"] == "Serving"
    kinds = [each["type"] for each in memory.status("RouteCluster")["conditions"]]
    assert kinds == ["Ready", "Rolled"]


async def test_nothing_is_drained_before_it_goes(memory: Memory) -> None:
    """Unlike gateways, also with an IDC that is: they carry nobody's connection."""
    held = memory.held
    held["IDC", "im-fra", "fra"]["metadata"]["finalizers"] = ["imctl.dev/drain"]
    await reconciler_of(memory).reconcile(KEY)
    assert "finalizers" not in held["RouteCluster", "im-fra", "fra"]["metadata"]


@pytest.mark.parametrize("change", ["none", "paused", "blocked", "refused", "deleted"])
async def test_a_mark_of_a_drill_takes_them_away_until_its_time_is_over(
    memory: Memory, change: str
) -> None:
    now = [NOW]
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["spec"]["drills_from"] = ["im-fra"]
    idc["metadata"]["annotations"] = {DOWN_UNTIL: UNTIL}
    reconciler = reconciler_of(memory, now)

    def wanted() -> int:
        return int(memory.held["Deployment", "im-fra", "fra-route"]["spec"]["replicas"])

    await reconciler.reconcile(KEY)
    assert (wanted(), memory.status("RouteCluster")["phase"]) == (0, "Down")
    own = memory.held["RouteCluster", "im-fra", "fra"]
    if change == "paused":
        own["spec"]["paused"] = True
    elif change == "blocked":
        idc["spec"]["gateways"] = "inside"
    elif change == "refused":
        own["spec"]["image"], memory.refuses = "imctl:2", "Deployment"
    elif change == "deleted":
        own["metadata"]["deletionTimestamp"] = NOW
    if change != "refused":
        assert [await reconciler.reconcile(KEY) for _ in range(3)] == [SOON_S] * 3
        now[0] = UNTIL
        await reconciler.reconcile(KEY)
        assert wanted() == 2
        return
    now[0] = UNTIL
    with pytest.raises(Rejected):
        await reconciler.reconcile(KEY)
    memory.refuses = ""
    await reconciler.reconcile(KEY)
    assert wanted() == 2


async def test_a_change_of_its_idc_or_its_deployment_is_looked_at_at_once(memory: Memory) -> None:
    reconciler = reconciler_of(memory)
    metadata = {"name": "fra", "namespace": "im-fra"}

    def waits() -> int:
        return reconciler.standing(0).depth["objects"]

    reconciler.changed({"kind": KEY.kind, "metadata": metadata, "spec": {"idc": "fra"}})
    assert waits() == 1
    reconciler = reconciler_of(memory)
    await reconciler.reconcile(KEY)
    reconciler.owned(KEY, Name("Deployment", "im-fra", "fra-route"), "of somebody else")
    assert waits() == 1
    reconciler = reconciler_of(memory)
    reconciler._idc_of[KEY] = KEY._replace(kind=IDC_KIND.name)
    reconciler.changed({**memory.held["IDC", "im-fra", "fra"], "kind": IDC_KIND.name})
    assert waits() == 2
