"""From a drill that has ended to its report, and the report's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imcore.checker import check_file
from imcore.checker.availability import Availability, Move
from imcore.checker.latency import Latencies
from imcore.checker.ledger import Ledger
from imctl.auditrules import Judged
from imctl.drill import records
from imctl.drill.model import Drill, Promised
from imctl.drill.rto import Recovery, recovery
from imctl.drill.session import Session, Why
from imctl.drill.verdict import Facts, error_of, judge, looks_of
from imctl.report import drill_page, promises
from imctl.report.drill import DrillReport, Found, Probed, Reconnects, Recovered, markdown
from imctl.report.model import Promise, RunReport, Subject, write_text
from services.control.predict import Curve, apart

# Of the toolkit's journal: what would tell of the machine it ran on.
PRIVATE = ("node", "platform")


def judge_run(
    session: Session,
    drill: Drill,
    values: dict[str, Any],
    journal: dict[str, Any],
    runs: Path,
    changes: Sequence[Judged] | None = None,
) -> DrillReport:
    """``changes``: of the policy; None: the deployment's audit logs are not here. Raises BadInput
    when the history cannot be read."""
    latencies, availability = Latencies(), Availability()
    ledger = Ledger(session.canaries)
    check = check_file(session.history, [latencies, availability, ledger])
    population, wanted = session.load.population, session.settings.load
    run = RunReport(
        subject=Subject.of(
            population,
            region=session.region.metadata.name,
            run=session.run,
            started=session.started,
            idcs=session.idcs,
            victim=session.losses[0].idc if session.losses else "",
            seconds=session.t(),
            rate=wanted.rate,
            group_rate=wanted.group_rate,
            load_average=session.load_average,
        ),
        verdict=check,
        latencies=latencies.phases,
        availability=availability,
        samples=session.load.sampler.samples,
        marks=session.marks,
        spans=session.spans,
        notes=session.notes,
    )
    recoveries = _recoveries(session, availability)
    run.promises = promised(drill.settings.promised, run, recoveries)
    if changes is not None:
        run.promises.append(promises.of_rules(changes))
    entries = ledger.entries()
    observer = session.observer
    looks = looks_of(journal, session.load_began_s)
    stop = session.stop
    verdict = judge(
        Facts(
            looks=looks,
            promises=run.promises,
            failed=session.failed,
            condition=(session.stopped_at, stop.reason)
            if stop and stop.why is Why.CONDITION
            else None,
            operator=stop.reason if stop and stop.why is Why.OPERATOR else "",
            broken=stop.reason if stop and stop.why is Why.BROKEN else "",
            acked=check.counts.acked,
            acked_min=drill.settings.enough.acked,
            canaries={pair: entry.acked for pair, entry in entries.items()},
            canaries_min=drill.settings.enough.canaries,
            finished=check.finished,
            left=session.left,
            disputes=observer.epochs.disputes,
        )
    )
    report = DrillReport(
        drill=drill.name,
        title=drill.title,
        variables=values,
        outcome=str(verdict.outcome),
        reason=verdict.reason,
        line=verdict.line(),
        run=run,
        findings=[Found(str(f.outcome), f.sentence, f.t) for f in verdict.findings],
        recoveries=[Recovered(*one) for one in recoveries],
        ledger=entries,
        looks=[Probed(*look._replace(t=round(look.t, 2))) for look in looks],
        reconnects=reconnects(session.forecasts, availability.moves),
        epochs_seen=len(observer.epochs.seen),
        disputes=observer.epochs.disputes,
        left=session.left,
        earlier=records.passed(runs, drill.name),
    )
    if slower := records.regression(report):
        run.notes.append(slower)
    return report


def reconnects(forecasts: Sequence[tuple[str, Curve]], moves: Sequence[Move]) -> list[Reconnects]:
    """Each switchover's forecast beside how its clients moved. A forecast whose move never began
    has none, and the other way round."""
    left = [move for move in moves if move.what == "switchover"]
    found = []
    for idc, predicted in forecasts:
        move = next((each for each in left if each.idc == idc), None)
        if move is None:
            continue
        left.remove(move)
        times = sorted((at - move.started) / 1e6 for at in move.moved.values())
        measured = [(0.0, 0.0), *((round(at, 2), float(n)) for n, at in enumerate(times, 1))]
        said = [(round(at, 2), round(moved, 1)) for at, moved in predicted]
        far = apart(said, measured)
        found.append(Reconnects(idc, said, measured, None if far is None else round(far, 3)))
    return found


def _recoveries(session: Session, availability: Availability) -> list[Recovery]:
    found: list[Recovery] = []
    for outage, loss in zip(availability.outages, session.losses, strict=False):
        before = sum(one.idc == outage.idc for one in found)
        steady_s = next((at - loss.at for at in session.steadied if at >= loss.at), None)
        found.append(
            recovery(
                outage,
                loss.wall_ms,
                session.observer.accusation(outage.idc, before),
                session.observer.committed_ms(outage.idc, loss.wall_ms),
                steady_s,
            )
        )
    return found


def promised(limits: Promised, run: RunReport, recoveries: Sequence[Recovery]) -> list[Promise]:
    """What every drill promises (nothing lost or twice, one order), and what its file does."""
    found = list(promises.of_verdict(run.verdict))
    if (rto_s := limits.rto_s) is not None:
        found += [_rto(one, rto_s) for one in recoveries]
        if not recoveries:
            found.append(_absent("RTO", f"<= {rto_s:g} s", "no IDC was lost", run))
    if (rpo := run.availability.rpo()) is not None:
        measured = f"{rpo.lost} ({rpo.delayed} delayed, of {rpo.looked_at} checked)"
        found.append(
            Promise("RPO: messages lost", "0", measured, rpo.lost == 0 and rpo.looked_at > 0)
        )
    moves = [move for move in run.availability.moves if move.what == "switchover"]
    if limits.gap_s is not None or limits.moved_s is not None:
        bounds = promises.Limits(
            gap_s=limits.gap_s or float("inf"), moved_s=limits.moved_s or float("inf")
        )
        for move in moves:
            found += [
                one._replace(name=f"{one.name} ({move.idc})")
                for one in promises.of_switchover(move, bounds)
            ]
        if not moves:
            found.append(_absent("Switchover", "happens", "did not", run))
    if limits.failed_sends is not None:
        failed = run.verdict.counts.failed
        most = limits.failed_sends
        found.append(Promise("Failed sends", f"<= {most}", str(failed), failed <= most))
    return found


def _absent(name: str, limit: str, measured: str, run: RunReport) -> Promise:
    """Of a run that came to its end; else it only did not come to it."""
    finished = run.verdict.finished
    return Promise(name, limit, measured if finished else "not judged", False, not finished)


def _rto(one: Recovery, limit_s: float) -> Promise:
    rto_s = one.rto_s()
    who = f"{one.answered} of {one.affected} devices"
    return Promise(
        f"RTO of {one.idc} (99 % answered again)",
        f"<= {limit_s:g} s",
        f"never ({who})" if rto_s is None else f"{rto_s:.2f} s ({who})",
        rto_s is not None and rto_s <= limit_s,
    )


def _shared(value: Any) -> Any:
    """What may be shown of a journal: tracebacks tell of files, so only their last line."""
    if isinstance(value, dict):
        return {
            name: [error_of(value)] if name == "exception" else _shared(inner)
            for name, inner in value.items()
            if name not in PRIVATE
        }
    return [_shared(inner) for inner in value] if isinstance(value, list) else value


def publish(report: DrillReport, journal: dict[str, Any], out: Path, runs: Path) -> None:
    """report.html, report.json, report.md and journal.json in ``out``; a line in the record of all
    runs. Raises BadInput."""
    write_text(out / "report.json", json.dumps(report.as_json(), indent=1) + "\n")
    write_text(out / "report.md", markdown(report))
    write_text(out / "report.html", drill_page.page(report))
    shared = _shared(journal)
    write_text(out / "journal.json", json.dumps(shared, indent=1, default=str) + "\n")
    records.add(runs, report, out)
