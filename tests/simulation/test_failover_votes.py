"""Failure detection in virtual time: voters with cut links, kills and pauses, by seed.

No IDC that works and can be reached by most may be accused by a majority; one that is dead must be,
within the hold time and what its signs take to show.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from services.control import failover
from services.control.evidence import Vote
from services.control.failover import Detector, accused_by_majority

HOLD_MS = 3_000
LEASE_S = 2.0  # answers older than this say nothing of what is alive
STEP = 0.05


class Voter:
    def __init__(self, name: str, idcs: Iterable[str]) -> None:
        self.name = name
        self.detector = Detector(name, idcs, HOLD_MS, 0.0)
        self.answered: dict[str, float] = {}
        self.probing: dict[str, tuple[float, float, bool]] = {}  # idc -> started, ends, ok
        self.votes: list[Vote] = []
        self.next_tick = 0.0


class World:
    def __init__(self, rng: random.Random, voters: str, idcs: str) -> None:
        self.rng = rng
        self.now = 0.0
        self.idcs = idcs
        self.voters = {name: Voter(name, idcs) for name in voters}
        self.dead: set[str] = set()
        self.paused: dict[str, float] = {}  # until when
        self.cut: set[frozenset[str]] = set()
        self.cast: list[tuple[str, str]] = []  # (voter, accused), whenever a vote stood

    def reaches(self, a: str, b: str) -> bool:
        return (
            (a == b or frozenset((a, b)) not in self.cut)
            and b not in self.dead
            and b not in self.paused
        )

    def run(self, seconds: float) -> list[tuple[float, str, str]]:
        """(time, judge, accused) whenever a judge saw a majority against an IDC."""
        found = []
        end = self.now + seconds
        while self.now < end:
            self.now += STEP
            self.paused = {name: until for name, until in self.paused.items() if until > self.now}
            for voter in self.voters.values():
                if voter.name not in self.dead and voter.name not in self.paused:
                    self.turn(voter)
                    found += [(self.now, voter.name, idc) for idc in self.judge(voter)]
        return found

    def turn(self, voter: Voter) -> None:
        """One turn of a voter's loop. After a pause, what was under way ends before the tick does,
        or after it: both orders occur."""
        actions = [self.tick, self.probe, self.look]
        self.rng.shuffle(actions)
        for action in actions:
            action(voter)

    def tick(self, voter: Voter) -> None:
        if self.now >= voter.next_tick:
            voter.next_tick = self.now + 0.1
            voter.detector.tick(self.now)

    def probe(self, voter: Voter) -> None:
        for idc in self.idcs:
            if idc == voter.name:
                continue
            started, ends, ok = voter.probing.get(idc, (0.0, 0.0, True))
            if self.now < ends:
                continue
            if ends:
                voter.detector.probed(idc, ok, started, self.now)
            ok = self.reaches(voter.name, idc)
            took = self.rng.uniform(0.03, 0.25) if ok else self.rng.choice((0.02, 1.0))
            voter.probing[idc] = (self.now, self.now + 0.3 + took, ok)

    def look(self, voter: Voter) -> None:
        for other in self.voters:
            if self.reaches(voter.name, other):
                voter.answered[other] = self.now
        for idc in self.idcs:
            if idc != voter.name:
                fresh = self.now - voter.answered.get(idc, -9.0) <= LEASE_S
                voter.detector.leases(idc, 1 if fresh else 0, self.now)
        voter.votes = [
            Vote(voter.name, ballot.accused, int((self.now - ballot.since) * 1000), 0)
            for ballot in voter.detector.ballots(self.now)
        ]
        self.cast += [(vote.voter, vote.accused) for vote in voter.votes]

    def judge(self, judge: Voter) -> list[str]:
        votes = [
            vote
            for voter in self.voters.values()
            if self.now - judge.answered.get(voter.name, -9.0) <= LEASE_S
            for vote in voter.votes
        ]
        return accused_by_majority(votes, self.voters, HOLD_MS)


SHAPES = [("abc", "abc"), ("abw", "ab")]


@pytest.mark.parametrize(("voters", "idcs"), SHAPES)
def test_one_cut_link_and_short_pauses_fail_nobody(voters: str, idcs: str) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        world = World(rng, voters, idcs)
        assert world.run(1.0) == []
        world.cut.add(frozenset(rng.sample(voters, 2)))
        for _ in range(3):
            # Shorter than the hold time: as others see it, nothing but a hiccup.
            name = rng.choice(voters)
            world.paused[name] = world.now + rng.uniform(0.2, 2.0)
            assert world.run(rng.uniform(3.0, 5.0)) == [], f"seed {seed}"


@pytest.mark.parametrize(("voters", "idcs"), SHAPES)
def test_a_dead_idc_is_failed_soon_and_nobody_else(voters: str, idcs: str) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        world = World(rng, voters, idcs)
        assert world.run(rng.uniform(1.0, 2.0)) == []
        victim = rng.choice(idcs)
        world.dead.add(victim)
        killed = world.now
        found = world.run(6.0)
        assert {accused for _, _, accused in found} == {victim}
        judges = {judge for _, judge, _ in found}
        assert judges == set(voters) - {victim}
        first = min(at for at, _, _ in found)
        assert HOLD_MS / 1000 - 0.1 <= first - killed <= HOLD_MS / 1000 + 1.2, f"seed {seed}"


def votes_after_waking(seed: int, voters: str, idcs: str) -> list[tuple[str, str]]:
    """What a voter says that slept for half a minute, with probes under way when it fell asleep."""
    rng = random.Random(seed)
    world = World(rng, voters, idcs)
    world.run(rng.uniform(1.0, 1.6))
    sleeper = rng.choice(voters)
    world.paused[sleeper] = world.now + 30.0
    world.run(30.0)
    world.cast.clear()
    world.run(5.0)
    return [vote for vote in world.cast if vote[0] == sleeper]


@pytest.mark.parametrize(("voters", "idcs"), SHAPES)
def test_a_voter_that_was_paused_accuses_nobody_when_it_wakes(voters: str, idcs: str) -> None:
    assert not [seed for seed in range(15) if votes_after_waking(seed, voters, idcs)]


def test_probes_that_failed_while_paused_would_accuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule left out: the world is silent for a paused process, and it takes that for death."""

    def wake() -> int:
        detector = Detector("a", "ab", HOLD_MS, 0.0)
        detector.leases("b", 1, 0.1)
        detector.probed("b", False, 0.1, 0.2)
        detector.tick(9.0)  # asleep since 0.2
        detector.leases("b", 0, 9.0)
        detector.probed("b", False, 0.3, 9.0)
        return len(detector.ballots(9.0))

    assert wake() == 0
    monkeypatch.setattr(failover, "STALL_S", 1e9)
    assert wake() == 1


