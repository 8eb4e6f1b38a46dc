"""The im role on engines whose every call suspends and may end in doubt.

Real: partition, server, applier, log and KV. Around the engines: ``services.im.testing_faults``.
One seed gives the dice; the engines' threads add their own chance, so a seed that fails may have to
be run a few times. ``doubtful(folder, seed)`` says what was violated.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path

import pytest

from imcore.attest import content_hash
from imcore.convert import attested_of, key_of, key_pb, origin_of, place_pb, vector_of
from imcore.errors import OutcomeUnknown, Unavailable
from imcore.hlc import Hlc
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Origin, Place
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.engines.records import record_after
from services.im import applier as applier_module
from services.im import keys
from services.im import partition as partition_module
from services.im.applier import Applier
from services.im.cache import ConversationCache
from services.im.incarnation import Register, Seal
from services.im.testing import Idc
from services.im.testing_faults import Dice, DoubtfulLogs, SuspendingKv
from services.node.convergence import partition_hash
from services.node.seals import Seals
from services.ports import LogStore

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
NAMES = ("d:ann:bob", "d:bob:eve", "d:bob:max")
CIDS = 12


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier_module, "_RETRY_S", 0.002)
    monkeypatch.setattr(partition_module, "_REPAIR_S", 0.002)
    monkeypatch.setattr(partition_module, "_REPAIR_MAX_S", 0.01, raising=False)


class Run:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = Dice(seed, 6.0)
        self.rng = random.Random(seed + 1)
        self.bad: set[str] = set()
        self.acks: dict[ClientKey, set[tuple[Origin, int]]] = defaultdict(set)
        self.accepted: set[ClientKey] = set()  # answered as such, and not as known
        self.watermarks: list[tuple[str, int, dict[Origin, int]]] = []
        self.seen_heads: dict[str, dict[Origin, int]] = {}  # what syncs have told bob
        self.seals = Seals()
        self.sealed_at: int | None = None
        self.iad_seqs: dict[str, int] = defaultdict(int)
        self.sending = True

    async def start(self) -> None:
        self.store: LogStore = DoubtfulLogs(
            await SegmentLogStore.open(str(self.folder / "log"), 1, RealDisk(), self.rng), self.dice
        )
        self.kv = SuspendingKv(await LmdbKv.open(str(self.folder / "kv"), RealDisk()), self.dice)
        self.idc = Idc("fra.1", self.kv, self.store, others=("iad",), followers=("iad",))
        await self.idc.start()
        self.partition = self.idc.im.partitions[0]
        self.partition.seal_of = self.seals.of
        self.copy = await self.store.open_copy(IAD)
        self.copy.subscribe(self.partition.applier.wake)

    # ----------------------------------------------------------------------------- clients

    async def sender(self, uid: str, name: str) -> None:
        """In any order that the answers lead to; each message perhaps by two requests at once."""
        session = self.idc.session(uid)
        cid, lowest = 1, 1
        while cid <= CIDS:
            key = ClientKey(uid, "phone", "o1", name, cid)
            floor = self.rng.choice((1, lowest))
            lowest = max(lowest, cid - 3)
            content = f"{uid} {cid}".encode()
            many = self.rng.choice((1, 1, 2))
            answers = await asyncio.gather(
                *(self.idc.send(session, name, cid, content, floor=floor) for _ in range(many))
            )
            done = 0
            for answer in answers:
                ack = answer.send_ack
                if answer.HasField("error"):
                    if answer.error.code != "unavailable":
                        self.bad.add(f"a send ended with {answer.error.code}")
                elif ack.outcome == pb.SendAck.WANT:
                    if ack.want > cid or ack.want < floor:
                        self.bad.add("a wrong cid is wanted")
                else:
                    done += 1
                    if ack.outcome == pb.SendAck.ACCEPTED:
                        if key in self.accepted:
                            self.bad.add("a message was accepted twice")
                        self.accepted.add(key)
                    self.acks[key].add((origin_of(ack.placed.place.origin), ack.placed.place.seq))
            cid += 1 if done else 0
            await asyncio.sleep(0.001 * self.rng.randint(0, 2))

    async def puller(self, uid: str, name: str) -> None:
        session = self.idc.session(uid)
        have: dict[Origin, int] = {}
        while self.sending:
            response = await self.idc.pull(session, name, have, self.rng.choice((1, 3, 200)))
            if not response.HasField("pull_ok"):
                self._refused(response)
                continue
            page = response.pull_ok
            heads = vector_of(page.heads)
            for entry in page.entries:
                origin = origin_of(entry.origin)
                if entry.seq != have.get(origin, 0) + 1:
                    self.bad.add("a page of a pull has a hole")
                if entry.seq > heads.get(origin, 0):
                    self.bad.add("an entry lies above the heads of its page")
                have[origin] = entry.seq
            if not page.more and any(have.get(o, 0) < seq for o, seq in heads.items()):
                self.bad.add("a last page does not reach its heads")
            for at in page.suspended:
                if at.sealed:
                    if at.end != self.below_seal[name]:
                        self.bad.add("a sealed origin ends elsewhere")
                    have[origin_of(at.origin)] = min(have.get(origin_of(at.origin), 0), at.end)
            self.watermarks.append((name, page.stable, heads))

    async def historian(self, uid: str, name: str) -> None:
        session = self.idc.session(uid)
        while self.sending:
            first = await self.idc.pull(session, name)
            if not first.HasField("pull_ok"):
                self._refused(first)
                continue
            there = {
                key_of(e.message.placed.key) for e in first.pull_ok.entries if e.HasField("message")
            }
            seen: set[ClientKey] = set()
            history = pb.History(conversation=name, limit=self.rng.choice((1, 2, 5)))
            while True:
                response = await self.idc.ask(session, pb.Request(history=history))
                if not response.HasField("pull_ok"):
                    self._refused(response)
                    continue
                page = response.pull_ok
                places = [attested_of(e.message.placed).place for e in page.entries]
                if places != sorted(places):
                    self.bad.add("a page of history is out of order")
                seen |= {key_of(e.message.placed.key) for e in page.entries}
                if not page.more or not places:
                    break
                history.before.CopyFrom(place_pb(places[0]))
            if not there <= seen:
                self.bad.add("history has left a message out")

    async def sync(self, session: object, token: bytes) -> bytes:
        request = pb.Sync(since=token, limit=2)
        first = b""
        while True:
            response = await self.idc.ask(session, pb.Request(sync=request))  # type: ignore[arg-type]
            if not response.HasField("sync_ok"):
                self._refused(response)
                continue
            first = first or response.sync_ok.token
            for changed in response.sync_ok.conversations:
                self.seen_heads[changed.conversation] = vector_of(changed.heads)
                self.watermarks.append(
                    (changed.conversation, changed.stable, vector_of(changed.heads))
                )
            if not response.sync_ok.next_page:
                return first
            request.page = response.sync_ok.next_page

    async def syncer(self) -> None:
        session, token = self.idc.session("bob"), b""
        while self.sending:
            token = await self.sync(session, token)
            await asyncio.sleep(0)
        self.token = token

    def _refused(self, response: pb.Response) -> None:
        if response.error.code != "unavailable":
            self.bad.add(f"a read ended with {response.error.code}")

    # --------------------------------------------------------------------------- other IDC

    async def ticks(self) -> None:
        while self.sending:
            self.idc.im.tick()
            await asyncio.sleep(0.002)

    async def other_idc(self) -> None:
        """Messages of its own, copies of ann's with smaller places, and ticks; then it is sealed
        below some of them."""
        hlc = Hlc(self.partition._hlc.last)
        self.below_seal: dict[str, int] = dict.fromkeys(NAMES, 0)
        for number in range(30):
            name = self.rng.choice(NAMES)
            kind = self.rng.random()
            op = oplog.Op(hlc=hlc.next(0, self.partition._hlc.last), conversation=name)
            if kind < 0.2:
                op.tick.SetInParent()
                op.conversation = ""
            else:
                self.iad_seqs[name] += 1
                op.seq = self.iad_seqs[name]
                mine = kind < 0.6
                uid = "iad-user" if mine else name.split(":")[1]
                cid = op.seq if mine else self.rng.randint(1, CIDS)
                key = ClientKey(uid, "phone", "o1", name, cid)
                if mine:
                    op.message.key.CopyFrom(key_pb(key))
                    op.message.content = b"%d" % cid
                    op.message.content_hash = content_hash(op.message.content)
                else:
                    op.place.key.CopyFrom(key_pb(key))
                    op.place.place.CopyFrom(place_pb(Place(1000 - number, IAD, op.seq)))
            await self.copy.append_copy(
                [record_after(self.copy.end(0), 0, 1, op.SerializeToString())]
            )
            if number < 20:
                self.below_seal = {n: self.iad_seqs[n] for n in NAMES}
            await asyncio.sleep(0.001 * self.rng.randint(0, 4))
        await asyncio.sleep(0.005)
        self.idc.suspended[IAD] = True
        self.idc.seals[IAD] = 20
        self.seals.learn("iad", Register(2, "", 1, (Seal(1, (20,)),)))
        await self.act()

    async def act(self) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    await self.seals.act(self.store, {0: self.partition})
                    return
                except (Unavailable, OutcomeUnknown):
                    await asyncio.sleep(0.002)

    # ------------------------------------------------------------------------------- whole

    async def run(self) -> set[str]:
        try:
            async with asyncio.timeout(20):
                await self.start()
        except TimeoutError:
            return {"the partition did not open"}
        self.below_seal = dict.fromkeys(NAMES, 0)
        readers = [
            asyncio.ensure_future(work)
            for work in (
                self.ticks(),
                self.puller("bob", NAMES[0]),
                self.puller("bob", NAMES[1]),
                self.historian("bob", NAMES[0]),
                self.syncer(),
            )
        ]
        writers = [
            self.sender("ann", NAMES[0]),
            self.sender("bob", NAMES[0]),
            self.sender("bob", NAMES[1]),
            self.sender("max", NAMES[2]),
            self.other_idc(),
        ]
        try:
            async with asyncio.timeout(25):
                await asyncio.gather(*writers)
                self.dice.faults = 0
                await asyncio.sleep(0.02)
                self.sending = False
                await asyncio.gather(*readers)
                await self.act()
                await self.settle()
        except TimeoutError:
            self.bad.add("it does not come to rest")
        except Exception as error:
            self.bad.add(f"{type(error).__name__}: {error}")
        else:
            await self.judge()
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        await self.idc.stop()
        return self.bad

    async def settle(self) -> None:
        applier = self.partition.applier

        while True:
            withheld = self.partition.conversations.withheld
            behind = applier.lsn(FRA) < self.idc.end()
            if self.partition.alarm is None and not withheld and not behind:
                break
            await asyncio.sleep(0.002)
        await applier.drain()
        await self.sync(self.idc.session("bob"), self.token)

    async def judge(self) -> None:
        own = self.store.own()
        assert own is not None
        ops = [oplog.Op.FromString(r.payload) for r in await own.read(0, 1, 1 << 30)]
        iad = [oplog.Op.FromString(r.payload) for r in await self.copy.read(0, 1, 1 << 30)]
        self._judge_log(ops)
        seqs: dict[str, list[tuple[int, Origin, int]]] = defaultdict(list)
        for origin, found in ((FRA, ops), (IAD, iad)):
            for op in found:
                if op.seq:
                    seqs[op.conversation].append((op.hlc, origin, op.seq))
        for name, stable, heads in self.watermarks:
            if any(hlc < stable and seq > heads.get(o, 0) for hlc, o, seq in seqs[name]):
                self.bad.add("something came below the stable watermark")
        pushed = [
            (name, origin_of(entry.origin), entry.seq) for name, _, entry in self.idc.pushes.entries
        ]
        if len(pushed) != len(set(pushed)):
            self.bad.add("an entry was pushed twice")
        due = {(name, origin, seq) for name, at in seqs.items() for _, origin, seq in at}
        if not due <= set(pushed):
            self.bad.add("an entry was never pushed")
        for name in NAMES:
            conversation = await self.partition.conversations.load(name)
            if self.seen_heads.get(name) != conversation.heads:
                self.bad.add("a sync has left a change out")
        if any(lane.pending for lane in self.partition.sequencer._lanes.values()):
            self.bad.add("what is folded is still pending")
        if await partition_hash(self.kv, 0) != await self.folded_afresh():
            self.bad.add("the rows are not the fold of the logs")

    def _judge_log(self, ops: list[oplog.Op]) -> None:
        by_name: dict[str, list[int]] = defaultdict(list)
        places: dict[ClientKey, list[tuple[Origin, int]]] = defaultdict(list)
        for op in ops:
            if op.seq:
                by_name[op.conversation].append(op.seq)
            if op.HasField("message"):
                places[key_of(op.message.key)].append((FRA, op.seq))
        if any(found != list(range(1, len(found) + 1)) for found in by_name.values()):
            self.bad.add("seqs of the log are not contiguous")
        for key, found in places.items():
            if key.uid != "iad-user" and len(found) != 1:
                self.bad.add("a message is in the log twice")
        for key, acked in self.acks.items():
            if key not in places:
                self.bad.add("an acked message is not in the log")
            elif not {at for at in acked if at[0] == FRA} <= set(places[key]):
                self.bad.add("an ack names what is not in the log")

    async def folded_afresh(self) -> object:
        kv = await LmdbKv.open(str(self.folder / "afresh"), RealDisk())
        applier = Applier(0, kv, self.store, ConversationCache(kv, 0), Hlc(), lambda o, e: None)
        await applier.open()
        await applier.drain()
        found = await partition_hash(kv, 0)
        await kv.close()
        return found


async def doubtful(folder: Path, seed: int) -> set[str]:
    return await Run(folder / str(seed), seed).run()


def test_the_tables_that_are_compared_hold_something() -> None:
    assert keys.REPLICATED_TABLES


@pytest.mark.parametrize("seed", range(10))
async def test_nothing_is_lost_doubled_or_half_seen(tmp_path: Path, seed: int) -> None:
    assert await doubtful(tmp_path, seed) == set()


@pytest.mark.nightly
@pytest.mark.parametrize("block", range(10))
async def test_nothing_is_lost_doubled_or_half_seen_in_many(tmp_path: Path, block: int) -> None:
    seeds = range(100 + block * 30, 130 + block * 30)
    bad = {seed: found for seed in seeds if (found := await doubtful(tmp_path, seed))}
    assert bad == {}
