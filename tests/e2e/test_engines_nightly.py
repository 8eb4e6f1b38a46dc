"""Half a million messages through three IDCs on Kafka, MirrorMaker 2 and etcd, while a broker, a
MirrorMaker and an etcd are killed in turn, each in another IDC, twice over. And a tenth of that
with TiKV's protocol too, whose client and mock leave two cores 75 messages a second.

The clients are those of the SDK: they come back after every fault, which the raw generator of the
benchmarks does not. Their outboxes are in memory; the history goes to a file as it happens. Each
client offers at a fixed rate and holds back when it is not answered or not read: so the deployment
is kept busy, but neither its queues nor the clients' grow with the length of a fault.

IM_NIGHTLY_MESSAGES=5000 makes it runs of a minute, for work on the test itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from imcore import history as h
from imcore.checker.latency import summarize
from imcore.errors import ImError, Unavailable
from imctl.loop import new_event_loop
from imctl.testing.cast import Actor, Cast, Couple
from imctl.testing.lab import Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

MESSAGES = {"kafka,etcd": 500_000, "kafka,tikv,etcd": 50_000}
MESSAGES_MAX = int(os.environ.get("IM_NIGHTLY_MESSAGES", "500000"))
# Conversations of at most 2,500 messages: a fresh login reads a whole one within its time limit.
COUPLES_PER_WAY_MAX, IN_A_CONVERSATION = 67, 1_500
BODY = "a sentence of about the length that people write to each other, and a little more of it"
# Messages a second, all clients; what is not kept up with is not offered. With all engines of three
# IDCs two cores are full at 100/s: then the alarms of a fault would never end.
OFFERED = {"kafka,etcd": 400.0, "kafka,tikv,etcd": 60.0}
WINDOW = 2  # of one client: not acked yet
UNSEEN = 100  # of one conversation: acked, not shown to the other side yet
AWAY_S = 5.0
WORKS_S = 300.0  # after a fault, on a machine without a core to spare
STALLED_S = 180.0  # no ack at all for so long: the run is given up
PATIENCE = 12.0  # how many times longer than usual judging may take
FAULTS = [
    ("fra", "kafka"), ("iad", "mm2"), ("sin", "etcd"),
    ("iad", "kafka"), ("sin", "mm2"), ("fra", "etcd"),
]  # fmt: skip
WAYS = [("fra", "iad"), ("iad", "sin"), ("sin", "fra")]

Figures = Callable[[str, object], None]


class Talk:
    """Everybody talks with the other half of his couple until enough is acked, and longer while
    ``held``."""

    def __init__(self, cast: Cast, couples: list[Couple], wanted: int, offered: float) -> None:
        self._recorder = cast.recorder
        self._speakers = [
            (speaker, other, c)
            for here, there, c in couples
            for speaker, other in ((here, there), (there, here))
        ]
        self._wanted = wanted
        self._offered = offered
        self.held = True

    def over(self) -> bool:
        return not self.held and self._recorder.counts.acked >= self._wanted

    async def run(self) -> None:
        """Raises AssertionError when nothing moves any more."""
        async with asyncio.TaskGroup() as group:
            for number, (speaker, other, conversation) in enumerate(self._speakers):
                start_s = number / self._offered
                group.create_task(self._speak(group, speaker, other, conversation, start_s))
            group.create_task(self._watch())

    async def _speak(
        self, group: asyncio.TaskGroup, speaker: Actor, other: Actor, name: str, start_s: float
    ) -> None:
        clock = asyncio.get_running_loop().time
        window = asyncio.Semaphore(WINDOW)
        due = clock() + start_s
        every_s = len(self._speakers) / self._offered
        while not self.over():
            due = max(due + every_s, clock())  # what a fault held back is not made up for
            await asyncio.sleep(due - clock())
            if self._unseen(other, name) >= UNSEEN:
                continue
            await window.acquire()
            group.create_task(self._send(speaker, name, window))

    def _unseen(self, other: Actor, conversation: str) -> int:
        return self._recorder.acked_in.get(conversation, 0) - other.ear.seen.get(conversation, 0)

    async def _send(self, speaker: Actor, name: str, window: asyncio.Semaphore) -> None:
        recorder = self._recorder
        tag, content = recorder.compose(speaker.ear, name, BODY)
        try:
            acked = await speaker.session.send(name, content)
        except ImError as error:
            recorder.send_failed(speaker.ear, tag, str(error))
        else:
            recorder.ack(speaker.ear, name, tag, acked)
        finally:
            window.release()

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        last, since = -1, clock()
        while not self.over():
            self._recorder.ack_us.clear()  # of the second, for a live view that nobody has here
            self._recorder.receive_us.clear()
            if (acked := self._recorder.counts.acked) != last:
                last, since = acked, clock()
            assert clock() - since < STALLED_S, f"nothing is acked any more; {acked} were"
            await asyncio.sleep(1)


async def kill_in_turn(lab: Lab, cast: Cast, talk: Talk, wanted: int) -> None:
    """Spread over the messages; the next one only when all IDCs serve again."""
    counts = cast.recorder.counts
    for number, (idc, kind) in enumerate(FAULTS, 1):
        while counts.acked < wanted * number // (len(FAULTS) + 1):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        cast.recorder.fault(idc, f"kill {kind}")
        await lab.kill(f"{idc}-{kind}")
        await asyncio.sleep(AWAY_S)
        await asyncio.to_thread(lab.target.start, [f"{idc}-{kind}"])
        await until(partial(_serves, lab, f"{idc}-{kind}"), WORKS_S, f"{idc}-{kind} does not serve")
        await lab.all_active()
        for one in lab.idcs:
            await _calm(lab, one)
    talk.held = False


async def _serves(lab: Lab, name: str) -> bool:
    return await asyncio.to_thread(lab.target.engine_serves, name)


async def _calm(lab: Lab, idc: str) -> None:
    """Once it has no alarm any more. Raises Unavailable with those that it has."""
    said = ""

    async def none() -> bool:
        nonlocal said
        with contextlib.suppress(Unavailable):  # busy: asked again
            said = await lab.alarms(idc)
            return not said
        return False

    try:
        await until(none, WORKS_S, f"{idc} does not stop its alarms")
    except Unavailable as error:
        raise Unavailable(f"{error}: {said}") from error


@contextlib.asynccontextmanager
async def lags(lab: Lab) -> AsyncIterator[dict[str, list[int]]]:
    """In µs by direction, sampled each second during the block."""
    found: dict[str, list[int]] = defaultdict(list)

    async def sample() -> None:
        while True:
            for idc in lab.idcs:
                with contextlib.suppress(ImError):
                    for origin, lag in (await lab.status(idc))["lag"].items():
                        found[f"{origin.rpartition('.')[0]}->{idc}"].append(lag["ms"] * 1000)
            await asyncio.sleep(1)

    sampling = asyncio.create_task(sample())
    try:
        yield found
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)


@dataclass
class Stalls:
    """From the history: the longest time in which the clients of one IDC had no ack, or those of
    one had nothing from another. Each fault's lasts until the next one."""

    longest: dict[str, tuple[int, str]] = field(default_factory=dict)  # fault: µs, of what
    _home: dict[int, str] = field(default_factory=dict)
    _sender: dict[str, int] = field(default_factory=dict)
    _last: dict[str, int] = field(default_factory=dict)
    _fault: str = "before the first"

    def feed(self, event: h.Event) -> None:
        match event:
            case h.Connection(_, n, idc, _) if idc:
                self._home.setdefault(n, idc)
            case h.Compose():
                self._sender[event.tag] = event.n
            case h.Ack(t, n, _, _):
                self._moved(f"acks at {self._home[n]}", t)
            case h.Shown(t, n, _, tag, _, _) if (sender := self._sender[tag]) != n:
                self._moved(f"{self._home[sender]}->{self._home[n]}", t)
            case h.Phase(_, "talk"):
                self._last.clear()  # from here on everybody talks
            case h.Fault(t, idc, what):
                self._next(f"{what} at {idc}", t)
            case h.Phase(t, "quiet"):
                self._next("", t)

    def _next(self, fault: str, t: int) -> None:
        for stream in list(self._last):
            self._moved(stream, t)
        self._fault = fault

    def _moved(self, stream: str, t: int) -> None:
        stalled = t - self._last.get(stream, t), stream
        self._last[stream] = t
        if self._fault:
            self.longest[self._fault] = max(self.longest.get(self._fault, (0, "")), stalled)


