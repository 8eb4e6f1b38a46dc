"""Changes of traffic from outside the IDCs: evidence from every IDC, the one evaluator, a commit
among the registries. Decides nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc.aio

from imcore.audit import Anchor
from imcore.errors import ImError, OutcomeUnknown, Refused, Unavailable
from imcore.region.model import Region
from imcore.region.rules import voters_of
from imcore.roles import Role, said
from imcore.runtime import Clock
from imcore.tls import grpc_channel
from imctl import admin, audit, roles
from imctl.reach import Reach
from services.control.anchoring import anchored, read_anchor
from services.control.caspaxos import Proposer
from services.control.evaluate import Decision, evaluate
from services.control.evidence import Evidence, IdcFacts, Vote, facts_from_status, mark_of
from services.control.operations import (
    Offered,
    Operation,
    as_known,
    audit_unknown,
    commit,
    operation_from_json,
    operation_key,
)
from services.control.operations import audit as audit_decision
from services.control.permit import role_for
from services.control.rules import Blocker, Change
from services.control.slow import Slow, slow_steps
from services.control.voting import votes_now
from services.engines.registry_grpc import RemoteRegistry
from services.policy.document import POLICY_KEY, Policy, from_json, initial

RESOLVE_TRIES = 3
FACTS_S = 1.0  # evidence may be two seconds old when it is judged


class Judged(NamedTuple):
    """A decision with what it rests on."""

    policy: Policy
    evidence: Evidence
    decision: Decision


class Left(NamedTuple):
    """``sessions`` that the IDC has still; None when it does not answer. ``stuck``: those that were
    told to go and take much longer than others, by gateway, in whichever IDC."""

    sessions: int | None
    stuck: Mapping[str, int]


class Steering(ABC):
    """Over channels to all voters, whatever they go over; they are closed with it."""

    def __init__(
        self,
        region: Region,
        role: Role,
        channels: Mapping[str, grpc.aio.Channel],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._clock = clock
        self.region = region
        self.idcs = [idc.name for idc in region.spec.idcs]
        self.voters = voters_of(region)
        self.role = role
        self._channels = dict(channels)
        self._registries = {
            name: RemoteRegistry(channel, name) for name, channel in self._channels.items()
        }
        self._proposer = Proposer(self._registries, self.role, clock, rng)

    @abstractmethod
    async def statuses(self, timeout_s: float) -> dict[str, dict[str, Any] | ImError]:
        """What every IDC says of itself; an error in place of the document of one that does not
        answer."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._proposer.close()
        for channel in self._channels.values():
            await channel.close(None)

    async def policy(self) -> Policy:
        """The committed one. Raises Unavailable."""
        value, _ = await self._proposer.read(POLICY_KEY)
        if value is None:
            return initial(self.region, self._clock.wall_ms())
        return from_json(value)

    async def operations(self) -> list[Operation]:
        """The last ones, oldest first. Raises Unavailable."""
        policy = await self.policy()
        found = [await self._operation(name, policy) for name in policy.history]
        return [each for each in found if each is not None]

    async def operation(self, name: str) -> Operation | None:
        """As its record and the policy show it. Raises Unavailable."""
        # The policy first: what ends later is written down later.
        return await self._operation(name, await self.policy())

    async def _operation(self, name: str, policy: Policy) -> Operation | None:
        value, _ = await self._proposer.read(operation_key(name))
        record = operation_from_json(value) if value else None
        return as_known(name, record, policy, self._clock.wall_ms())

    def slow(self, operation: Operation, known: Iterable[Operation]) -> list[Slow]:
        """Its steps that run, or ran, longer than those of the known operations before it."""
        return slow_steps(operation, known, self._clock.wall_ms())

    async def evidence(self) -> Evidence:
        """What every IDC says of itself, and all votes, as of now; silence is no evidence."""
        facts, votes = await asyncio.gather(self._facts(), self.votes())
        marks = {name: mark_of(each) for name, each in facts.items()}
        return Evidence(facts, votes, self.voters, marks)

    async def _facts(self) -> dict[str, IdcFacts]:
        found = await self.statuses(FACTS_S)
        now_ms = self._clock.wall_ms()
        facts = {}
        for name, document in found.items():
            if isinstance(document, ImError):
                continue
            try:
                facts[name] = facts_from_status(document, now_ms)
            except ValueError as error:
                raise Unavailable(f"the status of {name} cannot be used: {error}") from error
        return facts

    async def votes(self) -> list[Vote]:
        """All that stand now."""
        return await votes_now(self.role, self._registries, self._clock)

    async def judge(self, change: Change) -> Judged:
        """What would be decided now; nothing is changed. Raises Unavailable."""
        policy, evidence = await asyncio.gather(self.policy(), self.evidence())
        decision = evaluate(policy, change, evidence, self.region, self._clock.wall_ms())
        return Judged(policy, evidence, decision)

    async def submit(self, change: Change) -> Decision:
        """Judge and commit. An unknown outcome is resolved by the same request again. Raises
        Unavailable (nothing happened) or OutcomeUnknown (even that gave no answer)."""
        if not self.permits(change):
            return self._forbidden(change)
        offered: dict[str, Offered] = {}
        unknown: OutcomeUnknown | None = None
        for _ in range(RESOLVE_TRIES):
            try:
                evidence = await self.evidence()
                decision = await commit(
                    self._proposer, self.region, change, evidence, self._clock, offered
                )
            except OutcomeUnknown as error:
                unknown = error
            except (Unavailable, Refused):
                if unknown is None:
                    raise
            else:
                # What was offered before may still be committed, whatever is refused now.
                if unknown is None or decision.policy is not None:
                    return decision
        assert unknown is not None
        audit_unknown(change, unknown, self._clock.wall_ms())
        raise OutcomeUnknown(
            f"{unknown}; `imctl status` shows the policy that came of it"
        ) from unknown

    async def anchor(self, writer: str) -> Anchor:
        """The last audit event of this writer that the registers know of. Raises Unavailable."""
        return await read_anchor(self._proposer, writer)

    def permits(self, change: Change) -> bool:
        """Whether the role shown may ask for it."""
        return self.role.covers(role_for(change))

    async def note(self, change: Change, judged: Judged) -> None:
        """Into the audit: what was refused before anybody was asked for it."""
        audit_decision(change, judged.decision, judged.evidence, self._clock.wall_ms())

    def _forbidden(self, change: Change) -> Decision:
        """What the registries would refuse is not offered to them; it stands in the audit."""
        needed = role_for(change)
        why = said(self.role, f"{change.kind}{_overriding(change)}", f"needs the role {needed}")
        decision = Decision(None, why, (Blocker("role", self.role, needed, why),))
        audit_decision(change, decision, Evidence(), self._clock.wall_ms())
        return decision

    async def left(self, idc: str) -> Left:
        """How far the hand-over is, as the IDCs that answer say."""
        found = await self.statuses(FACTS_S)
        answers = {name: one for name, one in found.items() if not isinstance(one, ImError)}
        stuck: dict[str, int] = {}
        for document in answers.values():
            stuck |= document.get("moves", {}).get("stuck", {})
        return Left(int(answers[idc].get("sessions", 0)) if idc in answers else None, stuck)


