"""The live view of ``status --watch``: what is, what has just happened, and load of late. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imctl.statusview import process_of, render, state_of

EVENTS_MAX = 6
SAMPLES_MAX = 40
BARS = "▁▂▃▄▅▆▇█"


class Dashboard:
    """Call ``see`` with each status document, in order."""

    def __init__(self) -> None:
        self.events: deque[str] = deque(maxlen=EVENTS_MAX)
        self._sessions: dict[str, deque[float]] = {}
        self._rates: dict[str, deque[float]] = {}
        self._before: Mapping[str, Any] | None = None

    def see(self, document: Mapping[str, Any], at: datetime) -> RenderableType:
        if self._before is not None:
            self.events += [f"{at:%H:%M:%S} {said}" for said in changes(self._before, document)]
        self._before = document
        for name, idc in document["idcs"].items():
            answers = "error" not in idc
            self._keep(self._sessions, name, idc.get("sessions", 0) if answers else 0)
            rates = idc.get("rates") or {}
            self._keep(self._rates, name, rates.get("accepted_per_s", 0) if answers else 0)
        parts = [render(document), Text(""), self._curves()]
        if self.events:
            parts += [Text(""), *(Text(said) for said in reversed(self.events))]
        return Group(*parts, Text(f"\n{at:%H:%M:%S}, Ctrl-C to stop", style="dim"))

    def _keep(self, kept: dict[str, deque[float]], name: str, value: float) -> None:
        kept.setdefault(name, deque(maxlen=SAMPLES_MAX)).append(float(value))

    def _curves(self) -> Table:
        """All IDCs on one scale: a move shows as one curve that falls and another that rises."""
        table = Table("RECENT", "SESSIONS", "MESSAGES/S", box=None, pad_edge=False)
        sessions = max((max(row) for row in self._sessions.values()), default=0)
        rates = max((max(row) for row in self._rates.values()), default=0)
        for name, row in self._sessions.items():
            half = SAMPLES_MAX // 2 + 8  # both fit into 80 columns
            table.add_row(
                name,
                bars(list(row)[-half:], sessions),
                bars(list(self._rates[name])[-half:], rates),
            )
        return table


def bars(values: list[float], most: float) -> str:
    if most <= 0:
        return BARS[0] * len(values)
    steps = len(BARS) - 1
    return "".join(BARS[min(steps, round(value / most * steps))] for value in values)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What happened between two looks, a sentence each."""
    found = []
    old, new = before["policy"], now["policy"]
    for name in now["idcs"]:
        was, state = state_of(before, name), state_of(now, name)
        if was != state:
            found.append(f"{name}: {was} -> {state} (epoch {new.get('epoch')})")
        ramps = [doc.get("idcs", {}).get(name, {}).get("ramp") for doc in (old, new)]
        if state == "active" and was == state and ramps[0] != ramps[1]:
            found.append(f"{name}: {ramps[0]} % -> {ramps[1]} % of its clients")
        was, process = process_of(before, name), process_of(now, name)
        if was != process:
            found.append(f"{name}: {was} -> {process}")
    was, running = _operation(old), _operation(new)
    if was != running:
        found.append(f"{running} started" if not was else f"{was} -> {running or 'ended'}")
    return found


def _operation(policy: Mapping[str, Any]) -> str:
    name, state = policy.get("operation") or "", policy.get("operation_state") or ""
    return f"{name} {state}".strip() if state != "running" else str(name)
