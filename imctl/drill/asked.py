"""A drill that the operator runs: by a DrillRun, followed until it is judged."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from imcore.errors import BadInput, OutcomeUnknown, Unavailable
from imcore.runtime import Clock, SystemClock
from imctl import errors
from imctl.api.drills import DRILL_FINAL, DrillPhase, DrillRunSpec
from imctl.api.kinds import API_VERSION, DRILL_RUN
from imctl.drill import model, onpods
from imctl.drill.model import Drill
from imctl.errors import Failed, Guarded
from imctl.reconcile.cluster import Cluster, Rejected
from imctl.reconcile.drillrun import STOP, namespaces_of
from imctl.reconcile.observed import Object
from imctl.target import operators
from imctl.target.base import Place
from imctl.target.kubernetes import Kubernetes
from imctl.target.operators import GONE_S, Operator, Silence
from imctl.target.sites import KEYS_SECRET

POLL_S = 1.0
BEGIN_S = 300  # one that could not begin for so long is refused: nobody looks any more
FILES = ("report.html", "report.json", "report.md")
_STRANGE = re.compile(r"[^a-z0-9-]")


class Verdict(NamedTuple):
    """``status``: of the command."""

    status: int
    said: Mapping[str, Any]
    place: Place


class Asked(NamedTuple):
    operator: Operator
    body: Object


def prepare(target: Kubernetes, wanted: Drill, given: Mapping[str, str]) -> Asked:
    """Raises BadInput for what cannot be done to pods; Guarded, Failed where nobody runs it."""
    text = wanted.path.read_text()
    _, problems = onpods.judged(text, str(wanted.path))
    if problems:
        raise BadInput("\n".join(problems))
    place = place_of(target)
    needed = f"imctl-{wanted.role_needed()}"
    found, why = asyncio.run(
        operators.find([place], DRILL_RUN, [needed, KEYS_SECRET], SystemClock())
    )
    if not found:
        raise Failed(f"no operator would run it: {'; '.join(why)}; run it with --by imctl")
    own = wanted.path.parent == model.ready_made()
    wish: dict[str, Any] = {
        "region": target.region.metadata.name,
        "drill": wanted.name if own else None,
        "experiment": None if own else text,
        "var": dict(given),
        "certificate": needed,
        "region_keys": KEYS_SECRET,
        "begin_within_s": BEGIN_S,
    }
    spec = DrillRunSpec.model_validate(wish)
    parts = namespaces_of(spec, target.region, place.namespace)
    elsewhere = {part: target.place_of(part).namespace for part in parts}
    wish["namespaces"] = {part: name for part, name in elsewhere.items() if name != place.namespace}
    spec = DrillRunSpec.model_validate(wish)
    name = _STRANGE.sub("-", wanted.name.lower()).strip("-")[:50] or "drill"
    return Asked(
        found[0],
        {
            "apiVersion": API_VERSION,
            "kind": DRILL_RUN.name,
            "metadata": {
                "name": f"{name}-{secrets.token_hex(3)}",
                "namespace": place.namespace,
            },
            "spec": spec.model_dump(mode="json", exclude_defaults=True),
        },
    )


def place_of(target: Kubernetes) -> Place:
    """From where all IDCs take drills. Raises Guarded."""
    contexts = {target.place_of(part).context for part in target.names()}
    if len(contexts) > 1:
        raise Guarded("an operator drills the pods of one cluster, and its parts are in several")
    allowed = target.drilled_from()
    common = set.intersection(*(set(each) for each in allowed.values()))
    if not common:
        said = ", ".join(f"{idc}: {', '.join(each) or 'none'}" for idc, each in allowed.items())
        raise Guarded(
            f"there is no namespace from which all IDCs take drills ({said}); name one in "
            "`spec.drills_from` of each in the sites file"
        )
    own = [target.place_of(idc).namespace for idc in allowed]
    first = next((each for each in own if each in common), min(common))
    return Place(contexts.pop(), first)


async def run(asked: Asked, out: Path | None, clock: Clock) -> Verdict:
    """Raises Guarded for one that is refused; OutcomeUnknown, with how to go on."""
    async with operators.reached(asked.operator.place.context) as cluster:
        made = await operators.make(cluster, asked.body)
        one = _One(cluster, asked.operator, made, clock)
        typer.echo(f"asked for: {one.called}; it goes on when this command ends", err=True)
        typer.echo(f"to end it and have it judged: {one.stopping}", err=True)
        status = await one.ended()
        if status["phase"] == DrillPhase.REFUSED:
            lines = "".join(f"\n  {each}" for each in status.get("blockers", ()))
            raise Guarded(f"{one.called} is refused:{lines}")
        if out is not None:
            await one.fetch(str(status.get("report", "")), out)
        return Verdict(status_of(status), status, asked.operator.place)


def status_of(said: Mapping[str, Any]) -> int:
    """As `imctl drill run` ends itself."""
    if said.get("left"):
        return errors.DEVIATED
    known = {"pass": errors.OK, "deviated": errors.DEVIATED, "aborted": errors.ABORTED}
    return known.get(str(said.get("verdict")), errors.UNKNOWN)


class _One:
    def __init__(self, cluster: Cluster, operator: Operator, made: Object, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._silence = Silence(operator, clock)
        self._place, self._name = operator.place, made["metadata"]["name"]
        self.called = f"{DRILL_RUN.name} {self._place.namespace}/{self._name}"
        self.stopping = (
            f"kubectl -n {self._place.namespace} annotate {DRILL_RUN.short} {self._name} {STOP}=WHY"
        )

    async def ended(self) -> Mapping[str, Any]:
        """Its status."""
        said, began = "", self._clock.now()
        while True:
            with contextlib.suppress(Unavailable):
                found = await self._cluster.get(
                    API_VERSION, DRILL_RUN.name, self._place.namespace, self._name
                )
                if found is None:
                    raise OutcomeUnknown(f"somebody has deleted {self.called}: it is not judged")
                status: Mapping[str, Any] = found.get("status") or {}
                if status.get("phase") in DRILL_FINAL:
                    return status
                if (now := _progress(status)) != said:
                    said = now
                    typer.echo(f"{self.called}: {said or 'waiting for an operator'}", err=True)
                if not status and self._clock.now() - began >= GONE_S:
                    raise OutcomeUnknown(
                        f"no operator says anything of {self.called}; {self._stays}"
                    )
            silent_s = await self._silence.look(self._cluster)
            if silent_s >= GONE_S:
                raise OutcomeUnknown(
                    f"the operator {self._silence.holder} has not renewed its Lease for "
                    f"{silent_s:.0f} s; {self._stays}"
                )
            await asyncio.sleep(POLL_S)

    @property
    def _stays(self) -> str:
        return (
            f"{self.called} stays: the next operator undoes one that had begun, and begins another "
            f"within {BEGIN_S} s of its making only; `imctl status` shows it"
        )

    async def fetch(self, report: str, out: Path) -> None:
        """What of the report an object can hold. Raises Failed, BadInput."""
        if not report:
            raise Failed(f"{self.called} has no report")
        try:
            found = await self._cluster.get("v1", "ConfigMap", self._place.namespace, report)
        except Rejected as error:
            raise Failed(f"its report may not be read: {error}") from error
        if found is None:
            raise Failed(f"ConfigMap {self._place.namespace}/{report} is not there")
        await asyncio.to_thread(_write, out, found.get("data", {}))


def _write(out: Path, files: Mapping[str, str]) -> None:
    """Raises BadInput."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if name in files:  # and no other: whoever made the object may have named them
                (out / name).write_text(files[name])
    except OSError as error:
        raise BadInput(f"cannot write in {out}: {error.strerror}") from error


def _progress(status: Mapping[str, Any]) -> str:
    why: Sequence[str] = status.get("blocked_by", ())
    runner = f" by {status['runner']}" if status.get("runner") else ""
    return f"{status.get('phase', '')}{runner}{': ' if why else ''}{'; '.join(why)}"