class Control(Steering):
    """``async with Control(...)``: of a deployment, over mutual TLS. The audit is kept."""

    def __init__(self, target: Reach, clock: Clock, rng: random.Random) -> None:
        role = roles.shown(target.pki)
        channels = {
            name: grpc_channel(target.pki, role, name, target.address(name))
            for name in voters_of(target.region)
        }
        super().__init__(target.region, role, channels, clock, rng)
        self._target = target

    async def statuses(self, timeout_s: float) -> dict[str, dict[str, Any] | ImError]:
        return await admin.statuses(self._target, self.idcs, timeout_s)

    async def submit(self, change: Change) -> Decision:
        """The audit is kept here and not by the callers, so that none of them can forget it."""
        with audit.kept(self._target):
            decision = await super().submit(change)
        await self._anchor()
        return decision

    async def note(self, change: Change, judged: Judged) -> None:
        with audit.kept(self._target):
            await super().note(change, judged)
        await self._anchor()

    async def _anchor(self) -> None:
        """What cannot be anchored now is with the next decision."""
        if self.role.covers(Role.OPERATOR):
            with contextlib.suppress(ImError, OSError, ValueError):
                file = self._target.audit_file()
                await anchored(self._proposer, file, audit.writer_of(file))


def _overriding(change: Change) -> str:
    return f" overriding {', '.join(change.overrides)}" if change.overrides else ""


def document_of(decision: Decision, dry_run: bool) -> dict[str, Any]:
    """For -o json."""
    accepted = decision.policy is not None
    return {
        "decision": "refused" if not accepted else "would commit" if dry_run else "committed",
        "sentence": decision.sentence,
        "epoch": decision.policy.epoch if decision.policy else None,
        "operation": decision.operation,
        "repeated": decision.repeated,
        "blockers": [blocker._asdict() for blocker in decision.blockers],
        "overridden": [blocker._asdict() for blocker in decision.overridden],
    }
