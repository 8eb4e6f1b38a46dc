"""How fast sessions are handed over: what was asked for, and what the takers admit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imcore.region.load import load_region
from imcore.region.model import Region
from services.policy.document import IdcPolicy, IdcState, OperationRef, Policy, initial
from services.policy.pace import moves_per_s

LOADED = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")


def region(**logins_per_s: int) -> Region:
    idcs = []
    for idc in LOADED.spec.idcs:
        admitted = {"logins_per_s": logins_per_s.get(idc.name, 200)}
        idcs.append(idc.model_copy(update={"capacity": idc.capacity.model_copy(update=admitted)}))
    return LOADED.model_copy(update={"spec": LOADED.spec.model_copy(update={"idcs": idcs})})


def policy(kind: str, rows: dict[str, IdcPolicy], target: str = "", rate: int = 0) -> Policy:
    base = initial(LOADED, 0)
    running = OperationRef(f"{kind}-fra-2", kind, "fra", target, "operator", "r", 0, rate=rate)
    return replace(base, idcs={**base.idcs, **rows}, operation=running)


def test_without_an_operation_it_is_the_policys_rate() -> None:
    assert moves_per_s(initial(LOADED, 0), region(fra=1, iad=1, sin=1), "fra") == 50


def test_a_drain_goes_at_the_rate_asked_for_below_what_each_taker_admits() -> None:
    draining = {"fra": IdcPolicy(IdcState.DRAINING)}

    def rate(asked: int, **admitted: int) -> float:
        return moves_per_s(policy("drain", draining, rate=asked), region(**admitted), "fra")

    assert (rate(0), rate(7), rate(120), rate(900)) == (50, 7, 120, 200)
    assert rate(120, sin=30) == 30  # perhaps all of them belong there next
    assert rate(0, fra=1) == 50  # its own does not count
    cordoned = {**draining, "sin": IdcPolicy(IdcState.CORDONED)}
    assert moves_per_s(policy("drain", cordoned, rate=120), region(sin=30), "fra") == 120


def test_a_switchover_is_bound_by_its_target_alone() -> None:
    moving = {"fra": IdcPolicy(IdcState.DRAINING, target="iad")}
    wish = policy("switchover", moving, "iad", 120)
    assert moves_per_s(wish, region(sin=30), "fra") == 120
    assert moves_per_s(wish, region(iad=30), "fra") == 30


def test_those_who_give_clients_back_share_the_rate_and_what_the_idc_admits() -> None:
    back = {"fra": IdcPolicy(ramp=50)}
    assert moves_per_s(policy("failback", back, rate=30), region(), "iad") == 15
    assert moves_per_s(policy("failback", back, rate=900), region(fra=60), "iad") == 30
    assert moves_per_s(policy("failback", back), region(), "iad") == 50
    alone = {**back, "sin": IdcPolicy(IdcState.FAILED)}
    assert moves_per_s(policy("failback", alone, rate=30), region(), "iad") == 30


def test_the_rate_of_another_idcs_drain_is_not_ones_own() -> None:
    draining = {"fra": IdcPolicy(IdcState.DRAINING)}
    assert moves_per_s(policy("drain", draining, rate=1), region(), "iad") == 50
