"""One partition on a real log and a real KV: failed appends, repairs, and acting on seals."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.attest import RegionKeys, content_hash
from imcore.convert import key_pb, origin_of
from imcore.errors import ImError, Unavailable
from imcore.hlc import Hlc
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.runtime import SystemClock
from imcore.words import Attested, ClientKey, Lane, Origin, Place
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.engines.records import record_after
from services.im import keys
from services.im.fold import Effects
from services.im.incarnation import Register, Seal
from services.im.partition import Outcome, Partition
from services.im.sequencer import Accepted, Submission
from services.node.seals import Seals

FRA, FRA_2, IAD, SIN = Origin("fra", 1), Origin("fra", 2), Origin("iad", 1), Origin("sin", 1)
KEYS = RegionKeys({1: b"k" * 32}, 1)
CONVERSATION = "d:ann:bob"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = RealDisk()  # of the log
        self.partition: Partition
        self.told: list[tuple[Origin, int]] = []  # entries that could be pushed
        self.friends: list[oplog.FriendRow] = []  # what ann and bob were told to be

    async def start(self, origin: Origin = FRA, seals: Seals | None = None) -> None:
        self.seals = seals or Seals()
        self.store = await SegmentLogStore.open(
            str(self.folder / "log"), 1, self.disk, random.Random(1)
        )
        self.kv = await LmdbKv.open(str(self.folder / "kv"), RealDisk())
        log = await self.store.open_own(origin)
        self.partition = Partition(
            0, origin, log, self.kv, self.store, Hlc(), SystemClock(), 1, 2,
            self._tell, 500,
        )  # fmt: skip
        self.partition.seal_of = self.seals.of
        await self.partition.open(b"sequencer")
        self.applying = asyncio.ensure_future(self.partition.applier.run())

    async def stop(self) -> None:
        self.applying.cancel()
        await asyncio.gather(self.applying, return_exceptions=True)
        await self.kv.close()
        await self.store.close()

    def _tell(self, number: int, origin: Origin, effects: Effects) -> None:
        """As the im role does: what is withheld cannot be pushed."""
        self.friends += [after for _, after in effects.friends.values()]
        for name, entries in effects.entries.items():
            if self.partition.conversations.get(name) is not None:
                self.told += [(origin, entry.op.seq) for entry in entries]

    async def send(self, cid: int, content: bytes = b"hello") -> Outcome:
        key = ClientKey("ann", "phone", "o1", CONVERSATION, cid)
        submission = Submission(key, content, content_hash(content), 1, None, (), 0, 0)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        while not self.partition.submit(submission, answer.set_result):
            await self.partition.prepare(Lane(*key[:4]), 1)
        return await answer

    async def act(self) -> int:
        async with asyncio.timeout(5):
            published = await self.seals.act(self.store, {0: self.partition})
            await self.partition.conversations.load(CONVERSATION)
        return published

    async def mirrored(self, origin: Origin, *cids: int) -> None:
        """Messages that another origin has accepted, one a record."""
        copy = await self.store.open_copy(origin)
        for cid in cids:
            op = oplog.Op(hlc=cid, conversation=CONVERSATION, seq=cid)
            op.message.key.CopyFrom(key_pb(ClientKey("ann", "phone", "o1", CONVERSATION, cid)))
            op.message.content, op.message.content_hash = b"hello", content_hash(b"hello")
            await copy.append_copy([record_after(copy.end(0), 0, 1, op.SerializeToString())])
        self.partition.applier.wake()
        async with asyncio.timeout(5):
            await self.partition.applier.drain()

    async def copies(self, cid: int) -> list[Origin]:
        """The origins of a message's copies."""
        key = keys.client_key(0, ClientKey("ann", "phone", "o1", CONVERSATION, cid))
        row = oplog.ClassRow.FromString(await self.kv.get(key) or b"")
        return [origin_of(copy.origin) for copy in row.copies]

    async def seqs(self) -> list[int]:
        own = self.store.own()
        assert own is not None
        records = await own.read(0, 1, 1 << 30)
        ops = [oplog.Op.FromString(record.payload) for record in records]
        return [op.seq for op in ops if op.conversation == CONVERSATION and op.seq]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.start()
    yield bench
    await bench.stop()


def a_claim() -> Attested:
    key = ClientKey("bob", "phone", "o1", CONVERSATION, 1)
    return KEYS.attest(key, b"h", IAD, 1, Place(1, IAD, 1))


