"""Delivers to one webhook what stands in one IDC's log: the own, or that of another one, which is
lost, from its copy.

The log is the queue: what a position says is delivered is all that is stored beside it, in the
IDC's registry, so a restart loses nothing. At least once: what was delivered since the position
was last stored comes again. In the order of each partition; a delivery that fails holds up those
behind it, and is tried again until it is taken or too much waits behind it.

Each IDC tells the others how far it has come. When it is lost one of them goes on from there: what
the lost one delivered after it last said so comes again, under the same ids.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imcore.errors import Damaged, ImError
from imcore.proto import oplog_pb2 as oplog
from imcore.runtime import Clock
from imcore.words import Origin, parse_origin
from services.ports import Log, LogStore, Registry
from services.webhooks.events import Event
from services.webhooks.sign import signature

log = logging.getLogger("im.webhooks")

EVENTS_MAX = 100  # in one delivery, and those of the record that reaches it
LOOK_S = 0.5
STORE_S = 1.0
STAND_BY_S = 2.0  # between two looks whether another IDC is lost
HEARD_STORE_S = 10.0  # what is heard of another one is stored so rarely
AGAIN_S = 5.0
BACKOFF_S = 0.5
BACKOFF_MAX_S = 60.0
_READ_BYTES = 64 * 1024
PREFIX = b"webhooks/"

Make = Callable[[oplog.Op], Awaitable[list[Event]]]
Applied = Callable[[Origin], dict[int, int]]
Key = tuple[Origin, int]


def always() -> bool:
    return True


class Post(Protocol):
    async def __call__(self, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer. Raises Unavailable."""
        ...


