"""A rollout that follows the last one, or takes its place unfinished; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from imctl.rollout.record import Kind, Rollout


def next_id(kind: Kind, last: Rollout | None) -> str:
    number = int(last.id.rpartition("-")[2]) + 1 if last else 1
    return f"{kind}-{number}"


def stuck_unit(last: Rollout | None) -> str:
    """The unit in whose turn an unfinished rollout stands."""
    unfinished = last is not None and not last.ended and last.current in last.found
    return last.current if last is not None and unfinished else ""


def following(
    kind: Kind,
    wanted: str,
    before: str,
    order: Sequence[str],
    last: Rollout | None,
    soak_s: float,
    lag_ms_max: int,
    ack_ms_max: int,
    now_ms: int,
) -> Rollout:
    """In the place of an unfinished one it begins with the unit where that stands, which gets back
    what it had; what was there when that one began is what gates compare with."""
    new = Rollout(
        next_id(kind, last),
        kind,
        wanted,
        before,
        tuple(order),
        soak_s,
        lag_ms_max,
        ack_ms_max,
        started_ms=now_ms,
    )
    if last is None or last.ended:
        return new
    new = replace(new, sessions=last.sessions, alarms=last.alarms, replaces=last.id)
    if stuck := stuck_unit(last):
        new = replace(
            new,
            order=(stuck, *(unit for unit in order if unit != stuck)),
            found={stuck: last.found[stuck]},
            restarting=last.restarting,
        )
    return new
