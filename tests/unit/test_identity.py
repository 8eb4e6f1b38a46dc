"""Settling an incarnation when the answer to its commit is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from imcore.convert import origin_pb
from imcore.errors import OutcomeUnknown, Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.control.caspaxos import Proposer
from services.engines.disk import RealDisk
from services.engines.log_store import SegmentLogStore
from services.im.incarnation import Register
from services.node import identity


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
            "fra", 1, store, cast(Proposer, registers), {}, frozenset(), SystemClock()
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
