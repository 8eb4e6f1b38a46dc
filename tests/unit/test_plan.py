"""What a changed region file takes, and what the others carry meanwhile."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from rich.console import Console, RenderableType

from imcore.region.load import check_text
from imcore.region.model import Etcd, Kafka, Region, Tikv
from imctl.plan.diff import differences
from imctl.plan.document import Plan, as_json, changes_of, lacks, order_of
from imctl.plan.load import away, away_by
from imctl.plan.takes import RULES, Change, Takes, changes, rule_of
from imctl.planview import plan_view, rollout_view
from imctl.rollout.record import Kind as RolloutKind
from imctl.rollout.record import Rollout, Row
from services.control.evaluate import evaluate
from services.control.evidence import Evidence, IdcFacts
from services.control.rules import Change as Wish
from services.control.rules import Kind
from services.policy.document import IdcPolicy, IdcState, Policy, initial

REGIONS = Path(__file__).parents[2] / "regions"
THREE = (REGIONS / "three-idc.yaml").read_text()
TWO = (REGIONS / "two-idc.yaml").read_text()
NOW = 1_700_000_000_000


def region(edit: Callable[[dict[str, Any]], Any] = lambda spec: None, text: str = THREE) -> Region:
    document = yaml.safe_load(text)
    edit(document["spec"])
    loaded = check_text(yaml.safe_dump(document), "r.yaml")
    assert loaded.region is not None, loaded.problems
    return loaded.region


def judged(edit: Callable[[dict[str, Any]], Any], text: str = THREE, **more: Any) -> list[Change]:
    running = region(text=text)
    return changes(differences(running, region(edit, text)), running, **more)


def only(edit: Callable[[dict[str, Any]], Any], text: str = THREE, **more: Any) -> Change:
    (found,) = judged(edit, text, **more)
    return found


# ------------------------------------------------------------------------------ differences


def test_the_same_file_has_no_difference_whatever_the_form() -> None:
    assert differences(region(), region()) == []
    with_defaults = region(lambda s: s.update(safety={"headroom": 0.8}))
    assert differences(region(), with_defaults) == []


def test_objects_are_compared_by_name_and_fields_by_value() -> None:
    def edit(spec: dict[str, Any]) -> None:
        spec["idcs"][1]["gateways"] = 2
        spec["client"] = {"heartbeat_ms": 4_000}
        spec["geo"]["shards"][2]["match"]["countries"] = ["SG"]

    found = {d.field: (d.before, d.after) for d in differences(region(), region(edit))}
    assert found.pop("spec.geo.shards[asia].match.countries")[1] == ["SG"]
    assert found == {
        "spec.idcs[iad].gateways": (1, 2),
        "spec.client.heartbeat_ms": (5_000, 4_000),
    }


# ----------------------------------------------------------------------------- what it takes


def leaves(kind: Any, path: str) -> Iterator[str]:
    """Dotted paths of all fields of a model, `x` for the name of an object."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        for one in typing.get_args(kind):
            yield from leaves(one, path)
    elif origin is typing.Annotated:
        yield from leaves(typing.get_args(kind)[0], path)
    elif origin is list and path in ("spec.idcs", "spec.geo.shards"):
        yield from leaves(typing.get_args(kind)[0], f"{path}.x")
    elif origin is dict:
        yield f"{path}.x"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        hints = typing.get_type_hints(kind, include_extras=True)
        for name in kind.model_fields:
            yield from leaves(hints[name], f"{path}.{name}" if path else name)
    elif kind is not type(None):
        yield path


FIELDS = [
    field
    for field in leaves(Region, "")
    # Their only value is checked, and an object's name is what it is compared by.
    if field not in ("apiVersion", "kind", "spec.idcs.x.name", "spec.geo.shards.x.name")
]


def test_every_field_has_its_rule_and_every_rule_a_field() -> None:
    assert len(FIELDS) > 70
    assert [field for field in FIELDS if rule_of(field) is None] == []
    used = {rule_of(field) for field in FIELDS}
    ports = ("kv", "log", "registry", "blobs")
    whole = {rule_of(f"spec.idcs.x.engines.{port}.y") for port in ports}
    whole |= {rule_of("spec.idcs.x")}
    assert [rule.pattern for rule in RULES if rule not in used | whole] == []


