"""TrafficOperations, DrillRuns and the like of a region, as `imctl status` shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table

from imctl.api.drills import DrillPhase
from imctl.api.kinds import DRILL, DRILL_RUN, GEO_POLICY, KINDS, REPLICATION, TRAFFIC_OPERATION
from imctl.api.operation import FINAL, RunPhase

Object = Mapping[str, Any]
SHOWN = 5  # of each kind that something was asked for by
_SHORT = {kind.name: kind.short for kind in KINDS}


def document_of(
    found: Mapping[str, Sequence[Object]], region: str, now: datetime
) -> dict[str, list[dict[str, Any]]]:
    """For -o json; ``found``: by kind. Empty: there is none of this region."""

    def of(kind: str) -> list[Object]:
        return [each for each in found.get(kind, ()) if _region(each) == region]

    def late(kind: str) -> list[Object]:
        """The last ones, oldest first."""
        made = sorted(of(kind), key=lambda each: str(each["metadata"].get("creationTimestamp", "")))
        return made[-SHOWN:]

    document = {
        "moves": [_move(each) | _age(each, now) for each in late(TRAFFIC_OPERATION.name)],
        "drills": [_drill(each) | _age(each, now) for each in late(DRILL_RUN.name)],
        "schedules": [_schedule(each) for each in of(DRILL.name)],
        "replications": [_replication(each) for each in of(REPLICATION.name)],
        "policies": [_policy(each) for each in of(GEO_POLICY.name)],
    }
    return document if any(document.values()) else {}


def _region(each: Object) -> str:
    spec = each.get("spec") or {}
    return str(spec.get("region") or spec.get("run", {}).get("region", ""))


def _named(each: Object) -> dict[str, Any]:
    return {"object": f"{each['metadata']['namespace']}/{each['metadata']['name']}"}


def _status(each: Object) -> Mapping[str, Any]:
    return each.get("status") or {}


def _age(each: Object, now: datetime) -> dict[str, float | None]:
    try:
        made = datetime.fromisoformat(each["metadata"]["creationTimestamp"])
        return {"age_s": max(0.0, round((now - made).total_seconds(), 1))}
    except (KeyError, TypeError, ValueError):
        return {"age_s": None}


def _move(each: Object) -> dict[str, Any]:
    spec, status = each["spec"], _status(each)
    steps = status.get("steps") or [{}]
    return _named(each) | {
        "move": spec["move"],
        "idc": spec["idc"],
        "target": spec.get("target") or "",
        "phase": status.get("phase", ""),
        "step": steps[-1].get("name", ""),
        "operation": status.get("operation", ""),
        "state": status.get("state", ""),
        "outcome": status.get("outcome", ""),
        "blocked_by": list(status.get("blocked_by", ())),
        "refused_by": [blocker["rule"] for blocker in status.get("blockers", ())],
        "asked_by": spec.get("asked_by", ""),
        "reason": spec.get("reason", ""),
    }


def _drill(each: Object) -> dict[str, Any]:
    spec, status = each["spec"], _status(each)
    return _named(each) | {
        "drill": spec.get("drill") or each["metadata"]["name"],
        "phase": status.get("phase", ""),
        "verdict": status.get("verdict", ""),
        "reason": status.get("reason", ""),
        "rto_s": status.get("rto_s"),
        "report": status.get("report", ""),
        "blocked_by": list(status.get("blocked_by", ())),
    }


def _schedule(each: Object) -> dict[str, Any]:
    spec, status = each["spec"], _status(each)
    known = ("phase", "next", "last_run", "last_verdict")
    return _named(each) | {"cron": spec["cron"]} | {name: status.get(name, "") for name in known}


def _replication(each: Object) -> dict[str, Any]:
    status = _status(each)
    within, why = _condition(status, "WithinObjective")
    mirrored, _ = _condition(status, "Mirrored")
    return _named(each) | {
        "objective_ms": each["spec"].get("lag_slo_ms"),
        "worst_lag_ms": status.get("worst_lag_ms"),
        "within": within,
        "mirrored": mirrored,
        "why": why or "; ".join(status.get("blocked_by", ())),
    }


def _policy(each: Object) -> dict[str, Any]:
    status = _status(each)
    served, why = _condition(status, "Served")
    return _named(each) | {
        "epoch": status.get("epoch"),
        "operation": status.get("operation", ""),
        "served": served,
        "why": why or "; ".join(status.get("blocked_by", ())),
    }


def _condition(status: Mapping[str, Any], kind: str) -> tuple[str, str]:
    """``True``, ``False`` or ``Unknown``, and why; empty: nobody says it."""
    for each in status.get("conditions", ()):
        if each["type"] == kind:
            return str(each["status"]), str(each.get("message", ""))
    return "", ""


# ------------------------------------------------------------------------- on the screen


def table_of(document: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    table = Table("OBJECT", "WHAT", "STEP", "OUTCOME", "AGE", box=None, pad_edge=False)
    for row in _rows(document):
        table.add_row(*row)
    return table


def _rows(document: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, ...]]:
    for row in document["moves"]:
        to = f" to {row['target']}" if row["target"] else ""
        what = f"{row['move']} {row['idc']}{to}"
        step = row["phase"] if not row["step"] or row["phase"] in FINAL else row["step"]
        name = _shown(TRAFFIC_OPERATION.name, row)
        yield name, what, step or "-", _of_move(row), age(row["age_s"])
    for row in document["drills"]:
        name = _shown(DRILL_RUN.name, row)
        yield name, row["drill"], row["phase"] or "-", _of_drill(row), age(row["age_s"])
    for row in document["schedules"]:
        last = f"last {row['last_verdict']}, " if row["last_verdict"] else ""
        ahead = f"{last}next {row['next'] or 'never'}"
        yield _shown(DRILL.name, row), f"drills at {row['cron']}", row["phase"] or "-", ahead, "-"
    for row in document["replications"]:
        lag = "-" if row["worst_lag_ms"] is None else f"{row['worst_lag_ms']} ms"
        limit = f"lag at most {row['objective_ms']} ms" if row["objective_ms"] else "lag"
        yield _shown(REPLICATION.name, row), limit, lag, _held("within", row["within"], row), "-"
    for row in document["policies"]:
        epoch = "-" if row["epoch"] is None else f"epoch {row['epoch']}"
        yield (
            _shown(GEO_POLICY.name, row),
            "policy",
            epoch,
            _held("served", row["served"], row),
            "-",
        )


def _shown(kind: str, row: Mapping[str, Any]) -> str:
    return f"{_SHORT[kind]} {row['object']}"


def _of_move(row: Mapping[str, Any]) -> str:
    if row["blocked_by"]:
        return "; ".join(row["blocked_by"])
    if row["phase"] == RunPhase.REFUSED:
        return f"refused: {', '.join(row['refused_by']) or row['outcome']}"
    return f"{row['operation']}: {row['state'] or 'begun'}" if row["operation"] else "-"


def _of_drill(row: Mapping[str, Any]) -> str:
    if row["blocked_by"]:
        return "; ".join(row["blocked_by"])
    if row["phase"] not in (DrillPhase.ENDED, DrillPhase.REFUSED):
        return "-"
    rto = "" if row["rto_s"] is None else f", RTO {row['rto_s']:.2f} s"
    why = "" if row["verdict"] == "pass" else f": {row['reason']}"
    return f"{row['verdict']}{rto}{why}"


def _held(word: str, said: str, row: Mapping[str, Any]) -> str:
    if said == "True":
        return word
    return f"not {word}: {row['why']}" if row["why"] else "-"


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
