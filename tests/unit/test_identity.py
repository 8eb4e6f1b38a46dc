"""Settling an incarnation when the answer to its commit is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from imcore.convert import origin_pb
from imcore.errors import OutcomeUnknown, Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.control import caspaxos
from services.control.caspaxos import Proposer
from services.engines.disk import RealDisk
from services.engines.log_store import SegmentLogStore
from services.im.incarnation import Register
from services.node import identity
from tests.unit.test_caspaxos_shell import Memory


class Registers:
    """One register; the answer to the first commit of each start does not come."""

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.lose = True

    async def read(self, key: str) -> tuple[bytes | None, int]:
        return self.value, 0

    async def change(self, key: str, fn: Callable[[bytes | None], bytes]) -> bytes:
        self.value = fn(self.value)
        if self.lose:
            self.lose = False
            raise OutcomeUnknown("no answer came in time")
        return self.value


async def start(folder: Path, registers: Registers, seed: int = 1) -> Register:
    store = await SegmentLogStore.open(str(folder), 1, RealDisk(), random.Random(seed))
    try:
        settled = await identity.settle(
            "fra", 1, store, cast(Proposer, registers), {}, frozenset, SystemClock()
        )
        return settled.register
    finally:
        await store.close()


async def test_an_idc_knows_its_own_commit_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_RETRY_S", 0.0)
    registers = Registers()
    assert (await start(tmp_path, registers)).incarnation == 1
    registers.lose = True
    again = await start(tmp_path, registers)
    assert (again.incarnation, again.seals) == (1, ())


async def test_an_idc_that_is_cut_off_takes_one_incarnation_though_the_answer_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try would take another one, and seal those before it."""
    monkeypatch.setattr(identity, "_RETRY_S", 0.0)
    registers = Registers()
    assert (await start(tmp_path, registers)).incarnation == 1
    monkeypatch.setattr(identity, "cut_off", lambda own, peers: [(Origin("iad", 1), 0)])
    registers.lose = True
    again = await start(tmp_path, registers, seed=2)
    assert (again.incarnation, [seal.incarnation for seal in again.seals]) == (2, [1])


def test_a_peer_with_more_partitions_is_named_and_not_an_index_error() -> None:
    """One of the region files is wrong; a process that ended by a traceback would not say so."""
    reply = peer.EndsReply()
    row = reply.origins.add(origin=origin_pb(Origin("fra", 1)))
    row.held.add(partition=1, lsn=7)
    assert identity._of("iad", reply, Origin("fra", 1), 2) == ((0, 7), (0, 0))
    with pytest.raises(Unavailable, match=r"iad tells of partition 1 .* 1 partition"):
        identity._of("iad", reply, Origin("fra", 1), 1)


async def test_an_offer_of_an_earlier_start_that_a_minority_took_is_settled_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut off between promise and acceptance, and its own registry alone has the offer: a
    read says what the others hold, a change what that one does."""
    monkeypatch.setattr(caspaxos, "PATIENCE_S", 0.3)
    monkeypatch.setattr(identity, "_RETRY_S", 0.05)
    registries = {name: Late(name) for name in ("fra", "iad", "sin")}

    def proposer(seed: int) -> Proposer:
        return Proposer(registries, "fra", SystemClock(), random.Random(seed))

    others = [
        Proposer(registries, name, SystemClock(), random.Random(name)) for name in ("iad", "sin")
    ]
    members = [proposer(1), *others]
    await asyncio.gather(*(each.ensure_member() for each in members))
    assert (await _settled(tmp_path, members[0])).boot_count == 1

    cut_off = proposer(50)
    call = cut_off._call

    async def call_until_offered(one: Any, *arguments: Any) -> Any:
        slot = one.record.slot("idc/fra") if one.record is not None else None
        if slot is not None and one.name != "fra" and slot.accepted == slot.promised:
            registries["iad"].away = registries["sin"].away = slot.value is not None
        return await call(one, *arguments)

    monkeypatch.setattr(cut_off, "_call", call_until_offered)
    with pytest.raises(TimeoutError):
        await _settled(tmp_path, cut_off, within_s=1.0)
    registries["iad"].away = registries["sin"].away = False
    for each in (cut_off, *members):
        await each.close()
    assert (await _settled(tmp_path, proposer(51), within_s=10.0)).boot_count == 3


async def _settled(folder: Path, proposer: Proposer, within_s: float = 10.0) -> Register:
    store = await SegmentLogStore.open(str(folder), 1, RealDisk(), random.Random(1))
    try:
        async with asyncio.timeout(within_s):
            settled = await identity.settle("fra", 1, store, proposer, {}, frozenset, SystemClock())
        return settled.register
    finally:
        await store.close()


class Late(Memory):
    """Of another IDC: what it says takes a while."""

    async def _reach(self) -> None:
        if self.name != "fra":
            await asyncio.sleep(0.03)
        await super()._reach()
