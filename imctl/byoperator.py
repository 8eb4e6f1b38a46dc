"""A move that the operator is asked for: by a TrafficOperation, in words that the plan was judged
by. It is followed as any other once it has begun: by then the region itself carries it out."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import typer

from imcore.errors import BadInput, ImError, OutcomeUnknown, Unavailable
from imcore.runtime import Clock, SystemClock
from imctl.api.kinds import API_VERSION, TRAFFIC_OPERATION
from imctl.api.operation import FINAL, RunPhase, TrafficOperationSpec
from imctl.errors import Failed
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.observed import Object
from imctl.target import operators
from imctl.target.base import Place
from imctl.target.kubernetes import Kubernetes
from imctl.target.operators import GONE_S, LOOK_S, Operator, Silence
from imctl.traffic import Control
from services.control.evaluate import Decision
from services.control.permit import role_for
from services.control.rules import Blocker, Change, Kind

POLL_S = 0.5
DECIDED_S = 60.0  # until it is asked for: a Secret or a majority may be missing
SETTLE_S = 5.0  # an operator looks each second
KIND = TRAFFIC_OPERATION.name
_STRANGE = re.compile(r"[\s,;()]")


def chosen(target: Kubernetes, change: Change, must: bool, reason: str) -> ByOperator | None:
    """None: no operator would carry it out; it says why. Raises BadInput and Failed for that where
    one ``must``."""
    if change.kind == Kind.FAILOVER and change.max_lag_ms:
        why = ["a TrafficOperation has no --max-lag of a failover"]
        if must:
            raise BadInput(f"--by: {why[0]}; ask with --by registries")
    else:
        places = places_of(change, [idc.name for idc in target.region.spec.idcs], target.place_of)
        clock = SystemClock()
        found, why = asyncio.run(
            operators.find(places, TRAFFIC_OPERATION, [secret_of(change)], clock)
        )
        if found and (found[0].sure or must):
            return ByOperator(found[0], target.region.metadata.name, reason, clock)
        why += [f"{each.place.namespace}: its Lease may not be read" for each in found]
    said = "; ".join(why)
    if must:
        raise Failed(f"no operator would carry it out: {said}; ask with --by registries")
    typer.echo(f"asked for at the registries, as no operator would do it: {said}", err=True)
    return None


def places_of(change: Change, idcs: Sequence[str], place_of: Callable[[str], Place]) -> list[Place]:
    """Where it may be asked for, the best first: beside the IDC that it is about; but one that is
    declared failed may be lost with its cluster."""
    named = [name for name in (change.idc, change.target) if name]
    order = [*named, *(name for name in idcs if name not in named)]
    if change.kind == Kind.FAILOVER:
        order = [*order[1:], order[0]]
    return list(dict.fromkeys(place_of(name) for name in order))


def secret_of(change: Change) -> str:
    """With the certificate that the operator shows to registries for it."""
    return f"imctl-{role_for(change)}"


def object_of(
    change: Change, region: str, place: Place, epoch: int, asked_by: str, reason: str
) -> Object:
    """``epoch``: that of the plan. It may wait for long for an operator, and is not carried out
    when the policy has become another one meanwhile."""
    wish = {
        "region": region,
        "move": change.kind,
        "idc": change.idc,
        "target": change.target or None,
        "certificate": secret_of(change),
        "expect_epoch": change.expect_epoch or epoch,
        "overrides": list(change.overrides),
        "max_lag_ms": change.max_lag_ms,
        "rate": change.rate,
        "asked_by": asked_by,
        "reason": reason,
    }
    spec = TrafficOperationSpec.model_validate(wish)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": f"{change.kind}-{change.idc}-{secrets.token_hex(3)}",
            "namespace": place.namespace,
        },
        "spec": spec.model_dump(mode="json", exclude_defaults=True),
    }


def asker() -> str:
    """The user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container it may have no name
        user = str(os.getuid())
    return _STRANGE.sub("-", f"{user}@{socket.gethostname()}")[:253]


