"""Twice what one IDC can carry: what it sheds, how late what it accepts is, how soon it is over.

The rate rises by a third until it is not carried any more; the last one that was is called the
sustainable one. Then twice that is offered, and then half of it, without a pause. What is shed is
not sent again: the load is what is offered, not what clients make of an answer.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.client import Client
from benchmarks.deployment import gateways, one_idc, running
from imcore.checker.latency import summarize
from imcore.pki import load_region_keys
from imcore.proto import client_pb2 as pb
from imcore.tokens import Claims, mint
from imcore.words import direct_conversation

USERS = 200
START_PER_S = 600.0
STEP = 1.33
IN_TIME_MS = 1000.0  # p99 of acks at a rate that is sustained; above it a queue grows
CONTENT = bytes(120)
TOKEN_MS = 3_600_000
ACK_EVERY_S = 1.0


class Outcome(NamedTuple):
    at: float  # of sending, in seconds
    took_ms: float
    code: str  # empty: accepted
    retry_after_ms: int


class Phase(NamedTuple):
    offered: float  # a second
    outcomes: list[Outcome]
    unanswered: int

    def after(self, at: float) -> Phase:
        return self._replace(outcomes=[each for each in self.outcomes if each.at >= at])

    def accepted_ms(self) -> list[float]:
        return [each.took_ms for each in self.outcomes if not each.code]

    def shed(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.code]

    def is_sustained(self) -> bool:
        ack = summarize([round(ms * 1000) for ms in self.accepted_ms()])
        return not self.shed() and not self.unanswered and ack.p99_ms < IN_TIME_MS


class Users:
    def __init__(self) -> None:
        self._clients: list[Client] = []
        self._rng = random.Random(1)

    async def open(self, address: list[Any], pki_dir: Path) -> None:
        keys = load_region_keys(pki_dir)
        expires = time.time_ns() // 1_000_000 + TOKEN_MS
        for number in range(USERS):
            client = Client(number, f"u{number:03}", "phone", lambda *_: None)
            token = mint(keys, Claims(client.uid, client.device, expires)).encode()
            await client.connect(address[0], address[1], None, token)
            self._clients.append(client)

    async def phase(self, rate: float, seconds: float) -> Phase:
        outcomes: list[Outcome] = []
        begun = now = time.monotonic()
        due, sent, acked = begun, 0, begun
        while now < begun + seconds:
            now = time.monotonic()
            while due <= now:
                self._send(now - begun, outcomes)
                sent += 1
                due += self._rng.expovariate(rate)
            if now - acked > ACK_EVERY_S:
                acked = now
                for client in self._clients:
                    client.ack_pushes()
            await asyncio.sleep(max(0.0, min(0.002, due - time.monotonic())))
        offered = sent / (time.monotonic() - begun)
        for _ in range(100):
            if len(outcomes) == sent:
                break
            await asyncio.sleep(0.05)
        return Phase(offered, outcomes, sent - len(outcomes))

    def _send(self, at: float, outcomes: list[Outcome]) -> None:
        client = self._rng.choice(self._clients)
        other = self._clients[client.number ^ 1]
        sent = time.monotonic()

        def answered(response: pb.Response) -> None:
            error = response.error
            took_ms = (time.monotonic() - sent) * 1000
            outcomes.append(Outcome(at, took_ms, error.code, error.retry_after_ms))

        request = pb.Request()
        out = request.send
        out.conversation, out.outbox = direct_conversation(client.uid, other.uid), "bench"
        out.cid = out.floor = client.next_cid  # what was shed before is given up
        out.content = CONTENT
        client.next_cid += 1
        client.call(request, answered)


def _line(name: str, phase: Phase) -> str:
    accepted, shed = phase.accepted_ms(), phase.shed()
    ack = summarize([round(ms * 1000) for ms in accepted])
    codes = dict(Counter(each.code for each in shed))
    waits = sorted(each.retry_after_ms for each in shed)
    told = f", retry after {waits[0]} to {waits[-1]} ms" if waits else ""
    return (
        f"{name}: offered {phase.offered:.0f}/s, accepted {len(accepted)}, "
        f"shed {codes or 0}{told}, unanswered {phase.unanswered}, "
        f"ack p50 {ack.p50_ms:.1f} p99 {ack.p99_ms:.1f} ms"
    )


async def measure(seconds: float) -> dict[str, float]:
    """Prints what it sees."""
    with tempfile.TemporaryDirectory(prefix="bench-overload-") as name:
        folder = Path(name)
        region = one_idc(folder)
        async with running(folder, region, True):
            users = Users()
            await users.open(gateways(region)["fra"], folder / "pki")
            rate, sustained = START_PER_S, 0.0
            while True:
                phase = await users.phase(rate, 2.0)
                print(_line("  rising", phase), flush=True)
                if not phase.is_sustained():
                    break
                sustained, rate = phase.offered, rate * STEP
            sustained = sustained or START_PER_S
            await asyncio.sleep(3)
            over = await users.phase(2 * sustained, seconds)
            half = await users.phase(sustained / 2, seconds)
    steady = over.after(2.0)
    print(_line("twice the sustained rate, after 2 s", steady), flush=True)
    print(_line("half of it, at once afterwards", half), flush=True)
    good = len(steady.accepted_ms()) / (seconds - 2.0)
    recovered = max((each.at for each in half.shed()), default=0.0)
    ack = summarize([round(ms * 1000) for ms in steady.accepted_ms()])
    print(
        f"sustained {sustained:.0f}/s; at twice that {good:.0f}/s accepted, "
        f"p99 {ack.p99_ms:.0f} ms; nothing shed any more {recovered:.1f} s after it; "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    codes = {each.code for phase in (over, half) for each in phase.shed()}
    unclear = [each for each in over.shed() if not each.retry_after_ms]
    return {
        "sustained": sustained,
        "accepted": good,
        "p99_ms": ack.p99_ms,
        "recovered_s": recovered,
        "unanswered": over.unanswered + half.unanswered,
        "unclear": len(unclear) + len(codes - {"overloaded"}),
    }


async def run(quick: bool) -> None:
    await measure(6.0 if quick else 12.0)
