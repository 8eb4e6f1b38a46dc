"""What a driver of an operation remembers and does next."""

from __future__ import annotations

from dataclasses import replace

from services.control.evidence import IdcFacts
from services.control.follow import Marks, left_halfway, next_change
from services.control.rules import Kind
from services.policy.document import IdcPolicy, IdcState, OperationRef, Policy


def policy(kind: str, state: IdcState, ramp: int = 100) -> Policy:
    running = OperationRef(f"{kind}-fra-2", kind, "fra", "", "operator", "r1", 0)
    return Policy(epoch=3, idcs={"fra": IdcPolicy(state, ramp)}, operation=running)


def facts(end: int, sessions: int) -> IdcFacts:
    ends = (end, end)
    return IdcFacts(at_ms=end, origin="fra.1", serving=True, sessions=sessions, ends=ends)


def test_a_mark_of_a_draining_idc_is_taken_again_until_the_last_session_has_left() -> None:
    marks, draining = Marks(), policy(Kind.DRAIN, IdcState.DRAINING)
    assert marks.take(draining, {"fra": facts(10, sessions=2)})["fra"].ends == (10, 10)
    assert marks.take(draining, {"fra": facts(20, sessions=0)})["fra"].ends == (20, 20)
    assert marks.take(draining, {"fra": facts(30, sessions=0)})["fra"].ends == (20, 20)


def test_a_session_that_comes_back_to_a_draining_idc_moves_its_mark() -> None:
    """What it sends before it goes again must be applied elsewhere too."""
    marks, draining = Marks(), policy(Kind.DRAIN, IdcState.DRAINING)
    assert marks.take(draining, {"fra": facts(20, sessions=0)})["fra"].ends == (20, 20)
    assert marks.take(draining, {"fra": facts(30, sessions=1)})["fra"].sessions == 1
    assert marks.take(draining, {"fra": facts(40, sessions=0)})["fra"].ends == (40, 40)


def test_an_idc_that_is_only_starting_has_no_mark() -> None:
    """It answers without sessions and with an empty list of ends: a drained IDC, one would say."""
    marks, draining = Marks(), policy(Kind.DRAIN, IdcState.DRAINING)
    starting = IdcFacts(at_ms=15, origin="", serving=False, sessions=0, ends=())
    assert marks.take(draining, {"fra": starting}) == {}
    assert marks.take(draining, {"fra": facts(10, sessions=2)})["fra"].ends == (10, 10)
    assert marks.take(draining, {"fra": starting})["fra"].sessions == 2
    assert marks.take(draining, {"fra": facts(20, sessions=0)})["fra"].ends == (20, 20)


def test_a_mark_of_an_idc_that_gets_its_clients_back_stays() -> None:
    """Else nobody ever holds all of a log that grows with every message: a failback under load
    came to its end by luck only."""
    marks, ramp = Marks(), policy(Kind.FAILBACK, IdcState.ACTIVE, ramp=50)
    assert marks.take(ramp, {"fra": facts(10, sessions=60)})["fra"].ends == (10, 10)
    assert marks.take(ramp, {"fra": facts(20, sessions=61)})["fra"].ends == (10, 10)
    step = replace(ramp, epoch=4)
    assert marks.take(step, {"fra": facts(30, sessions=90)})["fra"].ends == (30, 30)


def test_a_ramp_step_waits_for_no_clock_that_was_ahead() -> None:
    """Else who drives on, after an IDC whose clock is ten minutes ahead, waits for as long."""
    ramp = policy(Kind.FAILBACK, IdcState.ACTIVE, ramp=10)
    since = ramp.idcs["fra"].since_ms
    assert next_change(ramp, since + 1_000, "controller iad") is None
    assert next_change(ramp, since - 400, "controller iad") is None
    for now_ms in (since + 1_500, since - 600_000):
        step = next_change(ramp, now_ms, "controller iad")
        assert step is not None and step.ramp == 50


def test_an_idc_that_a_move_left_halfway_is_named_with_what_to_do() -> None:
    """A failover elsewhere has ended the move: no controller carries it on."""
    returning = replace(policy(Kind.FAILBACK, IdcState.ACTIVE, ramp=10), operation=None)
    said = left_halfway(returning, "fra")
    assert "10 % of its clients" in said and "`imctl failback fra`" in said
    emptied = replace(policy(Kind.DRAIN, IdcState.DRAINING), operation=None)
    said = left_halfway(emptied, "fra")
    assert "`imctl drain fra`" in said and "`imctl undrain fra`" in said
    # The move of another IDC is not its own.
    other = OperationRef("drain-iad-4", Kind.DRAIN, "iad", "", "operator", "r2", 0)
    assert left_halfway(replace(returning, operation=other), "fra") != ""


def test_an_idc_in_a_move_or_where_somebody_put_it_is_not_halfway() -> None:
    moving = (
        policy(Kind.FAILBACK, IdcState.ACTIVE, ramp=50),
        policy(Kind.DRAIN, IdcState.DRAINING),
    )
    assert [left_halfway(each, "fra") for each in moving] == ["", ""]
    for state in IdcState:
        still = replace(policy(Kind.DRAIN, state), operation=None)
        assert (left_halfway(still, "fra") != "") == (state is IdcState.DRAINING)
    cordoned = replace(policy(Kind.DRAIN, IdcState.CORDONED, ramp=10), operation=None)
    assert left_halfway(cordoned, "fra") == ""
    assert left_halfway(cordoned, "witness") == ""
