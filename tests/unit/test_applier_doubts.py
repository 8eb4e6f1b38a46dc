"""What others see while a write of the KV is under way, and after one whose outcome nobody knows.

Real engines; ``Gate`` holds one call of the KV back, or leaves its caller in doubt.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from imcore.attest import RegionKeys, content_hash
from imcore.convert import key_pb, origin_pb, place_pb
from imcore.errors import OutcomeUnknown, StaleWriter, Unavailable
from imcore.hlc import Hlc
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.runtime import SystemClock
from imcore.words import ClientKey, Lane, Origin, Place
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.engines.records import record_after
from services.im import applier as applier_module
from services.im import keys
from services.im import partition as partition_module
from services.im.conversation import Conversation
from services.im.fold import Effects
from services.im.incarnation import Register, Seal
from services.im.partition import Outcome, Partition
from services.im.sequencer import Accepted, Submission
from services.im.testing import Idc
from services.node.seals import Seals

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
NAME = "d:ann:bob"
KEYS = RegionKeys({1: b"k" * 32}, 1)

Hook = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


class Gate:
    """A KV of which single calls are intercepted: ``on["commit"]`` gets the call to make."""

    def __init__(self, kv: LmdbKv) -> None:
        self.kv = kv
        self.on: dict[str, Hook] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.kv, name)
        if name not in self.on:
            return real

        async def called(*args: Any, **named: Any) -> Any:
            hook = self.on.get(name)
            return await (hook(lambda: real(*args, **named)) if hook else real(*args, **named))

        return called

    def hold(self, name: str, done: bool) -> tuple[asyncio.Event, asyncio.Event]:
        """The next such call waits, before or after it is done; (it waits, it may go on)."""
        waits, go = asyncio.Event(), asyncio.Event()

        async def hook(call: Callable[[], Awaitable[Any]]) -> Any:
            del self.on[name]
            result = await call() if done else None
            waits.set()
            await go.wait()
            return result if done else await call()

        self.on[name] = hook
        return waits, go

    def doubt(self, name: str, *done: bool) -> None:
        """The next such calls end in doubt, each done or not."""
        left = list(done)

        async def hook(call: Callable[[], Awaitable[Any]]) -> Any:
            if left.pop(0):
                await call()
            if not left:
                del self.on[name]
            raise OutcomeUnknown("the KV did not answer")

        self.on[name] = hook


class Bench:
    def __init__(self, kv: Gate, store: SegmentLogStore, partition: Partition) -> None:
        self.kv, self.store, self.partition = kv, store, partition
        self.applier = partition.applier
        self.seals = Seals()
        partition.seal_of = self.seals.of
        self.told: list[tuple[Origin, int]] = []

    def tell(self, number: int, origin: Origin, effects: Effects) -> None:
        for key in effects.keys:
            self.partition.sequencer.folded(key)
        for entries in effects.entries.values():
            self.told += [(origin, entry.op.seq) for entry in entries]

    async def send(self, cid: int, floor: int = 1) -> Outcome:
        key = ClientKey("ann", "phone", "o1", NAME, cid)
        content = b"hello"
        submission = Submission(key, content, content_hash(content), floor, None, (), 0, 0)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(5):
            while not self.partition.submit(submission, answer.set_result):
                await self.partition.prepare(Lane(*key[:4]), floor)
            return await answer

    async def mirrored(self, *ops: oplog.Op) -> None:
        copy = await self.store.open_copy(IAD)
        for op in ops:
            await copy.append_copy([record_after(copy.end(0), 0, 1, op.SerializeToString())])

    def head(self, origin: Origin) -> int | None:
        conversation = self.partition.conversations.get(NAME)
        return None if conversation is None else conversation.heads.get(origin, 0)


def a_message(seq: int, uid: str = "bob") -> oplog.Op:
    op = oplog.Op(hlc=seq, conversation=NAME, seq=seq)
    op.message.key.CopyFrom(key_pb(ClientKey(uid, "phone", "o1", NAME, seq)))
    op.message.content, op.message.content_hash = b"hello", content_hash(b"hello")
    return op


def a_tick(hlc: int) -> oplog.Op:
    op = oplog.Op(hlc=hlc)
    op.tick.SetInParent()
    return op


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if holds():
                return
            await asyncio.sleep(0.001)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await SegmentLogStore.open(str(tmp_path / "log"), 1, RealDisk(), random.Random(1))
    kv = Gate(await LmdbKv.open(str(tmp_path / "kv"), RealDisk()))
    own = await store.open_own(FRA)
    benches: list[Bench] = []
    partition = Partition(
        0, FRA, own, kv, store, Hlc(), SystemClock(), 1, 1,
        lambda *told: benches[0].tell(*told), 500,
    )  # fmt: skip
    benches.append(Bench(kv, store, partition))
    await partition.open(b"sequencer")
    yield benches[0]
    await kv.kv.close()
    await store.close()


# ------------------------------------------------------------------- while a commit is under way


@pytest.mark.parametrize("done", [False, True], ids=["before it is done", "before it comes back"])
async def test_nobody_sees_a_batch_that_has_not_come_back(bench: Bench, done: bool) -> None:
    await bench.mirrored(a_message(1))
    await bench.applier.drain()
    timeline, before = bench.applier.timeline, bench.partition.conversations.get(NAME)
    await bench.mirrored(a_message(2), a_tick(3))
    waits, go = bench.kv.hold("commit", done)
    draining = asyncio.ensure_future(bench.applier.drain())
    await waits.wait()
    assert bench.head(IAD) == 1
    assert bench.applier.lsn(IAD) == 1
    assert bench.applier.timeline == timeline
    assert IAD not in bench.applier.closed
    assert bench.applier.reach()[IAD] == 3  # nobody may take for granted that it is less
    go.set()
    await draining
    assert (bench.head(IAD), bench.applier.lsn(IAD)) == (2, 3)
    assert bench.applier.closed[IAD] == 3
    assert before is not None and before.heads == {IAD: 1}  # who holds it has what was true


async def test_a_batch_that_was_surely_not_made_is_not_seen(bench: Bench) -> None:
    async def away(call: Callable[[], Awaitable[Any]]) -> Any:
        raise Unavailable("the KV is away")

    await bench.mirrored(a_message(1))
    await bench.applier.drain()
    await bench.mirrored(a_message(2))
    bench.kv.on["commit"] = away
    with pytest.raises(Unavailable):
        await bench.applier.drain()
    assert bench.head(IAD) == 1
    del bench.kv.on["commit"]
    await bench.applier.drain()
    assert (bench.head(IAD), bench.told) == (2, [(IAD, 1), (IAD, 2)])


def test_a_copy_changes_without_its_original() -> None:
    first = Conversation("g:1")
    first.set_members(Place(1, FRA, 1), [("ann", True)])
    second = first.copy()
    second.set_members(Place(2, FRA, 2), [("ann", False)])
    second.set_members(Place(3, FRA, 3), [("bob", True)])
    bobs = pb.RoleChange(uid="bob", role=pb.GROUP_ROLE_ADMIN)
    second.set_role(Place(3, FRA, 3), bobs)
    second.heads[FRA] = 3
    third = second.copy()
    third.set_role(Place(4, FRA, 4), bobs)
    third.set_members(Place(4, FRA, 4), [("eve", True)])
    assert (first.members(), first.heads) == (("ann",), {})
    assert (second.members(), second.heads) == (("bob",), {FRA: 3})
    assert third.members() == ("bob", "eve")
    assert first.role_words == {} and second.role_words != third.role_words


async def test_a_copy_above_a_seal_is_not_counted_on_before_its_batch_comes_back(
    bench: Bench,
) -> None:
    """Its row is there already; told `held elsewhere`, the sender would forget the message, and
    then it is folded out."""
    assert isinstance(await bench.send(1), Accepted)
    await bench.applier.drain()
    await bench.mirrored(a_message(1), a_message(2, "ann"))
    await bench.partition.prepare(Lane("ann", "phone", "o1", NAME), 1)
    bench.partition.sequencer.folded(ClientKey("ann", "phone", "o1", NAME, 2))
    bench.seals.learn("iad", Register(2, "", 1, (Seal(1, (1,)),)))
    waits, go = bench.kv.hold("commit", True)
    draining = asyncio.ensure_future(bench.applier.drain())
    await waits.wait()
    assert isinstance(await bench.send(2), Unavailable)
    go.set()
    await draining


# --------------------------------------------------------------------------------- in doubt


@pytest.mark.parametrize("done", [True, False])
async def test_a_commit_in_doubt_is_settled_and_told_once(bench: Bench, done: bool) -> None:
    assert isinstance(await bench.send(1), Accepted)
    bench.kv.doubt("commit", done)
    with pytest.raises(OutcomeUnknown):
        await bench.applier.drain()
    assert bench.told == []
    bench.kv.doubt("open_partition", done)  # and so is the one that would settle it
    with pytest.raises(OutcomeUnknown):
        await bench.applier.drain()
    await bench.applier.drain()
    assert bench.told == [(FRA, 1)]
    assert bench.head(FRA) == 1
    lane = bench.partition.sequencer.lane(Lane("ann", "phone", "o1", NAME))
    assert lane is not None and not lane.pending
    answer = await bench.send(1)
    assert isinstance(answer, Accepted) and answer.known


async def test_doubts_do_not_end_the_applier(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.im.applier._RETRY_S", 0.001)
    running = asyncio.ensure_future(bench.applier.run())
    bench.kv.doubt("commit", True, False, True)
    for seq in (1, 2, 3):
        await bench.mirrored(a_message(seq))
        bench.applier.wake()
    await until(lambda: bench.head(IAD) == 3)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert bench.told == [(IAD, 1), (IAD, 2), (IAD, 3)]


async def test_an_applier_that_was_fenced_off_does_not_take_the_partition_back(
    bench: Bench,
) -> None:
    epoch, _ = await bench.kv.kv.open_partition(0)  # another process
    await bench.mirrored(a_message(1))
    for _ in range(2):
        with pytest.raises(StaleWriter):
            await bench.applier.drain()
    assert bench.kv.kv._epochs[0] == epoch


@pytest.mark.parametrize("done", [True, False])
async def test_a_rebuild_in_doubt_is_begun_again(bench: Bench, done: bool) -> None:
    """And the timeline does not go back, since clients hold tokens with it."""
    await bench.mirrored(a_message(1), a_message(2))
    await bench.applier.drain()
    timeline = bench.applier.timeline
    bench.kv.doubt("clear_partition", done)
    with pytest.raises(OutcomeUnknown):
        await bench.applier.seal({IAD: 1})
    assert bench.partition.conversations.get(NAME) is None
    assert bench.applier.reach()[IAD] == 2
    await bench.applier.drain()
    assert bench.head(IAD) == 1
    assert bench.applier.lsn(IAD) == 1
    assert bench.applier.timeline > timeline
    rows = await bench.kv.scan(keys.table(0, b"e"), keys.prefix_end(keys.table(0, b"e")), 10)
    assert len(rows) == 1


async def test_what_is_recalled_while_it_is_folded_again_is_told_without_content(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in meanwhile is told at the end, a message and its recall of two batches too."""
    told: list[tuple[str | None, bool]] = []

    def tell(number: int, origin: Origin, effects: Effects) -> None:
        told.extend((e.op.WhichOneof("body"), e.recalled) for e in effects.entries.get(NAME, ()))

    await bench.mirrored(a_message(1), a_message(2))
    await bench.applier.drain()
    await bench.send(1)
    change = pb.ChangeEntry(key=key_pb(ClientKey("ann", "phone", "o1", NAME, 1)), actor="ann")
    change.recall.SetInParent()
    await bench.partition.append(bench.partition.sequencer.change(change, 0, 1, 0))
    monkeypatch.setattr(applier_module, "_READ_BYTES", 1)
    monkeypatch.setattr(bench, "tell", tell)
    assert await bench.applier.seal({IAD: 1})
    await bench.applier.drain()
    assert told == [("message", True), ("change", True)]


