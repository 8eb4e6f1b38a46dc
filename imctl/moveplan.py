"""The plan of a move on the screen, and the one question before it. Pure."""

from __future__ import annotations

from typing import Any

from imcore.region.model import Region
from services.control.predict import Forecast, busiest
from services.control.rules import Blocker, Change, Kind

# What a forecast is about: these begin to move clients.
MOVES = frozenset({Kind.DRAIN, Kind.SWITCHOVER, Kind.FAILOVER, Kind.FAILBACK})

_QUESTIONS = {
    Kind.CORDON: "Stop sending new clients to {idc}?",
    Kind.UNCORDON: "Send new clients to {idc} again?",
    Kind.DRAIN: "Move all {count} clients of {idc} away?",
    Kind.SWITCHOVER: "Move all {count} clients of {idc} to {target}?",
    Kind.UNDRAIN: "Cancel the drain of {idc}, so that it takes clients again?",
    Kind.FAILOVER: "Declare {idc} failed and send its {count} clients elsewhere?",
    Kind.FAILBACK: "Return {count} clients to {idc}, in steps?",
    Kind.RETIRE: "Stop keeping logs for {idc}?",
    Kind.PAUSE: "Pause {operation}?",
    Kind.RESUME: "Resume {operation}?",
    Kind.APPROVE: "Approve {operation}, so that it starts?",
    Kind.ABORT: "Abort {operation} (a drain is undone, a failback stops where it is)?",
}


def question(change: Change, forecast: Forecast | None) -> str:
    """One plain sentence that names what will happen."""
    count = "" if forecast is None else f"{forecast.sessions:.0f}"
    asked = _QUESTIONS[change.kind].format(
        idc=change.idc, target=change.target, operation=change.operation, count=count
    )
    overrides = ", ".join(change.overrides)
    return f"{asked[:-1]}, overriding {overrides}?" if overrides else asked


def plan_lines(forecast: Forecast, region: Region) -> list[str]:
    """Who goes where, what each then carries, and how long it will take."""
    lines = [
        f"  {count:.0f} clients from {source} to {target}"
        for (source, target), count in sorted(forecast.moves.items())
    ] or ["  no clients to move"]
    shares = busiest(forecast.loads.items(), region)
    limit = region.spec.safety.headroom
    takers = {target for _, target in forecast.moves}
    for name in sorted(takers):
        load = forecast.loads[name]
        lines.append(
            f"  {name} will then carry {load.sessions:.0f} sessions, {load.messages_per_s:.0f} "
            f"messages/s: {shares[name]:.0%} of capacity, limit {limit:.0%}".replace("%", " %")
        )
    if forecast.rate:
        lines.append(
            f"  at {forecast.rate:.0f} sessions per second this takes about "
            f"{forecast.seconds:.0f} s"
        )
    elif forecast.moves:
        lines.append("  clients reconnect on their own when they notice the loss")
    return lines


def as_document(forecast: Forecast, region: Region) -> dict[str, Any]:
    """For -o json."""
    shares = busiest(forecast.loads.items(), region)
    return {
        "moves": [
            {"from": source, "to": target, "sessions": round(count)}
            for (source, target), count in sorted(forecast.moves.items())
        ],
        "loads": {
            name: {
                "sessions": round(load.sessions),
                "messages_per_s": round(load.messages_per_s, 1),
                "of_capacity": round(shares[name], 4),
            }
            for name, load in forecast.loads.items()
        },
        "seconds": round(forecast.seconds, 1),
        "curve": [[round(at, 2), round(moved, 1)] for at, moved in forecast.curve],
    }


def refusal_lines(blockers: tuple[Blocker, ...]) -> list[str]:
    """What blocks a change, a line for each rule: the measured value and the limit."""
    width = max((len(blocker.rule) for blocker in blockers), default=0)
    return [
        f"  {blocker.rule:<{width}}  {blocker.measured}; limit: {blocker.limit}"
        for blocker in blockers
    ]
