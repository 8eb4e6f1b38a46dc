"""What doubles when what doubles: the model asked again with one input doubled, and with each
figure that nobody measured off by two."""

from __future__ import annotations

from collections.abc import Callable

from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Group, Workload
from imctl.capacity.model import size
from imctl.capacity.result import Doubled, Totals

MATTERS = 1.05  # times as much; less is below what the model can tell


def sensitivity(workload: Workload, figures: Figures) -> list[Doubled]:
    """Inputs that cannot be doubled (a share above one half) are left out."""
    base = size(workload, figures).totals
    rows = []
    for what, change in _CHANGES.items():
        changed = change(workload)
        if changed is not None:
            totals = size(changed, figures).totals
            rows.append(_row(what, base, totals))
    return rows


def assumptions(workload: Workload, figures: Figures) -> list[Doubled]:
    """For each assumed figure that matters: how many times as much, were it wrong by a factor of
    two, in whichever direction costs more. What moves the cores most comes first."""
    base = size(workload, figures).totals
    rows = []
    for name in figures:
        if figures.figure(name).assumed:
            both = [
                _row(name, base, size(workload, figures.scaled(name, times)).totals)
                for times in (0.5, 2.0)
            ]
            rows.append(_worse(*both))
    mattering = [row for row in rows if _most(row) >= MATTERS]
    return sorted(mattering, key=lambda row: (-row.cores, -_most(row), row.what))


def _worse(one: Doubled, other: Doubled) -> Doubled:
    """Column by column."""
    worst = {
        field: max(getattr(one, field), getattr(other, field))
        for field in Doubled.model_fields
        if field != "what"
    }
    return one.model_copy(update=worst)


def _most(row: Doubled) -> float:
    return max(row.cores, row.memory, row.disk, row.wan, row.clients)


def _row(what: str, base: Totals, now: Totals) -> Doubled:
    def times(field: str) -> float:
        before = getattr(base, field)
        return float(getattr(now, field) / before) if before else 1.0

    return Doubled(
        what=what,
        cores=times("cores"),
        memory=times("memory_gib"),
        disk=times("disk_bytes"),
        wan=times("wan_bit_s"),
        clients=times("client_bit_s"),
    )


def _with(workload: Workload, **fields: object) -> Workload | None:
    """None when the result is no valid workload."""
    try:
        return Workload.model_validate(workload.model_dump() | fields)
    except ValueError:
        return None


def _twice(field: str) -> Callable[[Workload], Workload | None]:
    return lambda w: _with(w, **{field: getattr(w, field) * 2})


def _more_messages(field: str) -> Callable[[Workload], Workload | None]:
    """A peak that was given in messages/s grows along."""

    def change(w: Workload) -> Workload | None:
        peak = w.peak_messages_s * 2 if w.peak_messages_s is not None else None
        return _with(w, **{field: getattr(w, field) * 2, "peak_messages_s": peak})

    return change


def _higher_peak(w: Workload) -> Workload | None:
    if w.peak_messages_s is not None:
        return _with(w, peak_messages_s=w.peak_messages_s * 2)
    return _with(w, peak_factor=w.peak_factor * 2)


def _larger_groups(w: Workload) -> Workload | None:
    groups = [Group(members=g.members * 2 if g.members > 2 else 2, share=g.share) for g in w.groups]
    return _with(w, groups=groups) if groups != list(w.groups) else None


def _half_the_heartbeats(w: Workload) -> Workload | None:
    return _with(w, heartbeat_s=w.heartbeat_s / 2)


def _more_idcs(w: Workload) -> Workload | None:
    survivors = None if w.survivors is None else w.survivors + w.idcs
    return _with(w, idcs=w.idcs * 2, survivors=survivors)


_CHANGES: dict[str, Callable[[Workload], Workload | None]] = {
    "daily users": _more_messages("daily_users"),
    "messages per user": _more_messages("messages_per_user"),
    "peak, same daily mean": _higher_peak,
    "share of users online": _twice("online_share"),
    "group members": _larger_groups,
    "message size": _twice("message_bytes"),
    "heartbeat rate": _half_the_heartbeats,
    "days of retention": _twice("retention_days"),
    "hours of op log": _twice("log_hours"),
    "copies within an IDC": _twice("replication_factor"),
    "IDCs, same number of losses": _more_idcs,
}