async def test_a_crash_in_a_rebuild_does_not_take_the_timeline_back(bench: Bench) -> None:
    await bench.mirrored(a_message(1), a_message(2))
    await bench.applier.drain()
    timeline = bench.applier.timeline
    await bench.applier.seal({IAD: 1})  # and nothing is folded again before the crash
    _, stored = await bench.kv.open_partition(0)
    row = oplog.CheckpointRow.FromString(stored or b"")
    assert row.timeline >= timeline > 0 and not row.applied


async def test_a_seal_that_waits_in_one_partition_is_acted_on_in_the_others() -> None:
    acted: list[int] = []

    class Other:
        def __init__(self, number: int) -> None:
            self.number, self.applier = number, self
            self.partition = self

        async def seal(self, seals: dict[Origin, int]) -> bool:
            if self.number == 0:
                raise OutcomeUnknown("the KV did not answer")
            acted.append(self.number)
            return False

    class NoLogs:
        def held(self) -> dict[Origin, object]:
            return {}

    seals = Seals()
    partitions: Any = {number: Other(number) for number in (0, 1, 2)}
    store: Any = NoLogs()
    with pytest.raises(OutcomeUnknown):
        await seals.act(store, partitions)
    assert acted == [1, 2]


# ------------------------------------------------------------------------- lanes and take-over


