"""What the operator says and does of an IDC, by what it sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from imctl.api.model import IdcSpec, Phase
from imctl.reconcile.decide import Decision, decide, judge_region, region_status
from imctl.reconcile.objects import REGION_FILE, TEMPLATE
from imctl.reconcile.observed import Observed, Owner, Pod, Port
from tests.unit.test_operator_objects import BY_ISSUER, FIGURES, IDC, WITNESS, region, with_quic

OWNER = Owner("IDC", "im-fra", "fra", "0a1b", 3)
SPEC = region().spec.model_dump(mode="json", exclude_defaults=True)
SEEN = Observed(
    region=SPEC,
    secrets={
        "fra-certificate": frozenset({"ca.crt", "tls.crt", "tls.key"}),
        "region-keys": frozenset({"region-keys.json"}),
    },
)


def look(observed: Observed, spec: Any = IDC, owner: Owner = OWNER) -> Decision:
    return decide(owner, spec, observed, FIGURES)


def notes() -> dict[str, str]:
    found: dict[str, str] = look(SEEN).apply[-1]["spec"]["template"]["metadata"]["annotations"]
    return found


def pod(**kwargs: Any) -> Pod:
    own = notes()
    standard: dict[str, Any] = {
        "name": "fra-idc-0", "ready": True, "served": True,
        "template": own[TEMPLATE], "region": own[REGION_FILE],
    }  # fmt: skip
    return Pod(**standard | kwargs)


@pytest.mark.parametrize(
    ("observed", "spec", "why"),
    [
        (replace(SEEN, region=None), IDC, "Region two-idc is not in this namespace"),
        (replace(SEEN, region=SPEC | {"partitions": 0}), IDC, "partitions: expected at least 1"),
        (replace(SEEN, region={k: v for k, v in SPEC.items() if k != "witness"}), IDC, "a witness"),
        (SEEN, IDC.model_copy(update={"idc": "sin"}), "Region two-idc has no sin"),
        (replace(SEEN, secrets={}), IDC, "Secret fra-certificate is not there"),
        (
            replace(SEEN, secrets=SEEN.secrets | {"fra-certificate": frozenset({"tls.key"})}),
            IDC,
            "Secret fra-certificate lacks ca.crt, tls.crt",
        ),
        (SEEN, IDC.model_copy(update={"secrets": ["kafka"]}), "Secret kafka is not there"),
        (SEEN, IDC.model_copy(update={"certificates": BY_ISSUER}), "needs cert-manager"),
    ],
)
def test_what_is_missing_blocks_and_is_named(observed: Observed, spec: Any, why: str) -> None:
    decision = look(observed, spec)
    assert decision.status["phase"] == Phase.BLOCKED
    assert any(why in each for each in decision.status["blocked_by"]), decision.status
    assert decision.apply == []


def test_all_that_is_missing_is_named_at_once() -> None:
    assert len(look(replace(SEEN, secrets={})).status["blocked_by"]) == 2


def test_a_blocked_idc_that_serves_goes_on_serving() -> None:
    decision = look(replace(SEEN, region=None, pod=pod()))
    assert decision.ready
    assert decision.keep == {notes()[REGION_FILE]}


@pytest.mark.parametrize(
    ("seen", "phase", "ready"),
    [
        (None, Phase.STARTING, False),
        ({"ready": False, "served": False}, Phase.STARTING, False),
        ({}, Phase.SERVING, True),
        ({"ready": False}, Phase.UNREADY, False),
    ],
)
def test_the_phases_of_a_pod(seen: dict[str, Any] | None, phase: Phase, ready: bool) -> None:
    decision = look(replace(SEEN, pod=None if seen is None else pod(**seen)))
    assert (decision.status["phase"], decision.ready) == (phase, ready)
    assert decision.apply
    assert not decision.status["outdated"]


@pytest.mark.parametrize(
    ("state", "evicted"),
    [
        ("active", 0), ("cordoned", 0), ("draining", 0), ("recovering", 0),
        ("drained", 1), ("failed", 1), ("retired", 1), ("", 1),
    ],
)  # fmt: skip
def test_a_node_is_emptied_of_an_idc_that_is_known_to_have_clients_after_its_drain(
    state: str, evicted: int
) -> None:
    decision = look(replace(SEEN, pod=pod(), state=state))
    (budget,) = [each for each in decision.apply if each["kind"] == "PodDisruptionBudget"]
    assert budget["spec"]["maxUnavailable"] == evicted
    assert decision.apply[-1]["kind"] == "StatefulSet"


def test_the_trouble_of_a_pod_is_told() -> None:
    trouble = "idc: ImagePullBackOff"
    decision = look(replace(SEEN, pod=pod(ready=False, served=False, trouble=trouble)))
    assert decision.message == trouble


def test_a_pod_of_other_settings_is_outdated_and_keeps_its_region_file() -> None:
    decision = look(replace(SEEN, pod=pod(template="older", region="0123")))
    assert decision.status["outdated"]
    assert decision.status["phase"] == Phase.SERVING
    assert decision.keep == {"0123", notes()[REGION_FILE]}


def listens(decision: Decision) -> tuple[Port, ...]:
    (container,) = decision.apply[-1]["spec"]["template"]["spec"]["containers"]
    return tuple(
        (each["name"], each["containerPort"], each.get("protocol", "TCP"))
        for each in container["ports"]
    )


def reached(decision: Decision, name: str) -> set[tuple[str, int]]:
    """By a Service, or through the NetworkPolicy."""
    (found,) = [
        each
        for each in decision.apply
        if each["metadata"]["name"] == name and each["kind"] in ("Service", "NetworkPolicy")
    ]
    ports = found["spec"].get("ports") or found["spec"]["ingress"][0]["ports"]
    if found["kind"] == "Service":
        assert len({port["name"] for port in ports}) == len(ports)
        assert all(port["targetPort"] == port["port"] for port in ports)
    return {(port["protocol"], port["port"]) for port in ports}


@pytest.mark.parametrize("spec", [IDC, IDC.model_copy(update={"gateways": "apart"})])
def test_a_pod_is_reached_where_it_listens_until_it_is_replaced(spec: IdcSpec) -> None:
    """The others, and clients, know where it listened when it started."""
    before = with_quic(region()).spec.model_dump(mode="json", exclude_defaults=True)
    old = listens(look(replace(SEEN, region=before)))
    ends = {
        "gateway": "10.0.0.1:9000", "ipconf": "10.0.0.1:9100", "peer": "10.0.0.1:9200",
        "metrics": "10.0.0.1:9300",
    }  # fmt: skip
    changed = SPEC | {"idcs": [SPEC["idcs"][0] | {"endpoints": ends}, *SPEC["idcs"][1:]]}
    now = replace(SEEN, region=changed, pod=pod(template="older", region="0123", ports=old))
    decision = look(now, spec)
    by_name = {name: (protocol, number) for name, number, protocol in old}
    gateways = {("TCP", 9000)} if spec.gateways == "inside" else set()
    assert reached(decision, "fra-idc-clients") == gateways | {("TCP", 9100)} | {
        by_name[name] for name in ("gateway-1", "gateway-1-udp", "ipconf")
    }
    assert reached(decision, "fra-idc-peer") == {("TCP", 9200), by_name["peer"]}
    assert reached(decision, "fra-idc") >= {("TCP", 9300), *by_name.values()}
    new = pod(template="newer", ports=listens(decision))
    decision = look(replace(now, pod=new), spec)
    assert reached(decision, "fra-idc-clients") == gateways | {("TCP", 9100)}
    assert reached(decision, "fra-idc-peer") == {("TCP", 9200)}


def test_a_paused_object_is_left_as_it_is() -> None:
    decision = look(replace(SEEN, pod=pod()), IDC.model_copy(update={"paused": True}))
    assert (decision.status["phase"], decision.apply) == (Phase.PAUSED, [])
    assert decision.ready


def test_nothing_is_made_for_what_is_being_deleted() -> None:
    decision = look(SEEN, owner=OWNER._replace(deleting=True))
    assert (decision.status["phase"], decision.apply) == (Phase.DELETING, [])


def test_a_region_without_a_witness_cannot_run_one() -> None:
    three = SPEC | {
        "witness": None,
        "idcs": [*SPEC["idcs"], SPEC["idcs"][0] | {"name": "ams", "endpoints": {
            "gateway": "127.0.0.1:18410", "ipconf": "127.0.0.1:18401", "peer": "127.0.0.1:18402"}}],
        "links": [{"between": pair, "delay_ms": 1}
                  for pair in (["fra", "dub"], ["fra", "ams"], ["dub", "ams"])],
    }  # fmt: skip
    decision = look(replace(SEEN, region=three), WITNESS)
    assert decision.status["blocked_by"] == ["Region two-idc has no witness"]


def test_a_region_is_judged_in_the_words_of_validate() -> None:
    problem = "spec.partitions: expected at most 1024, got 2000"
    assert judge_region("two-idc", SPEC | {"partitions": 2000}) == (None, [problem])
    assert region_status([problem], 7) == {
        "phase": "Invalid", "problems": [problem], "observed_generation": 7,
    }  # fmt: skip
    assert judge_region("two-idc", SPEC) == (region(), [])


@pytest.mark.parametrize("seen", [None, {}, {"ready": False}])
def test_what_a_drill_keeps_down_has_no_pod(seen: dict[str, Any] | None) -> None:
    until = "2026-01-01T00:05:00Z"
    found = replace(SEEN, pod=None if seen is None else pod(**seen), down_until=until)
    decision = look(found)
    assert decision.status["phase"] == Phase.DOWN
    assert decision.apply[-1]["spec"]["replicas"] == 0
    assert until in decision.message
    assert look(SEEN).apply[-1]["spec"]["replicas"] == 1
