"""Where a rollout happens: a target, and the control of its traffic. Observes and asks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from imcore.errors import ImError
from imcore.region.model import Region
from imcore.runtime import Clock
from imctl import admin
from imctl.errors import Denied
from imctl.plan.document import lacks
from imctl.plan.takes import Takes
from imctl.rollout import store
from imctl.rollout.next import Seen
from imctl.rollout.record import Rollout
from imctl.target.base import Rolling
from imctl.target.local import LINKPROXY, Local
from imctl.traffic import Control
from services.control.evaluate import Decision, evaluate
from services.control.rules import Change, Kind
from services.policy.document import IdcState, Policy

STATUS_S = 2.0


class _Sited(NamedTuple):
    """What a sites file means for one unit, and what its API server says of it."""

    restarts: bool
    lacks: bool
    rolling: Rolling | None
    trouble: str = ""


_AS_WANTED = _Sited(False, False, None)


class LocalGround:
    """``Ground`` of ``driver``."""

    def __init__(self, target: Local, control: Control, clock: Clock) -> None:
        self._target = target
        self._control = control
        self._clock = clock
        self._loaded: dict[str, Region] = {}
        self._audited: set[tuple[str, str, tuple[str, ...]]] = set()

    async def look(self, rollout: Rollout) -> dict[str, Seen]:
        target = self._target
        target.look_again()  # another imctl may have started or killed something
        names = [name for name in target.names() if name != LINKPROXY]
        states = {unit.name: unit.state for unit in target.units()}
        if not target.on_pods and (unit := rollout.restarting):  # whole, or it is done again
            apart = [states.get(one, "gone") for one in target.apart_of(unit)]
            states |= {unit: "gone"} if "gone" in apart else {}
        committed, found = await asyncio.gather(
            self._control.policy(), admin.statuses(target, names, STATUS_S), return_exceptions=True
        )
        if isinstance(found, BaseException):
            raise found
        heard = {
            name: document for name, document in found.items() if not isinstance(document, ImError)
        }
        policy = told(committed, heard)
        wanted = self._region(rollout.wanted)
        sited = self._sited(rollout, heard)
        idcs = {idc.name for idc in target.region.spec.idcs}
        return {
            name: self._seen(
                name, policy, heard, states.get(name, "gone"), wanted, name in idcs,
                sited if name == rollout.current else _AS_WANTED,
            )
            for name in names
        }  # fmt: skip

    def _sited(self, rollout: Rollout, heard: Mapping[str, dict[str, Any]]) -> _Sited:
        """Of the unit whose turn it is: nothing is done about another one. Raises Denied for what
        an API server refuses: since the plan, which would not have begun this."""
        target, unit = self._target, rollout.current
        if not unit:
            return _AS_WANTED
        changes = target.site_changes(rollout.wanted, [unit])
        if refused := [each for each in changes if each.takes is Takes.FIXED]:
            raise Denied("; ".join(f"{each.difference.field}: {each.reason}" for each in refused))
        takes = {each.takes for each in changes}
        serves = heard.get(unit, {}).get("serving")
        return _Sited(
            Takes.RESTART in takes,
            Takes.IN_PLACE in takes,
            target.rolling(unit),
            "" if serves else target.trouble(unit),
        )

    def _seen(
        self,
        name: str,
        policy: Told,
        heard: Mapping[str, dict[str, Any]],
        process: str,
        wanted: Region,
        is_idc: bool,
        sited: _Sited,
    ) -> Seen:
        runs, document = process != "gone", heard.get(name)
        acks = (document or {}).get("acks") or {}
        current = not lacks(name, self._region(self._target.region_of(name)), wanted)
        state, ramp = policy.idcs.get(name, (IdcState.ACTIVE, 100))
        return Seen(
            runs=runs,
            current=current and not sited.restarts,
            lacks=sited.lacks,
            rolling=sited.rolling,
            trouble=sited.trouble,
            answers=runs and document is not None,
            serving=bool(document and document.get("serving")),
            state=state if is_idc else None,
            ramp=ramp,
            moving=policy.moving == name,
            sessions=int(document.get("sessions", 0)) if document else 0,
            lag_ms=worst_lag(name, heard),
            alarms=tuple(document.get("alarms", ())) if document else (),
            acks=int(acks.get("sends") or 0),
            ack_p99_ms=float(acks.get("p99_ms") or 0),
        )

    def _region(self, name: str) -> Region:
        if name not in self._loaded:
            self._loaded[name] = self._target.region_named(name)
        return self._loaded[name]

    # --------------------------------------------------------------------------- traffic

    async def drain(self, idc: str, rollout: Rollout) -> str:
        """By the wanted file's rules too: those who take the clients may go by them already."""
        change = _change(Kind.DRAIN, idc, rollout.override)
        decision = await self._judged(change, self._region(rollout.wanted))
        if decision.policy is None:
            return f"under the new file, {decision.sentence}"
        return await self._ask(change)

    async def failback(self, idc: str) -> str:
        return await self._ask(_change(Kind.FAILBACK, idc))

    async def cordon(self, idc: str) -> str:
        return await self._ask(_change(Kind.CORDON, idc))

    async def _ask(self, change: Change) -> str:
        """The driver asks until the answer is yes; a refusal for the same rules stands in the audit
        once. The request ids are new ones: what an earlier one came to is seen in the policy."""
        decision = await self._judged(change, self._target.region)
        if decision.policy is not None or self._is_new(change, decision):
            decision = await self._control.submit(change)
        return "" if decision.policy is not None else decision.sentence

    async def _judged(self, change: Change, by: Region) -> Decision:
        """Nothing is changed."""
        policy, evidence = await asyncio.gather(self._control.policy(), self._control.evidence())
        return evaluate(policy, change, evidence, by, self._clock.wall_ms())

    def _is_new(self, change: Change, refused: Decision) -> bool:
        key = (change.kind, change.idc, tuple(blocker.rule for blocker in refused.blockers))
        known = key in self._audited
        self._audited.add(key)
        return not known

    # --------------------------------------------------------------------------- the target

    async def apply(self, unit: str, wanted: str) -> None:
        await asyncio.to_thread(self._target.apply, unit, wanted)

    async def restart(self, unit: str, wanted: str) -> None:
        await asyncio.to_thread(self._target.restart, unit, wanted)

    async def adopt(self, wanted: str) -> None:
        await asyncio.to_thread(self._target.adopt, wanted)

    def write(self, rollout: Rollout) -> None:
        store.write(self._target.data, rollout)

    def told_to_pause(self) -> bool:
        return store.told_to_pause(self._target.data)

    def last_words(self, unit: str) -> str:
        return self._target.last_words(unit)

    def now(self) -> float:
        return self._clock.now()

    def wall_ms(self) -> int:
        return self._clock.wall_ms()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _change(kind: str, idc: str, override: str = "") -> Change:
    overrides = (override,) if override else ()
    return Change(kind, idc, secrets.token_hex(8), "deploy", overrides=overrides)