async def test_a_lane_that_goes_back_misses_nothing_that_is_folded_meanwhile(bench: Bench) -> None:
    """Its sender has an older copy of its outbox: a message would be accepted twice."""
    await bench.partition.prepare(Lane("ann", "phone", "o1", NAME), 1)
    assert isinstance(await bench.send(1), Accepted)
    lane = bench.partition.sequencer.lane(Lane("ann", "phone", "o1", NAME))
    assert lane is not None
    lane.raise_floor(3)
    waits, go = bench.kv.hold("scan", True)
    sending = asyncio.ensure_future(bench.send(1, floor=1))
    await waits.wait()  # cid 1 was not there yet
    await bench.applier.drain()
    go.set()
    answer = await sending
    assert isinstance(answer, Accepted) and answer.known
    own = bench.store.own()
    assert own is not None
    ops = [oplog.Op.FromString(r.payload) for r in await own.read(0, 1, 1 << 20)]
    assert [op.seq for op in ops if op.HasField("message")] == [1]


async def test_a_partition_waits_at_its_start_for_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_module, "_REPAIR_S", 0.001)
    store = await SegmentLogStore.open(str(tmp_path / "log"), 1, RealDisk(), random.Random(1))
    kv = Gate(await LmdbKv.open(str(tmp_path / "kv"), RealDisk()))
    partition = Partition(
        0, FRA, await store.open_own(FRA), kv, store, Hlc(), SystemClock(), 1, 1,
        lambda *told: None, 500,
    )  # fmt: skip
    kv.doubt("open_partition", True, False, True)
    assert partition.alarm == "partition 0 takes no writes: it is not open yet"
    async with asyncio.timeout(5):
        await partition.open(b"sequencer")
    assert partition.alarm is None
    await kv.kv.close()
    await store.close()