def test_no_field_holds_a_secret_only_the_path_of_one() -> None:
    """Values are printed: a new field for a password would be printed too."""
    for engine in (Etcd, Kafka, Tikv):
        secret = [n for n in engine.model_fields if "password" in n or "key" in n or "token" in n]
        assert all(name.endswith("_file") for name in secret), secret


@pytest.mark.parametrize(
    ("edit", "field", "units"),
    [
        (lambda s: s["idcs"][0].update(gateways=3), "spec.idcs[fra].gateways", ("fra",)),
        (
            lambda s: s["idcs"][1].update(capacity={"sessions": 20_000}),
            "spec.idcs[iad].capacity.sessions",
            ("fra", "iad", "sin"),
        ),
        (
            lambda s: s.update(messages={"ack": "replicated"}),
            "spec.messages.ack",
            ("fra", "iad", "sin"),
        ),
        (
            lambda s: s["idcs"][2]["endpoints"].update(gateway="127.0.0.1:17390"),
            "spec.idcs[sin].endpoints.gateway",
            ("sin",),
        ),
    ],
)
def test_what_is_read_at_the_start_takes_a_restart(
    edit: Callable[[dict[str, Any]], Any], field: str, units: tuple[str, ...]
) -> None:
    found = only(edit)
    assert (found.difference.field, found.takes, found.units) == (field, Takes.RESTART, units)


def test_the_witness_judges_too() -> None:
    safety = only(lambda s: s.update(safety={"hold_ms": 4_000}), TWO)
    assert safety.units == ("fra", "dub", "witness")
    messages = only(lambda s: s.update(client={"idle_pull_ms": 9_000}), TWO)
    assert messages.units == ("fra", "dub")


def test_what_is_only_shown_takes_nothing() -> None:
    found = only(lambda s: s["idcs"][0]["place"].update(city="Offenbach"))
    assert (found.takes, found.units) == (Takes.NOTHING, ())


def without_sin(spec: dict[str, Any]) -> None:
    spec["idcs"].pop()
    spec["witness"] = {"peer": "127.0.0.1:17402"}
    spec["links"] = spec["links"][:1]
    spec["geo"]["shards"].pop()
    for shard in spec["geo"]["shards"]:
        shard["fallback"].remove("sin")


def with_etcd(spec: dict[str, Any]) -> None:
    spec["idcs"][0]["engines"] = {"registry": {"etcd": {"endpoints": ["10.0.0.1:2379"]}}}


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda s: s.update(partitions=8), "spec.partitions"),
        (without_sin, "spec.idcs[sin]"),
        (with_etcd, "spec.idcs[fra].engines.registry.etcd"),
        (
            lambda s: s["idcs"][0]["endpoints"].update(peer="127.0.0.1:17199"),
            "spec.idcs[fra].endpoints.peer",
        ),
        (
            lambda s: s["idcs"][0]["endpoints"].update(gateway="127.0.0.2:17110"),
            "spec.idcs[fra].endpoints.gateway",
        ),
        (
            lambda s: s["geo"]["shards"][0].update(weights={"fra": 1, "iad": 1}),
            "spec.geo.shards[europe].weights.iad",
        ),
        (lambda s: s["links"][0].update(delay_ms=99), "spec.links"),
    ],
)
def test_what_cannot_change_under_live_idcs_says_why(
    edit: Callable[[dict[str, Any]], Any], field: str
) -> None:
    found = {change.difference.field: change for change in judged(edit)}
    assert found[field].takes is Takes.FIXED
    assert len(found[field].reason) > 10


def test_engines_that_run_beside_the_idcs_stay_as_they_are() -> None:
    def other_endpoint(spec: dict[str, Any]) -> None:
        with_etcd(spec)
        spec["idcs"][0]["engines"]["registry"]["etcd"]["endpoints"] = ["10.0.0.2:2379"]

    running, wanted = region(with_etcd), region(other_endpoint)
    found = differences(running, wanted)
    assert changes(found, running)[0].takes is Takes.RESTART
    assert changes(found, running, engines_here=True)[0].takes is Takes.FIXED


# ------------------------------------------------------------------------------------ plan


def with_bucket(spec: dict[str, Any]) -> None:
    s3 = {"endpoint": "https://s3.fra:9000", "bucket": "files", "credentials_file": "/etc/im/old"}
    spec["media"] = {}
    spec["idcs"][0]["engines"] = {"blobs": {"s3": s3}}


