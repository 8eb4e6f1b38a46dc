"""The capacity model: by hand, by property, and its figures against where they come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.footprint import message_bytes
from imcore.errors import BadInput
from imctl.capacity import view
from imctl.capacity.inputs import Group, Workload
from imctl.capacity.loads import HOPS, Loads
from imctl.capacity.model import size
from imctl.capacity.quantity import number, short
from imctl.capacity.result import Sizing
from imctl.capacity.sensitivity import assumptions, sensitivity
from imctl.commands.size import default_figures

ROOT = Path(__file__).resolve().parents[2]
FIGURES = default_figures()
# Everything that costs nothing in the example by hand.
FREE = dict.fromkeys(
    ("gateway_out_us", "state_request_us", "push_entries_us", "push_session_us", "im_check_us",
     "log_append_us", "im_ack_us", "mirror_us", "signals_us", "rest_share", "role_call_us"), 0,
)  # fmt: skip


def value(sizing: Sizing, name: str) -> float:
    lines = [*sizing.load, *sizing.network, *sizing.storage, *sizing.budget]
    [found] = [line.value for line in lines if line.name == name]
    return found


def role(sizing: Sizing, name: str) -> int:
    [found] = [each.per_idc for each in [*sizing.roles, *sizing.engines] if each.name == name]
    return found


# --------------------------------------------------------------------------------- by hand


def example() -> Workload:
    """864,000 users with 100 messages: 1,000 a second on average, 2,000 at the peak."""
    return Workload(
        daily_users=864_000,
        online_share=0.5,
        devices=1,
        messages_per_user=100,
        peak_factor=2,
        groups=(Group(members=3, share=1),),
        message_bytes=800,
        heartbeat_s=10,
        connects_per_day=0,
        idcs=3,
        headroom=0.8,
        replication_factor=3,
        retention_days=10,
        log_hours=12,
        rto_s=10,
    )


def test_an_example_by_hand() -> None:
    figures = FIGURES.with_(
        FREE
        | {"gateway_in_us": 1000, "fold_us": 800, "batching": 1, "heartbeat_us": 100,
           "connect_us": 1000, "gateway_share": 0.5, "gateway_connections": 30_000,
           "record_bytes": 200, "row_bytes": 150, "shadow_bytes": 50, "wan_overhead": 1,
           "row_writes": 6, "store_rows_s": 10_000, "store_amplification": 1, "store_tb": 4,
           "broker_mb_s": 100, "disk_fill": 0.75, "broker_tb": 16},
        "test",
    )  # fmt: skip
    found = size(example(), figures)
    assert value(found, "messages_a_day") == 86_400_000
    assert value(found, "peak") == pytest.approx(2_000)
    assert value(found, "connections") == 432_000
    assert value(found, "pushes") == 2  # the sender's device, and each of two others half the time
    # A survivor has 216,000 connections; 24,000 a gateway. CPU: 1,000 messages x 1 ms and 21,600
    # heartbeats x 50 us = 2.08 cores; so connections decide.
    assert role(found, "gateway") == 9
    # 72,000 connects x 0.5 ms in 10 s = 3.6 cores, and 1.08 of heartbeats.
    assert role(found, "state") == 5
    assert [each.bound_by for each in found.roles[:2]] == ["connections", "reconnects"]
    # All 2,000 messages are folded in every IDC: 1.6 cores, at 0.8 of one each.
    assert role(found, "im") == 2
    assert found.roles[2].use_at_peak == pytest.approx(0.8)
    assert role(found, "route") == 2
    assert found.partitions.value == 2
    # 2,000 x 1,000 bytes x 3 = 6 MB/s are less than three brokers take.
    assert (role(found, "Kafka brokers"), found.engines[0].bound_by) == (3, "replication")
    # 2,000 x (6 + a shadow + one more member) x 3 = 48,000 rows/s, at 8,000 a store.
    assert (role(found, "TiKV stores"), found.engines[1].bound_by) == (6, "rows/s")
    assert value(found, "wan_peak") == pytest.approx(2_000 / 3 * 1_000 * 8)
    assert value(found, "wan_link") == pytest.approx(1_000 * 1_000 * 8 / 0.8)
    # An hour of a survivor's 8 Mbit/s, over the 10 - 5.33 that are left.
    assert value(found, "catch_up") == pytest.approx(3600 * 8 / (10 - 16 / 3))
    assert value(found, "kv_a_day") == 86_400_000 * 1_000
    assert value(found, "kv_kept") == 86.4e9 * 10 * 3
    assert value(found, "log_kept") == 86.4e9 / 2 * 3
    assert found.totals.disk_bytes == (86.4e9 * 30 + 86.4e9 * 1.5) * 3


def test_five_nines() -> None:
    found = size(example(), FIGURES)
    assert value(found, "budget_month") == pytest.approx(26.298)
    assert value(found, "budget_year") == pytest.approx(315.576)
    assert value(found, "failed_month") == pytest.approx(86_400_000 * 30.4375 * 1e-5)
    # 10 s for a third of the users are 3.3 s for all.
    assert value(found, "losses_month") == pytest.approx(26.298 / (10 / 3))


def test_the_worked_example_has_the_figures_that_it_is_known_by() -> None:
    from imctl.commands.size import read_file

    inputs, _ = read_file(ROOT / "docs" / "capacity.yaml")
    found = size(Workload.model_validate(inputs), FIGURES)
    assert found.inputs.daily_users == 1e9
    assert value(found, "peak") == 18e6
    assert value(found, "kv_a_day") == pytest.approx(1e15, rel=0.005)
    assert found.inputs.messages_a_day / 86_400 * 1.5 == pytest.approx(18e6, rel=0.05)


# -------------------------------------------------------------------------------- properties

workloads = st.builds(
    Workload,
    daily_users=st.floats(1, 1e10),
    online_share=st.floats(0.01, 1),
    devices=st.floats(1, 4),
    messages_per_user=st.floats(0.1, 5_000),
    peak_factor=st.floats(1, 20),
    peak_messages_s=st.none() | st.floats(1, 1e9),
    groups=st.sampled_from(
        [
            (Group(members=2, share=1),),
            (Group(members=2, share=0.5), Group(members=500, share=0.5)),
            (Group(members=3, share=0.9), Group(members=10_000, share=0.1)),
        ]
    ),
    message_bytes=st.floats(1, 90_000),
    heartbeat_s=st.floats(0.5, 300),
    idcs=st.integers(2, 9),
    headroom=st.floats(0.2, 1),
    replication_factor=st.integers(1, 5),
    retention_days=st.floats(0, 3_650),
    rto_s=st.floats(1, 600),
)


def counts(sizing: Sizing) -> list[float]:
    machines = [*sizing.roles, *sizing.engines]
    lines = [*sizing.load, *sizing.storage, sizing.partitions]
    return [each.per_idc for each in machines] + [line.value for line in lines]


@given(
    workloads,
    st.sampled_from(
        ["daily_users", "messages_per_user", "peak_factor", "peak_messages_s", "message_bytes",
         "retention_days", "replication_factor", "devices"]
    ),
    st.sampled_from([1.01, 2, 3]),
)  # fmt: skip
def test_more_of_anything_never_needs_less(workload: Workload, field: str, times: float) -> None:
    old = getattr(workload, field)
    if old is None:
        return
    more = old + 1 if field == "replication_factor" else old * times
    bigger = workload.model_copy(update={field: more})
    # Where the peak is given, more messages a day alone make the day flatter: as many connects.
    if field in ("daily_users", "messages_per_user") and workload.peak_messages_s is not None:
        bigger = bigger.model_copy(update={"peak_messages_s": workload.peak_messages_s * times})
    before, after = counts(size(workload, FIGURES)), counts(size(bigger, FIGURES))
    assert all(b >= a * (1 - 1e-9) for a, b in zip(before, after, strict=True))


@given(workloads)
def test_survivors_stay_below_their_limit_and_one_process_less_would_not_do(
    workload: Workload,
) -> None:
    sizing = size(workload, FIGURES)
    for each in sizing.roles:
        assert each.use_at_peak <= each.use_after_loss * (1 + 1e-9)
        assert each.use_after_loss <= workload.headroom * (1 + 1e-6)
        if each.bound_by in ("cores", "connections") and each.per_idc > 2:
            fewer = each.use_after_loss * each.per_idc / (each.per_idc - 1)
            assert fewer > workload.headroom * (1 - 1e-6)
    assert value(sizing, "back_after") <= workload.rto_s * (1 + 1e-6)
    assert sizing.partitions.value >= sizing.roles[2].per_idc
    assert (
        value(sizing, "wan_after_loss") <= value(sizing, "wan_link") * workload.headroom * 1.000001
    )
    for engine in sizing.engines:
        assert engine.per_idc >= workload.replication_factor


@given(workloads)
def test_drivers_are_ranked_and_whole(workload: Workload) -> None:
    sizing = size(workload, FIGURES)
    for drivers in (sizing.cores_by, sizing.disk_by):
        assert [d.value for d in drivers] == sorted((d.value for d in drivers), reverse=True)
        assert sum(d.share for d in drivers) == pytest.approx(1)


@given(workloads)
def test_what_is_doubled_shows_where_it_must(workload: Workload) -> None:
    rows = {row.what: row for row in sensitivity(workload, FIGURES)}
    # Groups that grow beyond 500 members have no timelines any more: they may cost less.
    rows.pop("group members", None)
    # Of two IDCs each must hold all; of four a third more than its part, which can be fewer cores.
    rows.pop("IDCs, same number of losses", None)
    for row in rows.values():
        assert min(row.cores, row.disk, row.wan) >= 1 - 1e-9, row
    assert rows["daily users"].wan == pytest.approx(2)
    assert rows["daily users"].disk == pytest.approx(2)
    if workload.replication_factor <= 4:  # at most nine copies
        assert rows["copies within an IDC"].disk == pytest.approx(2)
    assert rows["peak, same daily mean"].disk == pytest.approx(1)


def test_survivors_can_be_fewer_or_all() -> None:
    workload = example().model_copy(update={"idcs": 4})
    gateways = [
        role(size(workload.model_copy(update={"survivors": n}), FIGURES), "gateway")
        for n in (1, 2, 3, 4)
    ]
    assert gateways == sorted(gateways, reverse=True)
    assert gateways[0] > gateways[3]
    everything = size(workload.model_copy(update={"survivors": 4}), FIGURES)
    assert "no IDC may be lost" in everything.notes[0]


# ----------------------------------------------------------------------------------- figures


def hops_of_the_page() -> dict[str, list[int]]:
    """The table of docs/benchmarks.md: 1 IDC plain, 1 IDC TLS, 1 of 3 IDCs TLS."""
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    table = text[text.index("| hop | 1 IDC, plain, 500/s") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: [int(cell) for cell in row[1:]] for row in rows[2:] if "idle" not in row[0]}


def test_measured_figures_are_those_of_the_page() -> None:
    hops = hops_of_the_page()
    tls = {name: row[1] for name, row in hops.items()}
    of_three = {name: row[2] for name, row in hops.items()}
    folds = ("fold: apply", "fold: fold", "fold: read rows", "fold: commit")
    expected = {
        "gateway_in_us": tls["gateway: frames in"],
        "state_request_us": tls["state: request, answer"],
        "im_check_us": tls["im: check, sequence"],
        "log_append_us": tls["log: append, commit"] + tls["log: write, fsync (threads)"],
        "im_ack_us": tls["im: ack"],
        "fold_us": sum(tls[name] for name in folds),
        "push_entries_us": tls["push: entries"],
        "push_session_us": tls["push: sessions"] / 2,
        "gateway_out_us": tls["gateway: frames out"] / 3,
        "signals_us": of_three["push: signals to IDCs"],
        "mirror_us": of_three["mirror: serve, copy, wake appliers"],
        "rest_share": tls["rest"] / (tls["all"] - tls["rest"]),
        "batching": 598 / tls["all"],
    }
    assert "us/msg | 598 |" in (ROOT / "docs" / "benchmarks.md").read_text()
    for name, measured in expected.items():
        assert FIGURES[name] == pytest.approx(measured, rel=0.002), name


def test_the_model_gives_back_the_benchmark_that_it_was_made_of() -> None:
    """One IDC, pairs, two devices a message: 598 us of CPU at 1,000/s."""
    pairs = Workload(
        daily_users=1e6, online_share=1, devices=1, peak_messages_s=1_000,
        groups=(Group(members=2, share=1),), connects_per_day=0, heartbeat_s=3600,
    )  # fmt: skip
    assert pairs.pushes == 2
    alone = FIGURES.with_(
        {"role_call_us": 0, "heartbeat_us": 0,
         "mirror_us": hops_of_the_page()["mirror: serve, copy, wake appliers"][1],
         "signals_us": hops_of_the_page()["push: signals to IDCs"][1]}, "one IDC",
    )  # fmt: skip
    loads = Loads(pairs, alone)
    cores = sum(sum(loads.of(name, 1.0).values()) for name in HOPS)
    assert cores * 1e6 / 1_000 == pytest.approx(598, rel=0.01)


def test_the_assumption_that_matters_most_is_named_first() -> None:
    rows = assumptions(example(), FIGURES)
    assert all(row.what in FIGURES and FIGURES.figure(row.what).assumed for row in rows)
    # By hand: stores are bound by their minimum; half the cores of a machine would matter most.
    assert rows[0].cores > 1.05
    measured = FIGURES.with_({name: FIGURES[name] for name in FIGURES}, "measured")
    assert assumptions(example(), measured) == []


def test_bytes_of_a_message_are_what_the_codecs_make() -> None:
    now = message_bytes()
    measured = {
        "record_bytes": now.record,
        "row_bytes": now.rows,
        "row_writes": now.writes,
        "shadow_bytes": now.shadows,
        "push_bytes": now.push,
    }
    for name, found in measured.items():
        assert FIGURES[name] == pytest.approx(found, rel=0.02), name


def test_every_figure_says_where_it_comes_from_and_is_used() -> None:
    used = "".join(path.read_text() for path in (ROOT / "imctl" / "capacity").glob("*.py"))
    for name in FIGURES:
        figure = FIGURES.figure(name)
        assert figure.source and figure.meaning and figure.unit, name
        assert f'"{name}"' in used, name
        page = re.match(r"(docs/[a-z]+\.md|services/[a-z_/]+\.py)", figure.source)
        assert figure.assumed or page is None or (ROOT / page[1]).exists(), name


def test_limits_of_the_code_are_those_of_the_code() -> None:
    from imcore.region.model import Messages, RegionSpec
    from imctl.capacity.engines import TIMELINE_MEMBERS_MAX
    from imctl.capacity.model import PARTITIONS_MAX
    from services.gateway.config import GatewayConfig

    assert FIGURES["gateway_connections"] == GatewayConfig().connections_max
    assert Messages().push_group_members_max == TIMELINE_MEMBERS_MAX
    le = [m.le for m in RegionSpec.model_fields["partitions"].metadata if hasattr(m, "le")]
    assert le == [PARTITIONS_MAX]


def test_what_rests_on_an_assumption_is_marked_and_a_given_figure_is_not() -> None:
    before = size(example(), FIGURES)
    link = next(line for line in before.network if line.name == "wan_link")
    assert link.assumed == ["wan_overhead"]
    figures = FIGURES.with_({"wan_overhead": "1.1"}, "--set")
    after = size(example(), figures)
    assert next(line for line in after.network if line.name == "wan_link").assumed == []
    shown = {row[0]: row[1] for section in view.sections(after) for row in section.rows}
    assert shown["Required link bandwidth, each way"].startswith("~") is False
    assert shown["Total on disk, all IDCs"].startswith("~ ")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("fold", 3, "x: expected the name of a figure, got 'fold'; did you mean fold_us?"),
        ("fold_us", "y", "x: fold_us: expected a number such as 18M, 1e9 or 2.5, got 'y'"),
        ("fold_us", -1, "x: fold_us: expected more than 0, got -1"),
        ("store_tb", 0, "x: store_tb: expected more than 0, got 0"),
        ("disk_fill", 2, "x: disk_fill: expected at most 1, got 2"),
    ],
)
def test_a_wrong_figure_is_refused(name: str, given: object, message: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
        FIGURES.with_({name: given}, "x")


# ------------------------------------------------------------------------------------ numbers


def test_numbers_as_people_write_them() -> None:
    assert [number(text) for text in ("18M", "1B", "1e9", "2.5", " 3k ", "1_000", 7)] == [
        18e6, 1e9, 1e9, 2.5, 3e3, 1e3, 7.0,
    ]  # fmt: skip
    for wrong in ("", "M", "-1", "1 000", "1MM", "nan", "inf", float("inf"), True, None, [1]):
        with pytest.raises(ValueError, match="number"):
            number(wrong)


def test_numbers_as_people_read_them() -> None:
    assert [short(v, u) for v, u in [(1e15, "B"), (18e6, "msg/s"), (58.1e9, "bit/s"), (390e6, ""),
                                     (0.31, "s"), (316, "s"), (7_300, "s"), (999_999, "B"),
                                     (0, ""), (1e12, "msg")]] == [
        "1 PB", "18M msg/s", "58.1 Gbit/s", "390M", "0.310 s", "5.27 min", "2.03 h", "1.00 MB",
        "0", "1tn msg",
    ]  # fmt: skip
