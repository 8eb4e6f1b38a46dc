"""What is to be done about one IDC or witness, and what is said of it. Pure: the shell applies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from imcore.pki import REGION_KEYS
from imcore.region import rules
from imcore.region.explain import explain
from imcore.region.model import Region
from imcore.region.problem import Problem, dotted
from imctl.api.kinds import API_VERSION
from imctl.api.model import IdcSpec, Phase, Validity, WitnessSpec
from imctl.reconcile.objects import (
    CA,
    CERTIFICATE,
    KEY,
    REGION_FILE,
    TEMPLATE,
    Now,
    objects,
    part_of,
)
from imctl.reconcile.observed import Object, Observed, Owner
from imctl.reconcile.process import GOES


class Decision(NamedTuple):
    apply: list[Object]  # in this order
    status: Object
    ready: bool  # the status of its condition Ready
    reason: str
    message: str
    keep: frozenset[str]  # region files that a pod uses or will use; others can go


def judge_region(name: str, spec: Object) -> tuple[Region | None, list[str]]:
    """The region, or what is wrong with it in the words of `imctl validate`."""
    metadata = {"name": name}
    document = {
        "apiVersion": API_VERSION, "kind": "Region", "metadata": metadata, "spec": spec,
    }  # fmt: skip
    try:
        region = Region.model_validate(document)
    except ValidationError as error:
        return None, [_sentence(explain(detail, None)) for detail in error.errors()]
    problems = [_sentence(problem) for problem in rules.check(region)]
    return (None, problems) if problems else (region, [])


def _sentence(problem: Problem) -> str:
    text = f"{dotted(problem.loc)}: expected {problem.expected}, got {problem.got}"
    return f"{text}; {problem.do}" if problem.do else text


def region_status(problems: list[str], generation: int) -> Object:
    phase = Validity.INVALID if problems else Validity.VALID
    return {"phase": str(phase), "problems": problems, "observed_generation": generation}


def decide(
    owner: Owner,
    spec: IdcSpec | WitnessSpec,
    observed: Observed,
    figures: Mapping[str, float],
) -> Decision:
    if owner.deleting:
        return _said(owner, observed, Phase.DELETING, [], "Deleting", "its objects go with it")
    if spec.paused:
        message = "the operator leaves it as it is (spec.paused)"
        return _said(owner, observed, Phase.PAUSED, [], "Paused", message)
    region: Region | None = None
    if observed.region is None:
        blocked = [f"Region {spec.region} is not in this namespace"]
    else:
        region, problems = judge_region(spec.region, observed.region)
        blocked = [f"Region {spec.region} is not valid: {problems[0]}"] if problems else []
    if region is not None:
        blocked += _lacks(owner, spec, region, observed, figures)
    if blocked or region is None:
        return _said(owner, observed, Phase.BLOCKED, blocked, "Blocked", "; ".join(blocked))
    made = objects(owner, spec, region, figures, _now(spec, observed))
    return _progress(owner, observed, made)


def _now(spec: IdcSpec | WitnessSpec, observed: Observed) -> Now:
    pod = observed.pod
    shares = isinstance(spec, IdcSpec) and spec.cores == "shared"
    standing = [each for each in observed.cores if each.runs and not each.serves]
    return Now(
        down=bool(observed.down_until),
        carries=bool(observed.state) and observed.state not in GOES,
        listens=pod.ports if pod is not None else (),
        # One that knows of no others is found by itself, until it is replaced.
        shared=shares and (pod is None or pod.shares),
        relieved=bool(standing) or (bool(_elsewhere(observed)) and pod is not None and pod.runs),
        lives=observed.served_lately,
    )


def _elsewhere(observed: Observed) -> str:
    """The pod beside the IDC's own that serves; empty: none does."""
    own = observed.pod is not None and observed.pod.ready
    return "" if own else next((each.name for each in observed.cores if each.serves), "")


def _lacks(
    owner: Owner,
    spec: IdcSpec | WitnessSpec,
    region: Region,
    observed: Observed,
    figures: Mapping[str, float],
) -> Iterator[str]:
    try:
        part_of(spec, region, figures)
    except KeyError as error:
        yield f"Region {spec.region} has no {error.args[0]}"
    others = ", ".join(each.name for each in observed.cores)
    if isinstance(spec, IdcSpec) and spec.cores != "shared" and others:
        yield f"cores: expected shared while {others} stand by, of which its own knew nothing"
    wanted: dict[str, set[str]] = {spec.certificates.region_keys: {REGION_KEYS}}
    if spec.certificates.secret:
        wanted.setdefault(spec.certificates.secret, set()).update((CA, CERTIFICATE, KEY))
    elif not observed.cert_manager:
        yield "certificates.issuer needs cert-manager, which is not in this cluster"
    for name in spec.secrets:
        wanted.setdefault(name, set())
    for name, keys in wanted.items():
        found = observed.secrets.get(name)
        if found is None:
            yield f"Secret {name} is not there"
        elif lacking := sorted(keys - found):
            yield f"Secret {name} lacks {', '.join(lacking)}"


def _progress(owner: Owner, observed: Observed, made: list[Object]) -> Decision:
    annotations = made[-1]["spec"]["template"]["metadata"]["annotations"]
    pod = observed.pod
    keep = {annotations[REGION_FILE]} | ({pod.region} if pod else set())
    elsewhere = _elsewhere(observed)
    if observed.down_until:
        phase = Phase.DOWN
        message = f"a drill keeps it down, until {observed.down_until} at most"
    elif pod is None and elsewhere:
        phase, message = Phase.SERVING, f"{elsewhere} serves; its own pod is not made yet"
    elif pod is None:
        phase, message = Phase.STARTING, "its pod is not made yet"
    elif pod.ready:
        phase, message = Phase.SERVING, f"{pod.name} serves"
    elif elsewhere:
        phase, message = Phase.SERVING, f"{elsewhere} serves"
        message += f"; {pod.trouble}" if pod.trouble else f", {pod.name} does not"
    else:
        phase = Phase.UNREADY if pod.served else Phase.STARTING
        message = pod.trouble or f"{pod.name} does not serve yet"
    outdated = pod is not None and pod.template != annotations[TEMPLATE]
    if outdated:
        message += "; it has other settings than are wanted, until it is deleted"
    return _said(
        owner, observed, phase, [], str(phase), message, made, frozenset(keep), outdated
    )  # fmt: skip


def _said(
    owner: Owner,
    observed: Observed,
    phase: Phase,
    blocked: list[str],
    reason: str,
    message: str,
    apply: list[Object] | None = None,
    keep: frozenset[str] | None = None,
    outdated: bool = False,
) -> Decision:
    pod = observed.pod
    ready = (pod is not None and pod.ready) or bool(_elsewhere(observed))
    status: dict[str, Any] = {
        "phase": str(phase),
        "pod": pod.name if pod else "",
        "ready": ready,
        "blocked_by": blocked,
        "outdated": outdated,
        "observed_generation": owner.generation,
    }
    held = keep if keep is not None else frozenset({pod.region} if pod else ())
    return Decision(apply or [], status, ready, reason, message, held)