@pytest.mark.parametrize("told", ["in doubt", "done"])
async def test_what_comes_in_right_before_the_marker_is_not_accepted_twice(
    bench: Bench, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_module, "_REPAIR_S", 0.001)
    log: Any = bench.store.own()
    real, held = log.append, list[tuple[int, Sequence[bytes]]]()

    def append(partition: int, epoch: int, payloads: Sequence[bytes], done: Any) -> int:
        loop = asyncio.get_running_loop()
        if not held:  # the message: in doubt
            held.append((epoch, payloads))
            loop.call_soon(done, OutcomeUnknown("the log did not answer"))
            return 0
        monkeypatch.setattr(log, "append", real)
        real(partition, held[0][0], held[0][1], lambda _: None)  # it comes in after all
        if told == "done":
            return int(real(partition, epoch, payloads, done))
        loop.call_soon(done, OutcomeUnknown("another record came first"))
        return 0

    monkeypatch.setattr(log, "append", append)
    assert isinstance(await bench.send(1), OutcomeUnknown)
    await until(lambda: bench.partition.alarm is None)
    answer, following = await bench.send(1), await bench.send(2)
    assert isinstance(answer, Accepted) and answer.known and answer.seq == 1
    assert isinstance(following, Accepted) and following.seq == 2


# ---------------------------------------------------------------------------------- reads


