"""The judge of committed policies, on documents and moments made by hand: what is lawful passes,
and each broken rule is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from services.policy.document import (
    IdcPolicy,
    IdcState,
    OperationRef,
    OperationState,
    Outcome,
    Policy,
    initial,
)
from services.sim.region import Layout, region
from services.sim.safety import FOLLOWED_S, Ballot, Look, Pair, Safety, Site

IDCS = ("fra", "iad", "sin")
S = IdcState
STEP_S = 0.25


def site(idc: str, **other: Any) -> Site:
    """All hold and have applied all of everybody's log."""
    full = {f"{name}.1": (100, 100) for name in IDCS}
    return replace(Site(f"{idc}.1", 8, (100, 100), full, full), **other)


class Scene:
    """A region where all is well until it is said otherwise. ``rows``: of the first policy, also
    of an IDC that is no voter. ``late``: an IDC that is not there at first."""

    def __init__(
        self, rows: Mapping[str, IdcPolicy] | None = None, late: str = "", **safety: Any
    ) -> None:
        made = region(Layout())
        more = [
            made.spec.idcs[0].model_copy(update={"name": name})
            for name in rows or {}
            if name not in IDCS
        ]
        rules = made.spec.safety.model_copy(update={"anti_flap_ms": 0, **safety})
        spec = made.spec.model_copy(update={"safety": rules, "idcs": [*made.spec.idcs, *more]})
        self.judge = Safety(made.model_copy(update={"spec": spec}), IDCS)
        self.t = 0.0
        first = initial(made, 0)
        self.policy = replace(first, idcs={**first.idcs, **(rows or {})})
        self._ballot = 0
        self.sites = {name: site(name) for name in IDCS}
        self.pass_by(2.0, late)
        self.take(self.policy)

    def pass_by(
        self,
        seconds: float,
        away: str = "",
        votes: Iterable[Pair] = (),
        held: Iterable[Pair] | None = None,
        troubled: Iterable[Pair] = (),
        calm: bool = True,
    ) -> None:
        """``away``: an IDC that is not there, and that everybody has trouble with."""
        pairs = {(name, away) for name in IDCS if away and name != away} | set(troubled)
        sites = {name: each for name, each in self.sites.items() if name != away}
        for _ in range(int(seconds / STEP_S)):
            self.t += STEP_S
            found = frozenset(votes) if held is None else frozenset(held)
            self.judge.look(Look(self.t, sites, frozenset(pairs), frozenset(votes), calm, found))

    def take(self, policy: Policy, registries: Iterable[str] = IDCS[:2]) -> None:
        """These registries take the document."""
        self._ballot += 1
        for name in registries:
            self.judge.accepted(name, Ballot(self._ballot, "p"), policy, self.t)
        self.judge.judge(self.t)

    def commit(
        self, idc: str, row: IdcPolicy, sentence: str = "by operator", **other: Any
    ) -> list[str]:
        """The next document; the rules that it breaks."""
        epoch = self.policy.epoch + 1
        row = replace(row, since_ms=int(self.t * 1000))
        done = Outcome(f"r{epoch}", epoch, "", f"epoch {epoch}: {sentence}")
        self.policy = replace(
            self.policy, epoch=epoch, idcs={**self.policy.idcs, idc: row}, requests=(done,), **other
        )
        before = len(self.judge.found)
        self.take(self.policy)
        return rules(self.judge.found[before:])

    def start(self, kind: str, idc: str, row: IdcPolicy, **other: Any) -> list[str]:
        return self.commit(idc, row, operation=operation(kind, idc, self.policy, **other))

    def fail(self, idc: str, **other: Any) -> list[str]:
        return self.commit(idc, IdcPolicy(S.FAILED), "by controller iad", operation=None, **other)


def operation(kind: str, idc: str, policy: Policy, **other: Any) -> OperationRef:
    made = OperationRef(f"{kind}-{idc}-{policy.epoch + 1}", kind, idc, "", "operator", "r", 0)
    return replace(made, **other)


def rules(found: Iterable[str]) -> list[str]:
    for sentence in found:
        assert sentence.startswith("unsafe: at ")
    return [sentence.split(" s ", 1)[1].partition(":")[0] for sentence in found]


