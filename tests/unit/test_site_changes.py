"""What a sites file changes where it runs: by object and field, with what it takes."""

from __future__ import annotations

import copy
from typing import Any

from imctl.plan.document import Plan, alone, as_json, order_of
from imctl.plan.takes import Change
from imctl.planview import plan_view
from imctl.target import sitechanges, sites
from imctl.target.found import MANAGER
from imctl.target.sitechanges import Part, changes_of, moved
from imctl.target.sites import Sites
from tests.unit.test_gateway_cluster import roomy
from tests.unit.test_operator_objects import FIGURES
from tests.unit.test_plan import on_80_columns

Object = dict[str, Any]
OURS = [{"manager": MANAGER, "operation": "Apply"}]


def placed(gateways: Object | None = None, **spec: Any) -> Sites:
    there = {"namespace": "im", "spec": spec}
    document = {"fra": there | ({} if gateways is None else {"gateways": gateways})}
    document |= {"dub": {"namespace": "im"}, "witness": {"namespace": "im"}}
    return Sites.model_validate({"sites": document, "spec": {"image": "imctl:1"}})


def had(document: Object, who: list[Object] = OURS) -> Object:
    """As an API server has it."""
    found = copy.deepcopy(document)
    found["metadata"] |= {"managedFields": who}
    return found


def changes(before: Sites, after: Sites, part: str = "fra", **more: Any) -> list[Change]:
    old, new = (
        {each["kind"]: had(each) for each in sites.beside(part, of, roomy())}
        for of in (before, after)
    )
    asked = Part(
        part,
        had(sites.own_object(part, before, roomy())),
        had(sites.own_object(part, after, roomy())),
        old,
        new,
        False,
    )
    return changes_of(asked._replace(**more), roomy(), FIGURES)


def said(found: list[Change]) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {each.difference.field: (str(each.takes), each.units) for each in found}


def test_the_same_file_changes_nothing() -> None:
    assert changes(placed({"replicas": 2}), placed({"replicas": 2})) == []
    assert changes(placed(), placed()) == []
    assert changes(placed(), placed(), "witness") == []


def test_what_the_pod_is_made_with_takes_a_restart_and_all_else_none() -> None:
    before, after = placed({}), placed({}, image="imctl:2", service="NodePort", deletion="at_once")
    assert said(changes(before, after)) == {
        "sites.fra.spec.image": ("restart", ("fra",)),
        "sites.fra.spec.service": ("in place", ("fra",)),
        "sites.fra.spec.deletion": ("in place", ("fra",)),
        "sites.fra.gateways.image": ("in place", ("fra",)),
    }


def test_gateways_change_while_their_idc_goes_on() -> None:
    after = placed({"replicas": 3, "rollout": {"min_ready_s": 30}})
    assert said(changes(placed({"replicas": 2}), after)) == {
        "sites.fra.gateways.replicas": ("in place", ("fra",)),
        "sites.fra.gateways.rollout": ("in place", ("fra",)),
    }


def test_gateways_that_come_or_go_take_a_restart_of_their_idc() -> None:
    assert said(changes(placed(), placed({}))) == {
        "sites.fra.spec.gateways": ("restart", ("fra",)),
        "sites.fra.gateways": ("in place", ("fra",)),
    }
    assert said(changes(placed({}), placed())) == {
        "sites.fra.spec.gateways": ("restart", ("fra",)),
        "sites.fra.gateways": ("restart", ("fra",)),
    }


def test_route_instances_come_change_and_go_while_their_idc_goes_on() -> None:
    def routed(routes: Object | None) -> Sites:
        found = placed({})
        found.sites["fra"] = found.sites["fra"].model_copy(update={"routes": routes})
        return found

    for before, after, field in (
        (None, {}, "routes"),
        ({}, None, "routes"),
        ({"replicas": 2}, {"replicas": 3}, "routes.replicas"),
    ):
        assert said(changes(routed(before), routed(after))) == {
            f"sites.fra.{field}": ("in place", ("fra",))
        }
    (theirs,) = [
        each for each in sites.beside("fra", routed({}), roomy()) if "Route" in each["kind"]
    ]
    found = {"RouteCluster": had(theirs, [{"manager": "kubectl-client-side-apply"}])}
    assert changes(placed(), placed(), beside=found) == []


def test_gateways_that_somebody_else_applied_are_left_to_him() -> None:
    (theirs,) = sites.beside("fra", placed({}), roomy())
    found = had(theirs, [{"manager": "kubectl-client-side-apply"}])
    assert changes(placed(), placed(), beside={"GatewayCluster": found}) == []
    (taken,) = changes(placed({}), placed({}), beside={"GatewayCluster": found})
    assert (taken.difference.before, str(taken.takes)) == ("somebody else's", "in place")


def test_a_pod_that_waits_to_be_replaced_is_a_difference_of_its_own() -> None:
    assert said(changes(placed(), placed(), outdated=True)) == {
        "sites.fra.pod": ("restart", ("fra",))
    }
    both = changes(placed(), placed(image="imctl:2"), outdated=True)
    assert list(said(both)) == ["sites.fra.spec.image"]


