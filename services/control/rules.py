"""The safety rules, each a pure function: what was measured, what the limit is, one sentence.

A rule that lacks an observation says nothing: its absence is ``evidence-age``'s to report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from imcore.region.model import Idc, Region, Safety
from services.control.divergence import above_seals, committed_seals
from services.control.evidence import Evidence, IdcFacts, Vote, reached
from services.control.failover import accused_by_majority
from services.policy.document import IdcPolicy, IdcState, Policy
from services.policy.spread import Load, is_home, spread, with_row

AHEAD_MS_MAX = 500
# The ids of all rules: what an override may name.
RULES = (
    "active-idcs-min", "anti-flap", "automatic-failover", "caught-up", "evidence-age",
    "freeze-window", "headroom", "hold-time", "log-applied-elsewhere", "not-accused",
    "one-move-at-a-time", "replication-lag", "serving", "survivors-copies-agree", "votes-majority",
)  # fmt: skip
# Not rules of safety but of sense: no override makes them pass.
ALWAYS = frozenset({"expect-epoch", "transition", "override"})


class Blocker(NamedTuple):
    rule: str
    measured: str
    limit: str
    sentence: str


class Kind:
    """Kinds of changes (the words of the command line)."""

    CORDON = "cordon"
    UNCORDON = "uncordon"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    SWITCHOVER = "switchover"
    FAILOVER = "failover"
    FAILBACK = "failback"
    RECOVERING = "recovering"
    DRAINED = "drained"
    RAMP = "ramp"
    RETIRE = "retire"
    # About the operation under way, not about an IDC:
    PAUSE = "pause"
    STALL = "stall"  # by a controller: the next step has come no nearer for too long
    RESUME = "resume"
    ABORT = "abort"
    APPROVE = "approve"


@dataclass(frozen=True, slots=True)
class Change:
    """One wish. ``expect_epoch`` 0: whatever the epoch. ``overrides``: at most one rule id.
    ``operation``: which one a pause or the like is about; its IDC follows from it.
    ``reason``: why a controller stalls it. ``rate``, ``max_lag_ms``: as in ``OperationRef``."""

    kind: str
    idc: str
    request_id: str
    by: str  # "operator", "drill", or "controller <idc>"
    target: str = ""
    expect_epoch: int = 0
    overrides: tuple[str, ...] = ()
    ramp: int = 100
    operation: str = ""
    reason: str = ""
    rate: int = 0
    max_lag_ms: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """All that a rule may look at."""

    policy: Policy
    change: Change
    evidence: Evidence
    region: Region
    now_ms: int

    @property
    def safety(self) -> Safety:
        return self.region.spec.safety

    @property
    def idcs(self) -> dict[str, Idc]:
        return {idc.name: idc for idc in self.region.spec.idcs}

    def others(self) -> list[str]:
        """IDCs that take clients, other than the one that the change is about."""
        return [
            name
            for name in self.idcs
            if name != self.change.idc and self.policy.state(name) is IdcState.ACTIVE
        ]

    def facts(self, idc: str) -> IdcFacts | None:
        return self.evidence.idcs.get(idc)


Rule = Callable[[Case], Blocker | None]


def active_idcs_min(case: Case) -> Blocker | None:
    left, limit = len(case.others()), case.safety.active_idcs_min
    if left >= limit:
        return None
    return Blocker(
        "active-idcs-min", str(left), str(limit), f"{left} active IDCs would be left of {limit}"
    )


def headroom(case: Case) -> Blocker | None:
    """Room for what would move, in each IDC that would get some of it: its live sessions and
    messages with what the placement sends there, against the share of its capacity allowed.

    Clients of an IDC that is lost come over by themselves before it is declared so. Who is there
    already is not counted once more: sessions of a shard that has no home there."""
    policy, change = case.policy, case.change
    moving = case.facts(change.idc)
    if moving is None:
        return None
    row = policy.idcs.get(change.idc, IdcPolicy())
    gone = IdcState.FAILED if change.kind == Kind.FAILOVER else IdcState.DRAINING
    after = with_row(policy, change.idc, replace(row, state=gone, target=change.target))
    over, room = [], case.safety.headroom
    for name, sessions in sorted(_coming(case, moving, after).items()):
        taker = case.facts(name)
        if name == change.idc or taker is None:
            continue
        share = sessions / moving.sessions if moving.sessions else 0.0
        load = Load(taker.sessions + sessions, taker.messages_per_s + share * moving.messages_per_s)
        capacity = case.idcs[name].capacity
        most = Load(room * capacity.sessions, room * capacity.messages_per_s)
        if load.sessions > most.sessions or load.messages_per_s > most.messages_per_s:
            over.append((name, load, most))
    if not over:
        return None
    said = "; ".join(
        f"{name} would carry {load.sessions:.0f} sessions and {load.messages_per_s:.0f} "
        f"messages/s, of {most.sessions:.0f} and {most.messages_per_s:.0f} allowed"
        for name, load, most in over
    )
    return Blocker(
        "headroom",
        ", ".join(
            f"{name}: {load.sessions:.0f} sessions, {load.messages_per_s:.0f} messages/s"
            for name, load, _ in over
        ),
        ", ".join(
            f"{name}: {most.sessions:.0f} sessions, {most.messages_per_s:.0f} messages/s"
            for name, _, most in over
        ),
        said,
    )


def _coming(case: Case, moving: IdcFacts, after: Policy) -> dict[str, float]:
    """Sessions that each IDC would get, by its name."""
    idc, region = case.change.idc, case.region
    found: defaultdict[str, float] = defaultdict(float)
    for shard, count in moving.by_shard(region.spec.geo.default).items():
        for name, sessions in spread(case.policy, after, region, idc, {shard: count}).items():
            found[name] += max(0.0, sessions - _fled(case, shard, name))
    return found


def _fled(case: Case, shard: str, name: str) -> int:
    """Of a failover: sessions of this shard that are in that IDC already, and not at home there."""
    there = case.facts(name) if case.change.kind == Kind.FAILOVER else None
    if there is None or is_home(case.policy, case.region, shard, name):
        return 0
    return there.shards.get(shard, 0)


def replication_lag(case: Case) -> Blocker | None:
    """How far the others are behind the log of the IDC that gives its clients away (or takes them
    back), and it behind theirs."""
    return _lag(case, case.others())


def replication_lag_of_heard(case: Case) -> Blocker | None:
    """The same, of those that are heard. Behind one that has just died everybody lags, more and
    more: that must not keep out the IDC that could take over."""
    limit = case.safety.evidence_age_ms_max
    known = {name: case.facts(name) for name in case.others()}
    return _lag(case, [n for n, f in known.items() if f and is_fresh(case.now_ms - f.at_ms, limit)])


def replication_lag_of_survivors(case: Case) -> Blocker | None:
    """Asked for only: how far those that take a lost IDC's clients are behind each other. Behind
    the lost one everybody lags, more and more."""
    if not case.change.max_lag_ms:
        return None
    known = {name: facts for name in case.others() if (facts := case.facts(name))}
    lags = [
        facts.lag_ms.get(of.origin, 0)
        for name, facts in known.items()
        for other, of in known.items()
        if name != other
    ]
    return _too_long(lags, case.change.max_lag_ms, "the survivors")


def _lag(case: Case, others: Iterable[str]) -> Blocker | None:
    about, limit = case.facts(case.change.idc), case.safety.replication_lag_ms_max
    limit = min(limit, case.change.max_lag_ms or limit)
    lags = []
    for name in others:
        facts = case.facts(name)
        if facts and about:
            lags += [facts.lag_ms.get(about.origin, 0), about.lag_ms.get(facts.origin, 0)]
    return _too_long(lags, limit, f"{case.change.idc} and the others")


def _too_long(lags: Iterable[int], limit: int, between: str) -> Blocker | None:
    worst = max(lags, default=0)
    if worst <= limit:
        return None
    return Blocker(
        "replication-lag",
        f"{worst} ms",
        f"{limit} ms",
        f"replication between {between} lags {worst} ms, {limit} allowed",
    )


def serving(case: Case) -> Blocker | None:
    """For what is planned: the IDC itself and all that take clients serve. One that is only
    starting answers, without a session, a lag or a load: every other rule would let it pass."""
    names = (case.change.idc, *case.others())
    away = [name for name in names if (facts := case.facts(name)) and not facts.serving]
    if not away:
        return None
    said = " and ".join(away)
    verb = "does" if len(away) == 1 else "do"
    return Blocker(
        "serving", f"{said} {verb} not serve", "all serve", f"{said} {verb} not serve clients yet"
    )


def one_move_at_a_time(case: Case) -> Blocker | None:
    running = case.policy.operation
    if running is None:
        return None
    return Blocker(
        "one-move-at-a-time",
        running.id,
        "no other move",
        f"{running.kind} of {running.idc} is under way ({running.id})",
    )


def no_other_move(case: Case) -> Blocker | None:
    """For what takes an IDC's own move back."""
    running = case.policy.operation
    if running is not None and running.idc == case.change.idc:
        return None
    return one_move_at_a_time(case)


