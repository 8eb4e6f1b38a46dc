"""Cores that stand by beside an IDC's own on Kubernetes: their objects as golden files, what is
decided about them and about their IDC, and the loop around it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from imcore.region.model import Region
from imctl.api.cores import ImClusterSpec
from imctl.api.kinds import IM_CLUSTER
from imctl.api.model import IdcSpec, Resources, Storage, Toleration
from imctl.reconcile.beside import Decision
from imctl.reconcile.coreobjects import Cores, objects
from imctl.reconcile.cores import Seen, decide
from imctl.reconcile.decide import decide as decide_idc
from imctl.reconcile.objects import CORE_OF, DOWN_UNTIL
from imctl.reconcile.objects import objects as idc_objects
from imctl.reconcile.observed import Core, Object, Observed, Owner, Pod
from imctl.reconcile.reconciler import SOON_S, Key, Reconciler
from imctl.reconcile.steps import template_of
from imctl.testing import golden
from tests.unit.test_gateway_cluster import OUTSIDE, UNTIL
from tests.unit.test_operator_objects import FIGURES, GOLDEN, IDC, region
from tests.unit.test_operator_reconciler import Memory, Nobody

OWNER = Owner("IMCluster", "im-fra", "fra", "0a1b", 3)
IDC_OWNER = Owner("IDC", "im-fra", "fra", "0a1b", 3)
SPEC = ImClusterSpec(idc="fra", replicas=2)
SHARED = IDC.model_copy(update={"gateways": "apart", "cores": "shared", "secrets": ["kafka"]})
OWN = SHARED.model_copy(update={"cores": "own"})
DRILLED = SHARED.model_copy(update={"drills_from": ["im-fra"]})
RICH = ImClusterSpec(
    idc="fra",
    replicas=1,
    image="imctl:2",
    resources=Resources(cpu="2", memory="3Gi"),
    storage=Storage(size="5Gi", class_name="fast"),
    node_selector={"disk": "nvme"},
    tolerations=[Toleration(key="disk", operator="Exists")],
    priority_class="messages",
)
FAR = {
    "log": {"kafka": {"brokers": ["kafka:9092"]}},
    "kv": {"tikv": {"pd": ["pd:2379"]}},
    "registry": {"etcd": {"endpoints": ["etcd:2379"]}},
}
NOW = "2026-01-01T00:00:00Z"
TOO_LATE = (
    "; clients are sent away before one takes over: safety.hold_ms in Region two-idc is 3000, "
    "make it 10000 or more"
)
KEY = Key(IM_CLUSTER.name, "im-fra", "fra")
IDC_KEY = Key("IDC", "im-fra", "fra")
OWN_POD = Pod("fra-idc-0", False, False, "", "", shares=True, runs=True)


def spec_of(metrics: bool = True, **engines: Any) -> Object:
    """Of a region whose engines of fra are all reached over a network, but for ``engines``."""
    spec = region().model_dump(mode="json", exclude_defaults=True)["spec"]
    given = {port: engine for port, engine in (FAR | engines).items() if engine}
    spec["idcs"][0]["engines"] = given
    if metrics:
        spec["idcs"][0]["endpoints"]["metrics"] = "127.0.0.1:9100"
    else:
        spec["idcs"][0]["endpoints"].pop("metrics", None)
    found: Object = spec
    return found


def far(**more: Any) -> Region:
    whole = {"apiVersion": "imctl.dev/v1alpha1", "kind": "Region", "metadata": {"name": "two-idc"}}
    return Region.model_validate({**whole, "spec": spec_of(**more)})


def made(spec: ImClusterSpec = SPEC, idc: IdcSpec = SHARED, **more: Any) -> list[Object]:
    return objects(Cores(OWNER, spec, idc, far(**more)), FIGURES)


@pytest.mark.parametrize(
    ("case", "spec", "idc"),
    [
        ("cores", SPEC, SHARED),
        ("cores-with-all", RICH, OUTSIDE.model_copy(update={"cores": "shared"})),
    ],
)
def test_golden(case: str, spec: ImClusterSpec, idc: IdcSpec) -> None:
    text = yaml.safe_dump_all(made(spec, idc), sort_keys=False, width=100)
    golden.check(text, GOLDEN / f"{case}.yaml")


def test_golden_of_an_idc_that_shares() -> None:
    text = yaml.safe_dump_all(idc_objects(IDC_OWNER, SHARED, far(), FIGURES), sort_keys=False)
    golden.check(text, GOLDEN / "idc-shared.yaml")


def container(whole: list[Object]) -> Object:
    (found,) = whole[-1]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def args(whole: list[Object]) -> str:
    return " ".join(container(whole)["args"])


def test_all_cores_of_an_idc_are_told_of_each_other_or_none() -> None:
    assert "--standby --instance 1 " in args(idc_objects(IDC_OWNER, SHARED, far(), FIGURES))
    assert "--standby" not in args(idc_objects(IDC_OWNER, OWN, far(), FIGURES))
    workload = made()[-1]
    assert workload["spec"]["ordinals"] == {"start": 2}
    assert "--roles im,route,ipconf,control --standby --instance $(NUMBER) " in args(made())
    assert "--faults" in args(made(idc=DRILLED)) and "--faults" not in args(made())


def test_the_services_of_the_idc_lead_to_whichever_core_is_ready() -> None:
    whole = idc_objects(IDC_OWNER, SHARED, far(), FIGURES)
    services = [each["spec"] for each in whole if each["kind"] == "Service"]
    labels = made()[-1]["spec"]["template"]["metadata"]["labels"]
    own = whole[-1]["spec"]["template"]["metadata"]["labels"]
    for service in services:
        assert service["selector"].items() <= labels.items() & own.items()
        assert not service.get("publishNotReadyAddresses")
    peer = far().idc("fra").endpoints.peer.rpartition(":")[2]
    for each in (whole, made()):  # others need the registry of one that still starts
        assert str(container(each)["readinessProbe"]["tcpSocket"]["port"]) == peer
    apart = idc_objects(IDC_OWNER, OWN, far(), FIGURES)
    assert CORE_OF not in str(apart)
    kept = [each["spec"] for each in apart if each["metadata"]["name"] == "fra-idc-peer"]
    assert kept[0]["publishNotReadyAddresses"]


def test_one_that_stands_by_is_not_started_again_for_listening_nowhere() -> None:
    asked = container(made())
    for probe in ("startupProbe", "livenessProbe"):
        assert asked[probe]["httpGet"]["port"] == 9100
    none = container(made(metrics=False))
    assert not {"startupProbe", "livenessProbe"} & none.keys()


# ----------------------------------------------------------------------------- what is decided


def cores(*states: str) -> tuple[Core, ...]:
    return tuple(
        Core(f"fra-im-{number}", state != "ends", state == "serves")
        for number, state in enumerate(states, 2)
    )


TEMPLATE_OF = made()[-1]["spec"]["template"]["metadata"]["annotations"]["imctl.dev/template"]


def decided(spec: ImClusterSpec = SPEC, **seen: Any) -> Decision:
    stand = seen.get("cores", ())
    found = {
        "idc": SHARED,
        "region": spec_of(),
        "own": OWN_POD,
        "workload": made()[-1],
        "templates": (TEMPLATE_OF,) * len(stand),
        **seen,
    }
    return decide(OWNER, spec, Seen(**found), FIGURES)


@pytest.mark.parametrize(
    ("why", "stop", "seen"),
    [
        ("IDC fra is not in this namespace", True, {"idc": None}),
        ("Region two-idc is not in this namespace", False, {"region": None}),
        (
            "IDC fra has a core of its own only: say `cores: shared` there", True, {"idc": OWN},
        ),
        (
            "engines.kv of fra in Region two-idc: expected tikv, which a core elsewhere reaches, "
            "got embedded",
            True, {"region": spec_of(kv=None)},
        ),
        (
            "fra-idc-0 was made without `cores: shared`, and has it once it is deleted", True,
            {"own": OWN_POD.__class__("fra-idc-0", True, True, "", "")},
        ),
        ("IDC fra has no pod yet", False, {"own": None, "workload": {}}),
        (
            "IDC fra is blocked: Secret x is not there", False,
            {"idc_status": {"phase": "Blocked", "blocked_by": ["Secret x is not there"]}},
        ),
    ],
)  # fmt: skip
def test_what_is_missing_blocks_it_and_none_runs_that_could_serve_beside_another(
    why: str, stop: bool, seen: dict[str, Any]
) -> None:
    decision = decided(**seen)
    assert decision.status["blocked_by"] == [why]
    assert (decision.apply, decision.reason, decision.stop) == ([], "Blocked", stop)


def test_files_have_to_be_reached_too() -> None:
    spec = spec_of() | {"media": {}}
    (why,) = decided(region=spec).status["blocked_by"]
    assert why.startswith("engines.blobs of fra in Region two-idc: expected s3")


@pytest.mark.parametrize(
    ("stand", "phase", "message", "ready"),
    [
        (cores("waits", "waits"), "Serving", f"2 of 2 run{TOO_LATE}", True),
        (cores("waits", "serves"), "Serving", f"2 of 2 run, and fra-im-3 serves{TOO_LATE}", True),
        (cores("waits"), "Starting", "1 of 2 run", False),
        (cores("waits", "ends"), "Starting", "1 of 2 run", False),
    ],
)
def test_one_that_stands_by_is_as_it_should_be(
    stand: tuple[Core, ...], phase: str, message: str, ready: bool
) -> None:
    decision = decided(cores=stand)
    assert (decision.reason, decision.message, decision.ready) == (phase, message, ready)
    running = sum(each.runs for each in stand)
    assert (decision.status["ready"], decision.status["replicas"]) == (running, len(stand))
    assert decision.status["serving"] == ("fra-im-3" if "serves" in message else "")


def test_one_that_would_take_over_too_late_says_so_until_it_would_not() -> None:
    spec = spec_of() | {"safety": {"hold_ms": 10_000}}
    patient = Region.model_validate(far().model_dump(mode="json") | {"spec": spec})
    workload = objects(Cores(OWNER, SPEC, SHARED, patient), FIGURES)[-1]
    templates = (template_of(workload),) * 2
    decision = decided(
        region=spec, workload=workload, templates=templates, cores=cores("waits", "waits")
    )
    assert (decision.reason, decision.message) == ("Serving", "2 of 2 run")


def test_one_that_ran_and_does_not_any_more_is_unready() -> None:
    assert decided(cores=cores("waits", "ends"), served=True).reason == "Unready"


def test_nothing_replaces_one_with_older_settings_but_it_is_said() -> None:
    decision = decided(cores=cores("waits", "waits"), templates=(TEMPLATE_OF, "older"))
    assert (decision.reason, decision.rolled, decision.ready) == ("Rolling", False, True)
    assert decision.status["updated"] == 1
    said = "2 of 2 run; 1 with other settings than are wanted, until deleted"
    assert decision.message == said
    assert ("ConfigMap", "") in decision.keep
    assert decision.apply[-1]["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_those_of_an_idc_that_a_drill_keeps_down_are_away_with_it() -> None:
    decision = decided(idc=DRILLED, cores=cores("waits", "serves"), down_until=UNTIL)
    assert decision.apply[-1]["spec"]["replicas"] == 0
    assert (decision.reason, decision.ready) == ("Down", False)


# ---------------------------------------------------------------------------------- their IDC


def decided_idc(spec: IdcSpec = SHARED, **observed: Any) -> Any:
    keys = frozenset(("ca.crt", "tls.crt", "tls.key", "region-keys.json"))
    secrets = dict.fromkeys(("fra-certificate", "region-keys", "kafka"), keys)
    found = {"region": spec_of(), "secrets": secrets, "pod": OWN_POD, **observed}
    return decide_idc(IDC_OWNER, spec, Observed(**found), FIGURES)


def of_kind(decision: Any, kind: str) -> Object:
    return next(dict(each["spec"]) for each in decision.apply if each["kind"] == kind)


def test_an_idc_serves_by_whichever_core_does() -> None:
    decision = decided_idc(cores=cores("serves"))
    assert (decision.reason, decision.ready) == ("Serving", True)
    assert decision.status["ready"] and decision.status["pod"] == "fra-idc-0"
    said = "fra-im-2 serves, fra-idc-0 does not; it has other settings than are wanted, until it"
    assert decision.message.startswith(said)
    away = decided_idc(cores=cores("serves"), pod=None)
    assert (away.reason, away.ready) == ("Serving", True)
    assert decided_idc(cores=cores("waits")).reason == "Starting"


def test_it_is_found_by_its_own_pod_alone_until_that_knows_of_the_others() -> None:
    old = Pod("fra-idc-0", True, True, "", "")
    service = of_kind(decided_idc(pod=old), "Service")
    assert service["publishNotReadyAddresses"] and CORE_OF not in service["selector"]
    service = of_kind(decided_idc(), "Service")
    assert service["selector"] == {CORE_OF: "fra"} and not service["publishNotReadyAddresses"]


@pytest.mark.parametrize(
    ("stand", "state", "room"),
    [
        ((), "active", {"minAvailable": 1}),
        (cores("ends"), "active", {"minAvailable": 1}),
        (cores("waits"), "active", {"minAvailable": 0}),
        (cores("serves"), "active", {"minAvailable": 0}),
        ((), "drained", {"minAvailable": 0}),
    ],
)
def test_the_core_that_serves_may_be_evicted_while_another_stands_by(
    stand: tuple[Core, ...], state: str, room: Object
) -> None:
    budget = of_kind(decided_idc(cores=stand, state=state), "PodDisruptionBudget")
    assert budget["selector"] == {"matchLabels": {CORE_OF: "fra"}}
    assert {name: budget.get(name) for name in ("minAvailable", "maxUnavailable")} == {
        "minAvailable": None, "maxUnavailable": None, **room
    }  # fmt: skip
    kept = of_kind(decided_idc(OWN, cores=(), state=state), "PodDisruptionBudget")
    assert kept["maxUnavailable"] == (1 if state == "drained" else 0)


def test_it_may_not_be_evicted_while_the_only_other_one_does_not_run() -> None:
    """As when that one has been evicted itself, and is not back yet."""
    away = OWN_POD.__class__("fra-idc-0", False, False, "", "", shares=True)
    decision = decided_idc(cores=cores("serves"), pod=away, state="active")
    assert of_kind(decision, "PodDisruptionBudget")["minAvailable"] == 1


@pytest.mark.parametrize(
    ("state", "lately", "unready"),
    [
        # Those that stand by go for one of the evictions that there are, which are one at a time,
        # and for none while one takes over.
        ("active", True, "IfHealthyBudget"),
        # What has not served for long is never kept, nor what has no clients.
        ("active", False, "AlwaysAllow"),
        ("drained", True, "AlwaysAllow"),
        ("", True, "AlwaysAllow"),
    ],
)
@pytest.mark.parametrize("stand", [cores("waits"), cores("serves"), ()])
def test_one_core_at_a_time_may_be_evicted(
    stand: tuple[Core, ...], state: str, lately: bool, unready: str
) -> None:
    decision = decided_idc(cores=stand, state=state, served_lately=lately)
    budget = of_kind(decision, "PodDisruptionBudget")
    assert budget["unhealthyPodEvictionPolicy"] == unready
    alone = decided_idc(OWN, cores=(), state=state, served_lately=lately)
    kept = of_kind(alone, "PodDisruptionBudget")
    assert kept["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_it_does_not_get_a_core_of_its_own_only_while_others_stand_by() -> None:
    decision = decided_idc(OWN, cores=cores("waits"))
    why = "cores: expected shared while fra-im-2 stand by, of which its own knew nothing"
    assert decision.status["blocked_by"] == [why] and decision.apply == []


# ------------------------------------------------------------------------------- the loop


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.put("IDC", "fra", spec=SHARED.model_dump(mode="json", exclude_none=True))
    found.put("Region", "two-idc", spec=spec_of())
    found.put("IMCluster", "fra", spec=SPEC.model_dump(mode="json"))
    for name, keys in (
        ("fra-certificate", ("ca.crt", "tls.crt", "tls.key")),
        ("region-keys", ("region-keys.json",)),
        ("kafka", ()),
    ):
        found.put("Secret", name, data=dict.fromkeys(keys, ""))
    return found


def reconciler_of(memory: Memory, now: list[str] | None = None) -> Reconciler:
    times = now or [NOW]
    return Reconciler(memory, FIGURES, lambda: times[0], Nobody())


def pod(memory: Memory, name: str, ready: bool = False) -> None:
    """As its StatefulSet makes it now."""
    template = memory.held["StatefulSet", "im-fra", name.rpartition("-")[0]]["spec"]["template"]
    running = {"containerStatuses": [{"name": "im", "state": {"running": {}}}]}
    said = {"type": "Ready", "status": "True" if ready else "False"}
    memory.put("Pod", name, status=running | {"conditions": [said]})
    memory.held["Pod", "im-fra", name]["metadata"] |= template["metadata"]


def wanted(memory: Memory) -> int:
    return int(memory.held["StatefulSet", "im-fra", "fra-im"]["spec"]["replicas"])


async def started(memory: Memory, reconciler: Reconciler) -> None:
    await reconciler.reconcile(IDC_KEY)
    pod(memory, "fra-idc-0", ready=True)
    await reconciler.reconcile(KEY)
    for number in (2, 3):
        pod(memory, f"fra-im-{number}")


async def test_they_stand_by_once_its_own_pod_is_there_and_one_takes_over(memory: Memory) -> None:
    reconciler = reconciler_of(memory)
    await reconciler.reconcile(KEY)
    assert memory.status("IMCluster")["blocked_by"] == ["IDC fra has no pod yet"]
    assert ("StatefulSet", "im-fra", "fra-im") not in memory.held
    await started(memory, reconciler)
    assert await reconciler.reconcile(KEY) is None
    assert (memory.status("IMCluster")["phase"], memory.status("IMCluster")["ready"]) == (
        "Serving", 2,
    )  # fmt: skip
    await reconciler.reconcile(IDC_KEY)
    assert memory.status()["phase"] == "Serving"

    pod(memory, "fra-idc-0")
    pod(memory, "fra-im-3", ready=True)
    await reconciler.reconcile(KEY)
    assert memory.status("IMCluster")["serving"] == "fra-im-3"
    reconciler.changed(memory.held["IMCluster", "im-fra", "fra"])
    assert IDC_KEY in reconciler._waiting, "its status is about it, too"
    await reconciler.reconcile(IDC_KEY)
    assert (memory.status()["phase"], memory.status()["ready"]) == ("Serving", True)


async def test_who_may_be_evicted_follows_whether_another_core_stands_by(memory: Memory) -> None:
    """Pods are not watched, so it is looked at again and again."""
    now = [NOW]
    reconciler = reconciler_of(memory, now)
    await started(memory, reconciler)
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["status"] = idc["status"] | {"process": {"state": "active"}}
    memory.parts[("IDC", "im-fra", "fra"), "looks"] = {"process": {"state": "active"}}

    def budget() -> tuple[int, str]:
        spec = memory.held["PodDisruptionBudget", "im-fra", "fra-idc"]["spec"]
        return spec["minAvailable"], spec["unhealthyPodEvictionPolicy"]

    assert [await reconciler.reconcile(IDC_KEY) for _ in range(3)] == [SOON_S] * 3
    assert budget() == (0, "IfHealthyBudget")
    for number in (2, 3):  # told to end, as by an eviction
        memory.held["Pod", "im-fra", f"fra-im-{number}"]["metadata"]["deletionTimestamp"] = NOW
    await reconciler.reconcile(IDC_KEY)
    assert budget() == (1, "IfHealthyBudget")
    pod(memory, "fra-im-2")
    pod(memory, "fra-idc-0")  # it does not serve any more, and nobody does yet
    await reconciler.reconcile(IDC_KEY)
    now[0] = "2026-01-01T00:00:59Z"
    await reconciler.reconcile(IDC_KEY)
    assert budget() == (0, "IfHealthyBudget")
    now[0] = "2026-01-01T00:01:00Z"
    await reconciler.reconcile(IDC_KEY)
    assert budget() == (0, "AlwaysAllow")


@pytest.mark.parametrize("change", ["its IDC is gone", "one core", "an engine"])
async def test_none_is_left_that_could_serve_beside_its_own_and_they_come_back(
    memory: Memory, change: str
) -> None:
    reconciler = reconciler_of(memory)
    await started(memory, reconciler)
    idc, known = memory.held["IDC", "im-fra", "fra"], memory.held["Region", "im-fra", "two-idc"]
    if change == "one core":
        idc["spec"]["cores"] = "own"
    elif change == "an engine":
        known["spec"] = spec_of(log=None)
    else:
        del memory.held["IDC", "im-fra", "fra"]
    assert await reconciler.reconcile(KEY) == SOON_S
    assert (wanted(memory), memory.status("IMCluster")["phase"]) == (0, "Blocked")
    memory.written.clear()
    await reconciler.reconcile(KEY)
    assert memory.written == [], "once"
    idc["spec"]["cores"], known["spec"] = "shared", spec_of()
    memory.held["IDC", "im-fra", "fra"] = idc
    await reconciler.reconcile(KEY)
    assert wanted(memory) == 2


async def test_the_pods_of_somebody_else_are_not_taken_away(memory: Memory) -> None:
    memory.put("StatefulSet", "fra-im", spec={"replicas": 3})
    memory.held["IDC", "im-fra", "fra"]["spec"]["cores"] = "own"
    await reconciler_of(memory).reconcile(KEY)
    assert (wanted(memory), memory.status("IMCluster")["phase"]) == (3, "Blocked")


async def test_an_idc_gets_a_core_of_its_own_once_the_others_are_gone(memory: Memory) -> None:
    reconciler = reconciler_of(memory)
    await started(memory, reconciler)
    memory.held["IDC", "im-fra", "fra"]["spec"]["cores"] = "own"

    def knows() -> bool:
        return "--standby" in str(memory.held["StatefulSet", "im-fra", "fra-idc"])

    await reconciler.reconcile(IDC_KEY)
    assert memory.status()["phase"] == "Blocked" and knows()
    await reconciler.reconcile(KEY)
    assert wanted(memory) == 0
    for number in (2, 3):
        del memory.held["Pod", "im-fra", f"fra-im-{number}"]
    await reconciler.reconcile(IDC_KEY)
    assert memory.status()["phase"] == "Serving" and not knows()
    # Of its old pod it is known that it still shares.
    assert memory.status()["outdated"]


async def test_an_idc_that_is_made_anew_waits_for_the_cores_of_the_former_one(
    memory: Memory,
) -> None:
    reconciler = reconciler_of(memory)
    await started(memory, reconciler)
    for kind, name in (("StatefulSet", "fra-idc"), ("Pod", "fra-idc-0")):
        del memory.held[kind, "im-fra", name]
    memory.held["IDC", "im-fra", "fra"]["spec"]["cores"] = "own"
    await reconciler.reconcile(IDC_KEY)
    assert memory.status()["phase"] == "Blocked"
    assert ("StatefulSet", "im-fra", "fra-idc") not in memory.held


@pytest.mark.parametrize("change", ["none", "paused", "deleted"])
async def test_a_mark_of_a_drill_takes_them_away_until_its_time_is_over(
    memory: Memory, change: str
) -> None:
    now = [NOW]
    idc = memory.held["IDC", "im-fra", "fra"]
    idc["spec"]["drills_from"] = ["im-fra"]
    reconciler = reconciler_of(memory, now)
    await started(memory, reconciler)
    idc["metadata"]["annotations"] = {DOWN_UNTIL: UNTIL}
    await reconciler.reconcile(KEY)
    assert (wanted(memory), memory.status("IMCluster")["phase"]) == (0, "Down")
    own = memory.held["IMCluster", "im-fra", "fra"]
    if change == "paused":
        own["spec"]["paused"] = True
    elif change == "deleted":
        own["metadata"]["deletionTimestamp"] = NOW
    now[0] = UNTIL
    await reconciler.reconcile(KEY)
    assert wanted(memory) == 2
