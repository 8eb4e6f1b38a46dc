"""What is known about the IDCs when a change is judged, each observation with its time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from imcore.levels import FIRST

Ends = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IdcFacts:
    """One IDC's status as it was received at ``at_ms`` (on the judge's clock)."""

    at_ms: int
    origin: str = ""
    serving: bool = True
    sessions: int = 0
    shards: Mapping[str, int] = field(default_factory=dict)  # of these sessions, by shard
    closed: int = 0  # connections that did not go by themselves, in its last drain
    stuck: Mapping[str, int] = field(default_factory=dict)  # told to go and hang, by gateway
    messages_per_s: float = 0.0
    ends: Ends = ()  # of its own log, per partition
    held: Mapping[str, Ends] = field(default_factory=dict)  # by origin
    applied: Mapping[str, Ends] = field(default_factory=dict)
    announced: Mapping[str, Ends] = field(default_factory=dict)  # the highest ends heard of
    peers_held: Mapping[str, Ends] = field(default_factory=dict)  # own log, by IDC
    peers_applied: Mapping[str, Ends] = field(default_factory=dict)
    lag_ms: Mapping[str, int] = field(default_factory=dict)  # of each origin, here
    seals: Mapping[str, Ends] = field(default_factory=dict)  # committed, by origin
    published_again: Mapping[str, int] = field(default_factory=dict)  # ops, by sealed origin
    level: int = FIRST  # of ops that its program folds

    def by_shard(self, default: str) -> dict[str, int]:
        """Its sessions; those whose shard it did not tell count for the default one."""
        told = dict(self.shards)
        untold = self.sessions - sum(told.values())
        if untold > 0:
            told[default] = told.get(default, 0) + untold
        return told


@dataclass(frozen=True, slots=True)
class Vote:
    """``held_ms``: for how long the voter's evidence had held when this was received."""

    voter: str
    accused: str
    held_ms: int
    at_ms: int
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where an IDC's own log ended at a moment. Logs always grow (ticks), so "all of it is applied
    elsewhere" means: up to a mark that was taken after the last session had left."""

    at_ms: int
    origin: str
    ends: Ends
    sessions: int


@dataclass(frozen=True, slots=True)
class Evidence:
    idcs: Mapping[str, IdcFacts] = field(default_factory=dict)
    votes: Sequence[Vote] = ()
    voters: Sequence[str] = ()  # all of them, the witness too
    marks: Mapping[str, Mark] = field(default_factory=dict)


def reached(have: Ends, want: Ends) -> bool:
    """Whether every partition has come to the wanted end; what is missing counts as 0."""
    padded = [*have, *([0] * (len(want) - len(have)))]
    return all(lsn >= end for lsn, end in zip(padded, want, strict=False))


def short(want: Ends, have: Ends) -> int:
    """How many records are missing to the wanted ends, summed over the partitions."""
    padded = [*have, *([0] * (len(want) - len(have)))]
    return sum(max(0, end - lsn) for end, lsn in zip(want, padded, strict=False))


def most(vectors: Iterable[Ends]) -> Ends:
    """The highest end of each partition."""
    return tuple(max(ends) for ends in zip_longest(*vectors, fillvalue=0))


def facts_from_status(status: Mapping[str, Any], at_ms: int) -> IdcFacts:
    """From the status JSON (docs/status.md). Raises ValueError."""
    try:
        return IdcFacts(
            at_ms=at_ms,
            origin=str(status["origin"]),
            serving=bool(status["serving"]),
            sessions=int(status["sessions"]),
            shards={name: int(count) for name, count in status.get("shards", {}).items()},
            closed=int(status.get("moves", {}).get("closed", 0)),
            stuck={
                gateway: int(count)
                for gateway, count in status.get("moves", {}).get("stuck", {}).items()
            },
            messages_per_s=float(status["rates"]["accepted_per_s"]),
            ends=tuple(status["log"]["ends"]),
            held=_ends(status["held"]),
            applied=_ends(status["applied"]),
            announced=_ends(status.get("announced", {})),
            peers_held=_ends(status["peers_held"]),
            peers_applied=_ends(status["peers_applied"]),
            lag_ms={origin: int(row["ms"]) for origin, row in status["lag"].items()},
            seals=_ends(status.get("seals", {})),
            published_again={
                origin: int(count) for origin, count in status.get("published_again", {}).items()
            },
            level=int(status.get("level", FIRST)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the status lacks {error}") from error


def mark_of(facts: IdcFacts) -> Mark:
    return Mark(facts.at_ms, facts.origin, facts.ends, facts.sessions)


def _ends(rows: Mapping[str, Sequence[int]]) -> dict[str, Ends]:
    return {name: tuple(int(lsn) for lsn in ends) for name, ends in rows.items()}
