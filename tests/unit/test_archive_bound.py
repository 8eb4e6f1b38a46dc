"""How far an archive may reach: as far as the IDC of those that count that has applied least."""

from __future__ import annotations

from typing import Any, cast

import pytest

from imcore.errors import Code, ImError, Refused, Unavailable
from imcore.proto import peer_pb2 as pb
from imctl import admin
from imctl.archive import pull
from imctl.reach import Reach


class Three:
    """A deployment of which nothing but the names is asked."""

    class region:
        class spec:
            idcs = tuple(type("Idc", (), {"name": name}) for name in ("fra", "iad", "sin"))


async def bound(patch: pytest.MonkeyPatch, **answers: pb.ClosedReply | ImError) -> pull.Bound:
    async def closed(target: Any, name: str) -> pb.ClosedReply:
        answer = answers[name]
        if isinstance(answer, ImError):
            raise answer
        return answer

    patch.setattr(admin, "closed", closed)
    return await pull.bound(cast(Reach, Three()))


def at(hlc: int, *retired: str) -> pb.ClosedReply:
    return pb.ClosedReply(hlc=hlc, retired=retired)


async def test_the_one_that_has_applied_least_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await bound(monkeypatch, fra=at(9), iad=at(4), sin=at(7))
    assert (found.hlc, list(found.idcs)) == (4, ["fra", "iad", "sin"])


async def test_one_that_is_away_is_waited_for_until_it_is_retired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = Unavailable("iad does not answer")
    with pytest.raises(Unavailable, match="iad does not answer, and only what every IDC"):
        await bound(monkeypatch, fra=at(9), iad=away, sin=at(7))
    found = await bound(monkeypatch, fra=at(9, "iad"), iad=away, sin=at(7, "iad"))
    assert (found.hlc, list(found.idcs)) == (7, ["fra", "sin"])
    found = await bound(monkeypatch, fra=at(9, "iad"), iad=at(1, "iad"), sin=at(7, "iad"))
    assert found.hlc == 7  # it answers, and is retired all the same
    with pytest.raises(Refused):
        refused = Refused(Code.FORBIDDEN, "no")
        await bound(monkeypatch, fra=at(9, "iad"), iad=refused, sin=at(7, "iad"))


def test_what_an_idc_has_applied_is_by_partition() -> None:
    reply = pb.ClosedReply()
    ends = reply.ends.add(origin={"idc": "fra", "incarnation": 2})
    ends.applied.add(partition=2, lsn=5)
    ends.applied.add(partition=0, lsn=3)
    assert pull.applied(reply) == {"fra.2": [3, 0, 5]}