async def test_no_seq_is_lost_to_what_is_asked_while_a_log_is_repaired(bench: Bench) -> None:
    """A seq that no record carries would be a hole that no pull can ever fill (rule 9)."""
    assert isinstance(await bench.send(1), Accepted)
    bench.disk.faults.full = True
    assert isinstance(await bench.send(2), ImError)
    bench.disk.faults.full = False
    bench.disk.faults.fsync_delay_ms = 100  # the marker of the new epoch is long on its way

    async def ask_all_the_time() -> None:
        original = oplog.Op(hlc=1, conversation=CONVERSATION, seq=9)
        original.membership.changes.add(uid="ann", member=True)
        while bench.partition.alarm is not None:
            # As groups do; then what a device claims, and what is published again.
            with contextlib.suppress(ImError):
                sequencer = bench.partition.sequencer
                await bench.partition.append(
                    sequencer.membership(CONVERSATION, [("ann", True)], "ann", 1, 1, 0)
                )
            with contextlib.suppress(ImError):
                await bench.partition.claim([a_claim()], 0)
            with contextlib.suppress(ImError):
                await bench.partition.republish(IAD, [original])
            await asyncio.sleep(0.005)

    await ask_all_the_time()
    bench.disk.faults.fsync_delay_ms = 0
    assert isinstance(await bench.send(2), Accepted)
    seqs = await bench.seqs()
    assert seqs == list(range(1, len(seqs) + 1))


async def test_a_repair_that_fails_in_whatever_way_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain, failures = bench.partition.applier.drain, [LookupError("a gap"), ValueError("a bug")]

    async def failing() -> None:
        if failures:
            raise failures.pop(0)
        await drain()

    bench.disk.faults.full = True
    assert isinstance(await bench.send(1), ImError)
    bench.applying.cancel()
    await asyncio.gather(bench.applying, return_exceptions=True)
    monkeypatch.setattr(bench.partition.applier, "drain", failing)
    bench.disk.faults.full = False
    said = set()
    async with asyncio.timeout(5):
        while (alarm := bench.partition.alarm) is not None:
            said.add(alarm.rpartition(": ")[2])
            await asyncio.sleep(0.01)
    assert {"a gap", "a bug"} <= said
    assert isinstance(await bench.send(1), Accepted)


# --------------------------------------------------------------------------------- above a seal


def sealed(origin: Origin, lsn: int) -> Seals:
    seals = Seals()
    seals.learn(
        origin.idc, Register(origin.incarnation + 1, "", 1, (Seal(origin.incarnation, (lsn,)),))
    )
    return seals


async def restart(bench: Bench, origin: Origin, seals: Seals) -> None:
    await bench.stop()
    await bench.start(origin, seals)


async def test_what_an_earlier_life_acked_above_its_seal_is_not_held_elsewhere(
    bench: Bench,
) -> None:
    """Told `replicated`, the sender would forget it, and then it is folded out."""
    for cid in (1, 2, 3):
        assert isinstance(await bench.send(cid), Accepted)
    await restart(bench, FRA_2, sealed(FRA, 2))  # the marker and message 1
    assert isinstance(await bench.send(3), Unavailable)
    assert await bench.act() == 2
    assert sum(bench.seals.published.values()) == 2  # as the status document tells
    below, answer = await bench.send(1), await bench.send(3)
    assert isinstance(below, Accepted) and isinstance(answer, Accepted)
    assert below.known and not below.elsewhere
    assert answer.known and not answer.elsewhere
    assert answer.lsn >= 3  # its copy in the own log, which is to be held by others first
    assert await bench.copies(3) == [FRA_2]


def a_friend(number: int, **what: bool) -> oplog.Op:
    op = oplog.Op(hlc=number, conversation=CONVERSATION)
    op.friend.actor, op.friend.order.hlc = "ann", number
    for name, value in what.items():
        setattr(op.friend, name, value)
    return op


async def test_friends_and_roles_above_a_seal_are_published_again(bench: Bench) -> None:
    """A request, then a block and a role above the seal: all of it stands, before and after; and
    what is told last is what stands."""
    for op in (a_friend(1, wants=True), a_friend(2, blocks=True)):
        await bench.partition.append(op)
    role = pb.RoleChange(uid="bob", role=pb.GROUP_ROLE_OWNER)
    sequencer = bench.partition.sequencer
    both = [("ann", True), ("bob", True)]
    group = sequencer.membership("g:team", both, "ann", 0, 1, 0, True, "team", [role])
    await bench.partition.append(group)
    await bench.partition.applier.drain()
    before = await bench.partition.conversations.load(CONVERSATION)
    assert before.friends.blocked_low.on
    await restart(bench, FRA_2, sealed(FRA, 2))  # the marker and the request
    read = await bench.partition.conversations.load(CONVERSATION)
    assert read.friends == before.friends
    bench.friends.clear()
    assert await bench.act() == 2
    await bench.partition.applier.drain()
    after = await bench.partition.conversations.load(CONVERSATION)
    assert after.friends == before.friends
    assert bench.friends[-1] == before.friends
    team = await bench.partition.conversations.load("g:team")
    assert (team.roles().owner, team.name) == ("bob", "team")
    rows = [await bench.kv.get(keys.friend(0, *who)) for who in (("ann", "bob"), ("bob", "ann"))]
    assert [oplog.FriendRow.FromString(row or b"") for row in rows] == [before.friends] * 2


