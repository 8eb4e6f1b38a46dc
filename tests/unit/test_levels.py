"""A program waits in front of an op that is above its level, and nobody writes one too early."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from imcore import levels
from imcore.attest import content_hash
from imcore.convert import key_pb
from imcore.errors import Unavailable
from imcore.hlc import Hlc
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Origin
from services.control import levels as control
from services.control.evidence import IdcFacts
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.im import applier as applier_module
from services.im import keys
from services.im.applier import Applier
from services.im.cache import ConversationCache
from services.node import seals as seals_module
from services.node.seals import Seals
from services.ports import Log, Record
from tests.unit.test_caspaxos_shell import formed

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
CONVERSATION = "d:ann:bob"
NOW_MS, AGE_MS = 1_000_000, 3_000


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[tuple[SegmentLogStore, LmdbKv]]:
    store = await SegmentLogStore.open(str(tmp_path / "log"), 1, RealDisk(), random.Random(1))
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk())
    yield store, kv
    await kv.close()
    await store.close()


def applier_of(store: SegmentLogStore, kv: LmdbKv) -> Applier:
    return Applier(0, kv, store, ConversationCache(kv, 0), Hlc(), lambda origin, effects: None)


def message(seq: int, level: int = 0) -> oplog.Op:
    op = oplog.Op(hlc=seq, conversation=CONVERSATION, seq=seq, level=level)
    op.message.key.CopyFrom(key_pb(ClientKey("ann", "phone", "o1", CONVERSATION, seq)))
    op.message.content = b"%d" % seq
    op.message.content_hash = content_hash(op.message.content)
    return op


async def write(log: Log, *ops: bytes) -> None:
    durable: asyncio.Future[Sequence[Record] | Exception]
    durable = asyncio.get_running_loop().create_future()
    log.append(0, 1, list(ops), durable.set_result)
    assert not isinstance(await durable, Exception)


async def shown(kv: LmdbKv) -> int:
    prefix = keys.order_prefix(0, CONVERSATION)
    return len(await kv.scan(prefix, keys.prefix_end(prefix), 100))


def newer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (levels, control, applier_module, seals_module):
        monkeypatch.setattr(module, "LEVEL", levels.LEVEL + 1)


async def test_a_program_waits_in_front_of_what_it_cannot_fold_and_a_newer_one_goes_on(
    rig: tuple[SegmentLogStore, LmdbKv], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, kv = rig
    own, copy = await store.open_own(FRA), await store.open_copy(IAD)
    above = levels.LEVEL + 1
    await write(
        own, *(op.SerializeToString() for op in (message(1), message(2, above), message(3)))
    )
    applier = applier_of(store, kv)
    await applier.open()
    await applier.drain()
    assert applier.applied() == {FRA: 1} and await shown(kv) == 1
    assert applier.alarm is not None and f"lsn 2 of {FRA}" in applier.alarm
    assert f"level {above}" in applier.alarm and "start the newer one" in applier.alarm

    await write(own, message(4).SerializeToString())
    await applier.drain()  # what comes behind it waits with it
    assert applier.lsn(FRA) == 1
    assert copy is not None

    newer_program(monkeypatch)
    newer = applier_of(store, kv)
    await newer.open()
    await newer.drain()
    assert newer.applied() == {FRA: 4} and await shown(kv) == 4 and newer.alarm is None


async def test_an_op_that_says_nothing_known_waits_too(
    rig: tuple[SegmentLogStore, LmdbKv],
) -> None:
    """As an older program sees a new kind of op: fields that it does not know, and no body."""
    store, kv = rig
    own = await store.open_own(FRA)
    unknown = oplog.Op(hlc=2).SerializeToString() + bytes((0xFA, 0x3F, 2, 8, 1))  # field 1023
    await write(own, message(1).SerializeToString(), unknown)
    applier = applier_of(store, kv)
    await applier.open()
    await applier.drain()
    assert applier.lsn(FRA) == 1 and applier.above_level is not None


async def test_what_a_seal_cuts_off_is_not_waited_for(
    rig: tuple[SegmentLogStore, LmdbKv],
) -> None:
    store, kv = rig
    own = await store.open_own(FRA)
    await write(own, message(1).SerializeToString(), message(2, 99).SerializeToString())
    applier = applier_of(store, kv)
    await applier.open()
    await applier.drain()
    assert applier.alarm is not None
    await applier.seal({FRA: 1})
    assert applier.alarm is None


async def test_ops_above_a_seal_are_not_published_again_by_a_program_that_cannot_read_them(
    rig: tuple[SegmentLogStore, LmdbKv],
) -> None:
    store, _ = rig
    own = await store.open_own(FRA)
    await write(own, message(1).SerializeToString(), message(2, 99).SerializeToString())

    class Untouched:
        number = 0

    with pytest.raises(Unavailable, match="a newer program"):
        await Seals()._publish_held(FRA, own, Untouched(), 0)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- who may write


def facts(level: int, age_ms: int = 100) -> IdcFacts:
    return IdcFacts(at_ms=NOW_MS - age_ms, level=level)


@pytest.mark.parametrize(
    ("heard", "level"),
    [
        ({"fra": facts(2), "iad": facts(2), "sin": facts(3)}, 2),
        ({"fra": facts(2), "iad": facts(1), "sin": facts(2)}, 1),
        ({"fra": facts(2), "iad": facts(2)}, 0),
        ({"fra": facts(2), "iad": facts(2), "sin": facts(2, AGE_MS + 1)}, 0),
        ({}, 0),
    ],
)
def test_a_level_is_agreed_on_once_all_have_said_it_lately(
    heard: dict[str, IdcFacts], level: int
) -> None:
    assert control.agreed(["fra", "iad", "sin"], heard, NOW_MS, AGE_MS) == level


async def test_a_level_is_raised_when_the_last_idc_folds_it_and_never_lowered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registries, proposers = await formed()
    older = control.Levels(proposers["iad"], lambda: levels.LEVEL)
    newer_program(monkeypatch)
    top, said = levels.LEVEL, [levels.FIRST]
    here = control.Levels(proposers["fra"], lambda: said[0])
    assert await here.look() and here.committed == levels.FIRST
    said[0] = top
    assert await here.look() and here.committed == top
    said[0] = 0  # one of them is lost: what is agreed on stays
    assert await here.look() and here.committed == top
    registries["sin"].away = registries["iad"].away = True
    assert not await here.look() and here.committed == top
    registries["sin"].away = registries["iad"].away = False

    monkeypatch.undo()
    await asyncio.wait_for(older.run(), 5)  # a program below the level says so
    assert older.alarm is not None and "start the newer one" in older.alarm
