"""Which safety rules a change of the policy has broken, as far as the documents before and after it
show. Pure, and apart from what judges changes before they are made: it must be able to find that
wrong.

What the documents do not show (votes, lag, room, logs) others judge: a simulation by what it knows
of its world (services.sim.safety), `imctl audit rules` by the evidence that was noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from imcore.region.model import Region, Safety
from services.policy.document import IdcPolicy, IdcState, OperationRef, OperationState, Policy

AHEAD_MS = 500  # what a clock further ahead has stamped says nothing
_S = IdcState
_LEGAL = frozenset(
    {
        (_S.ACTIVE, _S.CORDONED), (_S.CORDONED, _S.ACTIVE), (_S.ACTIVE, _S.DRAINING),
        (_S.CORDONED, _S.DRAINING), (_S.DRAINING, _S.ACTIVE), (_S.DRAINING, _S.DRAINED),
        (_S.FAILED, _S.RECOVERING), (_S.DRAINED, _S.RECOVERING), (_S.RETIRED, _S.RECOVERING),
        (_S.RECOVERING, _S.ACTIVE), (_S.FAILED, _S.RETIRED), (_S.DRAINED, _S.RETIRED),
        *((state, _S.FAILED) for state in (
            _S.ACTIVE, _S.CORDONED, _S.DRAINING, _S.DRAINED, _S.RECOVERING,
        )),
    }
)  # fmt: skip


class Broken(NamedTuple):
    rule: str
    sentence: str


class Row(NamedTuple):
    """Of one IDC, which a change is about."""

    idc: str
    before: IdcPolicy
    after: IdcPolicy

    @property
    def moved(self) -> bool:
        return self.before.state is not self.after.state

    @property
    def fails(self) -> bool:
        return self.moved and self.after.state is _S.FAILED

    @property
    def gives(self) -> bool:
        """Clients, or is to get no new ones."""
        return self.moved and self.after.state in (_S.CORDONED, _S.DRAINING)

    @property
    def gets(self) -> bool:
        """Clients that it did not get before."""
        changed = self.moved or self.before.ramp != self.after.ramp
        return changed and self.after.state is _S.ACTIVE

    @property
    def steps(self) -> bool:
        """Of a return: it gets more of them."""
        back = self.before.state is _S.RECOVERING or self.after.ramp > self.before.ramp
        return self.gets and back


class Step(NamedTuple):
    """From one committed policy to the next one. ``by``: who asked for it."""

    old: Policy
    new: Policy
    by: str

    @property
    def opened(self) -> OperationRef | None:
        """The operation that begins, or goes on after a pause or an approval."""
        before, now = self.old.operation, self.new.operation
        if now is None or now.state is not OperationState.RUNNING:
            return None
        return now if before is None or before.id != now.id or before.state != now.state else None

    def rows(self) -> list[Row]:
        """Those that have changed, whenever that was."""
        found = (Row(n, self.old.idcs.get(n, IdcPolicy()), row) for n, row in self.new.idcs.items())
        return [each for each in found if _what(each.before) != _what(each.after)]

    def takers_but(self, idc: str, region: Region) -> list[str]:
        """Who took clients before it, other than this one."""
        names = (each.name for each in region.spec.idcs)
        return [name for name in names if name != idc and self.old.state(name) is _S.ACTIVE]


def broken(step: Step, region: Region) -> Iterator[Broken]:
    """Overrides are not looked at."""
    rows = step.rows()
    if len(rows) > 1:
        yield Broken("transition", f"{' and '.join(row.idc for row in rows)} change at once")
    yield from _of_operation(step, region.spec.safety)
    for row in rows:
        yield from _of_row(step, row, region)


def frozen(row: IdcPolicy, safety: Safety) -> bool:
    """Whether no traffic might be moved when it came to be so."""
    return any(_ms(each.start) <= row.since_ms < _ms(each.end) for each in safety.freeze)


def _of_operation(step: Step, safety: Safety) -> Iterator[Broken]:
    old, new = step.old.operation, step.new.operation
    begins = new is not None and (old is None or old.id != new.id)
    if new is not None and begins:
        if old is not None:
            yield Broken("one-move-at-a-time", f"{new.id} begins while {old.id} is under way")
        if new.state is not OperationState.AWAITING and new.kind in safety.approval:
            yield Broken("approval", f"{new.id} begins and nobody has approved it")
    if (opened := step.opened) is None:
        return
    row, former = step.new.idcs[opened.idc], step.old.idcs.get(opened.idc, IdcPolicy())
    if opened.kind == "failback":
        if frozen(row, safety):
            sentence = f"{opened.idc} is to get clients while no traffic may be moved"
            yield Broken("freeze-window", sentence)
        return
    since_ms = row.since_ms - former.moved_ms
    recent = -AHEAD_MS <= since_ms < safety.anti_flap_ms
    if old is None and former.moved_ms and recent:
        sentence = f"clients of {opened.idc} were last moved {since_ms} ms before"
        yield Broken("anti-flap", sentence)


def _of_row(step: Step, row: Row, region: Region) -> Iterator[Broken]:
    idc, state, safety = row.idc, row.after.state, region.spec.safety
    if row.moved and (row.before.state, state) not in _LEGAL:
        yield Broken("transition", f"{idc} becomes {state}, and was {row.before.state}")
    running = step.old.operation
    if running is not None and running.idc != idc and (row.gives or row.gets):
        sentence = f"{idc} is {state} while {running.id} is under way"
        yield Broken("one-move-at-a-time", sentence)
    if row.gives or row.fails:
        left = step.takers_but(idc, region)
        if len(left) < safety.active_idcs_min:
            sentence = f"{len(left)} active IDCs are left of {safety.active_idcs_min}"
            yield Broken("active-idcs-min", sentence)
    if (row.gives or row.gets or row.fails) and not row.steps and frozen(row.after, safety):
        yield Broken("freeze-window", f"{idc} becomes {state} while no traffic may be moved")
    if row.fails and step.by.startswith("controller") and not safety.automatic_failover:
        yield Broken("automatic-failover", f"{idc} is failed by a controller")
    if row.steps and (running is None or (running.kind, running.idc) != ("failback", idc)):
        sentence = f"{idc} gets clients back and no failback of it is under way"
        yield Broken("transition", sentence)


def _what(row: IdcPolicy) -> tuple[IdcState, int, str]:
    return row.state, row.ramp, row.target


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)