def test_credentials_of_a_bucket_take_a_restart_and_the_bucket_stays() -> None:
    def renewed(spec: dict[str, Any]) -> None:
        with_bucket(spec)
        s3 = spec["idcs"][0]["engines"]["blobs"]["s3"]
        s3 |= {"bucket": "others", "credentials_file": "/etc/im/new"}

    running = region(with_bucket)
    found = changes(differences(running, region(renewed)), running)
    bucket, credentials = sorted(found, key=lambda change: change.difference.field)
    assert (bucket.takes, "voters" in bucket.reason) == (Takes.FIXED, False)
    assert (credentials.takes, credentials.units) == (Takes.RESTART, ("fra",))


def test_units_that_have_it_already_are_not_named() -> None:
    old, new = region(), region(lambda s: s.update(client={"grace_ms": 9_000}))
    found = changes_of(new, {"fra": new, "iad": old, "sin": old}, old, False)
    assert [(c.difference.field, c.units) for c in found] == [
        ("spec.client.grace_ms", ("iad", "sin"))
    ]
    assert (lacks("fra", new, new), lacks("iad", old, new)) == (False, True)
    assert changes_of(new, dict.fromkeys(("fra", "iad", "sin"), new), new, False) == []


def test_one_that_was_left_out_still_differs() -> None:
    old, new = region(), region(lambda s: s.update(client={"grace_ms": 9_000}))
    found = changes_of(new, {"fra": new, "iad": old, "sin": new}, new, False)
    assert [change.units for change in found] == [("iad",)]


def test_the_canary_goes_first_and_the_witness_last() -> None:
    found = judged(lambda s: s.update(safety={"hold_ms": 4_000}), TWO)
    idcs = ["fra", "dub"]
    assert order_of(found, {"fra": 9, "dub": 4}, idcs) == ("dub", "fra", "witness")
    assert order_of(found, {"fra": 9}, idcs) == ("fra", "dub", "witness"), "dub does not answer"
    assert order_of(found, {"fra": 9, "dub": 4}, idcs, "fra") == ("fra", "dub", "witness")
    assert order_of([], {"fra": 9}, idcs) == ()


def test_a_plan_as_json() -> None:
    found = tuple(judged(lambda s: s["idcs"][0].update(gateways=2)))
    document = as_json(Plan("three-idc", True, found, ("fra",)))
    assert (document["differs"], document["order"]) == (True, ["fra"])
    assert document["changes"] == [
        {
            "field": "spec.idcs[fra].gateways",
            "before": 1,
            "after": 2,
            "takes": "restart",
            "units": ["fra"],
            "reason": "read at startup",
        }
    ]
    assert as_json(Plan("three-idc", False, ()))["differs"]
    assert not as_json(Plan("three-idc", True, ()))["differs"]


# ------------------------------------------------------------------------------------ load


def facts(sessions: int, rate: float) -> IdcFacts:
    return IdcFacts(NOW - 100, sessions=sessions, messages_per_s=rate)


def evidence(fra: int = 3_000, iad: int = 4_000, sin: int = 5_000) -> Evidence:
    counts = {"fra": fra, "iad": iad, "sin": sin}
    return Evidence({idc: facts(count, count / 10) for idc, count in counts.items()})


def test_survivors_carry_what_the_placement_gives_them() -> None:
    found = away("fra", initial(region(), NOW), region(), evidence(), NOW)
    assert (found.sessions, found.messages_per_s) == (3_000, 300)
    # Europe's clients go to iad next, as its fallback order says.
    assert [(s.idc, s.sessions, s.messages_per_s) for s in found.survivors] == [
        ("iad", 7_000, 700),
        ("sin", 5_000, 500),
    ]
    assert found.survivors[0].sessions_max == 8_000
    assert found.refusals == ()