@contextlib.contextmanager
def collecting_seldom() -> Iterator[None]:
    """Millions of objects live until the end: to look through them again and again takes long."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def run(folder: Path, figures: Figures, engines: str, wanted: int) -> None:
    couples_per_way = max(2, min(COUPLES_PER_WAY_MAX, wanted // IN_A_CONVERSATION))
    async with (
        Lab.up(folder, engines=engines.split(",")) as lab,
        Cast(lab, folder, outbox_files=False) as cast,
    ):
        lab.hash_timeout_s = 120.0
        couples = [c for way in WAYS for c in await cast.couples(couples_per_way, *way)]
        talk = Talk(cast, couples, wanted, OFFERED[engines])
        clock = asyncio.get_running_loop().time
        with collecting_seldom():
            began = clock()
            cast.recorder.phase("talk")
            async with lags(lab) as lag, asyncio.TaskGroup() as group:
                group.create_task(talk.run())
                group.create_task(kill_in_turn(lab, cast, talk, wanted))
            cast.recorder.phase("quiet")
            acked, took_s = cast.recorder.counts.acked, clock() - began
            figures("messages acked", f"{acked} in {took_s:.0f} s, {acked / took_s:.0f}/s")
            figures("sends that failed visibly", cast.recorder.counts.failed)
            for way, values in sorted(lag.items()):
                lag_of = summarize(values)
                figures(f"lag {way}, p50/p99", f"{lag_of.p50_ms:.0f}/{lag_of.p99_ms:.0f} ms")
            _figures_of_stalls(cast.path, cast, figures)

            began = clock()
            report = await cast.judge(patience=PATIENCE)
            hashes = await lab.converged(30 * PATIENCE)
            figures("judging", f"{clock() - began:.0f} s")
    rows = sum(count for _, _, count in hashes[lab.idcs[0]])
    figures("missing, twice, out of order", report.sentence())
    figures("rows in each IDC, equal by hash", rows)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures("memory of the clients and the checker", f"{peak_mb:.0f} MB")
    assert report.counts.acked >= wanted
    assert rows >= wanted


def _figures_of_stalls(path: Path, cast: Cast, figures: Figures) -> None:
    cast.recorder.flush()
    stalls = Stalls()
    for event in h.read_history(path)[1]:
        stalls.feed(event)
    for fault, (us, stream) in stalls.longest.items():
        figures(f"longest stall, {fault}", f"{us / 1e6:.1f} s ({stream})")
    assert len(stalls.longest) == len(FAULTS) + 1


@pytest.mark.parametrize("engines", MESSAGES)
def test_half_a_million_messages_while_engines_are_killed_in_turn(
    every_engine: None, tmp_path: Path, figures: Figures, engines: str
) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        wanted = min(MESSAGES[engines], MESSAGES_MAX)
        runner.run(run(tmp_path, figures, engines, wanted))
