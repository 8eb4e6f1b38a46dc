"""Handing sessions over: who goes, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from imcore.region.load import load_region
from imcore.runtime import ManualClock
from services.control.holder import PolicyHolder
from services.control.mover import AGAIN_S, EVERY_S, Mover
from services.control.policy import IdcPolicy, IdcState, Policy, initial

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")


class Session(NamedTuple):
    session: str
    uid: str
    shard: str = "europe"
    connected: bool = True


class State:
    def __init__(self, count: int) -> None:
        self.all = [Session(f"s{n}", f"u{n}") for n in range(count)]
        self.moved: list[tuple[str, int, int]] = []

    def sessions(self) -> list[Session]:
        return self.all

    def move(self, session: str, within_ms: int, policy_epoch: int) -> bool:
        self.moved.append((session, within_ms, policy_epoch))
        return True


class Setup:
    def __init__(self, folder: Path, count: int = 300) -> None:
        self.clock = ManualClock()
        self.state = State(count)
        self.holder = PolicyHolder(folder / "policy.json")
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

    def offer(self, epoch: int, **idcs: IdcPolicy) -> None:
        base = initial(REGION, 0)
        self.holder.offer(Policy(epoch, {**base.idcs, **idcs}))

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
    setup.run(6.8)
    assert len(setup.state.moved) == len({row[0] for row in setup.state.moved}) == 300
    assert {row[2] for row in setup.state.moved} == {2}
    assert setup.run(AGAIN_S) > 0  # those who are still there are told again


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
    setup.state.all[0] = Session("s0", "u0", "asia")
    setup.state.all[1] = Session("s1", "u1", "asia", connected=False)
    setup.offer(2)
    assert setup.run(3.0) == 1
    setup.offer(3, fra=IdcPolicy(ramp=50))
    assert 25 < setup.run(6.0) < 75


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
    setup = Setup(tmp_path)
    setup.offer(1)
    setup.minority = True
    setup.live = {}
    assert setup.run(7.0) == 300


def test_clients_of_a_dead_home_stay_until_it_lives_again(tmp_path: Path) -> None:
    """Found by the demo: before the failover is committed, survivors passed them back and forth."""
    setup = Setup(tmp_path, 50)
    setup.state.all = [Session(f"s{n}", f"u{n}", "asia") for n in range(50)]
    setup.live = {"fra": 1, "iad": 1}
    setup.offer(2)
    assert setup.run(5.0) == 0
    setup.live = {"fra": 1, "iad": 1, "sin": 1}
    assert setup.run(5.0) == 50