def freeze_window(case: Case) -> Blocker | None:
    for window in case.safety.freeze:
        start, end = _ms(window.start), _ms(window.end)
        if start <= case.now_ms < end:
            return Blocker(
                "freeze-window",
                datetime.fromtimestamp(case.now_ms / 1000).astimezone().isoformat(),
                f"outside {window.start} to {window.end}",
                f"no traffic moves from {window.start} to {window.end}",
            )
    return None


def anti_flap(case: Case) -> Blocker | None:
    """An IDC that is emptied again right after its clients were moved would pass them to and fro.
    Only what empties it waits: clients are better off at home, and no round goes without it."""
    row, limit = case.policy.idcs.get(case.change.idc), case.safety.anti_flap_ms
    if row is None or not row.moved_ms or not is_within(case.now_ms - row.moved_ms, limit):
        return None
    ago = f"{max(0, case.now_ms - row.moved_ms) / 1000:.1f} s ago"
    return Blocker(
        "anti-flap",
        ago,
        f"{limit / 1000:g} s",
        f"clients of {case.change.idc} were last moved {ago}, {limit / 1000:g} s must pass",
    )


def is_fresh(age_ms: int, limit_ms: int) -> bool:
    """Evidence from the future is none: the judge's wall clock has stepped back since it was seen,
    and how old it is nobody knows. A clock that is being slewed is forgiven a little."""
    return -AHEAD_MS_MAX <= age_ms <= limit_ms


