"""A huge group beside ordinary conversations, in one IDC of its own process, over plain TCP.

First the ordinary conversations alone, with all members connected; then with the group talking;
then all members reconnect at once. What counts is how late the ordinary messages come to the other
user's device. The members are another process (`python -m benchmarks.crowd --members ...`), which
takes what the others leave of the processors: members are elsewhere. Each acks by its heartbeats,
and every SAMPLED-th reads what it is pushed, the others throw it away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import uvloop
import yaml

from benchmarks import text
from benchmarks.client import Client
from benchmarks.deployment import Failed, gateways, one_idc, running
from imcore import frame
from imcore.checker.latency import summarize
from imcore.limits import GROUP_CHANGES_MAX
from imcore.packing import unpack
from imcore.pki import load_region_keys
from imcore.proto import client_pb2 as pb
from imcore.region.load import load_region
from imcore.tokens import Claims, mint
from imcore.words import direct_conversation

GROUP = "g:crowd"
SAMPLED = 100
CONTENT_BYTES = 120
HEARTBEAT_S = 20.0
TOKEN_MS = 3_600_000
AT_ONCE = 200  # connects of the members' process
_AHEAD = 1 << 40  # a position above all that will be said


# ---------------------------------------------------------------------------------- members


class Member(asyncio.Protocol):
    def __init__(self, uid: str, reads: bool) -> None:
        self.uid = uid
        self.epoch = 0
        self.seqs: set[int] = set()
        self.answered: asyncio.Future[pb.Response | None]
        self._decoder: frame.FrameDecoder | None = None
        self._reads = reads
        self._preface = b""
        self.transport: asyncio.Transport | None = None
        self._last_id = 0
        self.retry_ms = 0

    async def connect(self, port: int, token: bytes) -> None:
        """Again until it is let in."""
        loop = asyncio.get_running_loop()
        while True:
            self.epoch += 1
            self.answered, self._preface = loop.create_future(), b""
            self._decoder, self.retry_ms = frame.FrameDecoder(), 0
            await loop.create_connection(lambda: self, "127.0.0.1", port)
            connect = pb.Connect(token=token, connection_epoch=self.epoch)
            connect.packings.append(pb.PACKING_ZLIB)
            assert self.transport is not None
            self.transport.write(frame.client_preface())
            self.say(pb.Request(connect=connect))
            answer = await self.answered
            if answer is not None and answer.HasField("connect_ok"):
                if not self._reads:
                    self._decoder = None
                return
            await asyncio.sleep(max(self.retry_ms, 100) / 1000 * random.uniform(1.0, 1.2))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._decoder is None:
            return
        if len(self._preface) < frame.SERVER_PREFACE_BYTES:
            self._preface += data
            if len(self._preface) < frame.SERVER_PREFACE_BYTES:
                return
            data = self._preface[frame.SERVER_PREFACE_BYTES :]
            self._preface = self._preface[: frame.SERVER_PREFACE_BYTES]
        for received in self._decoder.feed(data):
            if received.type == frame.RESPONSE and not self.answered.done():
                self.answered.set_result(pb.Response.FromString(received.body))
            elif received.type == frame.EVENT:
                event = pb.Event.FromString(received.body)
                if event.HasField("packed"):
                    event.push.ParseFromString(unpack(event.packed))
                if event.HasField("push"):
                    self.seqs.update(e.seq for e in event.push.entries if e.HasField("message"))
                elif event.HasField("close"):
                    self.retry_ms = event.close.retry_after_ms

    def say(self, request: pb.Request) -> None:
        assert self.transport is not None
        self._last_id += 1
        body = request.SerializeToString()
        self.transport.write(frame.encode(frame.REQUEST, self._last_id, body))

    def heartbeat(self) -> None:
        request = pb.Request()
        head = request.heartbeat.acks.add(conversation=GROUP).heads.add(seq=_AHEAD)
        head.origin.idc, head.origin.incarnation = "fra", 1
        self.say(request)


async def members(port: int, count: int, pki: Path) -> None:
    """Connects, and then does what each line says: `again` (all reconnect), `seen` (how many of the
    messages each member that reads has)."""
    keys = load_region_keys(pki)
    crowd = [Member(f"m{number:05}", number % SAMPLED == 0) for number in range(count)]
    room = asyncio.Semaphore(AT_ONCE)
    beating: set[asyncio.TimerHandle] = set()

    async def connect(member: Member) -> None:
        claims = Claims(member.uid, "phone", time.time_ns() // 1_000_000 + TOKEN_MS)
        async with room:
            await member.connect(port, mint(keys, claims).encode())

    def beat(number: int) -> None:
        loop = asyncio.get_running_loop()
        member = crowd[number]
        if member.answered.done() and member.transport and not member.transport.is_closing():
            member.heartbeat()
        loop.call_later(HEARTBEAT_S * random.uniform(0.8, 1.0), beat, number)

    async def connected() -> float:
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for member in crowd:
                group.create_task(connect(member))
        return time.monotonic() - begun

    took_s = await connected()
    for number in range(count):
        delay_s = HEARTBEAT_S * number / count
        beating.add(asyncio.get_running_loop().call_later(delay_s, beat, number))
    print(json.dumps({"took_s": round(took_s, 1)}), flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        answer: dict[str, Any] = {}
        if line == "again":
            for member in crowd:
                assert member.transport is not None
                member.transport.abort()
            answer["took_s"] = round(await connected(), 1)
        else:
            answer["seen"] = [len(member.seqs) for member in crowd[::SAMPLED]]
        print(json.dumps(answer), flush=True)


# ------------------------------------------------------------------------------ the measuring


class Ordinary:
    """So many direct conversations, whose users say something now and then."""

    def __init__(self, conversations: int) -> None:
        self.count = conversations
        self.late_us: list[int] = []
        self.clients: list[Client] = []

    def _shown(self, client: Client, entry: pb.MessageEntry, name: str, index: int) -> None:
        if name != GROUP and entry.placed.key.uid != client.uid:
            self.late_us.append((time.monotonic_ns() - int(entry.content)) // 1_000)

    async def connect(self, port: int, pki: Path) -> None:
        keys = load_region_keys(pki)
        for number in range(2 * self.count):
            uid = f"{'ab'[number % 2]}{number // 2:05}"
            claims = Claims(uid, "phone", time.time_ns() // 1_000_000 + TOKEN_MS)
            client = Client(number, uid, "phone", self._shown)
            await client.connect("127.0.0.1", port, None, mint(keys, claims).encode())
            self.clients.append(client)
            await asyncio.sleep(0.004)  # below the rate at which a gateway lets in

    async def talk(self, per_s: float, seconds: float, rng: random.Random) -> dict[str, float]:
        """How late messages came to the other user, in milliseconds."""
        self.late_us.clear()
        end, due = time.monotonic() + seconds, time.monotonic()
        said = 0
        while (now := time.monotonic()) < end:
            if now < due:
                await asyncio.sleep(min(due - now, 0.05))
                continue
            due += rng.expovariate(per_s)
            pair = rng.randrange(self.count)
            client = self.clients[2 * pair + rng.randrange(2)]
            other = self.clients[2 * pair + (client is self.clients[2 * pair])]
            said += 1
            say(client, direct_conversation(client.uid, other.uid), b"%d" % time.monotonic_ns())
        await asyncio.sleep(2)
        found = summarize(self.late_us)
        return {
            "said": said,
            "missing": said - len(self.late_us),
            "p50_ms": round(found.p50_ms, 1),
            "p99_ms": round(found.p99_ms, 1),
        }

    async def heartbeats(self) -> None:
        while True:
            for number, client in enumerate(self.clients):
                if not client.ack_pushes():
                    client.heartbeat()
                if number % 50 == 0:
                    await asyncio.sleep(HEARTBEAT_S * 50 / len(self.clients) / 2)


_cids: Counter[tuple[int, str]] = Counter()


def say(client: Client, conversation: str, content: bytes) -> None:
    lane = (client.number, conversation)
    _cids[lane] += 1
    cid = _cids[lane]
    send = pb.Send(conversation=conversation, outbox="o1", cid=cid, floor=cid, content=content)
    client.call(pb.Request(send=send), lambda _: None)


async def _talk_in_group(
    clients: list[Client], per_s: float, seconds: float, rng: random.Random
) -> int:
    begun, said = time.monotonic(), 0
    while time.monotonic() < begun + seconds:
        say(clients[said % len(clients)], GROUP, text.said(rng, CONTENT_BYTES))
        said += 1
        await asyncio.sleep(max(0.0, begun + said / per_s - time.monotonic()))
    return said


async def _make_group(client: Client, uids: list[str]) -> None:
    first, later = uids[: GROUP_CHANGES_MAX - 1], uids[GROUP_CHANGES_MAX - 1 :]
    create = pb.GroupCreate(conversation=GROUP, members=first, name="all")
    await client.ask(pb.Request(group_create=create))
    for begin in range(0, len(later), GROUP_CHANGES_MAX):
        joining = later[begin : begin + GROUP_CHANGES_MAX]
        change = pb.GroupChange(conversation=GROUP, join=joining)
        await client.ask(pb.Request(group_change=change))


@asynccontextmanager
async def _crowd(port: int, count: int, pki: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.crowd", "--members", str(count), "--port", str(port),
        "--pki", str(pki), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def _answer(child: asyncio.subprocess.Process, order: str = "") -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    if order:
        child.stdin.write(order.encode() + b"\n")
    async with asyncio.timeout(240):
        line = await child.stdout.readline()
    if not line:
        raise Failed("the members' process ended")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _best(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: (min if name.endswith("_ms") else sum)(one[name] for one in rounds)
        for name in rounds[0]
    }


async def measure(
    count: int = 10_000,
    conversations: int = 1_000,
    group_per_s: float = 50.0,
    ordinary_per_s: float = 50.0,
    seconds: float = 10.0,
    rounds: int = 3,
) -> dict[str, Any]:
    """Of ordinary messages ``alone`` and ``beside`` the group, in turn: how many, and how late in
    the best round, since what disturbs one makes its figures only worse. Of the group: how many
    were said, and the least and the most that a member has of them."""
    rng = random.Random(8)
    with tempfile.TemporaryDirectory(prefix="bench-crowd-") as name:
        folder = Path(name)
        one_idc(folder)
        path = folder / "region.yaml"
        document = yaml.safe_load(path.read_text())
        heartbeat_ms = round(HEARTBEAT_S * 1000)
        document["spec"]["client"] = {"heartbeat_ms": heartbeat_ms, "idle_pull_ms": 60_000}
        # All of them are at one address; at the usual limit each new one took another's place.
        document["spec"]["limits"] = {"connections_of_address": count + 2 * conversations}
        path.write_text(yaml.safe_dump(document))
        region = load_region(path)
        pki = folder / "pki"
        port = gateways(region)["fra"][1]
        ordinary = Ordinary(conversations)
        async with running(folder, region, True) as processes, _crowd(port, count, pki) as child:
            connected = await _answer(child)
            await ordinary.connect(port, pki)
            beating = asyncio.create_task(ordinary.heartbeats())
            talkers = ordinary.clients[:20]
            uids = [f"m{number:05}" for number in range(count - len(talkers))]
            await _make_group(talkers[0], uids + [client.uid for client in talkers])
            alone, beside, said, cpu = [], [], 0, 0.0
            for _ in range(rounds):
                alone.append(await ordinary.talk(ordinary_per_s, seconds, rng))
                before = processes["fra"].cpu_s()
                group = asyncio.create_task(_talk_in_group(talkers, group_per_s, seconds, rng))
                beside.append(await ordinary.talk(ordinary_per_s, seconds, rng))
                cpu += processes["fra"].cpu_s() - before
                said += await group
                await asyncio.sleep(3)
            seen = (await _answer(child, "seen"))["seen"][: (len(uids) - 1) // SAMPLED + 1]
            again = await _answer(child, "again")
            beating.cancel()
        return {
            "alone": _best(alone),
            "beside": _best(beside),
            "p50_ms_alone_beside": [
                (a["p50_ms"], b["p50_ms"]) for a, b in zip(alone, beside, strict=True)
            ],
            "group_said": said,
            "seen_least": min(seen),
            "seen_most": max(seen),
            "cpu_share": round(cpu / (seconds + 2) / rounds, 2),
            "connected_s": connected["took_s"],
            "reconnected_s": again["took_s"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--conversations", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pki", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.port:
        os.nice(10)
        uvloop.run(members(options.port, options.members, options.pki))
        return
    found = uvloop.run(
        measure(
            options.members, options.conversations, seconds=options.seconds, rounds=options.rounds
        )
    )
    for what, value in found.items():
        print(f"{what:15} {value}", flush=True)


if __name__ == "__main__":
    main()
