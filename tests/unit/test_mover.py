"""Handing sessions over: who goes, and how fast."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from imcore.region.load import load_region
from imcore.runtime import ManualClock
from services.control.mover import AGAIN_S, EVERY_S, GONE_S, JUDGE_S, Mover
from services.engines.disk import RealDisk
from services.policy.document import (
    IdcPolicy,
    IdcState,
    OperationRef,
    OperationState,
    Policy,
    initial,
)
from services.policy.holder import PolicyHolder

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")


class Session(NamedTuple):
    session: str
    uid: str
    device: str = "phone"
    shard: str = "europe"
    connected: bool = True
    gateway: str = "fra-1"


class BusyClock(ManualClock):
    """Each look at it takes ``look_s``."""

    look_s = 0.0

    def now(self) -> float:
        self.advance(self.look_s)
        return super().now()


class State:
    """``all`` is set at will; what has changed by it is told as the real ones do."""

    def __init__(self, count: int) -> None:
        self.told: dict[str, Session] = {}
        self.all = [Session(f"s{n}", f"u{n}") for n in range(count)]
        self.moved: list[tuple[str, int, int]] = []
        self.closed: list[str] = []
        self.pull_only = 3
        self.closes = True

    def changed(self) -> dict[str, Session | None]:
        here = {session.session: session for session in self.all if session.connected}
        told, self.told = self.told, here
        found: dict[str, Session | None] = {key: None for key in told if key not in here}
        return found | {key: row for key, row in here.items() if told.get(key) != row}

    def move(self, session: str, within_ms: int, policy_epoch: int) -> bool:
        self.moved.append((session, within_ms, policy_epoch))
        return True

    def close_after_move(self, session: str) -> bool:
        self.closed.append(session)
        return self.closes

    def close_pull_only(self) -> int:
        closed, self.pull_only = self.pull_only, 0
        return closed


class Setup:
    def __init__(self, folder: Path, count: int = 300) -> None:
        self.clock = BusyClock()
        self.state = State(count)
        self.holder = PolicyHolder(folder / "policy.json", RealDisk())
        self.minority = False
        self.live = {"fra": 1, "iad": 1, "sin": 1}
        self.mover = Mover(
            "fra",
            REGION,
            self.holder,
            self.state,
            lambda: self.minority,
            lambda: self.live,
            self.clock,
        )

    def offer(self, epoch: int, operation: OperationRef | None = None, **idcs: IdcPolicy) -> None:
        base = initial(REGION, 0)
        asyncio.run(self.holder.offer(Policy(epoch, {**base.idcs, **idcs}, operation)))

    def run(self, seconds: float) -> int:
        before = len(self.state.moved)
        for _ in range(round(seconds / EVERY_S)):
            self.clock.advance(EVERY_S)
            self.mover.step()
        return len(self.state.moved) - before


def test_an_active_idc_moves_nobody(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert setup.run(1.0) == 0
    setup.offer(1)
    assert setup.run(5.0) == 0


def test_draining_moves_all_at_the_set_rate_and_each_once(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    assert 45 <= setup.run(1.0) <= 70
    setup.run(3.8)
    assert len(setup.state.moved) == len({row[0] for row in setup.state.moved}) > 230
    setup.state.all = setup.state.all[200:]  # the others have gone
    setup.run(1.2)
    assert {row[0] for row in setup.state.moved} == {f"s{n}" for n in range(300)}
    assert {row[2] for row in setup.state.moved} == {2}
    assert setup.run(AGAIN_S) > 0  # those who are still there are told again


def test_another_policy_does_not_forget_who_was_told(tmp_path: Path) -> None:
    """Also those whom it has not judged anew yet: it judges so many a step."""
    setup = Setup(tmp_path, 400)
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(AGAIN_S - 1.0)
    told = len(setup.state.moved)
    assert told > 250
    setup.clock.look_s = JUDGE_S  # a few a step
    # The drain goes on; what changes is another IDC.
    setup.offer(3, fra=IdcPolicy(IdcState.DRAINING), sin=IdcPolicy(IdcState.CORDONED))
    setup.run(EVERY_S)
    assert setup.mover.handover().told >= told
    assert setup.mover.waiting() > 300
    setup.clock.look_s = 0.0
    setup.run(0.6)
    assert setup.mover.waiting() == 0
    assert len({row[0] for row in setup.state.moved}) == len(setup.state.moved), "nobody twice"


def test_who_may_stay_by_another_policy_is_no_longer_waited_for(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 400)
    setup.offer(2, fra=IdcPolicy(ramp=10))
    setup.run(3.0)
    assert setup.mover.handover().told > 50
    setup.offer(3)
    setup.run(2 * EVERY_S)
    assert setup.mover.handover().told == 0


def test_judging_has_its_time_and_no_more(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 10_000)
    setup.offer(1)
    setup.clock.look_s = JUDGE_S / 10
    setup.mover.step()
    once = 10_000 - setup.mover.waiting()
    assert 100 < once < 400
    setup.mover.step()
    assert 10_000 - setup.mover.waiting() == 2 * once
    setup.clock.look_s = 0.0
    setup.mover.step()
    assert setup.mover.waiting() == 0
    setup.offer(2, fra=IdcPolicy(ramp=50))  # anew
    setup.clock.look_s = JUDGE_S
    setup.mover.step()
    assert setup.mover.waiting() > 9_900


def test_with_nothing_to_move_a_step_looks_at_nobody(tmp_path: Path) -> None:
    """It walked through all sessions five times a second: a fifth of the loop for 20,000."""
    setup = Setup(tmp_path, 1_000)
    setup.offer(1)
    setup.run(1.0)
    setup.mover._here = Untouched(setup.mover._here)
    assert setup.run(1.0) == 0
    setup.state.all[7] = Session("new", "u7", shard="asia")  # in the place of s7
    assert setup.run(1.0) == 1
    assert setup.state.moved[0][0] == "new"


class Untouched(dict[str, Any]):
    """Not walked through."""

    def __iter__(self) -> Any:
        raise AssertionError

    items = values = __reversed__ = __iter__


def test_a_session_that_comes_back_with_another_home_is_judged_anew(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 3)
    setup.offer(1)
    assert setup.run(1.0) == 0
    setup.state.all[0] = Session("s0", "u0", shard="asia")
    assert setup.run(1.0) == 1


def test_an_idle_hour_saves_up_no_burst(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.offer(1)
    setup.clock.advance(3600)
    setup.mover.step()
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.clock.advance(EVERY_S)
    assert setup.mover.step() <= 20


def test_only_clients_of_other_shards_go_and_a_ramp_keeps_its_share(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 100)
    setup.state.all[0] = Session("s0", "u0", shard="asia")
    setup.state.all[1] = Session("s1", "u1", shard="asia", connected=False)
    setup.offer(2)
    assert setup.run(3.0) == 1
    setup.offer(3, fra=IdcPolicy(ramp=50))
    assert 25 < setup.run(4.0) < 75


def test_a_cordoned_idc_keeps_its_sessions(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.offer(2, fra=IdcPolicy(IdcState.CORDONED))
    assert setup.run(3.0) == 0


def test_nobody_is_sent_to_where_nothing_listens(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.live = {"fra": 1}
    assert setup.run(3.0) == 0


def test_a_minority_hands_its_clients_over(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 200)
    setup.offer(1)
    setup.minority = True
    setup.live = {}
    assert setup.run(4.8) == 200


def test_clients_of_a_dead_home_stay_until_it_lives_again(tmp_path: Path) -> None:
    """Found by the demo: before the failover is committed, survivors passed them back and forth."""
    setup = Setup(tmp_path, 50)
    setup.state.all = [Session(f"s{n}", f"u{n}", shard="asia") for n in range(50)]
    setup.live = {"fra": 1, "iad": 1}
    setup.offer(2)
    assert setup.run(5.0) == 0
    setup.live = {"fra": 1, "iad": 1, "sin": 1}
    assert setup.run(5.0) == 50


def test_a_client_that_does_not_go_is_closed_and_cannot_hold_up_a_drain(tmp_path: Path) -> None:
    """One client that ignored `move` blocked the drain, and with it every other planned move."""
    setup = Setup(tmp_path, 1)
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(AGAIN_S + GONE_S - 0.4)
    assert len(setup.state.moved) == 2
    assert setup.state.closed == []
    setup.run(1.0)
    assert setup.state.closed[0] == "s0"

    setup.state.all = []
    setup.run(0.2)
    setup.state.closed.clear()
    setup.state.all = [Session("another", "u0"), Session("desk", "u0", "desk")]
    setup.run(0.4)
    assert set(setup.state.closed) == {"another"}  # it was told already; the other device was not


def operation(state: OperationState) -> OperationRef:
    return OperationRef("drain-fra-2", "drain", "fra", "", "operator", "r", 0, state)


@pytest.mark.parametrize("state", [OperationState.PAUSED, OperationState.STALLED])
def test_nobody_is_handed_over_or_closed_while_the_move_is_paused(
    tmp_path: Path, state: OperationState
) -> None:
    setup = Setup(tmp_path)
    setup.offer(2, operation(OperationState.RUNNING), fra=IdcPolicy(IdcState.DRAINING))
    told = setup.run(2.0)
    setup.offer(3, operation(state), fra=IdcPolicy(IdcState.DRAINING))
    assert setup.run(60.0) == 0
    assert setup.state.closed == []
    setup.offer(4, operation(OperationState.RUNNING), fra=IdcPolicy(IdcState.DRAINING))
    assert setup.run(0.2) <= 20  # no burst of what the pause saved up
    setup.run(6.0)
    assert len({row[0] for row in setup.state.moved}) == 300 > told


def test_a_minority_hands_over_even_while_a_move_is_paused(tmp_path: Path) -> None:
    """It may be the only way out, and it cannot hear that the pause has ended."""
    setup = Setup(tmp_path, 50)
    setup.offer(2, operation(OperationState.PAUSED), fra=IdcPolicy(IdcState.DRAINING))
    setup.minority = True
    assert setup.run(2.0) == 50


def test_connections_closed_in_a_drain_are_counted_until_the_next_one(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 1)
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(AGAIN_S + GONE_S + 0.4)
    setup.state.all = []
    setup.offer(3, fra=IdcPolicy(IdcState.DRAINED))
    setup.run(1.0)
    assert setup.mover.closed >= 1
    setup.offer(4, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(0.2)
    assert setup.mover.closed == 0


def test_a_connection_that_takes_a_while_to_close_is_counted_once(tmp_path: Path) -> None:
    """On a busy machine a drain of 53 sessions told of 115 closed connections."""
    setup = Setup(tmp_path, 1)
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(AGAIN_S + GONE_S + 2.0)
    assert len(setup.state.closed) > 3  # it is asked to close again and again
    assert setup.mover.closed == 1
    setup.state.all = [Session("another", "u0")]  # the device came back
    setup.run(1.0)
    assert setup.mover.closed == 2


def test_who_cannot_be_closed_is_told_again(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 1)
    setup.state.closes = False
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(3 * AGAIN_S + 1)
    assert len(setup.state.moved) == 4


def test_only_a_drain_closes_connections(tmp_path: Path) -> None:
    """Who cannot reach its home, or is handed over by a minority, is told and goes on here."""
    setup = Setup(tmp_path, 1)
    setup.state.all = [Session("s0", "u0", shard="asia")]
    setup.offer(2)
    setup.run(30.0)
    assert len(setup.state.moved) > 3
    setup.minority = True
    setup.run(30.0)
    assert setup.state.closed == []
    setup.minority = False
    setup.offer(3, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(1.0)
    assert setup.state.closed == []  # what it was told before counts for nothing


def test_pull_only_connections_are_closed_when_the_drain_has_ended(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 0)
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(1.0)
    assert setup.state.pull_only == 3
    setup.offer(3, fra=IdcPolicy(IdcState.DRAINED))
    setup.run(1.0)
    assert setup.state.pull_only == 0
    setup.state.pull_only = 1  # it reads what others do not have yet
    setup.run(5.0)
    assert setup.state.pull_only == 1


def test_who_takes_twice_as_long_as_the_third_quarter_is_stuck_and_counted_by_gateway(
    tmp_path: Path,
) -> None:
    setup = Setup(tmp_path, 20)
    hang = [s._replace(gateway="fra-2") for s in setup.state.all[:3]]
    setup.state.all[:3] = hang
    setup.offer(2, fra=IdcPolicy(IdcState.DRAINING))
    setup.run(1.0)
    assert setup.mover.handover().told == 20
    setup.run(1.0)
    setup.state.all = hang  # 17 went within two seconds
    setup.run(1.0)
    seen = setup.mover.handover()
    assert (seen.told, seen.gone, seen.usual.samples, seen.stuck) == (3, 17, 17, {})
    setup.run(2.0)
    seen = setup.mover.handover()
    assert seen.stuck == {"fra-2": 3}
    assert 3_000 <= seen.usual.limit_ms < 5_000
    setup.offer(3, operation(OperationState.PAUSED), fra=IdcPolicy(IdcState.DRAINING))
    setup.state.all = hang[:1]
    setup.run(1.0)
    assert setup.mover.handover().stuck == {"fra-2": 1}  # who was told goes on in a pause
    setup.offer(4, fra=IdcPolicy(IdcState.ACTIVE))
    setup.run(1.0)
    assert setup.mover.handover()[:2] == (0, 0)


def test_a_session_that_is_no_more_to_go_did_not_go(tmp_path: Path) -> None:
    setup = Setup(tmp_path, 4)
    setup.state.all = [Session(f"s{n}", f"u{n}", shard="asia") for n in range(4)]
    setup.offer(2)
    setup.run(1.0)
    assert setup.mover.handover().told == 4
    setup.live = {"fra": 1, "iad": 1}  # its home is gone: it stays here
    setup.run(1.0)
    assert setup.mover.handover()[:2] == (0, 0)
