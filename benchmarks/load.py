"""The load generator, a process of its own: `benchmarks.generator` starts it and talks to it.

Open loop: Poisson arrivals by a schedule that no slow answer holds back; every latency counts from
the time at which the message was to be sent. Orders come as JSON lines on stdin, answers go as
JSON lines to stdout. While it measures it only notes what happened; the history is written later.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from benchmarks.client import Client
from imcore import history as h
from imcore.attest import RegionKeys
from imcore.checker.latency import summarize
from imcore.pki import load_region_keys
from imcore.proto import client_pb2 as pb
from imcore.tls import client_ssl_context
from imcore.tokens import Claims, mint
from imcore.words import direct_conversation
from services.loadgen.schedule import Text, size

SETTLE_S = 10.0
JUDGED_S = 60.0  # what is still under way when the history is to be judged may take so long
RETRY_S = 0.2
ACK_EVERY_S = 1.0
QUIET_BEATS = 4  # a client without pushes says something every so many rounds
CONNECTING = 8  # at a time


class Spec(NamedTuple):
    """``gateways``: IDC -> [host, port]; ``pairs``: the IDCs of each pair's two users."""

    gateways: dict[str, list[Any]]
    pairs: list[list[str]]
    pki: str
    tls: bool
    history: str


@dataclass(slots=True)
class Pair:
    conversation: str
    number: int  # in the history
    left: Client
    right: Client


@dataclass(slots=True)
class Message:
    """Times in µs; 0: not yet."""

    due: int
    sender: Client
    receiver: Client
    direction: str  # "fra-iad": from and to which IDC
    acked: int = 0
    shown: int = 0  # on the other user's device

    def is_over(self) -> bool:
        """Also when nobody is left to whom it could be told."""
        acked, shown = self.acked or self.sender.lost, self.shown or self.receiver.lost
        return bool(acked and shown)