async def an_idc(tmp_path: Path) -> tuple[Idc, Gate, SegmentLogStore]:
    store = await SegmentLogStore.open(str(tmp_path / "log"), 1, RealDisk(), random.Random(1))
    kv = Gate(await LmdbKv.open(str(tmp_path / "kv"), RealDisk()))
    idc = Idc("fra.1", kv, store, others=("iad",))
    await idc.start()
    return idc, kv, store


async def lowers(store: SegmentLogStore, idc: Idc, seq: int, cid: int) -> None:
    """IAD brings a smaller place of ann's message."""
    op = oplog.Op(hlc=seq, conversation=NAME, seq=seq)
    op.place.key.CopyFrom(key_pb(ClientKey("ann", "phone", "o1", NAME, cid)))
    op.place.place.CopyFrom(place_pb(Place(1, IAD, seq)))
    copy = await store.open_copy(IAD)
    await copy.append_copy([record_after(copy.end(0), 0, 1, op.SerializeToString())])
    await idc.folded()


async def test_a_message_that_moves_while_history_is_read_makes_no_hole(tmp_path: Path) -> None:
    idc, kv, store = await an_idc(tmp_path)
    ann = idc.session("ann")
    for cid in range(1, 6):
        await idc.send(ann, NAME, cid)
    await idc.folded()
    waits, go = kv.hold("scan", True)
    request = pb.Request(history=pb.History(conversation=NAME, limit=2))
    asking = asyncio.ensure_future(idc.ask(ann, request))
    await waits.wait()
    await lowers(store, idc, 1, 4)  # the lower one of the page that is being read
    go.set()
    page = (await asking).pull_ok
    places = [entry.message.placed.place.hlc for entry in page.entries]
    assert [entry.message.placed.key.cid for entry in page.entries] == [3, 5]
    assert places == sorted(places)
    await idc.stop()


async def test_heads_and_ends_of_a_page_are_of_the_page(tmp_path: Path) -> None:
    """Else a client believes that it has what came while the page was read."""
    idc, kv, _ = await an_idc(tmp_path)
    ann = idc.session("ann")
    await idc.send(ann, NAME, 1)
    await idc.folded()
    idc.im.pulls.recent.drop(NAME)  # else memory has the answer
    waits, go = kv.hold("scan", True)
    asking = asyncio.ensure_future(idc.pull(ann, NAME))
    await waits.wait()
    await idc.send(ann, NAME, 2)
    await idc.folded()
    go.set()
    page = (await asking).pull_ok
    assert [entry.seq for entry in page.entries] == [1]
    assert [(head.origin, head.seq) for head in page.heads] == [(origin_pb(FRA), 1)]
    assert not page.more
    await idc.stop()


async def test_a_page_that_a_rebuild_overtakes_is_read_again(tmp_path: Path) -> None:
    idc, kv, store = await an_idc(tmp_path)
    ann = idc.session("ann")
    await lowers(store, idc, 1, 9)
    await lowers(store, idc, 2, 9)
    for cid in (1, 2):
        await idc.send(ann, NAME, cid)
    await idc.folded()
    idc.im.pulls.recent.drop(NAME)  # else memory has the answer
    waits, go = kv.hold("scan", True)
    asking = asyncio.ensure_future(idc.pull(ann, NAME))
    await waits.wait()
    await idc.im.partitions[0].applier.seal({IAD: 1})
    go.set()
    page = (await asking).pull_ok
    assert sorted((entry.origin.idc, entry.seq) for entry in page.entries) == [
        ("fra", 1), ("fra", 2), ("iad", 1),
    ]  # fmt: skip
    await idc.stop()
