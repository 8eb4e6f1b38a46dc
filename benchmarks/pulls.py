"""What pulls of the last messages cost: from the KV, and from the tails in memory; and of how many
pulls memory has the answer when there is less room than conversations."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from imcore.attest import RegionKeys, content_hash
from imcore.convert import key_pb
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Origin, Vector
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.im import entries, reads
from services.im.conversation import Conversation
from services.im.fold import Effects, Fold, Rows, Taken, needs
from services.im.recent import Recent
from services.ports import Batch, Kv, Record

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
NAME = "d:ann:bob"
KEYS = RegionKeys({1: b"k" * 32}, 1)
MESSAGES = 1_000  # of each origin
CONTENT = b"x" * 120
PAGES = (2, 20, 200)  # entries
REMOTE_S = 0.001  # a store at the end of a network
CONVERSATIONS, ROOM_OF = 20_000, 1_000  # conversations; there is room for as many, 8 entries each
LEGS = 200_000


class _Remote:
    def __init__(self, kv: Kv) -> None:
        self._kv = kv

    async def scan(self, *arguments: Any) -> Any:
        await asyncio.sleep(REMOTE_S)
        return await self._kv.scan(*arguments)

    async def get_many(self, keys: Sequence[bytes]) -> Any:
        await asyncio.sleep(REMOTE_S)
        return await self._kv.get_many(keys)


def _op(origin: Origin, seq: int) -> oplog.Op:
    op = oplog.Op(hlc=(1 << 40) + seq * 2 + (origin == IAD), conversation=NAME, seq=seq)
    op.message.key.CopyFrom(key_pb(ClientKey("ann", f"phone-{origin.idc}", "o1", NAME, seq)))
    op.message.content, op.message.content_hash = CONTENT, content_hash(CONTENT)
    return op


async def _fill(kv: Kv) -> tuple[Conversation, list[tuple[Origin, Effects]]]:
    epoch, _ = await kv.open_partition(0)
    conversation, known, told = Conversation(NAME), dict[bytes, bytes](), []
    for number, origin in enumerate((FRA, IAD), 1):
        ops = [_op(origin, seq) for seq in range(1, MESSAGES + 1)]
        rows = Rows({key: known.get(key) for key in needs(0, ops)})
        taken = [Taken(Record(0, 1, op.seq, b"", op.SerializeToString()), op) for op in ops]
        told.append((origin, Fold(0).batch(taken, origin, {NAME: conversation}, rows, number)))
        await kv.commit(Batch(0, epoch, b"", rows.puts, rows.deletes))
    return conversation, told


async def _cost(of: Any, times: int) -> tuple[float, float]:
    """Microseconds of CPU, and milliseconds until it is there, of one."""
    await of()
    cpu, wall = time.process_time(), time.monotonic()
    for _ in range(times):
        await of()
    return (
        (time.process_time() - cpu) / times * 1e6,
        (time.monotonic() - wall) / times * 1e3,
    )


async def costs() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        kv = await LmdbKv.open(f"{folder}/kv", RealDisk())
        conversation, told = await _fill(kv)
        recent, heads = Recent(), Vector()
        begun, count = time.process_time(), 0
        built = [
            (origin, entries.build(entry, KEYS))
            for origin, effects in told
            for entry in effects.entries[NAME]
        ]
        building, begun = time.process_time() - begun, time.process_time()
        for origin, entry in built:
            heads[origin] = entry.seq
            recent.folded(NAME, origin, [entry], heads, 1)
            count += 1
        kept = (time.process_time() - begun) / count * 1e6
        lines = [
            f"  kept at the fold: {kept:.1f} us a message (built for the push anyway, "
            f"{building / count * 1e6:.0f} us)",
            "  entries of a pull      memory, CPU        KV, CPU     KV 1 ms away, in all",
        ]
        for page in PAGES:
            have = {origin: MESSAGES - page // 2 for origin in (FRA, IAD)}
            recent.drop(NAME)
            found, _ = await reads.pull(kv, 0, conversation, have, page, KEYS)
            recent.read(NAME, have, found, heads, 1)

            async def memory(have: Vector = have) -> None:
                answer = recent.page(NAME, have, heads, 200, reads.PAGE_BYTES_MAX, 1)
                assert answer is not None
                _answered(answer[0])

            async def stored(at: Any = kv, have: Vector = have) -> None:
                _answered((await reads.pull(at, 0, conversation, have, 200, KEYS))[0])

            times = 4_000 // page
            near, far = await _cost(stored, times), await _cost(lambda: stored(_Remote(kv)), 50)
            lines.append(
                f"  {page:17} {(await _cost(memory, times))[0]:14.0f} us {near[0]:11.0f} us "
                f"{far[1]:23.1f} ms"
            )
        await kv.close()
        return lines


def _answered(found: Sequence[pb.Entry]) -> None:
    response = pb.Response()
    response.pull_ok.entries.extend(found)
    response.SerializeToString()


def hit_rate(recent: Recent, seed: int) -> float:
    """Messages come to conversations, and others (by another Zipf order: who writes most is not
    read most) are pulled, up to 8 entries back."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / (n + 1) for n in range(CONVERSATIONS)))
    order = list(range(CONVERSATIONS))
    rng.shuffle(order)
    written = rng.choices(range(CONVERSATIONS), cum_weights=weights, k=LEGS)
    read = rng.choices(range(CONVERSATIONS), cum_weights=weights, k=LEGS)
    heads = [0] * CONVERSATIONS
    hits = asked = 0
    for number, (one, other) in enumerate(zip(written, read, strict=True)):
        name, head = f"d:{one}:x", heads[one] + 1
        heads[one] = head
        entry = pb.Entry(seq=head, hlc=number + 1)
        entry.origin.idc, entry.origin.incarnation = FRA
        entry.message.content = CONTENT
        recent.folded(name, FRA, [entry], {FRA: head}, 1)
        pulled = order[other] if rng.random() < 0.5 else other
        if (head := heads[pulled]) and number > LEGS // 4:
            asked += 1
            have = {FRA: max(0, head - rng.randrange(1, 8))}
            hits += recent.page(f"d:{pulled}:x", have, {FRA: head}, 200, 1 << 20, 1) is not None
    return hits / asked


def rates() -> str:
    found = [hit_rate(Recent(room_bytes=ROOM_OF * 8 * 560), seed) for seed in (1, 2)]
    shown = " ".join(f"{each:.0%}" for each in found)
    return f"  {CONVERSATIONS} conversations, room for {ROOM_OF}: memory answers {shown}"


async def run(quick: bool) -> None:
    for line in [*await costs(), *([] if quick else [rates()])]:
        print(line)