def test_what_is_not_there_is_started_not_changed() -> None:
    assert changes(placed(), placed(image="imctl:2"), own=None) == []


def test_a_field_that_this_imctl_does_not_know_takes_a_restart() -> None:
    newer = had(sites.own_object("fra", placed(), roomy()))
    newer["spec"]["flavour"] = "x"
    assert said(changes(placed(), placed(), new=newer)) == {
        "sites.fra.spec.flavour": ("restart", ("fra",))
    }


def test_no_deploy_moves_adds_or_removes_a_part() -> None:
    before, after = placed(), placed()
    after.sites["fra"] = after.sites["fra"].model_copy(update={"namespace": "other"})
    after.sites["dub"] = after.sites["dub"].model_copy(update={"context": "prod"})
    after.sites["sin"] = after.sites.pop("witness")
    found = moved(before, after)
    assert said(found) == dict.fromkeys(
        ("sites.fra.namespace", "sites.dub.context", "sites.witness", "sites.sin"),
        ("not changeable", ()),
    )
    assert "kubectl config rename-context" in found[0].reason
    assert "`imctl drain` and `imctl retire`" in found[-1].reason


def test_what_an_api_server_refuses_says_why() -> None:
    found = sitechanges.refused("fra", "GatewayCluster", "max: expected at least `min`")
    assert (found.difference.field, str(found.takes)) == ("sites.fra.gateways", "not changeable")
    assert found.reason == "max: expected at least `min`"


def cluster(fields: Object) -> Object:
    (made,) = sites.beside("fra", placed({}), roomy())
    made["spec"] |= fields
    return had(made)


def warned(before: Object, after: Object) -> bool:
    has, new = ({"GatewayCluster": cluster(each)} for each in (before, after))
    found = changes(placed({}), placed({}), beside=has, new_beside=new)
    assert {str(each.takes) for each in found} == {"in place"}
    return bool(alone(found, ()))


def test_a_lone_gateway_that_is_replaced_is_warned_of() -> None:
    """Nobody in its IDC can take its clients meanwhile."""
    other = {"node_selector": {"edge": "yes"}}
    assert warned({"replicas": 1}, {"replicas": 1, **other})
    assert warned({"replicas": 2}, {"replicas": 1, **other})
    assert warned({"replicas": 1}, {"replicas": 0}), "its clients go, too"
    lone = {"autoscaling": {"min": 1, "max": 3, "connections": 50}, "replicas": 1}
    assert warned(lone, lone | other), "as the autoscaler has it"
    assert warned({"replicas": 1, "flavour": "x"}, {"replicas": 1}), "of a newer CRD: who knows"
    for kept in (
        warned({"replicas": 1}, {"replicas": 2, **other}),
        warned({"replicas": 2}, {"replicas": 2, **other}),
        warned({"replicas": 2}, {"replicas": 1}),
        warned({"replicas": 1}, {"replicas": 1, "rollout": {"min_ready_s": 30}}),
        warned({"replicas": 1}, {"replicas": 1, "rollout": {"keep": 1}, **other}),
    ):
        assert not kept
    both = changes(placed({"replicas": 1}), placed({"replicas": 1}, image="imctl:2"))
    assert alone(both, ("fra",)) == [], "emptied before, since it is restarted"
    (said,) = alone(changes(placed({"replicas": 1}), placed({"replicas": 1, **other})), ("dub",))
    assert said.startswith("fra has no other gateway") and "`imctl drain fra` first" in said


def test_a_plan_does_not_say_that_clients_stay_who_do_not() -> None:
    after = placed({"replicas": 1, "node_selector": {"edge": "yes"}})
    found = changes(placed({"replicas": 1}), after)
    plan = Plan("two-idc", True, tuple(found), ("fra",), warnings=tuple(alone(found, ())))
    shown = " ".join("\n".join(on_80_columns(plan_view(plan))).split())
    assert "order: fra; each is changed in place without a restart, and is watched" in shown
    assert "! fra has no other gateway" in shown and "with clients connected" not in shown


def test_a_plan_with_a_sites_file_reads_well() -> None:
    found = changes(placed({"replicas": 2}), placed({"replicas": 3}, image="imctl:2"))
    found += [each._replace(units=("dub",)) for each in found if "replicas" in each.difference.path]
    order = order_of(found, {"fra": 9, "dub": 4}, ["fra", "dub"])
    plan = Plan("two-idc", True, tuple(found), order)
    assert (plan.order, plan.restarted) == (("dub", "fra"), ["fra"])
    assert as_json(plan)["in_place"] == ["dub"]
    text = "\n".join(on_80_columns(plan_view(plan)))
    assert "restart of fra" in text and "change in place at dub" in text
    assert (
        "dub is changed in place with clients connected; each of the others is drained, restarted"
        in " ".join(text.split())
    )
    stays = Plan("two-idc", True, tuple(found[-1:]), ("dub",))
    shown = " ".join("\n".join(on_80_columns(plan_view(stays))).split())
    assert "order: dub; each is changed in place with clients connected, and is watched" in shown