def test_a_half_of_the_voters_is_no_majority() -> None:
    votes = [Vote("a", "b", 9_000, 0)]
    assert accused_by_majority(votes, ["a", "b"], HOLD_MS) == []
    assert accused_by_majority([*votes, Vote("w", "b", 9_000, 0)], ["a", "b", "w"], HOLD_MS) == [
        "b"
    ]


def test_the_accused_and_strangers_do_not_vote() -> None:
    votes = [Vote(voter, "b", 9_000, 0) for voter in ("a", "b", "x")]
    assert accused_by_majority(votes, ["a", "b", "c"], HOLD_MS) == []


def test_the_second_longest_of_two_votes_counts() -> None:
    votes = [Vote("a", "b", 9_000, 0), Vote("c", "b", 2_999, 0)]
    assert accused_by_majority(votes, ["a", "b", "c"], HOLD_MS) == []
    votes[1] = votes[1].__class__("c", "b", 3_000, 0)
    assert accused_by_majority(votes, ["a", "b", "c"], HOLD_MS) == ["b"]


def test_reports_of_clients_and_ended_leases_accuse_a_process_whose_gateways_died() -> None:
    detector = Detector("a", "abc", HOLD_MS, 0.0)
    detector.leases("b", 1, 0.1)
    detector.tick(0.2)
    detector.leases("b", 0, 0.3)
    assert detector.ballots(0.4) == []
    detector.reported("b", 3, 0.5)
    (ballot,) = detector.ballots(0.5)
    assert ballot.since == 0.5
    detector.leases("b", 1, 0.6)
    assert detector.ballots(0.6) == []


def test_without_a_majority_for_the_hold_time_it_knows_to_be_a_minority() -> None:
    detector = Detector("a", "abc", HOLD_MS, 0.0)
    for tenth in range(1, 50):
        detector.tick(tenth / 10)
    assert detector.in_minority(4.9)
    detector.majority_answered(4.9)
    assert not detector.in_minority(5.0)
