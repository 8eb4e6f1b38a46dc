"""What a DrillRun needs, and what is said of it. The shell looks, runs and applies: no I/O here but
reading the ready-made drills."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from imcore.errors import BadInput
from imcore.region.model import Region
from imctl.api.drills import DRILL_FINAL, DrillPhase, DrillRunSpec, DrillRunStatus
from imctl.api.kinds import API_VERSION, GROUP
from imctl.drill import model, onpods
from imctl.errors import GUARDED
from imctl.reconcile.driller import Done
from imctl.reconcile.moments import passed_s
from imctl.reconcile.observed import Object, Owner
from imctl.target.sites import parts

FINALIZER = "imctl.dev/undo"
STOP = f"{GROUP}/stop"  # of a DrillRun: it is to end, or not to begin, and why
UNDER_WAY = frozenset({DrillPhase.RUNNING, DrillPhase.UNDOING})
OBJECT_BYTES = 900_000  # a ConfigMap may have a MiB, with all that is around it

Status = DrillRunStatus


def name_of(spec: DrillRunSpec, own: str) -> str:
    """Of the drill, as its report calls it. ``own``: the DrillRun's."""
    return spec.drill or own


def text_of(spec: DrillRunSpec, own: str) -> tuple[str, list[str]]:
    """The drill's file, and what is wrong with it, in the words of `imctl drill validate`."""
    try:
        text = model.find(spec.drill).read_text() if spec.drill else spec.experiment or ""
        drill, problems = onpods.judged(text, name_of(spec, own))
        if drill is not None and not problems:
            model.with_values(drill, spec.var)
    except BadInput as error:
        return "", [str(error)]
    return text, problems


def fault_max_s(spec: DrillRunSpec, own: str) -> float:
    """How long a fault of it lasts at most, if nobody undoes it."""
    text, _ = text_of(spec, own)
    drill = onpods.judged(text, name_of(spec, own))[0] if text else None
    return (drill.settings if drill is not None else model.Settings()).fault_max_s


def stop_of(document: Object) -> str:
    """Why it is to end; empty: it is not."""
    return str(document["metadata"].get("annotations", {}).get(STOP, ""))


def is_late(spec: DrillRunSpec, made: str, now: str) -> bool:
    """Whether it has waited for too long. Times: RFC 3339."""
    if not spec.begin_within_s or not made:
        return False
    return passed_s(made, now) > spec.begin_within_s


def namespaces_of(spec: DrillRunSpec, region: Region, own: str) -> dict[str, str]:
    """Of each part of the region; ``own``: the DrillRun's."""
    return {part: spec.namespaces.get(part, own) for part in parts(region)}


def misfits(spec: DrillRunSpec, region: Region) -> Iterator[str]:
    """What in the wish itself is wrong for this region."""
    names = parts(region)
    for name in spec.namespaces:
        if name not in names:
            yield f"spec.namespaces: expected some of {', '.join(names)}, got {name}"


def objection(owner: Owner, spec: DrillRunSpec, idc: str, found: Object | None, at: str) -> str:
    """Why an IDC cannot be drilled; empty: it can. ``found``: its object in the namespace ``at``.
    Who may make a DrillRun here breaks things there only when it is allowed there."""
    if found is None:
        return f"IDC {idc} is not in the namespace {at}"
    theirs = found["spec"]
    if (theirs.get("region"), theirs.get("idc")) != (spec.region, idc):
        return f"IDC {idc} in the namespace {at} is another one's"
    if owner.namespace not in theirs.get("drills_from", ()):
        return f"IDC {idc} in the namespace {at} takes no drills from here (spec.drills_from)"
    return ""


def other_under_way(owner: Owner, all_of_them: Iterable[Object]) -> str:
    """Another run that is not over yet; empty: none."""
    for each in all_of_them:
        metadata, status = each["metadata"], each.get("status", {})
        if metadata["uid"] != owner.uid and status.get("phase") in UNDER_WAY:
            return f"DrillRun {metadata['namespace']}/{metadata['name']}"
    return ""


# --------------------------------------------------------------------------- what is said


def waiting(before: Status, generation: int, why: Sequence[str]) -> Status:
    update = {"blocked_by": list(why), "observed_generation": generation}
    return before.model_copy(update={"phase": before.phase or DrillPhase.WAITING, **update})


def refused(before: Status, generation: int, why: Sequence[str], now: str) -> Status:
    return before.model_copy(
        update={
            "phase": DrillPhase.REFUSED, "verdict": "refused", "reason": why[0],
            "blockers": list(why), "blocked_by": [], "observed_generation": generation,
            "ended": now,
        }
    )  # fmt: skip


