"""The geo policy: one small document with an epoch, committed under the CASPaxos key ``policy``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from imcore.region.model import Region

POLICY_KEY = "policy"
MOVES_PER_S = 50  # sessions handed over per second by one IDC
HISTORY_MAX = 20
REQUESTS_MAX = 64
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class IdcState(StrEnum):
    ACTIVE = "active"
    CORDONED = "cordoned"  # serves who is there, takes no new clients
    DRAINING = "draining"
    DRAINED = "drained"
    FAILED = "failed"
    RECOVERING = "recovering"
    RETIRED = "retired"


class OperationState(StrEnum):
    """Of a move. The first four stand in the policy while it is under way, the others in its
    record; UNKNOWN is what a reader says of one whose end was recorded nowhere."""

    RUNNING = "running"
    PAUSED = "paused by operator"
    STALLED = "paused by failed step"
    AWAITING = "waiting for approval"  # nothing has changed yet
    DONE = "done"
    EXCEPTIONS = "done with exceptions"  # connections were closed that did not go by themselves
    FAILED = "failed"  # a failover or an override put an end to it; its IDC stays as it was
    ABORTED = "aborted"  # taken back, or stopped, on purpose
    UNKNOWN = "unknown"


PAUSES = frozenset({OperationState.PAUSED, OperationState.STALLED})
SERVING = frozenset({IdcState.ACTIVE, IdcState.CORDONED})


@dataclass(frozen=True, slots=True)
class IdcPolicy:
    """``ramp``: per cent of its clients that an active IDC gets. ``target``: who gets the clients
    of a draining IDC first (switchover); empty: as the shards' fallback orders say."""

    state: IdcState = IdcState.ACTIVE
    ramp: int = 100
    target: str = ""
    since_ms: int = 0
    moved_ms: int = 0  # when a move of its clients last ended, there or back; 0: never yet


@dataclass(frozen=True, slots=True)
class OperationRef:
    """The one move under way; the record of its steps is kept under ``op/<id>``."""

    id: str
    kind: str
    idc: str
    target: str
    by: str
    request_id: str
    started_ms: int
    state: OperationState = OperationState.RUNNING
    rate: int = 0  # sessions a second that it hands over; 0: the policy's
    max_lag_ms: int = 0  # tightens the replication-lag rule for its steps; 0: the region file's

    @property
    def paused(self) -> bool:
        return self.state in PAUSES


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request came to: the same request id, asked again, resolves to this."""

    request_id: str
    epoch: int
    operation: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Policy:
    epoch: int
    idcs: Mapping[str, IdcPolicy]
    operation: OperationRef | None = None
    history: tuple[str, ...] = ()  # ids of the last operations, newest last
    requests: tuple[Outcome, ...] = ()
    weights: Mapping[str, Mapping[str, Weight]] = field(
        default_factory=dict
    )  # over the region file
    moves_per_s: int = MOVES_PER_S

    def state(self, idc: str) -> IdcState:
        """An IDC that the document does not know has been added to the region file: active."""
        known = self.idcs.get(idc)
        return known.state if known else IdcState.ACTIVE

    def serves(self, idc: str) -> bool:
        return self.state(idc) in SERVING

    def outcome(self, request_id: str) -> Outcome | None:
        return next((done for done in self.requests if done.request_id == request_id), None)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


def initial(region: Region, now_ms: int) -> Policy:
    idcs = {idc.name: IdcPolicy(since_ms=now_ms) for idc in region.spec.idcs}
    return Policy(epoch=1, idcs=idcs)


@lru_cache(maxsize=4)
def from_json(data: bytes) -> Policy:
    """Raises ValueError. Fields that this version does not know are ignored. Every IDC reads the
    policy several times a second, and nearly always what it read before."""
    try:
        return _POLICY.validate_json(data, strict=True)
    except ValidationError as error:
        raise ValueError(f"not a policy document: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """In one line, without what stands there."""
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, detail["loc"]))
    return f"{where}: {detail['msg']}" if where else detail["msg"]


_POLICY = TypeAdapter(Policy)
