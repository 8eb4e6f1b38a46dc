"""Whether the changes of the policy kept the region's safety rules, by what the audit logs say of
them: the documents before and after each, and the evidence that was noted with it. Pure but for
``of_folder``.

A rule that a change names as overridden is not judged. What no log has noted is not judged either,
and said so: whoever commits a change may die before he notes it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from imcore.region.model import Region
from imcore.region.rules import voters_of
from imcore.words import parse_origin
from imctl import auditview
from imctl.output import printable, time_of_day
from services.control.acceptor import majority
from services.policy.document import Policy, from_json, initial
from services.policy.kept import Broken, Step, broken


class Judged(NamedTuple):
    """A change that a log has noted. ``unjudged``: why it is not; empty: it is."""

    epoch: int
    at_ms: int
    said: str
    broken: tuple[Broken, ...] = ()
    unjudged: str = ""


@dataclass(frozen=True, slots=True)
class _Facts:
    age_ms: int
    serving: bool
    lag_ms: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Vote:
    voter: str
    held_ms: int


@dataclass(frozen=True, slots=True)
class _Overridden:
    rule: str


@dataclass(frozen=True, slots=True)
class _Evidence:
    idcs: dict[str, _Facts]
    votes: list[_Vote]
    overridden: list[_Overridden]


_EVIDENCE = TypeAdapter(_Evidence)


class _Noted(NamedTuple):
    policy: Policy
    row: Mapping[str, Any]

    @property
    def again(self) -> bool:
        return bool(self.row.get("repeated"))


def of_folder(folder: Path, region: Region, since_ms: int = 0) -> list[Judged]:
    """Of a deployment, by its logs: what came after that. Raises BadInput."""
    chains = auditview.read(auditview.writers(folder, voters_of(region)))
    return [each for each in of_chains(chains, region) if each.at_ms >= since_ms]


def of_chains(chains: Iterable[auditview.Chain], region: Region) -> list[Judged]:
    return judged((row for chain in chains for row in chain.verdict.rows), region)


def judged(rows: Iterable[Mapping[str, Any]], region: Region) -> list[Judged]:
    """``rows``: of all audit logs, in any order; what is no committed change is passed over."""
    noted: dict[int, _Noted] = {}
    for row in rows:
        if (policy := _policy(row)) is not None:
            each = _Noted(policy, row)
            if policy.epoch not in noted or not each.again:
                noted[policy.epoch] = each
    documents = {1: initial(region, 0)} | {epoch: each.policy for epoch, each in noted.items()}
    return [_judge(documents.get(epoch - 1), each, region) for epoch, each in sorted(noted.items())]


def _policy(row: Mapping[str, Any]) -> Policy | None:
    if row.get("decision") != "committed" or not isinstance(row.get("policy"), dict):
        return None
    try:
        return from_json(json.dumps(row["policy"]).encode())
    except ValueError:  # of a program that is newer or older than this one
        return None


def _judge(old: Policy | None, noted: _Noted, region: Region) -> Judged:
    epoch, row = noted.policy.epoch, noted.row
    found = Judged(epoch, auditview.time_ms(row), str(row.get("sentence", "")))
    if old is None:
        return found._replace(unjudged=f"no log has epoch {epoch - 1}")
    try:
        evidence = _EVIDENCE.validate_python(row.get("evidence"))
    except ValidationError:
        return found._replace(unjudged="its evidence cannot be read")
    step = Step(old, noted.policy, str(row.get("by", "")))
    all_broken = [*broken(step, region)]
    if not noted.again:  # else the evidence is of when the same was asked for once more
        all_broken += _by_evidence(step, evidence, region)
    allowed = {each.rule for each in evidence.overridden}
    return found._replace(broken=tuple(each for each in all_broken if each.rule not in allowed))


def _by_evidence(step: Step, evidence: _Evidence, region: Region) -> Iterator[Broken]:
    for each in step.rows():
        if each.fails:
            yield from _of_votes(each.idc, evidence, region)
    opened = step.opened
    if opened is not None and opened.kind != "failback":
        names = (opened.idc, *step.takers_but(opened.idc, region))
        yield from _of_facts(names, evidence, region)


def _of_votes(idc: str, evidence: _Evidence, region: Region) -> Iterator[Broken]:
    voters = voters_of(region)
    needed, hold_ms = majority(len(voters)), region.spec.safety.hold_ms
    others = [name for name in voters if name != idc]
    held = {vote.voter: vote.held_ms for vote in evidence.votes if vote.voter in others}
    if len(held) < needed:
        sentence = f"{len(held)} of {len(voters)} voters accused {idc}, {needed} are needed"
        yield Broken("votes-majority", sentence)
    elif (least := sorted(held.values(), reverse=True)[needed - 1]) < hold_ms:
        sentence = f"the votes against {idc} had held for {least} ms, {hold_ms} are needed"
        yield Broken("hold-time", sentence)


def _of_facts(names: Sequence[str], evidence: _Evidence, region: Region) -> Iterator[Broken]:
    """``names``: the IDC that is to be emptied, and those that take its clients."""
    safety, known = region.spec.safety, evidence.idcs
    for name in names:
        facts = known.get(name)
        if facts is None:
            yield Broken("evidence-age", f"nothing was known of {name}")
        elif facts.age_ms > safety.evidence_age_ms_max:
            sentence = f"what was known of {name} was {facts.age_ms} ms old"
            yield Broken("evidence-age", sentence)
        elif not facts.serving:
            yield Broken("serving", f"{name} did not serve")
    idc, *takers = names
    for taker in takers:
        for getter, giver in ((taker, idc), (idc, taker)):
            lag_ms = _lag_ms(known[getter].lag_ms, giver) if getter in known else 0
            if lag_ms > safety.replication_lag_ms_max:
                yield Broken("replication-lag", f"{getter} lagged {giver} by {lag_ms} ms")


def _lag_ms(lags: Mapping[str, int], idc: str) -> int:
    """Behind its newest incarnation."""
    found: dict[int, int] = {}
    for text, lag_ms in lags.items():
        with contextlib.suppress(ValueError):  # a log may say anything
            origin = parse_origin(text)
            if origin.idc == idc:
                found[origin.incarnation] = lag_ms
    return found[max(found)] if found else 0


# ------------------------------------------------------------------------------------ shown


def as_row(change: Judged) -> dict[str, Any]:
    return {
        "epoch": change.epoch,
        "at_ms": change.at_ms,
        "change": change.said,
        "judged": not change.unjudged,
        "unjudged": change.unjudged,
        "broken": [each._asdict() for each in change.broken],
    }


def verdict(change: Judged) -> str:
    if change.unjudged:
        return f"not judged: {change.unjudged}"
    return "; ".join(f"BROKEN {rule}: {sentence}" for rule, sentence in change.broken) or "kept"


def sentence(changes: Sequence[Judged]) -> str:
    """Of all of them together."""
    bad = sum(bool(each.broken) for each in changes)
    unjudged = sum(bool(each.unjudged) for each in changes)
    count = len(changes) - unjudged
    said = f"{count} {'change' if count == 1 else 'changes'} judged, {bad or 'none'} broke a rule"
    return f"{said}; {unjudged} not judged" if unjudged else said


def table(changes: Iterable[Judged]) -> Table:
    found = Table(box=None, pad_edge=False, header_style="bold")
    found.add_column("TIME", overflow="fold")
    found.add_column("CHANGE", overflow="fold", ratio=1)
    found.add_column("SAFETY RULES", overflow="fold", ratio=1)
    for change in changes:
        texts = (printable(text) for text in (change.said, verdict(change)))
        found.add_row(time_of_day(change.at_ms), *texts)
    return found