def lost(scene: Scene, idc: str = "fra", **other: Any) -> None:
    """Away for long enough, and accused by the two others."""
    scene.pass_by(3.0, idc)
    scene.pass_by(1.0, idc, [(name, idc) for name in IDCS if name != idc], **other)


DRAINING, DRAINED = IdcPolicy(S.DRAINING), IdcPolicy(S.DRAINED)


def test_a_drain_and_a_return_by_the_rules_are_lawful() -> None:
    scene = Scene()
    assert scene.start("drain", "fra", DRAINING) == []
    scene.sites["fra"] = site("fra", sessions=0)
    scene.pass_by(2.0)
    assert scene.commit("fra", DRAINED, operation=None) == []
    scene.pass_by(8.0)
    assert scene.start("failback", "fra", IdcPolicy(S.RECOVERING)) == []
    scene.pass_by(6.0)
    for ramp in (10, 50):
        assert scene.commit("fra", IdcPolicy(S.ACTIVE, ramp)) == []
        scene.pass_by(2.0)
    assert scene.commit("fra", IdcPolicy(S.ACTIVE), operation=None) == []


def test_a_failover_by_the_rules_is_lawful_and_so_is_the_way_back() -> None:
    scene = Scene()
    lost(scene)
    assert scene.fail("fra") == []
    scene.pass_by(8.0)
    assert scene.commit("fra", IdcPolicy(S.RECOVERING), "by controller fra") == []


@pytest.mark.parametrize("said", [True, False])
def test_what_one_registry_took_is_committed_with_what_was_made_from_it(said: bool) -> None:
    """Its proposer was cut off; the next one found it at that registry, and went on from it."""
    scene = Scene()
    first = Outcome("r2", 2, "", "epoch 2: pace")
    second = Outcome("r3", 3, "", "epoch 3: pace")
    between = replace(scene.policy, epoch=2, moves_per_s=1, requests=(first,))
    scene.take(between, IDCS[:1])
    assert scene.judge.committed.keys() == {1}
    scene.take(replace(between, epoch=3, requests=(first, second) if said else (second,)))
    assert scene.judge.found == [] if said else "commit_lost" in scene.judge.found[0]
    assert scene.judge.committed.get(2) == (between if said else None)


def test_what_one_registry_took_is_judged_too() -> None:
    scene = Scene()
    done = Outcome("r2", 2, "", "epoch 2: failover of fra by controller iad")
    failed = {**scene.policy.idcs, "fra": IdcPolicy(S.FAILED)}  # whom nobody accuses
    between = replace(scene.policy, epoch=2, idcs=failed, requests=(done,))
    scene.take(between, IDCS[:1])
    assert scene.judge.found == []
    scene.take(replace(between, epoch=3, requests=(done, Outcome("r3", 3, "", "epoch 3: pace"))))
    assert scene.judge.found and rules(scene.judge.found)


def test_an_epoch_comes_after_the_one_before_and_has_one_content() -> None:
    scene = Scene()
    scene.take(replace(scene.policy, epoch=3))
    assert scene.judge.found[0].startswith("commit_lost: ")
    scene = Scene()
    scene.take(replace(scene.policy, moves_per_s=1))
    assert scene.judge.found[0].startswith("commit_lost: ")
    again = Scene()
    again.take(again.policy, IDCS)
    assert again.judge.found == []


def test_what_no_majority_took_under_one_ballot_is_not_followed() -> None:
    scene = Scene()
    policy = replace(scene.policy, epoch=2)
    scene.take(policy, ["fra"])
    scene.take(policy, ["iad"])
    scene.judge.follows("fra", policy, scene.t)
    scene.judge.follows("fra", policy, scene.t)
    assert len(scene.judge.found) == 1
    assert scene.judge.found[0].startswith("undecided: ") and "['fra']" in scene.judge.found[0]


