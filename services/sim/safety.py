"""Whether every committed change of the policy kept the safety rules of the region file.

Judged from the documents that a majority of the registries has accepted, one after the other, and
from what the simulation alone knows: who was up and whom he could reach, what was in which log, who
had really voted. Nothing that judges changes in the service is asked here, nor what it was told.

A change rests on what was known when it was judged. That is a while before it is seen here, so a
rule is broken only when it did not hold at any moment of a *window* before the first registry took
the change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imcore.region.model import Region
from services.policy import kept
from services.policy.document import IdcState, OperationRef, Outcome, Policy
from services.policy.kept import Broken, Row

# Evidence is 2 s old at most, and from 500 ms ahead of a clock; a registry is asked for 1.5 s.
WINDOW_S = 5.0
FOLLOWED_S = 10.0  # who could have read a policy for so long follows it
LATE_S = 0.6  # what is seen here is seen so much later at most
BLINK_S = 0.3  # who is seen to be there for less may be there between two probes only
_LAST = 10  # looks

Ends = tuple[int, ...]
Pair = tuple[str, str]
_S = IdcState
_OVERRIDING = re.compile(r", overriding ([a-z-]+)")


class Ballot(NamedTuple):
    counter: int
    proposer: str


@dataclass(frozen=True, slots=True)
class Site:
    """An IDC that serves: the end of its own log in each partition, and what it holds and has
    applied of every log, by origin; ``sealed``: where those have ended that nobody goes on with,
    as far as it knows."""

    origin: str
    sessions: int
    ends: Ends
    held: Mapping[str, Ends]
    applied: Mapping[str, Ends]
    sealed: Mapping[str, Ends] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """One moment. ``sites``: the IDCs that serve. ``troubled``: (voter, whom): something stands
    between them, or is wrong with one of them. ``votes``: (voter, accused), as they stand in the
    voters' registries; ``held``: those that say they were held for so long that they count.
    ``calm``: nobody is paused and no way is cut, so that nothing of earlier
    can come to its end just now."""

    t: float
    sites: Mapping[str, Site]
    troubled: frozenset[Pair] = frozenset()
    votes: frozenset[Pair] = frozenset()
    calm: bool = True
    held: frozenset[Pair] = frozenset()


def _outcome(policy: Policy) -> Outcome | None:
    """Of the change that it is."""
    return next((done for done in policy.requests if done.epoch == policy.epoch), None)


class Change(NamedTuple):
    """``asked``: when the first registry took it; ``former_at``: when the policy before was seen
    to be committed."""

    old: Policy
    new: Policy
    asked: float
    former_at: float

    @property
    def outcome(self) -> Outcome | None:
        return _outcome(self.new)

    @property
    def step(self) -> kept.Step:
        by = "controller" if (done := self.outcome) and "by controller" in done.sentence else ""
        return kept.Step(self.old, self.new, by)


class Safety:
    """``look`` and ``accepted`` as they come, ``judge`` after each round of them. ``found``: what
    is wrong, a sentence each."""

    def __init__(self, region: Region, voters: Sequence[str]) -> None:
        self.found: list[str] = []
        self.committed: dict[int, Policy] = {}
        self._region = region
        self._safety = region.spec.safety
        self._voters = tuple(voters)
        self._most = len(self._voters) // 2 + 1
        self._looks: list[Look] = []
        self._documents: dict[bytes, tuple[Policy, float]] = {}  # and when a registry first took it
        self._takers: dict[tuple[Ballot, bytes], set[str]] = {}  # registries, by what they took
        self._at: dict[int, float] = {}  # when an epoch was seen to be committed
        self._last = 0
        self._told: set[Pair] = set()

    # ------------------------------------------------------------------------- what is seen

    def look(self, look: Look) -> None:
        self._looks.append(look)

    def accepted(self, voter: str, ballot: Ballot, policy: Policy, t: float) -> None:
        """A registry has taken this policy under this ballot."""
        document = policy.to_json()
        self._documents.setdefault(document, (policy, t))
        self._takers.setdefault((ballot, document), set()).add(voter)

    def judge(self, t: float) -> None:
        """Whatever a majority has come to take since the last time."""
        for (_, document), takers in sorted(self._takers.items(), key=lambda taken: taken[0][0]):
            policy, _ = self._documents[document]
            if len(takers) < self._most or self.committed.get(policy.epoch) == policy:
                continue
            for each in (*self._built_on(policy), policy):
                self._commit(each, t)

    def _built_on(self, policy: Policy) -> list[Policy]:
        """Those between it and the last committed one. What only some registry has taken is
        committed with the change that was made from it, which says so: it knows its outcome."""
        if not self._last:
            return []
        between = range(self._last + 1, policy.epoch)
        known = [done for done in policy.requests if done.epoch in between]
        taken = sorted((each for each, _ in self._documents.values()), key=lambda each: each.epoch)
        found = [each for each in taken if each.epoch in between and _outcome(each) in known]
        return found if [each.epoch for each in found] == list(between) else []

    def _commit(self, policy: Policy, t: float) -> None:
        if policy.epoch in self.committed or (self._last and policy.epoch != self._last + 1):
            self._say("commit_lost", f"epoch {policy.epoch} is committed on {self._last}", t)
        elif self._last:
            _, asked = self._documents[policy.to_json()]
            change = Change(self.committed[self._last], policy, asked, self._at[self._last])
            self._judge(change)
        self.committed.setdefault(policy.epoch, policy)
        self._at.setdefault(policy.epoch, t)
        self._last = max(self._last, policy.epoch)

    def follows(self, idc: str, policy: Policy, t: float) -> None:
        """An IDC that serves says this of its policy."""
        if self.committed.get(policy.epoch) != policy:
            document = policy.to_json()
            took = [sorted(by) for (_, taken), by in self._takers.items() if taken == document]
            self._say_once(
                "undecided", idc,
                f"{idc} follows epoch {policy.epoch}, which of {len(self._voters)} registries "
                f"{max(took, key=len, default='none')} took at most under one ballot", t,
            )  # fmt: skip
        newer = next(
            (e for e in self._at if e > policy.epoch and self._could_read(idc, e, t)), None
        )
        if newer is not None:
            self._say_once(
                "not_followed", idc,
                f"{idc} follows epoch {policy.epoch}, and epoch {newer} was committed "
                f"{t - self._at[newer]:.1f} s ago", t,
            )  # fmt: skip

    def _could_read(self, idc: str, epoch: int, t: float) -> bool:
        """For long enough since that epoch, from a majority, itself counted."""
        if t - self._at[epoch] < FOLLOWED_S:
            return False
        return all(
            idc in look.sites
            and sum(
                not {(voter, idc), (idc, voter)} & look.troubled for voter in self._voters
            ) >= self._most
            for look in self._between(t - FOLLOWED_S, t)
        )  # fmt: skip

    def _say_once(self, kind: str, idc: str, sentence: str, t: float) -> None:
        if (kind, idc) not in self._told:
            self._told.add((kind, idc))
            self._say(kind, sentence, t)

    def _say(self, kind: str, sentence: str, t: float) -> None:
        self.found.append(f"{kind}: at {t:.1f} s {sentence}")

    # ------------------------------------------------------------------------------ changes

    def _judge(self, change: Change) -> None:
        window, step = self._window(change.asked), change.step
        broken = [*kept.broken(step, self._region)]
        for row in step.rows():
            broken += self._of_row(change, row, window)
        if (opened := step.opened) is not None:
            broken += self._of_move(change, opened, window)
        outcome = change.outcome
        said = outcome.sentence if outcome else f"epoch {change.new.epoch}, of an unknown request"
        allowed = _OVERRIDING.search(said)
        for rule, sentence in broken:
            if allowed is None or allowed[1] != rule:
                self._say("unsafe", f"{rule}: {sentence} ({said})", change.asked)

    def _of_row(self, change: Change, row: Row, window: list[Look]) -> Iterable[Broken]:
        if row.fails:
            yield from self._of_failover(change, row.idc, window)
        elif row.moved and row.after.state is _S.DRAINED:
            yield from self._of_drained(change, row.idc, window)
        elif row.gets:
            yield from self._lags(change.old, row.idc, window)
            if row.steps:
                yield from self._of_step(change, row.idc, window)

    def _of_move(
        self, change: Change, opened: OperationRef, window: list[Look]
    ) -> Iterable[Broken]:
        """What begins now: an IDC is emptied, or is to get its clients back."""
        name = opened.idc
        if opened.kind == "failback":
            if all(len(self._accusers(look.held, name)) >= self._most for look in window):
                yield Broken("not-accused", f"a majority accuses {name} all the time")
            return
        yield from self._lags(change.old, name, window)
        yield from self._room(change, name, opened.target, window)
        for each in (name, *self._takers_but(name, change.old)):
            if not any(each in look.sites for look in window):
                sentence = f"{each} is to give or take clients and does not serve"
                yield Broken("serving", sentence)

    def _of_failover(self, change: Change, name: str, window: list[Look]) -> Iterable[Broken]:
        most = max((self._known(look, name) for look in window), key=len, default=set[str]())
        if len(most) < self._most:
            yield Broken(
                "votes-majority",
                f"of {len(self._voters)} voters {sorted(most) or 'none'} at most accused {name} "
                f"within {change.asked - window[0].t:.1f} s",
            )
        hold_s = self._safety.hold_ms / 1000
        troubled = {
            voter: self._longest(voter, name, window[0].t, change.asked) for voter in self._voters
        }
        if sum(longest >= hold_s - LATE_S for longest in troubled.values()) < self._most:
            said = ", ".join(f"{voter} {longest:.1f} s" for voter, longest in troubled.items())
            yield Broken(
                "hold-time", f"{name} was away for {said}, and {hold_s:g} s are needed of most"
            )
        yield from self._room(change, name, "", window)
        others = self._takers_but(name, change.old)
        for lost in self._region.spec.idcs:
            if lost.name == name or change.old.state(lost.name) is not _S.FAILED:
                continue
            if not any(_agree(look, lost.name, others) for look in window):
                yield Broken("survivors-copies-agree", f"copies of {lost.name}'s log differ")

    def _of_drained(self, change: Change, name: str, window: list[Look]) -> Iterable[Broken]:
        """All that had its log when its last session had gone is applied by who takes them."""
        least = min((s.sessions if (s := look.sites.get(name)) else 0) for look in window)
        looks = self._between(change.former_at - WINDOW_S, change.asked)
        empty = self._empty(name, looks)
        if least or not empty:
            yield Broken("log-applied-elsewhere", f"{name} had {least} sessions at least")
            return
        for taker in self._takers_but(name, change.old):
            for origin, ends in empty.items():
                best = self._best(taker, looks, lambda site, o=origin: site.applied.get(o, ()))  # type: ignore[misc]
                if not _covers(best, wanted := self._up_to_seal(origin, ends, looks)):
                    yield Broken(
                        "log-applied-elsewhere",
                        f"{taker} has applied {best} of {origin}, whose ends were "
                        f"{wanted} when it had no session",
                    )

    def _empty(self, name: str, looks: list[Look]) -> dict[str, Ends]:
        """When the IDC had no session first: at some moment since the look before, and its log
        ended there no earlier than it was seen to then. One that does not serve has none; before
        it served first there was nothing to see. Of each of its incarnations, as an origin."""
        found: dict[str, Ends] = {}
        for look in looks:
            site = look.sites.get(name)
            if site is not None and site.sessions:
                continue
            before = self._last_site(name, look.t)
            if site is None or (before and before.sessions and before.origin == site.origin):
                site = before
            if site is not None:
                found.setdefault(site.origin, site.ends)
        return found

    def _up_to_seal(self, origin: str, ends: Ends, looks: Iterable[Look]) -> Ends:
        """What lies above a seal counts no more: who holds it has published it again as his."""
        seals = (each.sealed.get(origin) for look in looks for each in look.sites.values())
        seal = next(filter(None, seals), ends)
        return tuple(min(pair) for pair in zip(ends, seal, strict=True))

    def _last_site(self, name: str, t: float) -> Site | None:
        """As it was seen to serve last, before then."""
        sites = (look.sites.get(name) for look in reversed(self._looks) if look.t < t)
        return next(filter(None, sites), None)

    def _of_step(self, change: Change, name: str, window: list[Look]) -> Iterable[Broken]:
        """A return's step: it has what the others had when the step before was made."""
        then = self._before(change.former_at - WINDOW_S)
        if then is None:
            return
        for other in self._takers_but(name, change.old):
            if (site := then.sites.get(other)) is None:
                continue
            best = self._best(name, window, lambda own, o=site.origin: own.applied.get(o, ()))  # type: ignore[misc]
            if not _covers(best, site.ends):
                yield Broken(
                    "caught-up",
                    f"{name} has applied {best} of {site.origin}, which had ended at {site.ends} "
                    f"at {then.t:.1f} s",
                )

    # -------------------------------------------------------------------------------- truths

    def _takers_but(self, name: str, policy: Policy) -> list[str]:
        return [
            idc.name
            for idc in self._region.spec.idcs
            if idc.name != name and policy.state(idc.name) is _S.ACTIVE
        ]

    def _known(self, look: Look, name: str) -> set[str]:
        """Who has accused it, for one whose evidence is as old as it may be."""
        since = look.t - self._safety.evidence_age_ms_max / 1000
        looks = self._between(since, look.t)
        return set[str]().union(*(self._accusers(each.votes, name) for each in looks))

    def _accusers(self, votes: frozenset[Pair], name: str) -> set[str]:
        return {voter for voter, accused in votes if accused == name != voter}

    def _longest(self, voter: str, name: str, since: float, until: float) -> float:
        """For how long something stood between the two without a break that anybody could have
        noticed, and was there after ``since``: seconds."""
        if voter == name:
            return 0.0
        longest, began, well = 0.0, None, None
        for look in self._looks:
            if look.t > until:
                break
            if (voter, name) not in look.troubled:
                well = look.t if well is None else well
                if look.t - well >= BLINK_S:
                    began = None
                continue
            well = None
            began = look.t if began is None else began
            if look.t >= since:
                longest = max(longest, look.t - began)
        return longest

    def _lags(self, policy: Policy, name: str, window: list[Look]) -> Iterable[Broken]:
        """Each taker has applied what the IDC's log held some seconds ago, and the other way."""
        ago_s = self._safety.replication_lag_ms_max / 1000 + WINDOW_S
        for taker in self._takers_but(name, policy):
            for giver, getter in ((name, taker), (taker, name)):
                if not any(self._is_near(look, giver, getter, ago_s) for look in window):
                    yield Broken(
                        "replication-lag", f"{getter} lags {giver} by more than {ago_s:.0f} s"
                    )

    def _is_near(self, look: Look, giver: str, getter: str, ago_s: float) -> bool:
        """Who is away says nothing."""
        then, here = self._before(look.t - ago_s), look.sites.get(getter)
        site = then.sites.get(giver) if then is not None else None
        if site is None or here is None or (now := look.sites.get(giver)) is None:
            return True
        return now.origin != site.origin or _covers(here.applied.get(site.origin, ()), site.ends)

    def _room(self, change: Change, name: str, target: str, window: list[Look]) -> Iterable[Broken]:
        """Whoever goes where: at some moment all of them had room in what takes them."""
        takers = [target] if target else self._takers_but(name, change.old)
        room = sum(
            idc.capacity.sessions * self._safety.headroom
            for idc in self._region.spec.idcs
            if idc.name in takers
        )
        # Of one that is lost, as it was last seen.
        seen = [look.sites[name].sessions for look in self._looks if name in look.sites]
        moving = min(seen[-_LAST:], default=0)
        there = [
            sum(look.sites[each].sessions for each in takers if each in look.sites)
            for look in window
        ]
        if (least := moving + min(there, default=0)) > room:
            yield Broken(
                "headroom", f"{', '.join(takers)} would have {least} sessions of {room:.0f}"
            )

    def _best(self, name: str, looks: Iterable[Look], of: Callable[[Site], Ends]) -> Ends:
        """The furthest that it came."""
        found = [of(look.sites[name]) for look in looks if name in look.sites]
        return tuple(max(ends) for ends in zip(*[each for each in found if each], strict=True))

    def _window(self, asked: float) -> list[Look]:
        """Back from there until so much time has passed in which nothing was held up."""
        found: list[Look] = []
        calm_s, later = 0.0, asked
        for look in reversed(self._looks):
            if look.t > asked:
                continue
            found.append(look)
            calm_s += (later - look.t) * look.calm
            later = look.t
            if calm_s >= WINDOW_S:
                break
        return found[::-1]

    def _between(self, since: float, until: float) -> list[Look]:
        return [look for look in self._looks if since <= look.t <= until]

    def _before(self, t: float) -> Look | None:
        return next((look for look in reversed(self._looks) if look.t <= t), None)


def _covers(have: Ends, want: Ends) -> bool:
    padded = [*have, *([0] * (len(want) - len(have)))]
    return all(lsn >= end for lsn, end in zip(padded, want, strict=False))


def _agree(look: Look, lost: str, survivors: Sequence[str]) -> bool:
    """All are there and hold the same of each log of the lost one."""
    sites = [look.sites.get(name) for name in survivors]
    copies = {
        tuple(sorted((o, ends) for o, ends in site.held.items() if o.rpartition(".")[0] == lost))
        for site in sites
        if site is not None
    }
    return None not in sites and len(copies) <= 1