class ByOperator:
    asks_itself = False

    def __init__(self, operator: Operator, region: str, reason: str, clock: Clock) -> None:
        self._operator, self._region, self._reason = operator, region, reason
        self._clock = clock
        self._silence = Silence(operator, clock)
        self._stack = contextlib.AsyncExitStack()
        self._cluster: Cluster
        self._name = ""
        self._watching: asyncio.Task[None] | None = None

    @property
    def _called(self) -> str:
        return f"{KIND} {self._operator.place.namespace}/{self._name}"

    async def __aenter__(self) -> Self:
        reached = operators.reached(self._operator.place.context)
        self._cluster = await self._stack.enter_async_context(reached)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._stack.aclose()

    # ------------------------------------------------------------------------------ asking

    async def submit(self, control: Control, change: Change, epoch: int) -> Decision:
        """Raises Guarded where nothing was written, and OutcomeUnknown with how to go on."""
        place = self._operator.place
        body = object_of(change, self._region, place, epoch, asker(), self._reason)
        self._name = body["metadata"]["name"]
        made = await operators.make(self._cluster, body)
        who = f" by the operator {self._operator.holder}" if self._operator.holder else ""
        typer.echo(f"asked for{who}: {self._called}", err=True)
        status = await self._decided()
        if status["phase"] == RunPhase.REFUSED:
            blockers = tuple(Blocker(**each) for each in status.get("blockers", ()))
            return Decision(None, status["outcome"], blockers)
        if not status.get("operation"):
            raise OutcomeUnknown(f"{self._called}: {status.get('outcome', '')}")
        self._watching = asyncio.create_task(self._watch())
        return await self._decision(control, made["metadata"]["uid"], status)

    async def _get(self) -> Object | None:
        return await self._cluster.get(
            API_VERSION, KIND, self._operator.place.namespace, self._name
        )

    async def _decided(self) -> dict[str, Any]:
        """Its status, once it is refused or has begun."""
        began, blocked, silent, phase = self._clock.now(), "", False, ""
        while True:
            with contextlib.suppress(Unavailable):
                found = await self._get()
                if found is None:
                    raise OutcomeUnknown(
                        f"somebody has deleted {self._called}; `imctl op list` shows whether it "
                        "was begun"
                    )
                status: dict[str, Any] = found.get("status") or {}
                phase = str(status.get("phase", ""))
                if phase in (*FINAL, RunPhase.RUNNING):
                    return status
                if (now_blocked := "; ".join(status.get("blocked_by", ()))) != blocked:
                    blocked = now_blocked
                    typer.echo(
                        f"waiting: {blocked}" if blocked else "not waiting any more", err=True
                    )
            silent_s = await self._silence.look(self._cluster)
            if silent_s and not silent:
                typer.echo(
                    f"the operator {self._silence.holder} has not renewed its Lease for "
                    f"{silent_s:.0f} s; waiting for another one",
                    err=True,
                )
            silent = silent_s > 0
            waited = self._clock.now() - began
            if silent_s >= GONE_S:
                raise self._left(f"no operator is there any more ({self._silence.holder} was)")
            if not self._operator.lease and not phase and waited >= GONE_S:
                raise self._left("no operator says anything of it")
            if waited >= DECIDED_S:
                raise self._left(blocked or f"it is {phase} for {waited:.0f} s already")
            await asyncio.sleep(POLL_S)

    def _left(self, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"{why}; {self._called} stays, and an operator carries it out unless the policy has "
            f"changed by then. To do without: `kubectl -n {self._operator.place.namespace} delete "
            f"{TRAFFIC_OPERATION.short} {self._name}`, and the same again with --by registries"
        )

    async def _decision(self, control: Control, uid: str, status: dict[str, Any]) -> Decision:
        """As the policy has it, which knows the object's uid as the request's id."""
        name = str(status["operation"])
        try:
            policy = await control.policy()
            record = await control.operation(name)
        except Unavailable as error:
            raise OutcomeUnknown(
                f"{name} has begun, and the registries do not answer ({error}); "
                f"`imctl op watch {name}` follows it"
            ) from error
        passed: Sequence[dict[str, Any]] = ()
        if record is not None and record.steps:
            passed = record.steps[0].evidence.get("overridden", ())
        overridden = tuple(Blocker(**each) for each in passed)
        done = policy.outcome(uid)
        if done is None:  # so many have come since; it has begun all the same
            return Decision(policy, str(status["outcome"]), (), overridden, name)
        return Decision(
            replace(policy, epoch=done.epoch), done.sentence, (), overridden, done.operation
        )

    # --------------------------------------------------------------------------- following

    async def _watch(self) -> None:
        """The move does not need the operator any more; who reads its object does."""
        told = False
        while True:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(ImError):
                silent_s = await self._silence.look(self._cluster)
                if silent_s and not told:
                    typer.echo(
                        f"the operator {self._silence.holder} has not renewed its Lease for "
                        f"{silent_s:.0f} s; the IDCs go on with the move, and {self._called} says "
                        "so once an operator is there again",
                        err=True,
                    )
                told = silent_s > 0

    async def settle(self) -> None:
        """Reads back what the object says of it."""
        until = self._clock.now() + SETTLE_S
        phase = state = ""
        while self._clock.now() < until:
            with contextlib.suppress(ImError):
                status = ((await self._get()) or {}).get("status") or {}
                phase, state = str(status.get("phase", "")), str(status.get("state", ""))
                if phase in FINAL:
                    typer.echo(f"{self._called}: {phase}, {state}", err=True)
                    return
            await asyncio.sleep(POLL_S)
        typer.echo(f"{self._called} does not say so yet ({phase or 'no answer'})", err=True)