async def test_a_copy_of_another_idc_counts_unless_it_lies_above_a_seal(bench: Bench) -> None:
    await bench.mirrored(IAD, 1, 2)
    for cid in (1, 2):
        answer = await bench.send(cid)
        assert isinstance(answer, Accepted) and answer.elsewhere
    bench.seals.learn("iad", Register(2, "", 1, (Seal(1, (1,)),)))
    assert isinstance(await bench.send(2), Unavailable)
    assert await bench.act() == 1
    answer = await bench.send(2)
    assert isinstance(answer, Accepted) and not answer.elsewhere
    assert await bench.copies(2) == [FRA]


@pytest.mark.parametrize("held", [2, 3], ids=["up to the seal", "some above it"])
async def test_what_was_folded_above_a_seal_is_published_though_the_log_lost_it(
    bench: Bench, held: int
) -> None:
    for cid in range(1, 6):
        assert isinstance(await bench.send(cid), Accepted)
    seals = sealed(FRA, 2)
    await restart(bench, FRA_2, seals)
    await bench.store.held()[FRA].cut_above(0, held)
    assert await bench.act() == 4
    assert [await bench.copies(cid) for cid in range(1, 6)] == [[FRA]] + [[FRA_2]] * 4


async def test_a_log_that_is_not_here_up_to_the_seal_is_waited_for(bench: Bench) -> None:
    for cid in (1, 2):
        assert isinstance(await bench.send(cid), Accepted)
    records = await bench.store.held()[FRA].read(0, 1, 1 << 20)
    await restart(bench, FRA_2, sealed(FRA, 2))
    copy = bench.store.held()[FRA]
    await copy.cut_above(0, 1)
    with pytest.raises(Unavailable, match="not here yet"):
        await bench.act()
    assert isinstance(await bench.send(2), Unavailable)
    await copy.append_copy(records[:2])  # its mirror has fetched what counts
    assert await bench.act() == 1
    assert await bench.copies(2) == [FRA_2]


async def test_a_lane_forgets_what_a_rebuild_has_folded_out(bench: Bench) -> None:
    """Else its sender is told for ever that the message is being applied."""
    await bench.mirrored(IAD, 1)
    assert isinstance(await bench.send(1), Accepted)
    await bench.partition.applier.seal({IAD: 0})
    await bench.partition.conversations.load(CONVERSATION)
    answer = await bench.send(1)
    assert isinstance(answer, Accepted) and not answer.known


async def test_a_rebuild_does_not_give_out_a_seq_again_that_is_on_its_way(bench: Bench) -> None:
    await bench.mirrored(IAD, 1)
    assert isinstance(await bench.send(2), Accepted)
    bench.disk.faults.fsync_delay_ms = 300
    slow = asyncio.ensure_future(bench.send(3))
    await asyncio.sleep(0.05)
    await bench.partition.applier.seal({IAD: 0})
    await bench.partition.conversations.load(CONVERSATION)
    assert not slow.done()
    again, first = await asyncio.gather(bench.send(3), bench.send(1))
    accepted = await slow
    assert isinstance(again, Accepted) and isinstance(accepted, Accepted)
    assert (again.seq, again.known) == (accepted.seq, True)  # joined, not accepted twice
    assert isinstance(first, Accepted)
    assert await bench.seqs() == [1, 2, 3]


async def test_what_comes_in_while_a_partition_is_folded_again_is_told_once_it_is_whole(
    bench: Bench,
) -> None:
    """Nobody is pushed it before, so without that a receiver never hears of it."""
    await bench.mirrored(IAD, 1, 2)
    await bench.mirrored(SIN, 1)
    assert bench.told == [(IAD, 1), (IAD, 2), (SIN, 1)]
    bench.told.clear()
    bench.applying.cancel()  # the rebuild waits
    await asyncio.gather(bench.applying, return_exceptions=True)
    await bench.partition.applier.seal({IAD: 1})
    assert bench.partition.conversations.get(CONVERSATION) is None
    await bench.mirrored(SIN, 2, 3)
    assert bench.told == [(SIN, 2), (SIN, 3)]
    await bench.mirrored(SIN, 4)
    assert bench.told == [(SIN, 2), (SIN, 3), (SIN, 4)]


async def test_what_a_second_seal_folds_out_meanwhile_is_not_told(bench: Bench) -> None:
    await bench.mirrored(IAD, 1, 2)
    bench.told.clear()
    bench.applying.cancel()
    await asyncio.gather(bench.applying, return_exceptions=True)
    await bench.partition.applier.seal({IAD: 1})
    copy = await bench.store.open_copy(SIN)
    op = oplog.Op(hlc=1, conversation=CONVERSATION, seq=1)
    op.message.key.CopyFrom(key_pb(ClientKey("bob", "phone", "o1", CONVERSATION, 1)))
    await copy.append_copy([record_after(copy.end(0), 0, 1, op.SerializeToString())])
    applier = bench.partition.applier
    await applier._one_batch(SIN, copy)  # the drain is not done yet
    await applier.seal({SIN: 0})
    await applier.drain()
    assert bench.told == []
