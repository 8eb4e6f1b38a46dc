"""Engines that take their time and leave their callers in doubt, for tests: around real ones.

Each call suspends for a few turns of the loop before its effect and after it, so that whatever a
caller takes for granted between the two is found out. By the dice a call fails: ``Unavailable`` has
no effect; ``OutcomeUnknown`` has one, or has none, or has it later, as the ports allow.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from imcore.errors import OutcomeUnknown, Unavailable
from imcore.words import Origin
from services.ports import Batch, Kv, Log, LogEnd, LogStore, Record

_T = TypeVar("_T")
_TURNS = (0, 0, 0, 1, 1, 2, 3, 8)
Done = Callable[[Sequence[Record] | Exception], None]


class Dice:
    """``faults``: how many calls in a hundred fail; may be changed at any time."""

    def __init__(self, seed: int, faults: float) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.thrown = 0

    async def wait(self) -> None:
        for _ in range(self.rng.choice(_TURNS)):
            await asyncio.sleep(0)

    def fail(self) -> bool:
        if self.rng.random() * 100 >= self.faults:
            return False
        self.thrown += 1
        return True


class SuspendingKv:
    """Kv of services.ports."""

    def __init__(self, kv: Kv, dice: Dice) -> None:
        self._kv = kv
        self._dice = dice
        self._late: dict[int, list[Callable[[], Awaitable[object]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def rolled_back(self) -> bool:
        return self._kv.rolled_back

    async def _read(self, read: Callable[[], Awaitable[_T]]) -> _T:
        await self._dice.wait()
        if self._dice.fail():
            raise Unavailable("the KV is away (injected)")
        found = await read()
        await self._dice.wait()
        return found

    async def _write(self, partition: int, write: Callable[[], Awaitable[_T]]) -> _T:
        await self._dice.wait()
        if not self._dice.fail():
            done = await write()
            await self._dice.wait()
            return done
        kind = self._dice.rng.choice(("not done", "lost", "done", "done", "late"))
        if kind == "not done":
            raise Unavailable("the KV is away (injected)")
        if kind == "done":
            await write()
        elif kind == "late":
            self._late.setdefault(partition, []).append(write)
            task = asyncio.ensure_future(self._come_late(partition))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await self._dice.wait()
        raise OutcomeUnknown("the KV did not answer (injected)")

    async def _come_late(self, partition: int) -> None:
        await asyncio.sleep(0.001 * self._dice.rng.randint(0, 5))
        await self._settle(partition)

    async def _settle(self, partition: int) -> None:
        for write in self._late.pop(partition, []):
            await write()

    async def get(self, key: bytes) -> bytes | None:
        return await self._read(lambda: self._kv.get(key))

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._read(lambda: self._kv.get_many(keys))

    async def scan(
        self, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        return await self._read(lambda: self._kv.scan(start, end, limit, reverse))

    async def open_partition(self, partition: int) -> tuple[int, bytes | None]:
        if self._dice.rng.random() < 0.5:
            await self._settle(partition)
        else:
            self._late.pop(partition, None)
        return await self._write(partition, lambda: self._kv.open_partition(partition))

    async def commit(self, batch: Batch) -> None:
        await self._write(batch.partition, lambda: self._kv.commit(batch))

    async def clear_partition(self, partition: int, applier_epoch: int, checkpoint: bytes) -> None:
        await self._write(
            partition, lambda: self._kv.clear_partition(partition, applier_epoch, checkpoint)
        )

    async def load_partition(
        self, snapshot: Path, partition: int, applier_epoch: int, checkpoint: bytes
    ) -> None:
        await self._write(
            partition,
            lambda: self._kv.load_partition(snapshot, partition, applier_epoch, checkpoint),
        )

    async def sync(self) -> None:
        await self._kv.sync()

    async def snapshot(self, folder: Path) -> None:
        await self._kv.snapshot(folder)

    async def restore(self, snapshot: Path) -> None:
        await self._kv.restore(snapshot)

    async def close(self) -> None:
        await asyncio.gather(*self._tasks)
        await self._kv.close()


class DoubtfulLog:
    """The own log. Once an append has failed, later ones fail likewise until ``reopen``; of what
    was in doubt, a first part may be in the log at once, at ``reopen``, or right before the next
    marker; nothing comes behind that."""

    def __init__(self, inner: Log, dice: Dice) -> None:
        self._inner = inner
        self._dice = dice
        self.origin, self.partitions = inner.origin, inner.partitions
        self._mode: dict[int, str] = {}  # what becomes of appends: "lost", "late", "landing"
        self._late: dict[int, list[tuple[int, Sequence[bytes]]]] = {}
        self._told: deque[_Answer] = deque()  # in the order of the appends
        self._all_told = asyncio.Event()
        self._all_told.set()

    def end(self, partition: int) -> LogEnd:
        return self._inner.end(partition)

    def first_lsn(self, partition: int) -> int:
        return self._inner.first_lsn(partition)

    def append(self, partition: int, epoch: int, payloads: Sequence[bytes], done: Done) -> int:
        answer = _Answer(done)
        self._told.append(answer)
        self._all_told.clear()
        loop, mode = asyncio.get_running_loop(), self._mode.get(partition)
        if mode is None and self._late.get(partition):  # the marker, and others were faster
            for late_epoch, late in self._late.pop(partition):
                self._inner.append(partition, late_epoch, late, lambda _: None)
            if self._dice.rng.random() < 0.7:
                mode = self._mode[partition] = "lost"
        elif mode is None and self._dice.fail():
            mode = self._dice.rng.choice(("lost", "late", "landing"))
            self._mode[partition] = mode
        unknown = OutcomeUnknown("the log did not answer (injected)")
        if mode is None:
            return self._inner.append(
                partition, epoch, payloads, lambda result: self._answered(answer, result)
            )
        if mode == "landing":
            self._mode[partition] = self._dice.rng.choice(("landing", "lost", "late"))
            return self._inner.append(
                partition, epoch, payloads, lambda _: self._answered(answer, unknown)
            )
        if mode == "late":
            self._late.setdefault(partition, []).append((epoch, payloads))
        loop.call_soon(self._answered, answer, unknown)
        return self._inner.end(partition).lsn + 1

    def _answered(self, answer: _Answer, result: Sequence[Record] | Exception) -> None:
        answer.result = result
        while self._told and (first := self._told[0].result) is not None:
            self._told.popleft().done(first)
        if not self._told:
            self._all_told.set()

    async def reopen(self, partition: int) -> LogEnd:
        await self._dice.wait()
        if self._dice.fail():
            raise Unavailable("the log is away (injected)")
        await self._all_told.wait()
        late = self._late.pop(partition, [])
        if self._mode.pop(partition, None) is not None and late:
            found = self._dice.rng.randint(0, len(late))
            for epoch, payloads in late[:found]:
                landed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
                self._inner.append(partition, epoch, payloads, landed.set_result)
                await landed
            self._late[partition] = late[found : self._dice.rng.randint(found, len(late))]
        await self._dice.wait()
        return await self._inner.reopen(partition)

    async def append_copy(self, records: Sequence[Record]) -> None:
        await self._inner.append_copy(records)

    async def read(self, partition: int, from_lsn: int, limit_bytes: int) -> list[Record]:
        await self._dice.wait()
        if self._dice.fail():
            raise Unavailable("the log is away (injected)")
        found = await self._inner.read(partition, from_lsn, limit_bytes)
        await self._dice.wait()
        return found

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._inner.subscribe(callback)

    async def truncate_below(self, partition: int, lsn: int) -> None:
        await self._inner.truncate_below(partition, lsn)

    async def cut_above(self, partition: int, lsn: int) -> None:
        await self._inner.cut_above(partition, lsn)

    def stored_bytes(self, partition: int, above_lsn: int) -> int:
        return self._inner.stored_bytes(partition, above_lsn)

    async def restart_at(self, partition: int, end: LogEnd) -> None:
        await self._inner.restart_at(partition, end)

    async def close(self) -> None:
        await self._inner.close()


class _Answer:
    def __init__(self, done: Done) -> None:
        self.done = done
        self.result: Sequence[Record] | Exception | None = None


class DoubtfulLogs:
    """LogStore of services.ports whose own log is doubtful."""

    def __init__(self, store: LogStore, dice: Dice) -> None:
        self._store = store
        self._dice = dice
        self._own: DoubtfulLog | None = None
        self.log_id, self.boot_count = store.log_id, store.boot_count
        self.confirmed_boot_count, self.clean = store.confirmed_boot_count, store.clean
        self.fsynced, self.durability = store.fsynced, store.durability
        self.filled_from_outside = store.filled_from_outside

    def own(self) -> Log | None:
        return self._own

    def alarms(self) -> list[str]:
        return self._store.alarms()

    async def open_own(self, origin: Origin) -> Log:
        self._own = DoubtfulLog(await self._store.open_own(origin), self._dice)
        return self._own

    async def open_copy(self, origin: Origin) -> Log:
        return await self._store.open_copy(origin)

    def held(self) -> dict[Origin, Log]:
        held = self._store.held()
        return held if self._own is None else held | {self._own.origin: self._own}

    async def confirm_boot(self) -> None:
        await self._store.confirm_boot()

    async def renew(self) -> None:
        await self._store.renew()

    async def close(self) -> None:
        await self._store.close()
