"""Figures of a drill: canaries that wait, epochs, old answers, copies, votes, capacity."""

from __future__ import annotations

from imcore import history as h
from imcore.checker.availability import Availability
from imctl.drill.rto import quantile_s, recovery
from imctl.drill.watch import (
    Accusation,
    CanaryWatch,
    Carried,
    Epochs,
    Mirrors,
    Stale,
    Standing,
    Stuck,
    accused,
)

S = 1_000_000


def test_a_canary_waits_from_its_ack_until_its_receiver_is_shown_it() -> None:
    watch = CanaryWatch({"f": ("fra", "iad"), "i": ("iad", "fra")})
    for event in (
        h.Device(0, 0, "f", "phone"),
        h.Device(0, 1, "i", "phone"),
        h.Compose(1 * S, 0, 0, "1", 0),
        h.Ack(2 * S, 0, "1", "stored"),
        h.Shown(2 * S, 0, 0, "1", 0, False),  # its own device: not there yet
    ):
        watch.feed(event)
    assert watch.delay(5 * S) == (3.0, ("fra", "iad"))
    watch.feed(h.Shown(6 * S, 1, 0, "1", 0, False))
    assert watch.delay(7 * S) == (0.0, None)
    assert watch.acked == {("fra", "iad"): 1}


def test_a_canary_that_is_shown_before_its_ack_does_not_wait() -> None:
    watch = CanaryWatch({"f": ("fra", "iad"), "i": ("iad", "fra")})
    watch.feed(h.Device(0, 0, "f", "phone"))
    watch.feed(h.Device(0, 1, "i", "phone"))
    watch.feed(h.Compose(1 * S, 0, 0, "1", 0))
    watch.feed(h.Shown(2 * S, 1, 0, "1", 0, False))
    watch.feed(h.Ack(3 * S, 0, "1", "stored"))
    assert watch.delay(9 * S) == (0.0, None)


def test_two_contents_of_one_epoch_are_a_split_brain() -> None:
    epochs = Epochs()
    epochs.feed("fra", 3, "a")
    epochs.feed("iad", 3, "a")
    epochs.feed("iad", 4, "b")
    assert not epochs.disputes
    epochs.feed("sin", 3, "other")
    epochs.feed("sin", 3, "other")
    assert epochs.disputes == ["epoch 3 is one thing at fra and another at sin"]


def test_an_ipconf_is_behind_since_the_oldest_epoch_that_it_missed() -> None:
    stale = Stale()
    stale.committed(1, 0.0)
    stale.answered("fra", 1, 1.0)
    assert stale.worst()[0] == 0.0
    stale.committed(2, 10.0)
    stale.committed(3, 14.0)
    stale.answered("fra", 1, 15.0)
    stale.answered("iad", 3, 15.0)
    assert stale.worst() == (5.0, "fra")
    stale.answered("fra", 2, 15.0)
    assert stale.worst() == (1.0, "fra")
    stale.silent("fra")
    assert stale.worst()[0] == 0.0


def test_a_copy_is_behind_since_the_oldest_end_that_it_lacks() -> None:
    mirrors = Mirrors()
    for t in range(5):
        mirrors.ends("fra.1", [10 + t, 5], float(t))
    mirrors.holds("iad", "fra.1", [14, 5], 6.0)
    assert mirrors.worst()[0] == 0.0
    mirrors.holds("sin", "fra.1", [11, 5], 6.0)
    assert mirrors.worst() == (4.0, "sin lacks what fra.1 has in its log")
    mirrors.forget("fra", 7.0)
    assert mirrors.worst() == (0.0, "")


def test_what_an_idc_missed_while_it_was_away_counts_from_its_return() -> None:
    mirrors = Mirrors()
    mirrors.ends("fra.1", [10], 0.0)
    mirrors.ends("fra.1", [14], 1.0)
    for t in range(2, 20):
        mirrors.forget("iad", float(t))
    mirrors.holds("iad", "fra.1", [10], 20.0)
    assert mirrors.worst() == (1.0, "iad lacks what fra.1 has in its log")
    mirrors.holds("iad", "fra.1", [10], 32.0)
    assert mirrors.worst()[0] == 13.0  # it is there, and nothing comes


def test_capacity_is_the_fuller_of_sessions_and_messages() -> None:
    assert Carried(20, 10.0, 100, 100).percent == 20.0
    assert Carried(20, 90.0, 100, 100).percent == 90.0


def test_a_loss_is_detected_by_the_first_vote_and_decided_by_the_majority() -> None:
    votes = [Standing("iad", "fra", 1_000), Standing("fra", "fra", 500), Standing("x", "iad", 1)]
    assert accused(votes, "fra", 3, 3_000) == Accusation(1_000, None, {"iad"})
    votes.append(Standing("sin", "fra", 1_400))
    assert accused(votes, "fra", 3, 3_000).decided_ms == 4_400
    assert accused([], "fra", 3, 3_000) == Accusation()


def outage() -> Availability:
    found = Availability()
    events: list[h.Event] = [h.Connection(0, n, "fra", "g") for n in range(4)]
    events += [h.Fault(10 * S, "fra", "kill"), h.Fault(10 * S, "fra", "killed")]
    for n in range(4):
        at = (11 + n) * S
        events += [h.Connection(at - 1, n, "", ""), h.Connection(at, n, "iad", "g")]
        events += [h.Compose(at, n, 0, str(n), 0), h.Ack(at + S, n, str(n), "stored")]
    for event in events:
        found.feed(event)
    return found


def test_recovery_is_told_step_by_step() -> None:
    found = recovery(outage().outages[0], 50_000, Accusation(50_300, 53_300), 54_000, 20.0)
    assert found.steps == {
        "detected": 0.3,
        "decided": 3.3,
        "committed": 4.0,
        "first moved": 1.0,
        "50 % moved": 2.0,
        "90 % moved": 4.0,
        "99 % moved": 4.0,
        "99 % answered": 5.0,
        "steady": 20.0,
    }
    assert (found.affected, found.answered, found.rto_s()) == (4, 4, 5.0)


def test_evidence_that_is_dated_a_little_too_early_began_with_the_fault() -> None:
    found = recovery(outage().outages[0], 50_000, Accusation(49_800, 52_900), 54_000, 20.0)
    assert (found.steps["detected"], found.steps["decided"]) == (0.0, 2.9)


def test_what_did_not_happen_or_is_of_an_earlier_loss_has_no_time() -> None:
    found = recovery(outage().outages[0], 50_000, Accusation(49_000, 49_500), 48_000, None)
    assert [found.steps[step] for step in ("detected", "decided", "committed")] == [None] * 3
    assert found.steps["steady"] is None


def test_quantiles_count_those_who_never_came() -> None:
    assert quantile_s([3 * S, 1 * S], 4, 50, 0) == 3.0
    assert quantile_s([3 * S, 1 * S], 4, 90, 0) is None
    assert quantile_s([], 0, 50, 0) is None


def test_the_most_sessions_that_hung_at_a_gateway_are_noted() -> None:
    stuck = Stuck()
    assert stuck.notes() == []
    for seen in ({"fra-gw1.1": 2}, {}, {"fra-gw1.1": 3, "fra-gw2.1": 1}, {"fra-gw1.1": 1}):
        stuck.feed(seen)
    assert stuck.notes() == [
        "fra-gw1.1: up to 3 of its sessions took much longer to go than others.",
        "fra-gw2.1: up to 1 of its sessions took much longer to go than others.",
    ]
