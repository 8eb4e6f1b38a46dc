"""What a driver of an operation remembers and does next."""

from __future__ import annotations

from dataclasses import replace

from services.control.evidence import IdcFacts
from services.control.follow import Marks
from services.control.rules import Kind
from services.policy.document import IdcPolicy, IdcState, OperationRef, Policy


def policy(kind: str, state: IdcState, ramp: int = 100) -> Policy:
    running = OperationRef(f"{kind}-fra-2", kind, "fra", "", "operator", "r1", 0)
    return Policy(epoch=3, idcs={"fra": IdcPolicy(state, ramp)}, operation=running)


def facts(end: int, sessions: int) -> IdcFacts:
    return IdcFacts(at_ms=end, origin="fra.1", sessions=sessions, ends=(end, end))


def test_a_mark_of_a_draining_idc_is_taken_again_until_the_last_session_has_left() -> None:
    marks, draining = Marks(), policy(Kind.DRAIN, IdcState.DRAINING)
    assert marks.take(draining, {"fra": facts(10, sessions=2)})["fra"].ends == (10, 10)
    assert marks.take(draining, {"fra": facts(20, sessions=0)})["fra"].ends == (20, 20)
    assert marks.take(draining, {"fra": facts(30, sessions=0)})["fra"].ends == (20, 20)


def test_a_mark_of_an_idc_that_gets_its_clients_back_stays() -> None:
    """Else nobody ever holds all of a log that grows with every message: a failback under load
    came to its end by luck only."""
    marks, ramp = Marks(), policy(Kind.FAILBACK, IdcState.ACTIVE, ramp=50)
    assert marks.take(ramp, {"fra": facts(10, sessions=60)})["fra"].ends == (10, 10)
    assert marks.take(ramp, {"fra": facts(20, sessions=61)})["fra"].ends == (10, 10)
    step = replace(ramp, epoch=4)
    assert marks.take(step, {"fra": facts(30, sessions=90)})["fra"].ends == (30, 30)