def is_within(passed_ms: int, limit_ms: int) -> bool:
    """Whether less than the limit has passed. Of what a clock further ahead has stamped nobody
    knows, and to wait until that time has come may take as long as the clock was wrong."""
    return -AHEAD_MS_MAX <= passed_ms < limit_ms


def evidence_age(case: Case, needed: Iterable[str]) -> Blocker | None:
    limit = case.safety.evidence_age_ms_max
    ages = {}
    for name in needed:
        facts = case.facts(name)
        ages[name] = case.now_ms - facts.at_ms if facts else None
    if case.change.kind == Kind.FAILOVER:
        ages |= {f"the vote of {vote.voter}": case.now_ms - vote.at_ms for vote in votes_of(case)}
    old = {name: age for name, age in ages.items() if age is None or not is_fresh(age, limit)}
    if not old:
        return None
    measured = ", ".join(
        f"nothing is heard of {name}" if age is None else f"{name}: {age} ms old"
        for name, age in old.items()
    )
    return Blocker(
        "evidence-age", measured, f"{limit} ms",
        f"{measured}; what is known must be {limit} ms old at most",
    )  # fmt: skip


def survivors_copies_agree(case: Case) -> Blocker | None:
    """While an IDC is failed, another may fail only when the survivors hold the same of the failed
    one's log: else the second could take with it what it alone has."""
    lost = [
        name
        for name in case.idcs
        if name != case.change.idc and case.policy.state(name) is IdcState.FAILED
    ]
    survivors = {name: facts for name in case.others() if (facts := case.facts(name))}
    for name in lost:
        origins = {
            origin
            for facts in survivors.values()
            for origin in facts.held
            if origin.rpartition(".")[0] == name
        }
        for origin in sorted(origins):
            copies = {facts.held.get(origin, ()) for facts in survivors.values()}
            if len(copies) > 1 or len(survivors) < len(case.others()):
                return _copies_differ(name, origin)
        if not origins:
            return _copies_differ(name, name)
    return None


def _copies_differ(idc: str, origin: str) -> Blocker:
    return Blocker(
        "survivors-copies-agree",
        f"copies of {origin} differ or are unknown",
        "equal copies in all survivors",
        f"{idc} is failed already and the survivors' copies of its log do not agree yet",
    )


def votes_of(case: Case) -> list[Vote]:
    """The votes against this IDC, one a voter, the accused's own not counted."""
    newest = {}
    for vote in sorted(case.evidence.votes, key=lambda vote: vote.at_ms):
        if vote.accused == case.change.idc != vote.voter and vote.voter in case.evidence.voters:
            newest[vote.voter] = vote
    return list(newest.values())


def lost(case: Case) -> list[str]:
    """IDCs that a majority of all voters has accused for the hold time."""
    limit_ms = case.safety.evidence_age_ms_max
    fresh = [vote for vote in case.evidence.votes if is_fresh(case.now_ms - vote.at_ms, limit_ms)]
    return accused_by_majority(fresh, case.evidence.voters, case.safety.hold_ms)


