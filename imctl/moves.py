"""Moves of traffic carried to their end, and one look at a deployment."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import replace

from imcore.errors import ImError, OutcomeUnknown, Unavailable
from imctl import startup
from imctl.errors import Failed
from imctl.scenario import Observed
from imctl.statusview import newest_policy, policies_said
from imctl.target.local import Local
from imctl.traffic import Control, Steering
from services.control.operations import UNDER_WAY
from services.control.rules import Change, Kind
from services.policy.document import OperationState

ASK_AGAIN_S = 0.3
_CARRIED_OUT = frozenset({OperationState.DONE, OperationState.EXCEPTIONS})


def random_id() -> str:
    return secrets.token_hex(8)


class Moves:
    """``new_id`` makes the names of requests, each another."""

    def __init__(self, control: Steering, new_id: Callable[[], str] = random_id) -> None:
        self._control = control
        self._new_id = new_id
        self.refusal = ""

    async def failback(self, idc: str) -> None:
        await self._carry_out(Kind.FAILBACK, idc)

    async def switchover(self, source: str, target: str) -> None:
        await self._carry_out(Kind.SWITCHOVER, source, target)

    async def _carry_out(self, kind: str, idc: str, target: str = "") -> None:
        """Ask until the evaluator says yes (an IDC that has just come back has first to catch up),
        then until the operation has ended. Raises Failed when it ends early. What stands against
        it meanwhile is in ``refusal``: whoever gives up waiting can say why."""
        name = await self._commit(kind, idc, target)
        while True:
            with contextlib.suppress(Unavailable):  # a registry is busy: look again
                operation = await self._control.operation(name)
                if operation is not None and operation.state in _CARRIED_OUT:
                    return
                if operation is not None and operation.state not in UNDER_WAY:
                    last = operation.steps[-1].sentence if operation.steps else "it has no record"
                    raise Failed(f"{name}: {operation.state}: {last}")
            await asyncio.sleep(ASK_AGAIN_S)

    async def _commit(self, kind: str, idc: str, target: str) -> str:
        """The operation's name. A refused change is a new request, one of unknown outcome not."""
        change = Change(kind, idc, self._new_id(), "drill", target)
        while True:
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                decision = await self._control.submit(change)
                if decision.policy is not None:
                    self.refusal = ""
                    return decision.operation
                self.refusal = decision.sentence
                change = replace(change, request_id=self._new_id())
            await asyncio.sleep(ASK_AGAIN_S)


class LocalDeployment(Moves):
    """The local target, as scripts, drills and tests need it."""

    def __init__(self, target: Local, control: Control) -> None:
        super().__init__(control)
        self._target = target

    async def kill(self, idc: str) -> None:
        await asyncio.to_thread(self._target.kill, idc)

    async def start(self, idc: str) -> None:
        await asyncio.to_thread(self._target.start, [idc])
        await startup.wait_serving(self._target, [idc], lambda name, serving: None)

    async def observe(self) -> Observed:
        found = await self._control.statuses(1.0)
        answers = {name: one for name, one in found.items() if not isinstance(one, ImError)}
        policy = newest_policy(answers.values()).get("idcs", {})
        lags = {
            f"{origin.rpartition('.')[0]}->{idc}": float(lag.get("ms") or 0)
            for idc, document in answers.items()
            for origin, lag in (document.get("lag") or {}).items()
        }
        states = {name: str(one.get("state")) for name, one in policy.items()}
        return Observed(states, lags, policies_said(answers))
