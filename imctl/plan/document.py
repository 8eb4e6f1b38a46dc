"""The plan: what differs, what it takes, whose clients move, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from imcore.region.model import Region
from imctl.plan.diff import differences, plain
from imctl.plan.load import PASSING, Away
from imctl.plan.takes import Change, Takes, changes


@dataclass(frozen=True, slots=True)
class Plan:
    """``order``: units whose turn comes, the canary first, the witness last. ``running`` false:
    nothing runs, and all of it would be started. ``away``: for each IDC of ``order`` that is
    restarted and answers."""

    region: str
    running: bool
    changes: tuple[Change, ...]
    order: tuple[str, ...] = ()
    away: tuple[Away, ...] = ()
    silent: tuple[str, ...] = ()  # they do not answer: caught up by a later deploy
    warnings: tuple[str, ...] = ()

    @property
    def fixed(self) -> list[Change]:
        return [change for change in self.changes if change.takes is Takes.FIXED]

    @property
    def restarted(self) -> list[str]:
        """Of ``order``; the others go on, and keep their clients."""
        found = {
            unit for each in self.changes if each.takes is Takes.RESTART for unit in each.units
        }
        return [unit for unit in self.order if unit in found]

    def refusals(self, override: str = "") -> list[str]:
        """Why some IDC's drain is going to be refused, for good as far as can be seen."""
        return [
            f"{each.idc}: {said}"
            for each in self.away
            for said in each.refusals
            if said.rule not in PASSING | {override}
        ]

    @property
    def differs(self) -> bool:
        return not self.running or bool(self.changes)


def changes_of(
    wanted: Region, has: Mapping[str, Region], shared: Region, engines_here: bool
) -> list[Change]:
    """``has``: what each unit was started with. ``shared``: the deployment's own copy. Where units
    differ among themselves (one was left out by an earlier deploy), each change names only the
    units that lack it."""
    by_field: dict[str, Change] = {}
    lacking: dict[str, list[str]] = {}
    for change in changes(differences(shared, wanted), shared, engines_here):
        if change.takes is not Takes.RESTART:
            by_field[change.difference.field] = change
    for unit, region in has.items():
        for change in changes(differences(region, wanted), region, engines_here):
            field = change.difference.field
            if change.takes is Takes.RESTART and unit in change.units:
                by_field.setdefault(field, change)
                lacking.setdefault(field, []).append(unit)
            elif change.takes is Takes.FIXED:
                by_field.setdefault(field, change)
    return [
        change._replace(units=tuple(lacking.get(field, ()))) for field, change in by_field.items()
    ]


def lacks(unit: str, has: Region, wanted: Region) -> bool:
    """Whether this unit must be restarted to be as wanted."""
    return any(
        change.takes is Takes.RESTART and unit in change.units
        for change in changes(differences(has, wanted), has)
    )


def alone(found: Sequence[Change], restarted: Sequence[str]) -> list[str]:
    """Warnings of changes in place, of units that are not emptied for a restart anyway."""
    said = [each.warning for each in found if not set(each.units) <= set(restarted)]
    return list(dict.fromkeys(filter(None, said)))


def order_of(
    found: Sequence[Change], sessions: Mapping[str, int], idcs: Sequence[str], canary: str = ""
) -> tuple[str, ...]:
    """The canary, else the one with the fewest sessions of those that answer (``sessions``), goes
    first; the others as in the file; what is no IDC (the witness) last."""
    units = {unit for change in found for unit in change.units}
    restart = [idc for idc in idcs if idc in units]
    if restart:
        least = min(restart, key=lambda idc: sessions.get(idc, inf))
        first = canary if canary in restart else least
        restart = [first, *(idc for idc in restart if idc != first)]
    return (*restart, *sorted(units - set(idcs)))


def as_json(plan: Plan) -> dict[str, Any]:
    return {
        "region": plan.region,
        "running": plan.running,
        "differs": plan.differs,
        "changes": changes_as_json(plan.changes),
        "order": list(plan.order),
        "in_place": [unit for unit in plan.order if unit not in plan.restarted],
        "restarts": [_away(each) for each in plan.away],
        "silent": list(plan.silent),
        "warnings": list(plan.warnings),
    }


def changes_as_json(found: Sequence[Change]) -> list[dict[str, Any]]:
    return [
        {
            "field": change.difference.field,
            "before": plain(change.difference.before),
            "after": plain(change.difference.after),
            "takes": str(change.takes),
            "units": list(change.units),
            "reason": change.reason,
        }
        for change in found
    ]


def _away(each: Away) -> dict[str, Any]:
    return {
        "idc": each.idc,
        "sessions": each.sessions,
        "messages_per_s": round(each.messages_per_s, 1),
        "survivors": [
            {
                "idc": one.idc,
                "sessions": one.sessions,
                "sessions_max": round(one.sessions_max),
                "messages_per_s": round(one.messages_per_s, 1),
                "messages_per_s_max": round(one.messages_per_s_max),
            }
            for one in each.survivors
        ],
        "refusals": [said._asdict() for said in each.refusals],
    }