def test_clients_of_several_homes_are_shared_out_by_weight() -> None:
    def edit(spec: dict[str, Any]) -> None:
        spec["geo"]["shards"][0]["weights"] = {"fra": 2, "iad": 1, "sin": 1}

    def carried(policy: Policy) -> dict[str, int]:
        found = away("fra", policy, region(edit), evidence(iad=0, sin=0), NOW)
        return {survivor.idc: survivor.sessions for survivor in found.survivors}

    policy = initial(region(edit), NOW)
    shares = carried(policy)
    assert shares.keys() == {"iad", "sin"} and sum(shares.values()) == 3_000
    assert abs(shares["iad"] - 1_500) < 300
    drained = {**policy.idcs, "iad": IdcPolicy(IdcState.DRAINED)}
    assert carried(policy.__class__(epoch=2, idcs=drained)) == {"sin": 3_000}


def test_what_would_be_refused_is_what_the_evaluator_says() -> None:
    policy, full = initial(region(), NOW), evidence(fra=9_000, iad=4_000, sin=4_000)
    found = away("fra", policy, region(), full, NOW)
    assert [survivor.fits for survivor in found.survivors] == [False, True]
    assert [said.rule for said in found.refusals] == ["headroom"]
    decision = evaluate(policy, Wish(Kind.DRAIN, "fra", "r", "operator"), full, region(), NOW)
    assert [(r.rule, r.sentence) for r in found.refusals] == [
        (b.rule, b.sentence) for b in decision.blockers
    ]


def test_a_file_that_lowers_a_capacity_is_judged_by_it_before_it_is_everywhere() -> None:
    """The IDC that is restarted first goes by it while the next one's clients come to it."""
    small = region(lambda s: s["idcs"][1].update(capacity={"sessions": 100}))
    policy, seen = initial(region(), NOW), evidence(sin=6_000)
    assert away("fra", policy, region(), seen, NOW).refusals == ()
    found = away_by("fra", policy, region(), small, seen, NOW)
    assert [s.sessions_max for s in found.survivors] == [80, 8_000]
    assert str(found.refusals[0]).startswith("under the new file, headroom: iad")
    (still,) = away_by("fra", policy, small, region(), seen, NOW).refusals
    assert (still.rule, still.by) == ("headroom", "running")


def test_what_passes_by_itself_is_no_reason_not_to_begin() -> None:
    policy = initial(region(), NOW)
    full, silent = evidence(fra=9_000, iad=9_000), evidence()
    silent = Evidence({idc: facts for idc, facts in silent.idcs.items() if idc != "sin"})
    for seen, rules in ((full, ["headroom"]), (silent, [])):
        found = Plan("r", True, (), ("fra",), (away("fra", policy, region(), seen, NOW),))
        assert [said.split(":")[1].strip() for said in found.refusals()] == rules
        assert found.refusals("headroom") == []


# ------------------------------------------------------------------------------------ shown


def on_80_columns(view: RenderableType) -> list[str]:
    console = Console(width=80, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(view)
    return captured.get().splitlines()


def test_a_plan_reads_well_on_80_columns() -> None:
    def edit(spec: dict[str, Any]) -> None:
        spec["idcs"][0]["gateways"] = 2
        spec["client"] = {"heartbeat_timeout_ms": 3_000}
        spec["geo"]["shards"][1]["match"]["countries"] = ["US", "CA", "BO"]
        spec["partitions"] = 8

    has = dict.fromkeys(("fra", "iad", "sin"), region())
    found = changes_of(region(edit), has, region(), False)
    loads = (away("fra", initial(region(), NOW), region(), evidence(), NOW),)
    order = ("fra", "iad", "sin")
    lines = on_80_columns(plan_view(Plan("three-idc", True, tuple(found), order, loads)))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "spec.idcs[fra].gateways" in text, "brackets are not taken for markup"
    assert "removed MX, BR" in text and "added BO" in text
    assert "refused by `imctl deploy`: spec.partitions" in text


def test_a_rollout_reads_well_on_80_columns() -> None:
    why = "it ends by itself: error: [Errno 2] No such file or directory: '/very/long/" + "x" * 60
    rows = (Row(NOW, "fra", "its turn; active"), Row(NOW, "fra", f"paused: {why}"))
    shown = Rollout("deploy-3", RolloutKind.DEPLOY, "b", "a", ("fra", "iad"), rows=rows)
    lines = on_80_columns(rollout_view(shown, driven=False))
    assert max(map(len, lines)) <= 80
    assert lines[0] == "deploy-3: interrupted; `imctl rollout resume` continues it"
    assert any("[Errno 2]" in line for line in lines)
    assert any(line.split() == ["iad", "waiting"] for line in lines)