@pytest.mark.parametrize(
    ("away", "troubled", "found"),
    [
        ("", [], 1),
        ("sin", [], 1),
        ("fra", [], 0),
        ("", [("fra", "iad"), ("fra", "sin")], 0),
        ("", [("iad", "fra"), ("fra", "sin")], 0),
    ],
)
def test_who_can_read_a_policy_follows_it(away: str, troubled: list[Pair], found: int) -> None:
    scene = Scene()
    old = scene.policy
    scene.commit("sin", IdcPolicy(S.CORDONED))
    scene.pass_by(FOLLOWED_S - 1)
    scene.judge.follows("fra", old, scene.t)
    assert scene.judge.found == []
    scene.pass_by(FOLLOWED_S, away, troubled=troubled)
    scene.judge.follows("fra", old, scene.t)
    assert len(scene.judge.found) == found
    assert all(sentence.startswith("not_followed: ") for sentence in scene.judge.found)


@pytest.mark.parametrize(
    ("before", "after"),
    [(S.FAILED, S.ACTIVE), (S.ACTIVE, S.DRAINED), (S.RETIRED, S.ACTIVE), (S.RECOVERING, S.DRAINED)],
)
def test_no_state_is_left_out(before: IdcState, after: IdcState) -> None:
    scene = Scene()
    scene.commit("fra", IdcPolicy(before))
    scene.sites["fra"] = site("fra", sessions=0)
    scene.pass_by(8.0)
    assert "transition" in scene.commit("fra", IdcPolicy(after))


def test_two_idcs_do_not_change_at_once() -> None:
    scene = Scene()
    idcs = {**scene.policy.idcs, "sin": IdcPolicy(S.CORDONED)}
    scene.policy = replace(scene.policy, idcs=idcs)
    assert "transition" in scene.commit("fra", IdcPolicy(S.CORDONED))


@pytest.mark.parametrize("least", [1, 2, 3])
def test_so_many_stay_active(least: int) -> None:
    scene = Scene(active_idcs_min=least)
    assert scene.commit("fra", IdcPolicy(S.CORDONED)) == (["active-idcs-min"] if least > 2 else [])
    second = Scene(active_idcs_min=least)
    lost(second)
    assert second.fail("fra") == (["active-idcs-min"] if least > 2 else [])


def test_there_is_one_move_at_a_time() -> None:
    scene = Scene()
    scene.start("drain", "fra", DRAINING)
    assert set(scene.start("drain", "iad", DRAINING)) == {"one-move-at-a-time"}
    scene = Scene()
    scene.commit("iad", IdcPolicy(S.CORDONED))
    scene.start("drain", "fra", DRAINING)
    assert scene.commit("iad", IdcPolicy(S.ACTIVE)) == ["one-move-at-a-time"]
    assert scene.commit("fra", IdcPolicy(S.ACTIVE), operation=None) == []


def test_a_failover_may_end_a_move() -> None:
    scene = Scene()
    scene.start("drain", "iad", DRAINING)
    lost(scene)
    assert scene.fail("fra") == []


def test_a_frozen_time_holds_for_what_begins() -> None:
    window = {"start": "1970-01-01T00:00:00Z", "end": "1970-01-01T01:00:00Z"}
    frozen = region(Layout()).spec.safety.model_validate({"freeze": [window]}).freeze
    scene = Scene(freeze=frozen)
    assert set(scene.start("drain", "fra", DRAINING)) == {"freeze-window"}
    scene.sites["fra"] = site("fra", sessions=0)
    scene.pass_by(2.0)
    assert scene.commit("fra", DRAINED, operation=None) == []
    assert scene.start("failback", "fra", IdcPolicy(S.RECOVERING)) == ["freeze-window"]
    scene.pass_by(8.0)
    assert scene.commit("fra", IdcPolicy(S.ACTIVE, 10)) == []


@pytest.mark.parametrize(("moved_ms", "found"), [(1_000, ["anti-flap"]), (0, [])])
def test_nobody_is_moved_to_and_fro(moved_ms: int, found: list[str]) -> None:
    scene = Scene({"fra": IdcPolicy(moved_ms=moved_ms)}, anti_flap_ms=5_000)
    assert scene.start("drain", "fra", replace(DRAINING, moved_ms=moved_ms)) == found


