"""The record of a rollout; pure. Whoever reads it after a kill -9 can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

ROWS_MAX = 200
ACK_MS_MAX = 1_000


class State(StrEnum):
    RUNNING = "running"  # or left by an `imctl` that died
    PAUSED = "paused by failed step"
    STOPPED = "paused by operator"
    DONE = "done"
    EXCEPTIONS = "done with exceptions"  # an IDC was left out


ENDED = frozenset({State.DONE, State.EXCEPTIONS})


class Kind(StrEnum):
    UP = "up"
    DEPLOY = "deploy"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class Row:
    at_ms: int
    unit: str  # empty: all of it
    sentence: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """``wanted``, ``before``: region files by name in the deployment's folder. ``found``: the
    policy's state of each IDC when its turn began, which it gets back. ``restarting``: the unit
    that is, or may be, down because of this rollout."""

    id: str
    kind: Kind
    wanted: str
    before: str
    order: tuple[str, ...] = ()
    soak_s: float = 10.0
    lag_ms_max: int = 5_000
    ack_ms_max: int = ACK_MS_MAX
    override: str = ""  # the one rule that its drains pass
    state: State = State.RUNNING
    why: str = ""
    gate: bool = False  # paused because a gate or a guard said no, not because something broke
    found: Mapping[str, str] = field(default_factory=dict)
    restarting: str = ""
    done: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    sessions: Mapping[str, int] = field(default_factory=dict)  # when it began
    alarms: tuple[str, ...] = ()  # that were there when it began
    started_ms: int = 0
    ended_ms: int = 0
    replaces: str = ""  # the id of an unfinished rollout in whose place it came
    rows: tuple[Row, ...] = ()

    @property
    def current(self) -> str:
        """The unit whose turn it is; empty when none is left."""
        left = (unit for unit in self.order if unit not in self.done and unit not in self.skipped)
        return next(left, "")

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def said(self, at_ms: int, unit: str, sentence: str, **changed: Any) -> Rollout:
        rows = (*self.rows, Row(at_ms, unit, sentence))[-ROWS_MAX:]
        return replace(self, rows=rows, **changed)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> Rollout:
    """Raises ValueError."""
    try:
        row = json.loads(text)
        return Rollout(
            **{
                **row,
                "kind": Kind(row["kind"]),
                "state": State(row["state"]),
                "order": tuple(row["order"]),
                "done": tuple(row["done"]),
                "alarms": tuple(row["alarms"]),
                "rows": tuple(Row(**each) for each in row["rows"]),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not the record of a rollout") from error
