"""Routes: ordered by (connection epoch, hlc), alike whatever order they are folded in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin
from services.route.table import DEVICES_KEPT, GONE_MS, RouteTable

FRA, IAD = Origin("fra", 1), Origin("iad", 2)


def op(epoch: int, gateway: str = "gw", device: str = "phone", gone: bool = False) -> oplog.RouteOp:
    return oplog.RouteOp(
        uid="ann", device=device, connection_epoch=epoch, gateway=gateway, connection=1, gone=gone
    )


def everywhere(idc: str, gateway: str) -> bool:
    return True


def test_the_newer_connection_has_the_route_whichever_is_folded_first():
    for order in ([(FRA, 10, 1), (IAD, 5, 2)], [(IAD, 5, 2), (FRA, 10, 1)]):
        table = RouteTable()
        for origin, hlc, epoch in order:
            table.apply(origin, hlc, op(epoch))
        assert table.routes("ann")["phone"].origin == IAD
        assert table.idcs_of(["ann"], everywhere) == {"iad": ["ann"]}


def test_equal_epochs_are_ordered_by_hlc():
    table = RouteTable()
    assert table.apply(IAD, 11, op(3))
    assert not table.apply(FRA, 10, op(3))
    assert table.idcs_of(["ann"], everywhere) == {"iad": ["ann"]}


def test_a_late_goodbye_of_an_older_connection_takes_nothing_away():
    table = RouteTable()
    table.apply(FRA, 10, op(1))
    table.apply(IAD, 20, op(2))
    assert not table.apply(FRA, 30, op(1, gone=True))
    assert table.idcs_of(["ann"], everywhere) == {"iad": ["ann"]}


def test_a_connection_that_is_gone_does_not_come_back_with_an_older_one():
    table = RouteTable()
    table.apply(IAD, 20, op(2))
    table.apply(IAD, 30, op(2, gone=True))
    table.apply(FRA, 10, op(1))
    assert table.idcs_of(["ann"], everywhere) == {}


def test_an_idc_is_named_once_for_a_user_with_two_devices_there():
    table = RouteTable()
    table.apply(FRA, 10, op(1))
    table.apply(FRA, 11, op(1, device="desk"))
    table.apply(IAD, 12, op(1, device="watch"))
    assert table.idcs_of(["ann", "nobody"], everywhere) == {"fra": ["ann"], "iad": ["ann"]}


steps = st.lists(
    st.tuples(st.sampled_from((FRA, IAD)), st.integers(1, 6), st.integers(1, 3), st.booleans()),
    unique_by=lambda step: (step[0], step[1]),  # an origin gives out an HLC once
    max_size=6,
)


@given(steps.flatmap(lambda s: st.tuples(st.just(s), st.permutations(s))))
def test_every_order_of_folding_gives_the_same_table(orders):
    tables = []
    for order in orders:
        table = RouteTable()
        for origin, hlc, epoch, gone in order:
            table.apply(origin, hlc, op(epoch, gone=gone))
        tables.append(table.routes("ann"))
    assert tables[0] == tables[1]


def test_of_a_user_with_a_new_device_for_each_login_the_last_ones_are_kept():
    table, hour = RouteTable(), GONE_MS << 16
    assert table.apply(FRA, 1, op(1, device="first"))  # and it stays
    for number in range(1_000):
        hlc = hour + number * (hour // 100)
        device = f"web{number:04}"
        assert table.apply(FRA, hlc, op(1, device=device))
        assert table.apply(FRA, hlc + 1, op(1, device=device, gone=True))
    kept = table.routes("ann")
    assert len(kept) < DEVICES_KEPT + 105  # those of the last hour too
    assert {"first", "web0999", "web0900"} <= kept.keys() and "web0800" not in kept
    assert table.idcs_of(["ann"], everywhere) == {"fra": ["ann"]}