def _fresh_votes(case: Case) -> list[Vote]:
    limit_ms = case.safety.evidence_age_ms_max
    return [vote for vote in votes_of(case) if is_fresh(case.now_ms - vote.at_ms, limit_ms)]


def votes_majority(case: Case) -> Blocker | None:
    voters = len(case.evidence.voters)
    fresh = _fresh_votes(case)
    needed = voters // 2 + 1
    if len(fresh) >= needed:
        return None
    return Blocker(
        "votes-majority",
        f"{len(fresh)} of {voters}",
        f"{needed} of {voters}",
        f"{len(fresh)} of {voters} voters accuse {case.change.idc}, {needed} are needed; "
        "to move clients away from an IDC that works, drain it",
    )


def hold_time(case: Case) -> Blocker | None:
    """The shortest of the longest-held majority's votes must have held long enough."""
    limit, needed = case.safety.hold_ms, len(case.evidence.voters) // 2 + 1
    held = sorted(
        (vote.held_ms + case.now_ms - vote.at_ms for vote in votes_of(case)), reverse=True
    )
    least = held[needed - 1] if len(held) >= needed else 0
    if least >= limit:
        return None
    return Blocker(
        "hold-time",
        f"{least} ms",
        f"{limit} ms",
        f"the evidence against {case.change.idc} has held for {least} ms, {limit} are needed",
    )


def not_accused(case: Case) -> Blocker | None:
    """For a return: by the votes it would be failed over again at once, and its clients with it."""
    if votes_majority(case) or hold_time(case):
        return None
    votes = _fresh_votes(case)
    count = f"{len(votes)} of {len(case.evidence.voters)}"
    said = "; ".join(f"{vote.voter}: {vote.sentence or 'accuses it'}" for vote in votes)
    return Blocker(
        "not-accused",
        count,
        "no majority",
        f"{count} voters accuse {case.change.idc}, so it would be failed over again ({said})",
    )


def automatic_failover(case: Case) -> Blocker | None:
    if case.safety.automatic_failover or not case.change.by.startswith("controller"):
        return None
    return Blocker(
        "automatic-failover",
        "off",
        "on",
        f"the region file leaves a failover of {case.change.idc} to an operator",
    )


def log_applied_elsewhere(case: Case) -> Blocker | None:
    """For ``drained``: everything up to a mark taken without sessions is applied by all that take
    clients."""
    idc = case.change.idc
    facts, mark = case.facts(idc), case.evidence.marks.get(idc)
    if facts is None:
        return None
    behind = [
        name
        for name in case.others()
        if mark is None
        or mark.sessions > 0
        or mark.origin != facts.origin
        or not reached(facts.peers_applied.get(name, ()), mark.ends)
    ]
    if facts.sessions == 0 and not behind:
        return None
    left = f"{facts.sessions} sessions, log not applied in {', '.join(behind) or 'none'}"
    return Blocker("log-applied-elsewhere", left, "no sessions, all applied", f"{idc} has {left}")


def caught_up(case: Case) -> Blocker | None:
    """For a return: it has applied the others' logs, its own tail is held elsewhere, and what it
    has above a seal is published again."""
    idc = case.change.idc
    facts, own = case.facts(idc), case.evidence.marks.get(idc)
    if facts is None:
        return None
    behind = [
        name
        for name in case.others()
        if (mark := case.evidence.marks.get(name)) is None
        or not reached(facts.applied.get(mark.origin, ()), mark.ends)
    ]
    tail_held = own is not None and any(
        reached(held, own.ends) and own.origin == facts.origin for held in facts.peers_held.values()
    )
    unpublished = above_seals(facts, committed_seals(case.evidence))
    if facts.serving and not behind and tail_held and not unpublished:
        return None
    parts = [f"has not applied all of {name}" for name in behind]
    parts += [] if tail_held else ["has a tail that nobody else holds"]
    parts += [
        f"has not published {count} records above the seal of {origin} again"
        for origin, count in unpublished.items()
    ]
    parts += [] if facts.serving else ["does not serve yet"]
    said, limit = ", ".join(parts), "all applied, own tail held elsewhere, none above a seal"
    return Blocker("caught-up", said, limit, f"{idc} {said}")


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def no_rule(name: str) -> str:
    """Why an override may not name it."""
    if name in ALWAYS:
        return f"no override makes {name} pass"
    return f"no safety rule is called {name!r}; expected one of {', '.join(RULES)}"