def test_what_needs_an_approval_waits_for_it() -> None:
    scene = Scene(approval=["drain"])
    assert scene.start("drain", "fra", DRAINING) == ["approval"]
    scene = Scene(approval=["drain"])
    awaiting = OperationState.AWAITING
    assert scene.start("drain", "fra", IdcPolicy(), state=awaiting) == []
    running = replace(scene.policy.operation, state=OperationState.RUNNING)  # type: ignore[type-var]
    assert scene.commit("fra", DRAINING, operation=running) == []


@pytest.mark.parametrize(("sessions", "found"), [(7_900, []), (8_200, ["headroom"])])
def test_who_takes_clients_has_room_for_them(sessions: int, found: list[str]) -> None:
    scene = Scene()
    scene.sites["fra"] = site("fra", sessions=100)
    scene.sites["sin"] = site("sin", sessions=sessions)
    scene.pass_by(8.0)
    assert scene.start("switchover", "fra", DRAINING, target="sin") == found
    scene = Scene()
    scene.sites = {name: site(name, sessions=sessions * 2 // 3) for name in IDCS}
    scene.pass_by(8.0)
    lost(scene)
    assert scene.fail("fra") == found


def test_a_move_waits_for_replication_both_ways() -> None:
    behind = {"fra.1": (100, 40), "iad.1": (100, 100), "sin.1": (100, 100)}
    for who, of in (("sin", "fra.1"), ("fra", "sin.1")):
        scene = Scene()
        scene.sites[who] = site(who, applied={**behind, "fra.1": (100, 100), of: (100, 40)})
        scene.pass_by(20.0)
        assert scene.start("drain", "fra", DRAINING) == ["replication-lag"]
    caught = Scene()
    caught.sites["sin"] = site("sin", applied=behind)
    caught.pass_by(20.0)
    caught.sites["sin"] = site("sin")
    caught.pass_by(1.0)
    assert caught.start("drain", "fra", DRAINING) == []


def test_nobody_is_sent_to_an_idc_that_is_not_there() -> None:
    scene = Scene()
    scene.pass_by(8.0, "sin")
    assert scene.start("drain", "fra", DRAINING) == ["serving"]


@pytest.mark.parametrize("sessions", [0, 1])
def test_a_drained_idc_has_no_session(sessions: int) -> None:
    scene = Scene()
    scene.start("drain", "fra", DRAINING)
    scene.sites["fra"] = site("fra", sessions=sessions)
    scene.pass_by(8.0)
    found = scene.commit("fra", DRAINED, operation=None)
    assert found == (["log-applied-elsewhere"] if sessions else [])


@pytest.mark.parametrize("sessions", [0, 1])
def test_an_idc_is_judged_from_when_it_served_first(sessions: int) -> None:
    scene = Scene(late="fra")
    scene.pass_by(1.0)
    assert scene.start("drain", "fra", DRAINING) == []
    scene.sites["fra"] = site("fra", sessions=sessions)
    scene.pass_by(1.0)
    found = scene.commit("fra", DRAINED, operation=None)
    assert found == (["log-applied-elsewhere"] if sessions else [])


def test_a_drained_idcs_log_is_applied_by_who_takes_its_clients() -> None:
    scene = Scene()
    scene.start("drain", "fra", DRAINING)
    scene.sites["fra"] = site("fra", ends=(100, 101))
    scene.pass_by(1.0)
    scene.sites["fra"] = site("fra", sessions=0, ends=(100, 101))
    scene.pass_by(8.0)
    found = scene.commit("fra", DRAINED, operation=None)
    assert found == ["log-applied-elsewhere"] * 2


def test_what_comes_as_the_last_session_goes_may_be_of_after_it() -> None:
    """Seed 2463626650018: it went between two looks, and a tick of the log came before the
    second."""
    scene = Scene()
    scene.start("drain", "fra", DRAINING)
    scene.sites["fra"] = site("fra", sessions=0, ends=(100, 101))
    scene.pass_by(8.0)
    assert scene.commit("fra", DRAINED, operation=None) == []


def test_an_idc_that_starts_again_has_no_session_either() -> None:
    scene = Scene()
    scene.start("drain", "fra", DRAINING)
    scene.pass_by(1.0)
    scene.pass_by(1.0, "fra")
    scene.sites["fra"] = site("fra", sessions=0, ends=(101, 101))  # it writes as it starts
    scene.pass_by(1.0)
    assert scene.commit("fra", DRAINED, operation=None) == []


def test_of_an_incarnation_that_was_sealed_only_what_lies_below_counts() -> None:
    """Seed 675922750170: it was drained when its log was damaged, and began anew."""
    for applied, found in (((110, 115), []), ((110, 112), ["log-applied-elsewhere"])):
        scene = Scene()
        scene.start("drain", "fra", DRAINING)
        scene.sites["fra"] = site("fra", ends=(120, 120))
        scene.pass_by(1.0)
        scene.pass_by(1.0, "fra")
        full = {"fra.1": (110, 115), "fra.2": (5, 5), "iad.1": (100, 100), "sin.1": (100, 100)}
        sealed = {"fra.1": (110, 115)}
        scene.sites["fra"] = Site("fra.2", 0, (5, 5), full, full, sealed)
        scene.sites["sin"] = site("sin", applied=full)
        scene.sites["iad"] = site("iad", applied=full | {"fra.1": applied})
        scene.pass_by(2.0)
        assert scene.commit("fra", DRAINED, operation=None) == found


def test_what_the_next_incarnation_wrote_is_applied_too() -> None:
    scene = Scene()
    scene.start("drain", "fra", DRAINING)
    scene.pass_by(1.0)
    scene.pass_by(1.0, "fra")
    full = {f"{name}.1": (100, 100) for name in IDCS} | {"fra.2": (5, 5)}
    scene.sites["fra"] = Site("fra.2", 0, (5, 5), full, full, {"fra.1": (100, 100)})
    scene.sites["sin"] = site("sin", applied=full)
    scene.pass_by(2.0)
    assert scene.commit("fra", DRAINED, operation=None) == ["log-applied-elsewhere"]


def test_what_an_idc_had_applied_before_it_was_lost_counts() -> None:
    scene = Scene()
    scene.start("drain", "fra", DRAINING)
    scene.sites["fra"] = site("fra", sessions=0)
    scene.pass_by(1.0)
    scene.pass_by(8.0, "sin")
    assert scene.commit("fra", DRAINED, operation=None) == []


def test_a_majority_of_all_voters_stands_behind_failed() -> None:
    for votes, found in (
        ([], ["votes-majority"]),
        ([("iad", "fra")], ["votes-majority"]),
        ([("iad", "fra"), ("fra", "fra")], ["votes-majority"]),
        ([("iad", "fra"), ("sin", "iad")], ["votes-majority"]),
        ([("iad", "fra"), ("sin", "fra")], []),
    ):
        scene = Scene()
        scene.pass_by(3.0, "fra")
        scene.pass_by(1.0, "fra", votes)
        assert scene.fail("fra") == found
    one_by_one = Scene()  # seed 675922750116: one was taken back as the other one was cast
    one_by_one.pass_by(3.0, "fra")
    for vote in (("iad", "fra"), ("sin", "fra")):
        one_by_one.pass_by(0.5, "fra", [vote])
    assert one_by_one.fail("fra") == []
    apart = Scene()
    apart.pass_by(3.0, "fra")
    apart.pass_by(0.5, "fra", [("iad", "fra")])
    apart.pass_by(2.0, "fra")
    apart.pass_by(0.5, "fra", [("sin", "fra")])
    assert apart.fail("fra") == ["votes-majority"]
    late = Scene()
    lost(late)
    late.pass_by(8.0, "fra")
    assert late.fail("fra") == ["votes-majority"]
    held_up = Scene()
    lost(held_up)
    held_up.pass_by(8.0, "fra", calm=False)
    assert held_up.fail("fra") == []


def test_who_is_failed_was_really_away_for_long_enough() -> None:
    votes = [("iad", "fra"), ("sin", "fra")]
    well = Scene()
    well.pass_by(8.0, votes=votes)
    assert well.fail("fra") == ["hold-time"]
    short = Scene()
    short.pass_by(2.0, "fra", votes)
    assert short.fail("fra") == ["hold-time"]
    of_one = Scene()
    of_one.pass_by(8.0, votes=votes, troubled=[("iad", "fra")])
    assert of_one.fail("fra") == ["hold-time"]
    back = Scene()
    back.pass_by(4.0, "fra", votes)
    back.pass_by(8.0, votes=votes)
    assert back.fail("fra") == ["hold-time"]


@pytest.mark.parametrize(("looks", "found"), [(1, []), (3, ["hold-time"])])
def test_who_was_there_between_two_probes_was_away_all_the_same(
    looks: int, found: list[str]
) -> None:
    """Seed 2463626650005: a machine lost its power, served for 0.15 s and lost it again."""
    votes = [("iad", "fra"), ("sin", "fra")]
    scene = Scene()
    scene.pass_by(2.0, "fra", votes)
    scene.pass_by(looks * STEP_S, votes=votes)
    scene.pass_by(2.0, "fra", votes)
    assert scene.fail("fra") == found


def test_a_second_idc_fails_only_when_the_survivors_hold_the_same_of_the_first() -> None:
    for held, found in (((100, 100), []), ((100, 99), ["survivors-copies-agree"])):
        scene = Scene({"old": IdcPolicy(S.FAILED)})
        for name in IDCS:
            copies = {"old.1": held if name == "sin" else (100, 100)}
            scene.sites[name] = site(name, held=copies)
        scene.pass_by(8.0)
        lost(scene)
        assert scene.fail("fra") == found


def test_a_controller_leaves_it_to_people_where_the_region_says_so() -> None:
    scene = Scene(automatic_failover=False)
    lost(scene)
    assert scene.fail("fra") == ["automatic-failover"]


def test_a_return_goes_on_once_the_idc_has_what_the_others_had() -> None:
    scene = Scene()
    scene.commit("fra", IdcPolicy(S.FAILED), "by operator, overriding votes-majority")
    scene.pass_by(8.0)
    assert scene.start("failback", "fra", IdcPolicy(S.RECOVERING)) == []
    scene.sites["fra"] = site("fra", applied={"iad.1": (100, 100), "sin.1": (100, 99)})
    scene.pass_by(8.0)
    found = scene.commit("fra", IdcPolicy(S.ACTIVE, 10))
    assert "caught-up" in found


def test_clients_come_back_by_a_return_only() -> None:
    scene = Scene()
    scene.commit("fra", IdcPolicy(S.RECOVERING))
    scene.pass_by(8.0)
    assert scene.commit("fra", IdcPolicy(S.ACTIVE, 10)) == ["transition"]


def test_who_is_accused_all_the_time_does_not_return() -> None:
    scene = Scene()
    scene.commit("fra", IdcPolicy(S.FAILED))
    votes = [("iad", "fra"), ("sin", "fra")]
    scene.pass_by(12.0, votes=votes)
    assert scene.start("failback", "fra", IdcPolicy(S.RECOVERING)) == ["not-accused"]
    scene = Scene()
    scene.commit("fra", IdcPolicy(S.FAILED))
    scene.pass_by(12.0, votes=votes)
    scene.pass_by(1.0)
    assert scene.start("failback", "fra", IdcPolicy(S.RECOVERING)) == []
    scene = Scene()
    scene.commit("fra", IdcPolicy(S.FAILED))
    scene.pass_by(12.0, votes=votes, held=votes[:1])  # the other has forgotten since when
    assert scene.start("failback", "fra", IdcPolicy(S.RECOVERING)) == []


def test_an_override_is_good_for_the_rule_that_it_names() -> None:
    said = "failover of fra by operator, overriding {}"
    for rule, found in (("votes-majority", ["hold-time"]), ("hold-time", ["votes-majority"])):
        scene = Scene()
        scene.pass_by(8.0)
        assert scene.commit("fra", IdcPolicy(S.FAILED), said.format(rule)) == found


def test_a_sentence_names_when_and_by_whom() -> None:
    scene = Scene()
    scene.pass_by(8.0)
    scene.fail("fra")
    assert scene.judge.found[0] == (
        "unsafe: at 10.0 s votes-majority: of 3 voters none at most accused fra within 5.0 s "
        "(epoch 2: by controller iad)"
    )
