"""What a rollout does next; pure. It is asked again after each step and after each look, and judges
by what is there, so that it goes on wherever an earlier `imctl` was killed.

Order that keeps the promises: an IDC is emptied before it is stopped, and has its clients back,
and has been watched, before the next one is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from imctl.rollout.record import Rollout
from imctl.target.base import Rolling
from services.policy.document import IdcState


class Do(StrEnum):
    BEGIN = "begin"  # note how the unit was found
    SKIP = "skip"
    WAIT = "wait"
    DRAIN = "drain"
    RESTART = "restart"
    APPLY = "apply"  # what changes under a unit while it has its clients
    FAILBACK = "failback"
    CORDON = "cordon"
    SOAK = "soak"
    FINISH = "finish"
    ADOPT = "adopt"  # the wanted file is the deployment's from now on


class Step(NamedTuple):
    do: Do
    unit: str
    sentence: str  # for `wait`: what for
    mark: str = ""  # for `wait`: another one, and it has come further
    more_s: float = 0.0  # for `wait`: so much longer than others


@dataclass(frozen=True, slots=True)
class Seen:
    """One unit, as just looked at. ``state`` is empty for what is no IDC (the witness)."""

    runs: bool  # its process
    current: bool  # what it was started with is as wanted
    lacks: bool = False  # something that it can be given while it runs
    rolling: Rolling | None = None  # its gateways, in pods of their own
    answers: bool = True
    serving: bool = True
    trouble: str = ""  # why it does not serve, where somebody else knows
    state: IdcState | None = None
    ramp: int = 100
    moving: bool = False  # an operation of its own is under way
    sessions: int = 0
    lag_ms: int = 0  # the worst of: it behind any other one that answers, and they behind it
    alarms: tuple[str, ...] = ()
    acks: int = 0  # sends that were acked in the last seconds ...
    ack_p99_ms: float = 0.0  # ... and how long that took


@dataclass(frozen=True, slots=True)
class World:
    units: Mapping[str, Seen]
    soaked_s: float = 0.0  # for how long all gates have held, since the unit had its clients back
    failing: tuple[str, ...] = field(default=())  # gates that do not hold


# Who takes no clients needs no drain, and gets none back.
_AWAY = frozenset({IdcState.DRAINED, IdcState.FAILED, IdcState.RECOVERING, IdcState.RETIRED})


def next_step(rollout: Rollout, world: World) -> Step:
    unit = rollout.current
    if not unit:
        return Step(Do.ADOPT, "", "the deployment's region file is the new one")
    seen = world.units[unit]
    if not seen.answers and rollout.restarting != unit:
        why = "does not answer" if seen.runs else "does not run"
        return Step(Do.SKIP, unit, f"{why}; left out, the next `imctl deploy` catches it up")
    if unit not in rollout.found:
        stays = ", and stays so" if seen.state in _AWAY else ""
        return Step(Do.BEGIN, unit, f"its turn; {seen.state or 'a witness'}{stays}")
    if not seen.current or (not seen.runs and rollout.restarting == unit):
        return _before(unit, seen)
    return _after(rollout, world, unit, seen)


def _before(unit: str, seen: Seen) -> Step:
    if seen.state is not None and seen.state not in _AWAY:
        if seen.state is IdcState.DRAINING and seen.moving:
            return Step(Do.WAIT, unit, "every client leaves")
        return Step(Do.DRAIN, unit, "clients are handed over")
    return Step(Do.RESTART, unit, "restarted with the wanted file")


def _after(rollout: Rollout, world: World, unit: str, seen: Seen) -> Step:
    if not (seen.answers and seen.serving):
        return Step(Do.WAIT, unit, f"it serves: {seen.trouble}" if seen.trouble else "it serves")
    if seen.lacks:
        return Step(Do.APPLY, unit, "what it runs on is as wanted, its gateways too")
    if seen.rolling is not None:
        why, mark, more_s = seen.rolling
        return Step(Do.WAIT, unit, f"all its gateways are as wanted: {why}", mark, more_s)
    if seen.state is not None:
        if seen.lag_ms > rollout.lag_ms_max:
            return Step(Do.WAIT, unit, f"it has caught up (lag {seen.lag_ms} ms)")
        step = _return(rollout, unit, seen)
        if step is not None:
            return step
    if world.soaked_s < rollout.soak_s or world.failing:
        return Step(Do.SOAK, unit, "; ".join(world.failing) or "watched")
    return Step(Do.FINISH, unit, "done")


def _return(rollout: Rollout, unit: str, seen: Seen) -> Step | None:
    """Until it is in the state that it was found in."""
    found = IdcState(rollout.found[unit])
    if found in _AWAY:
        return None
    if seen.moving:
        return Step(Do.WAIT, unit, "its clients come back")
    if seen.state is IdcState.CORDONED:
        return None
    if seen.state is IdcState.FAILED:  # it says itself that it is back
        return Step(Do.WAIT, unit, "it is no longer held to be failed")
    if seen.state is IdcState.DRAINING:  # a failover elsewhere ended the drain half-way
        return Step(Do.DRAIN, unit, "clients are handed over")
    if seen.state is not IdcState.ACTIVE or seen.ramp < 100:
        return Step(Do.FAILBACK, unit, "its clients are given back step by step")
    if found is IdcState.CORDONED:
        return Step(Do.CORDON, unit, "cordoned, as it was found")
    return None
