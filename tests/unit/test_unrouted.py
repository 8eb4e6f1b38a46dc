"""Routes that the log did not take: what is kept of them, and what is said of them later."""

from __future__ import annotations

import pytest

from imcore.proto import oplog_pb2 as oplog
from services.im import unrouted
from services.im.unrouted import Unrouted, said_later


def op(
    epoch: int, gone: bool = False, uid: str = "ann", device: str = "p", hlc_ms: int = 1_000,
    away_ms: int = 0,
) -> oplog.Op:  # fmt: skip
    route = oplog.RouteOp(
        uid=uid, device=device, connection_epoch=epoch, gone=gone, away_ms=away_ms
    )
    return oplog.Op(hlc=hlc_ms << 16, route=route)


def test_the_last_word_of_a_device_is_said_again_once():
    kept = Unrouted()
    for word in (op(1), op(1, gone=True), op(2), op(1, gone=True)):
        kept.failed(word)
    assert kept.of("ann") == [op(2)]
    assert kept.take(lambda uid: uid != "ann") == []
    assert kept.take(lambda uid: True) == [op(2)]
    assert kept.take(lambda uid: True) == [] and len(kept) == 0


@pytest.mark.parametrize(("written", "left"), [(1, 1), (2, 0), (3, 0)])
def test_what_is_overtaken_is_not_said_again(written, left):
    kept = Unrouted()
    kept.failed(op(2))
    kept.overtaken(op(written).route)
    assert len(kept) == left


def test_it_is_bounded(monkeypatch):
    monkeypatch.setattr(unrouted, "KEPT_MAX", 2)
    monkeypatch.setattr(unrouted, "AT_ONCE", 1)
    kept = Unrouted()
    for uid in ("ann", "bob", "eve"):
        kept.failed(op(1, uid=uid))
    assert kept.take(lambda uid: True) == [op(1, uid="bob")]
    assert len(kept) == 1


def test_what_is_said_later_says_since_when():
    assert said_later(op(1), 9_000 << 16).since_hlc == 1_000 << 16
    again = oplog.Op(hlc=9_000 << 16, route=said_later(op(1), 9_000 << 16))
    assert said_later(again, 20_000 << 16).since_hlc == 1_000 << 16
    assert said_later(op(1, gone=True, away_ms=50), 9_000 << 16).away_ms == 8_050
    month_ms = 1 << 33
    assert said_later(op(1, gone=True), month_ms << 16).away_ms == (1 << 32) - 1