def begun(before: Status, generation: int, runner: str, now: str) -> Status:
    return before.model_copy(
        update={
            "phase": DrillPhase.RUNNING, "runner": runner, "started": now, "blocked_by": [],
            "observed_generation": generation,
        }
    )  # fmt: skip


def undoing(before: Status, runner: str, verdict: str, reason: str) -> Status:
    """What is known of the run already stays."""
    update = {"phase": DrillPhase.UNDOING, "runner": runner, "blocked_by": []}
    known = {} if before.verdict else {"verdict": verdict, "reason": reason}
    return before.model_copy(update=update | known)


def ended(
    before: Status, done: Done, report_name: str, generation: int, now: str, stop: str = ""
) -> Status:
    """Of a run that has ended by itself, or because it was to ``stop``. With faults left, or
    without a report, what it did is to be undone first."""
    report = done.report
    if report is None:
        lines = done.said.splitlines() or [f"it ended with {done.status}"]
        if done.status == GUARDED:
            return refused(before, generation, _listed(lines), now)
        return undoing(before, before.runner, "inconclusive", lines[-1])
    said = before.model_copy(update=_shown(report) | {"report": report_name})
    if stop and said.verdict == "aborted":
        said = said.model_copy(update={"reason": stop})
    if said.left:
        return undoing(said, before.runner, "", "")
    return said.model_copy(update={"phase": DrillPhase.ENDED, "ended": now})


def undone(before: Status, now: str) -> Status:
    update = {"phase": DrillPhase.ENDED, "ended": now, "blocked_by": [], "left": []}
    return before.model_copy(update=update)


def given_up(before: Status, why: str, now: str) -> Status:
    """Nobody can undo it any more."""
    left = [*before.left, f"what it did may not be undone: {why}"]
    update = {"phase": DrillPhase.ENDED, "ended": now, "blocked_by": [], "left": left}
    known = {} if before.verdict else {"verdict": "aborted", "reason": why}
    return before.model_copy(update=update | known)


def _listed(lines: list[str]) -> list[str]:
    """Of a preflight that refuses: its lines after the first, else all."""
    found = [line.strip() for line in lines if line.startswith("  ")]
    return found or [lines[-1].removeprefix("error: ")]


def _shown(report: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``report.json``."""
    recoveries = [one["steps"].get("99 % answered") for one in report["recoveries"]]
    whole = bool(recoveries) and None not in recoveries
    moves = [one["moved_ms"] for one in report["run"]["moves"] if one["what"] == "switchover"]
    all_moved = bool(moves) and None not in moves
    return {
        "verdict": report["outcome"],
        "reason": report["reason"],
        "rto_s": round(max(recoveries), 2) if whole else None,
        "moved_s": round(max(moves) / 1000, 2) if all_moved else None,
        "lost": sum(row["lost"] for row in report["ledger"]),
        "delayed": sum(row["delayed"] for row in report["ledger"]),
        "left": list(report["left"]),
    }


def report_object(owner: Owner, files: Mapping[str, str]) -> Object:
    """As much of the report as an object can hold."""
    data: dict[str, str] = {}
    for name, text in files.items():
        if sum(len(each.encode()) for each in (*data.values(), text)) <= OBJECT_BYTES:
            data[name] = text
    mine = {"apiVersion": API_VERSION, "kind": owner.kind, "name": owner.name, "uid": owner.uid}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": report_name(owner), "namespace": owner.namespace, "ownerReferences": [mine],
        },
        "data": data,
    }  # fmt: skip


def report_name(owner: Owner) -> str:
    """Nobody else's object has it."""
    return f"{owner.name}-report-{owner.uid[:8]}"


def news(before: Status, after: Status) -> Iterator[tuple[str, str, bool]]:
    """(reason, sentence, whether it is a warning) of each Event."""
    if after.blocked_by and after.blocked_by != before.blocked_by:
        yield "Waiting", "; ".join(after.blocked_by), True
    if after.phase == before.phase:
        return
    if after.phase is DrillPhase.RUNNING:
        yield "Begun", f"{after.runner} runs it", False
    elif after.phase is DrillPhase.UNDOING:
        yield "Undoing", after.reason, True
    elif after.phase in DRILL_FINAL:
        verdict = after.verdict
        yield verdict.capitalize(), f"{verdict}: {after.reason}", verdict != "pass"
        if after.left:
            yield "Left", "; ".join(after.left), True
