"""Who belongs where: rendezvous hashing, ramps, fallbacks, and the order of gateways."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from imcore.region.load import load_region
from imcore.region.model import GatewayOrder
from services.ipconf.directory import SLOW_START_S, Gateway
from services.ipconf.rank import by_hash, by_load, rank
from services.policy.document import IdcPolicy, IdcState, Policy, initial
from services.policy.placement import home_idc, preference, rendezvous

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
UIDS = [f"u{n}" for n in range(400)]
WEIGHTS = st.dictionaries(
    st.sampled_from(["fra", "iad", "sin", "dub"]), st.floats(0, 10), min_size=1
)


def policy(weights: dict[str, float] | None = None, **idcs: IdcPolicy) -> Policy:
    base = initial(REGION, 0)
    overrides = {"europe": weights} if weights else {}
    return replace(base, idcs={**base.idcs, **idcs}, weights=overrides)


def gateway(idc: str, number: int = 1, connections: int = 0) -> Gateway:
    return Gateway(idc, f"{idc}-gw-{number}", "127.0.0.1", 1, connections, 100)


LIVE = {idc: [gateway(idc)] for idc in ("fra", "iad", "sin")}


def homes(policy: Policy, at: str = "") -> dict[str, str]:
    return {uid: home_idc(policy, REGION, "europe", uid, at) for uid in UIDS}


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.sampled_from(["fra", "iad", "sin", "dub"]), st.floats(0, 10))
def test_a_change_of_one_weight_moves_only_to_or_from_that_idc(
    weights: dict[str, float], changed: str, weight: float
) -> None:
    after = weights | {changed: weight}
    for uid in UIDS[:60]:
        before_home = rendezvous(uid, weights)[:1]
        after_home = rendezvous(uid, after)[:1]
        if before_home != after_home:
            raised = weight > weights.get(changed, 0)
            assert (after_home if raised else before_home) == [changed]


def test_shares_follow_the_weights() -> None:
    counts = Counter(homes(policy({"fra": 3.0, "iad": 1.0})).values())
    assert set(counts) == {"fra", "iad"}
    assert 0.65 < counts["fra"] / len(UIDS) < 0.85


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100), st.integers(1, 100))
def test_raising_a_ramp_only_moves_clients_in(low: int, high: int) -> None:
    low, high = sorted((low, high))
    before = homes(policy(fra=IdcPolicy(ramp=low)))
    after = homes(policy(fra=IdcPolicy(ramp=high)))
    assert all(after[uid] in (home, "fra") for uid, home in before.items())


def test_a_ramp_lets_its_share_in() -> None:
    counts = Counter(homes(policy(fra=IdcPolicy(ramp=10))).values())
    assert 0.04 < counts["fra"] / len(UIDS) < 0.18
    assert set(counts) == {"fra", "iad"}  # the rest stays with the first fallback


def test_an_excluded_idc_sends_its_clients_down_the_fallback_order() -> None:
    for state in (IdcState.DRAINING, IdcState.DRAINED, IdcState.FAILED, IdcState.RECOVERING):
        assert set(homes(policy(fra=IdcPolicy(state))).values()) == {"iad"}
    both = policy(fra=IdcPolicy(IdcState.FAILED), iad=IdcPolicy(IdcState.DRAINING))
    assert set(homes(both).values()) == {"sin"}
    failed = IdcPolicy(IdcState.FAILED)
    none = policy(fra=failed, iad=failed, sin=failed)
    assert set(homes(none).values()) == {""}


def test_a_switchover_sends_them_to_its_target() -> None:
    moved = policy(fra=IdcPolicy(IdcState.DRAINING, target="sin"))
    assert set(homes(moved).values()) == {"sin"}


def test_the_target_of_a_switchover_keeps_its_own_clients() -> None:
    """Found by the demo: Singapore's own clients were sent away while it took over Ashburn's."""
    moved = policy(iad=IdcPolicy(IdcState.DRAINING, target="sin"))
    assert home_idc(moved, REGION, "asia", "u1") == "sin"
    assert home_idc(moved, REGION, "americas", "u1") == "sin"
    assert home_idc(moved, REGION, "europe", "u1") == "fra"


def test_a_cordoned_idc_keeps_who_is_there_and_takes_nobody() -> None:
    cordoned = policy(fra=IdcPolicy(IdcState.CORDONED))
    assert set(homes(cordoned).values()) == {"iad"}
    assert set(homes(cordoned, at="fra").values()) == {"fra"}
    assert set(homes(cordoned, at="sin").values()) == {"iad"}


def order(*args: object, **kwargs: object) -> list[str]:
    return [each.gateway.idc for each in rank(*args, **kwargs)]  # type: ignore[arg-type]


def test_all_idcs_follow_as_fallbacks_and_scores_fall() -> None:
    ranked = rank(policy(), REGION, "europe", "u1", LIVE)
    assert [each.gateway.idc for each in ranked] == ["fra", "iad", "sin"]
    scores = [each.score for each in ranked]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0


def test_idcs_without_a_live_gateway_are_skipped() -> None:
    assert order(policy(), REGION, "europe", "u1", {"sin": LIVE["sin"]}) == ["sin"]


def test_excluded_idcs_are_left_out_unless_nothing_else_lives() -> None:
    failed = policy(fra=IdcPolicy(IdcState.FAILED))
    assert order(failed, REGION, "europe", "u1", LIVE) == ["iad", "sin"]
    assert order(failed, REGION, "europe", "u1", {"fra": LIVE["fra"]}) == ["fra"]


def test_a_minority_ranks_itself_last() -> None:
    found = order(policy(), REGION, "europe", "u1", LIVE, minority=("fra",))
    assert found == ["iad", "sin", "fra"]


def test_an_unknown_shard_is_the_default_one() -> None:
    assert preference(policy(), REGION, "", "u1") == preference(policy(), REGION, "europe", "u1")


def test_less_loaded_gateways_come_first_and_equal_ones_are_spread() -> None:
    gateways = [gateway("fra", 1, 55), gateway("fra", 2, 5), gateway("fra", 3, 8)]
    orders = {tuple(each.name for each in by_load(uid, gateways)) for uid in UIDS[:40]}
    assert orders == {
        ("fra-gw-2", "fra-gw-3", "fra-gw-1"),
        ("fra-gw-3", "fra-gw-2", "fra-gw-1"),
    }


def test_one_that_has_just_begun_gets_no_more_than_its_share_at_first() -> None:
    def first(age_s: float) -> Counter[str]:
        fresh = gateway("fra", 9, 0)._replace(age_s=age_s)
        loaded = [gateway("fra", n, 80) for n in (1, 2, 3)]
        return Counter(by_load(uid, [*loaded, fresh])[0].name for uid in UIDS)

    assert max(first(0).values()) < 1.4 * len(UIDS) / 4 and len(first(0)) == 4
    assert first(SLOW_START_S) == {"fra-gw-9": len(UIDS)}
    # All of an IDC that begins are alike.
    begun = [gateway("fra", n, 0)._replace(age_s=0) for n in (1, 2, 3)]
    assert len({by_load(uid, begun)[0].name for uid in UIDS}) == 3


# ------------------------------------------------------------------------------- by hash


def _gateways(numbers: set[int], connections: int = 0) -> list[Gateway]:
    """Each in its first life, or (odd connections) a later one: under another name."""
    return [
        Gateway("fra", f"fra-gw{n}.{connections}", "10.0.0.1", 7000 + n, connections, 1_000_000)
        for n in sorted(numbers)
    ]


def _first(gateways: list[Gateway]) -> dict[str, int]:
    return {uid: by_hash(uid, gateways)[0].port - 7000 for uid in UIDS[:80]}


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(1, 12), min_size=1), st.integers(1, 12))
def test_a_gateway_that_comes_or_goes_moves_only_its_own_users(
    numbers: set[int], changed: int
) -> None:
    with_it, without = _gateways(numbers | {changed}), _gateways(numbers - {changed})
    after = _first(with_it)
    assert changed in after.values() or len(numbers) > 6
    if without:
        before = _first(without)
        for uid, gateway_number in after.items():
            assert gateway_number in (before[uid], changed)


def test_the_next_life_of_a_gateway_has_the_same_users() -> None:
    assert _first(_gateways({1, 2, 3}, 0)) == _first(_gateways({1, 2, 3}, 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2_000), min_size=1, max_size=10))
def test_nobody_is_sent_first_to_a_gateway_that_has_far_more_than_the_others(
    connections: list[int],
) -> None:
    gateways = [
        Gateway("fra", f"gw{n}", "10.0.0.1", 7000 + n, count, 1_500)
        for n, count in enumerate(connections)
    ]
    bound = max(
        1.25 * sum(connections) / len(connections), sum(connections) / len(connections) + 20
    )
    fit = [each for each in gateways if each.connections <= bound and each.load < 1]
    for uid in UIDS[:20]:
        order = by_hash(uid, gateways)
        assert set(order) == set(gateways)
        assert not fit or order[0] in fit


def test_users_are_spread_over_the_gateways() -> None:
    counts = Counter(by_hash(uid, _gateways({1, 2, 3, 4}))[0].port for uid in UIDS)
    assert len(counts) == 4
    assert max(counts.values()) < 1.4 * len(UIDS) / 4


def test_the_region_file_says_how_gateways_are_ordered() -> None:
    loaded = [gateway("fra", n, connections) for n, connections in ((1, 15), (2, 0), (3, 5))]
    for order, ordered in ((GatewayOrder.LOAD, by_load), (GatewayOrder.HASH, by_hash)):
        routing = REGION.spec.routing.model_copy(update={"gateways": order})
        spec = REGION.spec.model_copy(update={"routing": routing})
        region = REGION.model_copy(update={"spec": spec})
        for uid in UIDS[:20]:
            ranked = rank(policy(), region, "europe", uid, {"fra": loaded})
            assert [each.gateway for each in ranked] == ordered(uid, loaded)
