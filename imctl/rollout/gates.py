"""The gates of a soak; pure. They compare with how it was when the rollout began."""

from __future__ import annotations

import re

from imctl.rollout.next import World
from imctl.rollout.record import Rollout
from services.policy.document import IdcState

BACK_SHARE = 0.5  # of the share of all sessions that the IDC had
SESSIONS_MIN = 5  # below this a share says nothing
ACKS_MIN = 20  # below this a 99th percentile is that of one message


def failing(rollout: Rollout, world: World, unit: str) -> tuple[str, ...]:
    """One sentence a gate that does not hold. IDCs that this rollout has not touched fail no gate
    by their silence: they may be what another trouble has taken."""
    said = []
    for name, seen in world.units.items():
        if not (seen.answers and seen.serving):
            if name == unit or name in rollout.done:
                said.append(f"serving: {name} does not serve")
            continue
        if seen.state is not None and seen.lag_ms > rollout.lag_ms_max:
            said.append(f"lag: {name} {seen.lag_ms} ms, {rollout.lag_ms_max} allowed")
        if seen.acks >= ACKS_MIN and seen.ack_p99_ms > rollout.ack_ms_max:
            said.append(f"acks: {name} {seen.ack_p99_ms:.0f} ms, {rollout.ack_ms_max} allowed")
        new = [each for each in seen.alarms if kind_of(name, each) not in rollout.alarms]
        said += [f"alarm: {name}: {each}" for each in new]
    return (*said, *_clients_back(rollout, world, unit))


def kind_of(unit: str, alarm: str) -> str:
    """The same alarm with other figures is the same."""
    return f"{unit}: {re.sub(r'[0-9]+', '#', alarm)}"


def _clients_back(rollout: Rollout, world: World, unit: str) -> tuple[str, ...]:
    had, all_had = rollout.sessions.get(unit, 0), sum(rollout.sessions.values())
    if had < SESSIONS_MIN or world.units[unit].state is not IdcState.ACTIVE:
        return ()
    has = world.units[unit].sessions
    all_have = sum(seen.sessions for seen in world.units.values())
    wanted = BACK_SHARE * all_have * had / all_had
    if has >= wanted:
        return ()
    return (f"clients: {unit} has {has} sessions, {wanted:.0f} expected",)