@dataclass(slots=True)
class Feed:
    """``name``: under which its position is stored. ``idc``: whose log it is; ``teller``: who
    tells; ``on_duty``: whether it is to, now. ``make``: the events of an op. ``delay_ms``: an op
    must be so old. ``waiting_max``: so many records of a partition may wait; beyond it the oldest
    are left out, and counted."""

    name: str
    idc: str
    make: Make
    post: Post
    secret_file: Path
    store: LogStore
    applied: Applied
    registry: Registry
    clock: Clock
    rng: random.Random
    teller: str = ""  # empty: the IDC whose log it is
    on_duty: Callable[[], bool] = always
    delay_ms: int = 0
    waiting_max: int = 100_000
    delivered: int = 0  # events
    left_out: int = 0  # records
    problem: str = ""
    _unread: str = ""  # why a part of its log was not read in the last turn
    _failed: int = 0  # tries in a row, also of different deliveries
    _reached: dict[Key, int] | None = None
    _stored: dict[Key, int] | None = None
    _stored_at: float = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if not self.on_duty():
                    await self._stand_by()
                    continue
                if self._reached is None:
                    await self._load()
                if not await self.turn():
                    await asyncio.sleep(LOOK_S)
            except (ImError, OSError, LookupError) as error:
                self._say(f"the webhook {self.name} does not read its log: {error}")
                await asyncio.sleep(AGAIN_S)
            except Exception as error:  # whatever it is, the IDC serves on
                log.exception("the webhook %s failed unexpectedly", self.name)
                self._say(f"the webhook {self.name} failed: {error!r}")
                await asyncio.sleep(AGAIN_S)

    async def _stand_by(self) -> None:
        self._say("")  # whatever it was, nothing is owed any more
        await asyncio.sleep(STAND_BY_S)
        if self._reached is not None:
            await self._save_now_and_then(HEARD_STORE_S)

    def heard(self, told: Mapping[str, int]) -> None:
        """The IDC whose log it is has told so much itself (as its ``told``)."""
        if not told:
            return  # it does not know yet: from nothing on would be all that it ever accepted
        if self._reached is None:
            self._reached = {}
        for key, lsn in _keys(told).items():
            self._reached[key] = max(lsn, self._reached.get(key, 0))

    def told(self) -> dict[str, int]:
        """By origin and partition: up to which lsn nothing is owed."""
        reached = self._reached or {}
        return {f"{origin}/{partition}": lsn for (origin, partition), lsn in reached.items()}

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning(problem)
        self.problem = problem

    # ----------------------------------------------------------------------------- position

    async def _load(self) -> None:
        """A webhook that is new begins with what comes from now on."""
        row = await self.registry.get(PREFIX + self.name.encode())
        if row is not None and row.exists:
            self._reached = _keys(json.loads(row.value))
            return
        self._reached = {
            (origin, partition): source.end(partition).lsn
            for origin, source in self._logs()
            for partition in range(source.partitions)
        }
        await self._save()

    async def _save(self) -> None:
        assert self._reached is not None
        reached = dict(self._reached)
        await self.registry.put(PREFIX + self.name.encode(), json.dumps(self.told()).encode())
        self._stored, self._stored_at = reached, self.clock.now()

    async def _save_now_and_then(self, every_s: float = STORE_S) -> None:
        if self._reached != self._stored and self.clock.now() - self._stored_at >= every_s:
            try:
                await self._save()
            except ImError as error:  # then more comes again after a restart
                log.info("where the webhook %s stands is not stored: %s", self.name, error)

    def _logs(self) -> list[tuple[Origin, Log]]:
        """Of all lives of that IDC, the oldest first: what an earlier one accepted is owed too."""
        held = self.store.held().items()
        return sorted((origin, source) for origin, source in held if origin.idc == self.idc)

    # ------------------------------------------------------------------------------ one turn

    async def turn(self) -> bool:
        """Whether there was something to deliver; it is delivered then, or left out."""
        assert self._reached is not None
        self._leave_out()
        events, reached = await self._collect()
        if events and not await self._deliver(events):
            await self._save_now_and_then()
            return True  # of what is still to be delivered, a delivery is made anew
        self._reached.update(reached)
        self._say(self._unread)  # all else is over
        await self._save_now_and_then()
        return bool(events)

    async def _collect(self) -> tuple[list[Event], dict[Key, int]]:
        assert self._reached is not None
        events: list[Event] = []
        reached: dict[Key, int] = {}
        old_enough_ms = self.clock.wall_ms() - self.delay_ms
        self._unread = ""
        for origin, source in self._logs():
            applied = self.applied(origin)
            for partition in range(source.partitions):
                if len(events) >= EVENTS_MAX:
                    return events, reached
                last = min(source.end(partition).lsn, applied.get(partition, 0))
                lsn = self._reached.get((origin, partition), 0) + 1
                reached[origin, partition] = lsn - 1
                if lsn > last:
                    continue
                try:
                    records = await source.read(partition, lsn, _READ_BYTES)
                except Damaged as error:  # it is mended from other IDCs
                    self._unread = f"the webhook {self.name} waits: {error}"
                    continue
                for record in records:
                    op = oplog.Op.FromString(record.payload)
                    if record.lsn > last or op.hlc >> 16 > old_enough_ms:
                        break
                    for number, event in enumerate(await self.make(op)):
                        event["id"] = f"{origin}/{partition}/{record.lsn}/{number}"
                        events.append(event)
                    reached[origin, partition] = record.lsn
                    if len(events) >= EVENTS_MAX:
                        break
        return events, reached

    def _leave_out(self) -> bool:
        """The oldest, where too much waits. Whether there were any."""
        assert self._reached is not None
        before = self.left_out
        for origin, source in self._logs():
            applied = self.applied(origin)
            for partition in range(source.partitions):
                last = min(source.end(partition).lsn, applied.get(partition, 0))
                lsn = self._reached.get((origin, partition), 0) + 1
                least = max(source.first_lsn(partition), last - self.waiting_max + 1)
                if lsn < least:
                    self._reached[origin, partition] = least - 1
                    self.left_out += least - lsn
                    left = f"{least - lsn} records of {origin}"
                    log.error("the webhook %s leaves out %s", self.name, left)
        return self.left_out > before

    # ------------------------------------------------------------------------------ delivery

    async def _deliver(self, events: list[Event]) -> bool:
        """Until it is taken. False: too much waits behind it, and the oldest are left out, perhaps
        some of these."""
        said = {"idc": self.teller or self.idc, "events": events}
        body = json.dumps(said, separators=(",", ":")).encode()
        while why := await self._try(body):
            self._failed += 1
            self._say(f"the webhook {self.name} is not delivered: {why}")
            await asyncio.sleep(wait_s(self._failed, self.rng))
            if self._leave_out():
                return False
        self._failed = 0
        self.delivered += len(events)
        return True

    async def _try(self, body: bytes) -> str:
        """Why it was not taken; empty: it was."""
        try:
            secret = self.secret_file.read_bytes().partition(b"\n")[0].strip()
        except OSError as error:
            return f"its secret cannot be read: {error.strerror}"
        if not secret:
            return "its secret is empty"
        now_ms = self.clock.wall_ms()
        headers = {
            "Content-Type": "application/json",
            "X-IM-Timestamp": str(now_ms),
            "X-IM-Signature": signature(secret, now_ms, body),
        }
        try:
            status = await self.post(body, headers)
        except ImError as error:
            return str(error)
        return "" if 200 <= status < 300 else f"the answer has status {status}"

    def status(self) -> dict[str, Any]:
        return {"delivered": self.delivered, "left_out": self.left_out, "problem": self.problem}


def wait_s(failed: int, rng: random.Random) -> float:
    """Before the next try, after so many that failed: doubling, with a part by chance."""
    longest = min(BACKOFF_MAX_S, BACKOFF_S * (1 << min(failed - 1, 16)))
    return longest * (0.5 + rng.random() / 2)


def _keys(told: Mapping[str, int]) -> dict[Key, int]:
    reached: dict[Key, int] = {}
    for name, lsn in told.items():
        origin, _, partition = name.rpartition("/")
        reached[parse_origin(origin), int(partition)] = int(lsn)
    return reached
