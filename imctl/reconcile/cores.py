"""What is to be done about the cores that stand by beside an IDC's own, and what is said of them.
Pure: the shell applies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from imctl.api.beside import BesidePhase
from imctl.api.cores import ImClusterSpec
from imctl.reconcile.beside import EVERY, Around, Counts, Decision, home_of, is_blocked, said
from imctl.reconcile.besideobjects import workload_of
from imctl.reconcile.coreobjects import Cores, embedded, objects
from imctl.reconcile.observed import Core, Object, Owner, Pod, Port
from imctl.reconcile.steps import template_of

TAKES_OVER_MS = 10_000  # at most, until gateways are linked to another core


@dataclass(frozen=True, slots=True)
class Seen(Around):
    """``own``: the IDC's own pod; ``templates``: of the pods of ``cores``, the settings that each
    was made with; ``listens``: where they do; ``idc_generation``: of the IDC object."""

    own: Pod | None = None
    cores: tuple[Core, ...] = ()
    templates: tuple[str, ...] = ()
    listens: tuple[Port, ...] = ()
    idc_generation: int = 0


def decide(owner: Owner, spec: ImClusterSpec, seen: Seen, figures: Mapping[str, float]) -> Decision:
    if owner.deleting:
        return _said(owner, seen, BesidePhase.DELETING, "its objects go with it")
    if spec.paused:
        message = "the operator leaves it as it is (spec.paused)"
        return _said(owner, seen, BesidePhase.PAUSED, message)
    home = home_of(spec.idc, seen)
    made = home if isinstance(home, str) else Cores(owner, spec, *home)
    if isinstance(made, str):
        # Of an IDC that is gone none may serve.
        return _blocked(owner, seen, [made], seen.idc is None)
    if alone := list(_stand_alone(made, seen)):
        return _blocked(owner, seen, alone, True)
    waits = list(is_blocked(spec.idc, seen))
    if seen.own is None and not seen.workload:
        waits.append(f"IDC {spec.idc} has no pod yet")
    if waits:
        return _blocked(owner, seen, waits, False)
    return _progress(made, seen, objects(made, figures, bool(seen.down_until), seen.listens))


def _stand_alone(of: Cores, seen: Seen) -> Iterator[str]:
    """Why the IDC's own core would serve beside one of these, neither knowing of the other."""
    if of.idc.cores != "shared":
        yield f"IDC {of.spec.idc} has a core of its own only: say `cores: shared` there"
        return
    yield from embedded(of.idc, of.region)
    if seen.own is not None and not seen.own.shares:
        yield f"{seen.own.name} was made without `cores: shared`, and has it once it is deleted"


def _progress(of: Cores, seen: Seen, made: list[Object]) -> Decision:
    wanted, template = of.spec.replicas, template_of(made[-1])
    updated = seen.templates.count(template)
    running, there = sum(each.runs for each in seen.cores), len(seen.cores)
    serving = _serving(seen)
    rolled = updated >= there and template_of(seen.workload) == template
    message = f"{running} of {wanted} run"
    message += f", and {serving} serves" if serving else ""
    if seen.down_until:
        phase = BesidePhase.DOWN
        message = f"a drill keeps its IDC down, until {seen.down_until} at most"
    elif updated < there:
        phase = BesidePhase.ROLLING
        message += f"; {there - updated} with other settings than are wanted, until deleted"
    elif running >= wanted and there == wanted and rolled:
        phase = BesidePhase.SERVING
        message += _too_late(of)
    else:
        phase = BesidePhase.UNREADY if seen.served else BesidePhase.STARTING
    if seen.trouble and phase not in (BesidePhase.SERVING, BesidePhase.DOWN):
        message += f"; {seen.trouble}"
    base = workload_of(of.owner)
    keep = {(each["kind"], each["metadata"]["name"]) for each in made}
    keep |= {("ConfigMap", f"{base}-region-{each}") for each in seen.pods.values() if each}
    if not rolled:
        keep.add(("ConfigMap", EVERY))
    ready = running >= wanted and phase is not BesidePhase.DOWN
    return _said(of.owner, seen, phase, message, [], made, rolled, ready, frozenset(keep), updated)


def _too_late(of: Cores) -> str:
    """For so long gateways keep clients without a core, and other IDCs declare none failed."""
    hold_ms = of.region.spec.safety.hold_ms
    if hold_ms >= TAKES_OVER_MS:
        return ""
    return (
        f"; clients are sent away before one takes over: safety.hold_ms in Region {of.idc.region} "
        f"is {hold_ms}, make it {TAKES_OVER_MS} or more"
    )


def _serving(seen: Seen) -> str:
    return next((each.name for each in seen.cores if each.serves), "")


def _blocked(owner: Owner, seen: Seen, why: list[str], stop: bool) -> Decision:
    made = _said(owner, seen, BesidePhase.BLOCKED, "; ".join(why), why)
    return made._replace(stop=stop)


def _said(
    owner: Owner,
    seen: Seen,
    phase: BesidePhase,
    message: str,
    blocked: list[str] | None = None,
    apply: list[Object] | None = None,
    rolled: bool = False,
    ready: bool = False,
    keep: frozenset[tuple[str, str]] = frozenset(),
    updated: int | None = None,
) -> Decision:
    """``updated``: None: not known, since it is not known what is wanted."""
    same = seen.templates.count(template_of(seen.workload)) if updated is None else updated
    counts = Counts(len(seen.cores), sum(each.runs for each in seen.cores), same, True)
    made = said(owner, counts, phase, message, blocked, apply, rolled, ready, keep)
    more = {"serving": _serving(seen), "idc_generation": seen.idc_generation}
    return made._replace(status=made.status | more)