class Load:
    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._keys: RegionKeys = load_region_keys(Path(spec.pki))
        self._context = client_ssl_context(Path(spec.pki) / "ca.pem") if spec.tls else None
        self._rng = random.Random(1)
        self._text = Text(self._rng)
        self._clients: list[Client] = []
        self._idc_of: dict[int, str] = {}
        self._pairs: list[Pair] = []
        self._numbers: dict[str, int] = {}  # of conversations, in the history
        self._messages: list[Message] = []
        self._events: list[tuple[Any, ...]] = []
        self._base = 0  # number of the first message of this run
        self._open = 0  # acks and receipts of this run that are to come
        self._retries = 0

    # ---------------------------------------------------------------------------- connecting

    async def open(self) -> dict[str, Any]:
        gate = asyncio.Semaphore(CONNECTING)

        async def connected(uid: str, idc: str) -> Client:
            client = Client(len(self._clients), uid, "phone", self._shown)
            self._clients.append(client)
            self._idc_of[client.number] = idc
            async with gate:
                await self._connect(client, idc)
            return client

        for number, (left, right) in enumerate(self._spec.pairs):
            uids = f"a{number}", f"b{number}"
            name = direct_conversation(*uids)
            self._numbers[name] = number
            clients = [await connected(uids[0], left), await connected(uids[1], right)]
            self._pairs.append(Pair(name, number, *clients))
        self._acking = asyncio.ensure_future(self._ack_pushes())
        return {"connections": len(self._clients)}

    async def _connect(self, client: Client, idc: str) -> None:
        host, port = self._spec.gateways[idc]
        expires = time.time_ns() // 1_000_000 + 3_600_000
        token = mint(self._keys, Claims(client.uid, client.device, expires)).encode()
        await client.connect(host, port, self._context, token)

    async def _ack_pushes(self) -> None:
        """Spread over the second, as clients that are strangers to each other would."""
        round_ = 0
        while True:
            round_ += 1
            for number, client in enumerate(self._clients):
                await asyncio.sleep(ACK_EVERY_S / len(self._clients))
                if not client.ack_pushes() and (number + round_) % QUIET_BEATS == 0:
                    client.heartbeat()

    # ------------------------------------------------------------------------------- sending

    async def run(self, rate: float, seconds: float) -> dict[str, Any]:
        """One measurement; returns when all is settled, or could not be in SETTLE_S."""
        gc.collect()
        gc.disable()
        try:
            return await self._run(rate, seconds)
        finally:
            gc.enable()

    async def _run(self, rate: float, seconds: float) -> dict[str, Any]:
        plan = self._plan(rate, seconds)
        self._base = first = len(self._messages)
        self._open = self._retries = behind = 0
        cpu = time.process_time()
        start = now_us() + 50_000
        for due, pair, content, tag in plan:
            due += start
            while (now := now_us()) < due:  # noqa: ASYNC110  # a clock is waited for, no event
                await asyncio.sleep((due - now) / 1_000_000)
            behind = max(behind, now - due)
            self._send(pair, due, content, tag)
            if len(self._messages) % 16 == 0:
                await asyncio.sleep(0)  # behind: let answers be read all the same
        sent_s = (now_us() - start) / 1_000_000
        deadline = now_us() + SETTLE_S * 1_000_000
        while self._open and now_us() < deadline and not self._lost():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        cpu = time.process_time() - cpu
        return self._figures(self._messages[first:], rate, sent_s, cpu) | {
            "behind_ms": behind / 1000
        }

    def _plan(self, rate: float, seconds: float) -> list[tuple[int, Pair, bytes, str]]:
        """Made beforehand, so that making it costs nothing while it is measured."""
        at, plan, number = 0.0, [], len(self._messages)
        while (at := at + self._rng.expovariate(rate)) < seconds:
            tag, content = h.seal(number, self._text.take(size(self._rng)))
            plan.append((int(at * 1_000_000), self._rng.choice(self._pairs), content, tag))
            number += 1
        return plan

    def _send(self, pair: Pair, due: int, content: bytes, tag: str) -> None:
        client, other = pair.left, pair.right
        if len(self._messages) % 2:
            client, other = other, client
        way = f"{self._idc_of[client.number]}-{self._idc_of[other.number]}"
        number, message = len(self._messages), Message(due, client, other, way)
        self._messages.append(message)
        self._open += 2
        seen = len(client.views.get(pair.conversation, ()))
        self._events.append((h.Compose, now_us(), client.number, pair.number, tag, seen))
        cid = client.next_cid
        client.next_cid += 1
        client.unacked[cid] = None

        def send() -> None:
            request = pb.Request()
            out = request.send
            out.conversation, out.outbox, out.cid = pair.conversation, "bench", cid
            out.floor, out.content = next(iter(client.unacked)), content
            client.call(request, answered)

        def answered(response: pb.Response) -> None:
            if not response.HasField("send_ack") or response.send_ack.outcome == pb.SendAck.WANT:
                self._retries += 1
                wait_s = max(RETRY_S, response.error.retry_after_ms / 1000)
                client.again(cid, send, wait_s)
                return
            message.acked = now_us()
            client.unacked.pop(cid, None)
            self._open -= number >= self._base
            self._events.append((h.Ack, message.acked, client.number, tag, "stored"))

        if client.is_refused():
            client.again(cid, send, 0.0)
        else:
            send()

    def _shown(self, client: Client, entry: pb.MessageEntry, name: str, index: int) -> None:
        now = now_us()
        content = entry.content
        number = self._numbers[name]
        self._events.append((h.Shown, now, client.number, number, content, index))
        place = int(content[: content.index(b"-")])
        message = self._messages[place]
        if message.receiver is client:
            message.shown = now
            self._open -= place >= self._base

    def _lost(self) -> str:
        return next((f"{c.uid}: {c.lost}" for c in self._clients if c.lost), "")

    # ------------------------------------------------------------------------------- figures

    def _figures(
        self, messages: list[Message], rate: float, sent_s: float, cpu_s: float
    ) -> dict[str, Any]:
        acks = [m.acked - m.due for m in messages if m.acked]
        receipts = [m.shown - m.due for m in messages if m.shown]
        last = max((m.acked for m in messages), default=0)
        took_s = max(sent_s, (last - messages[0].due) / 1_000_000) if acks else sent_s
        unanswered = len(messages) - len(acks), len(messages) - len(receipts)
        return {
            "rate": rate,
            "messages": len(messages),
            "offered": len(messages) / sent_s,
            "achieved": len(acks) / took_s,
            "ack": summarize(acks)._asdict(),
            "receive": summarize(receipts)._asdict(),
            "after_ack_ms": _after_ack(messages),
            "unacked": unanswered[0],
            "unreceived": unanswered[1],
            "retries": self._retries,
            "generator_cpu_us": cpu_s / max(1, len(messages)) * 1e6,
            "lost": self._lost(),
        }

    # ------------------------------------------------------------------------------- history

    async def judge(self) -> dict[str, Any]:
        """Fresh logins at every IDC, then the history as a file. What too high a rate has left
        waiting is waited for first: who was not told yet lacks nothing. Nor does who has lost his
        connection by it, since no client here comes back."""
        deadline = now_us() + JUDGED_S * 1_000_000
        while now_us() < deadline:
            if all(each.is_over() for each in self._messages):
                break
            await asyncio.sleep(0.1)
        writer = h.HistoryWriter(Path(self._spec.history), h.Header(1, "", "", "benchmark"))
        for client in self._clients:
            writer.write(h.Device(0, client.number, client.uid, client.device))
        for pair in self._pairs:
            writer.write(h.Conversation(0, pair.number, pair.conversation))
            for client in (pair.left, pair.right):
                writer.write(h.Member(0, pair.number, client.uid, True))
        for kind, *fields in self._events:
            if kind is h.Shown:
                t, n, c, content, index = fields
                writer.write(h.Shown(t, n, c, h.tag_of(content), index, False))
            else:
                writer.write(kind(*fields))
        for client in self._clients:
            if client.lost:
                writer.write(h.Closed(now_us(), client.number))
        writer.write(h.Quiet(now_us(), list(self._spec.gateways)))
        logins = 0
        for idc in self._spec.gateways:
            for pair in self._pairs:
                tags = await self._fresh(pair, idc)
                writer.write(h.Login(now_us(), logins, pair.left.uid, idc, "final"))
                writer.write(h.View(now_us(), logins, pair.number, tags))
                logins += 1
        writer.close()
        return {"history": self._spec.history}

    async def _fresh(self, pair: Pair, idc: str) -> list[str]:
        client = Client(-1, pair.left.uid, f"final-{idc}", lambda *_: None)
        await self._connect(client, idc)
        pages: list[list[str]] = []
        more, before = True, None
        while more:
            history = pb.History(conversation=pair.conversation, limit=200, before=before)
            page = (await client.ask(pb.Request(history=history))).pull_ok
            shown = [entry.message for entry in page.entries if entry.HasField("message")]
            if not shown:
                break
            shown.sort(key=lambda m: _place(m.placed.place))
            pages.append([h.tag_of(m.content) for m in shown])
            before, more = shown[0].placed.place, page.more
        client.close()
        return [tag for page in reversed(pages) for tag in page]


def _place(place: pb.Place) -> tuple[int, str, int, int]:
    return place.hlc, place.origin.idc, place.origin.incarnation, place.seq


def _after_ack(messages: list[Message]) -> dict[str, list[float]]:
    """Receipt minus ack by direction, p50 and p99."""
    found: dict[str, list[int]] = {}
    for message in messages:
        if message.shown and message.acked:
            found.setdefault(message.direction, []).append(message.shown - message.acked)
    summaries = {way: summarize(values) for way, values in found.items()}
    return {way: [summary.p50_ms, summary.p99_ms] for way, summary in summaries.items()}


def now_us() -> int:
    return time.monotonic_ns() // 1000


async def serve() -> None:
    """Orders until stdin ends."""
    load = Load(Spec(**json.loads(sys.argv[1])))
    orders: dict[str, Callable[..., Any]] = {
        "open": load.open,
        "run": load.run,
        "judge": load.judge,
    }
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        try:
            answer = await orders[order.pop("do")](**order)
        except (OSError, TimeoutError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    uvloop.run(serve())