class Told(NamedTuple):
    """What of the policy a rollout goes by. ``moving``: whose operation is under way."""

    idcs: Mapping[str, tuple[IdcState, int]]
    moving: str = ""


def told(committed: Policy | BaseException, heard: Mapping[str, Mapping[str, Any]]) -> Told:
    """Without a majority, as the IDCs last heard it: else a file with which the second of three
    registries does not start could not be taken back. Raises what came when nobody answers."""
    if isinstance(committed, Policy):
        rows = {name: (row.state, row.ramp) for name, row in committed.idcs.items()}
        return Told(rows, committed.operation.idc if committed.operation else "")
    known = [document["policy"] for document in heard.values() if document.get("policy")]
    # A witness says nothing of operations.
    newest = max(known, key=lambda said: (int(said["epoch"]), "operation" in said), default=None)
    if not isinstance(committed, ImError) or newest is None or not newest.get("idcs"):
        raise committed
    operation = str(newest.get("operation", ""))  # KIND-IDC-EPOCH
    return Told(
        {name: (IdcState(row["state"]), int(row["ramp"])) for name, row in newest["idcs"].items()},
        operation.partition("-")[2].rpartition("-")[0],
    )


def worst_lag(name: str, heard: Mapping[str, Mapping[str, Any]]) -> int:
    """Between this IDC and the others that answer, both ways."""
    own = heard.get(name, {})
    lags = []
    for other, document in heard.items():
        if other == name:
            continue
        for here, there in ((own, document), (document, own)):
            row = (here.get("lag") or {}).get(str(there.get("origin", "")))
            lags.append(int(row["ms"]) if row else 0)
    return max(lags, default=0)
