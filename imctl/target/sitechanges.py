"""What a sites file changes in a deployment that runs. Pure: objects as the API servers have them
are compared with what an apply would make of them, as its dry run says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import ValidationError

from imcore.region.model import Region
from imctl.api.gateways import GatewayClusterSpec
from imctl.api.kinds import GATEWAY_CLUSTER, IDC, IM_CLUSTER, ROUTE_CLUSTER
from imctl.api.model import IdcSpec, WitnessSpec
from imctl.plan.diff import ABSENT, Difference, walk
from imctl.plan.takes import Change, Takes
from imctl.reconcile.gatewayobjects import Fronts
from imctl.reconcile.gatewayobjects import objects as gateway_objects
from imctl.reconcile.objects import objects
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.steps import template_of
from imctl.target.found import ours
from imctl.target.sites import Sites

_POD = "its pod is made with it"
_OUTDATED = "its pod gets the settings of its object when it is replaced"
_OPERATOR = "its operator takes it up; no pod is replaced"
_ONE_BY_ONE = "gateway after gateway, each after the clients of the one before are back"
_RELINKED = "a new instance first, then an old one goes; gateways link to another, clients stay"
_HANDED_OVER = "core after core is replaced; one that serves hands over to another, clients stay"
FIELDS = {  # of a site
    GATEWAY_CLUSTER.name: "gateways",
    ROUTE_CLUSTER.name: "routes",
    IM_CLUSTER.name: "cores",
}
_ALONE = (
    "{0} has no other gateway that takes the clients of the one that goes: they go to another IDC, "
    "without a drain, and no guard asks whether there is room for them; `imctl drain {0}` first, "
    "or give it two gateways"
)
_WHERE = (
    "its volume and its registry are there, and a part is never at two places: `kubectl config "
    "rename-context` gives a context its name back"
)
_PARTS = (
    "no deploy adds or removes a part of a live region. One goes out of service by `imctl drain` "
    "and `imctl retire`, and its objects stay; for one more, start the new files as another "
    "deployment (--data)"
)


class Part(NamedTuple):
    """``own``: the IDC or Witness as it is; None: not there. ``beside``: what there is beside it,
    GatewayCluster and so on, by kind. ``new``, ``new_beside``: as they would be; what is not there
    is not wanted by this file. ``outdated``: its pod waits to be replaced."""

    name: str
    own: Object | None
    new: Object
    beside: Mapping[str, Object]
    new_beside: Mapping[str, Object]
    outdated: bool


def moved(has: Sites, wanted: Sites) -> list[Change]:
    """What no deploy does: parts that come, go, or are elsewhere."""
    found = []
    for part in dict.fromkeys([*has.sites, *wanted.sites]):
        old, new = has.sites.get(part), wanted.sites.get(part)
        if old is None or new is None:
            there = [ABSENT if site is None else "there" for site in (old, new)]
            found.append(_fixed(Difference(("sites", part), *there), _PARTS))
            continue
        for field in ("namespace", "context"):
            before, after = getattr(old, field), getattr(new, field)
            if before != after:
                found.append(_fixed(Difference(("sites", part, field), before, after), _WHERE))
    return found


def refused(part: str, kind: str, why: str) -> Change:
    """By the API server, for good."""
    what = FIELDS.get(kind, "spec")
    return _fixed(Difference(("sites", part, what), "as it is", "refused"), why)


def changes_of(part: Part, region: Region, figures: Mapping[str, float]) -> list[Change]:
    """``region``: that is wanted. A part that is not there differs in nothing: it is started."""
    if part.own is None:
        return []
    found = list(_own(part, part.own, region, figures))
    if part.outdated and not any(change.takes is Takes.RESTART for change in found):
        difference = Difference(("sites", part.name, "pod"), "older settings", "its object's")
        found.append(Change(difference, Takes.RESTART, (part.name,), _OUTDATED))
    return [*found, *_gateways(part, region, figures), *_routes(part), *_cores(part)]


def _own(part: Part, own: Object, region: Region, figures: Mapping[str, float]) -> Iterator[Change]:
    has, new = own["spec"], part.new["spec"]
    restarts: dict[str, bool] = {}
    for difference in walk(("sites", part.name, "spec"), has, new):
        field = difference.path[3]
        if field not in restarts:
            with_it = {name: value for name, value in has.items() if name != field}
            with_it |= {field: new[field]} if field in new else {}
            restarts[field] = _template(own, with_it, region, figures) != _template(
                own, has, region, figures
            )
        if restarts[field]:
            yield Change(difference, Takes.RESTART, (part.name,), _POD)
        else:
            yield Change(difference, Takes.IN_PLACE, (part.name,), _OPERATOR)


def _template(own: Object, spec: Object, region: Region, figures: Mapping[str, float]) -> str:
    """The mark of the settings that its pod would have, as the operator makes it of this spec."""
    metadata = own["metadata"]
    owner = Owner(own["kind"], metadata["namespace"], metadata["name"], "", 0)
    model = IdcSpec if own["kind"] == IDC.name else WitnessSpec
    try:
        made = objects(owner, model.model_validate(spec), region, figures)
    except (ValidationError, KeyError):  # of a newer CRD: what it does nobody here knows
        return repr(spec)
    return template_of(made[-1])


def _gateways(part: Part, region: Region, figures: Mapping[str, float]) -> Iterator[Change]:
    kind = GATEWAY_CLUSTER.name
    has, new = part.beside.get(kind), part.new_beside.get(kind)
    warning = ""
    if has and new and _leaves_none(part, has["spec"], new["spec"], region, figures):
        warning = _ALONE.format(part.name)
    # Where they go their IDC's own pod takes their place.
    yield from _beside(part, kind, (Takes.RESTART, _POD), _ONE_BY_ONE, warning)


def _routes(part: Part) -> Iterator[Change]:
    yield from _beside(part, ROUTE_CLUSTER.name, (Takes.IN_PLACE, _OPERATOR), _RELINKED)


def _cores(part: Part) -> Iterator[Change]:
    yield from _beside(part, IM_CLUSTER.name, (Takes.RESTART, _POD), _HANDED_OVER)


def _beside(
    part: Part, kind: str, gone: tuple[Takes, str], changes: str, warning: str = ""
) -> Iterator[Change]:
    """``gone``: what it takes when it is not wanted any more, and why; ``changes``: how a change of
    it comes to its pods."""
    where, units = ("sites", part.name, FIELDS[kind]), (part.name,)
    has, new = part.beside.get(kind), part.new_beside.get(kind)
    if new is None:
        # One that somebody else has applied is not this file's.
        if has is not None and ours(has):
            yield Change(Difference(where, "there", ABSENT), gone[0], units, gone[1])
        return
    if has is None:
        yield Change(Difference(where, ABSENT, "there"), Takes.IN_PLACE, units, _OPERATOR)
        return
    if not ours(has):
        found = Difference(where, "somebody else's", "there")
        yield Change(found, Takes.IN_PLACE, units, _OPERATOR, warning)
        return
    for difference in walk(where, has["spec"], new["spec"]):
        yield Change(difference, Takes.IN_PLACE, units, changes, warning)


def _leaves_none(
    part: Part, has: Object, wanted: Object, region: Region, figures: Mapping[str, float]
) -> bool:
    """Whether there is a time in which no gateway serves, by what the operator would make."""
    if has == wanted:
        return False
    metadata = part.new["metadata"]
    owner = Owner(GATEWAY_CLUSTER.name, metadata["namespace"], metadata["name"], "", 0)
    try:
        idc = IdcSpec.model_validate(part.new["spec"])
        before, after = (
            Fronts(owner, GatewayClusterSpec.model_validate(spec), idc, region)
            for spec in (has, wanted)
        )
    except ValidationError:  # of a newer CRD: what it does nobody here knows
        return bool(wanted.get("replicas", 0) < 2)
    if after.replicas == 0:
        return before.replicas > 0
    marks = {template_of(gateway_objects(each, figures)[-1]) for each in (before, after)}
    return len(marks) > 1 and after.replicas == 1 and after.spec.rollout.keep == 0


def _fixed(difference: Difference, why: str) -> Change:
    return Change(difference, Takes.FIXED, (), why)
