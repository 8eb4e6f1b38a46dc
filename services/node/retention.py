"""Carries out what ``services.retention`` decides (rule 8): looks, takes snapshots, cuts logs."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from imcore.convert import origin_of
from imcore.errors import BadInput, Damaged, ImError, Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.model import Retention as Settings
from imcore.runtime import Clock
from imcore.words import Origin
from services.engines import lmdb_snapshot
from services.engines.disk import Disk
from services.mirror.serve import Offer
from services.node.seals import Seals
from services.ports import Kv, LogStore
from services.retention.decide import SEAL_COMMIT_S, Ends, Facts, Kept, Limits, Plan, decide
from services.retention.shelf import DESCRIPTION, Description, folded

log = logging.getLogger("im.retention")

_ASK_S = 1.5
_GUEST_S = 60.0


class Shelf:
    """The snapshots on disk, oldest first; those that fail their check are thrown away."""

    def __init__(self, folder: Path, disk: Disk, clock: Clock) -> None:
        self._folder = folder
        self._disk = disk
        self._clock = clock
        self.kept: list[Description] = []
        self.problem: str | None = None

    async def load(self) -> None:
        for name in await asyncio.to_thread(self._disk.list, str(self._folder)):
            try:
                text = await asyncio.to_thread(self._disk.read, str(self.path(name) / DESCRIPTION))
                await asyncio.to_thread(lmdb_snapshot.check, self.path(name))
                self.kept.append(replace(Description.parse(text), name=name))
            except (ImError, OSError) as error:
                log.warning("the snapshot %s is of no use: %s", name, error)
                await self._delete(name)

    def path(self, name: str) -> Path:
        return self._folder / name

    def new_name(self) -> str:
        """Names rise, whatever the clock does."""
        last = int(self.kept[-1].name) if self.kept else 0
        return f"{max(last + 1, self._clock.wall_ms()):015d}"

    async def put(self, description: Description) -> None:
        """Its folder is there; from now on it counts."""
        target = str(self.path(description.name) / DESCRIPTION)
        await asyncio.to_thread(self._disk.write_whole, target, description.dump())
        self.kept = [d for d in self.kept if d.name != description.name] + [description]
        self.kept.sort(key=lambda d: d.name)

    async def drop(self, name: str) -> None:
        self.kept = [d for d in self.kept if d.name != name]
        await self._delete(name)

    async def _delete(self, name: str) -> None:
        path = self.path(name)
        await asyncio.to_thread(self._disk.remove, str(path / DESCRIPTION))
        await asyncio.to_thread(shutil.rmtree, path, True)

    async def newest_safe(self) -> tuple[Description, dict[int, bytes]] | None:
        """With its checkpoints; its file has just been checked."""
        for description in reversed([d for d in self.kept if d.safe]):
            try:
                path = self.path(description.name)
                return description, await asyncio.to_thread(lmdb_snapshot.checked, path)
            except (Damaged, BadInput) as error:
                self.problem = f"a snapshot is damaged: {error}"
                log.error(self.problem)
                await self.drop(description.name)
        return None


class Retention:
    """``retired`` names the IDCs that hold nothing back; ``applied`` says how far the appliers have
    folded an origin, by partition: what a rebuild has still to read is never cut. ``read_seals``
    brings ``seals`` up to date, and says whether it could."""

    def __init__(
        self,
        idc: str,
        idcs: list[str],
        partitions: int,
        settings: Settings,
        shelf: Shelf,
        store: LogStore,
        kv: Kv,
        channels: Mapping[str, grpc.aio.Channel],
        seals: Seals,
        read_seals: Callable[[], Awaitable[bool]],
        retired: Callable[[], frozenset[str]],
        applied: Callable[[Origin], dict[int, int]],
        clock: Clock,
    ) -> None:
        self._idc = idc
        self._idcs = idcs
        self._partitions = partitions
        self._settings = settings
        self._limits = Limits(settings.log_bytes, settings.snapshots)
        self.shelf = shelf
        self._store = store
        self._kv = kv
        self._channels = channels
        self._seals = seals
        self._read_seals = read_seals
        self._retired = retired
        self._applied = applied
        self._clock = clock
        self._heard: dict[str, Ends] = {}
        self._guests: dict[str, float] = {}  # who fetched a snapshot, and when they were last heard
        self._looks: deque[tuple[float, dict[str, Ends | None]]] = deque()
        self._loading: Description | None = None
        self._plan = Plan()
        self._checking = asyncio.Lock()  # one at a time: it reads gigabytes
        self.problem: str | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while self._settings.enabled:
            await asyncio.sleep(self._settings.check_ms / 1000)
            try:
                await self.check()
                self.problem = None
            except (ImError, OSError) as error:
                self._say(f"the logs cannot be cut for now: {error}")

    def _say(self, sentence: str) -> None:
        if sentence != self.problem:
            log.error(sentence)
        self.problem = sentence

    # -------------------------------------------------------------------------------- one look

    async def check(self) -> None:
        log_bytes = self.log_bytes()
        if log_bytes <= self._limits.log_bytes and not self.shelf.kept:
            return
        held = await self._held()
        before = self._look_before(held)
        plan = self._decide(log_bytes, held, before)
        if plan.safe:
            if not await self._read_seals():
                raise Unavailable("not every IDC's register can be read")
            plan = self._decide(log_bytes, held, before)
        self._plan = plan
        for description in [d for d in self.shelf.kept if d.name in plan.safe]:
            await self.shelf.put(description.marked_safe())
            log.info("the snapshot %s is safe to be folded on from", description.name)
        await self._cut(plan.cut)
        for name in plan.drop:
            await self.shelf.drop(name)
        if plan.take:
            await self._take()

    def _decide(
        self, log_bytes: int, held: dict[str, Ends | None], before: dict[str, Ends | None]
    ) -> Plan:
        newest = self.shelf.kept[-1].vector if self.shelf.kept else {}
        snapshots = [Kept(d.name, d.vector, d.safe) for d in self.shelf.kept]
        facts = Facts(log_bytes, self._bytes_above(newest), held, self._seals.known(), snapshots)
        return decide(facts, before, self._limits)

    def _look_before(self, held: dict[str, Ends | None]) -> dict[str, Ends | None]:
        """The newest look that is old enough; adds this one."""
        now = self._clock.now()
        self._looks.append((now, held))
        while len(self._looks) > 1 and self._looks[1][0] <= now - SEAL_COMMIT_S:
            self._looks.popleft()
        at, before = self._looks[0]
        return before if at <= now - SEAL_COMMIT_S else {}

    async def _held(self) -> dict[str, Ends | None]:
        """Of every IDC that is not retired, by its last answer."""
        away = self._retired() - self._expected()
        others = [i for i in self._idcs if i != self._idc and i not in away]
        await asyncio.gather(*(self._ask(name) for name in others))
        held: dict[str, Ends | None] = {name: self._heard.get(name) for name in others}
        held[self._idc] = {
            origin: tuple(source.end(p).lsn for p in range(self._partitions))
            for origin, source in self._store.held().items()
        }
        return held

    def _expected(self) -> frozenset[str]:
        """A retired IDC that starts from a snapshot of this one needs the records above it."""
        since = self._clock.now() - _GUEST_S
        return frozenset(name for name, heard_at in self._guests.items() if heard_at >= since)

    async def _ask(self, name: str) -> None:
        try:
            stub = rpc.LogsStub(self._channels[name])
            reply = await stub.Ends(peer.EndsRequest(), timeout=_ASK_S)
        except (grpc.RpcError, TimeoutError):
            return
        heard: dict[Origin, tuple[int, ...]] = {}
        for row in reply.origins:
            ends = {end.partition: end.lsn for end in row.held}
            heard[origin_of(row.origin)] = tuple(ends.get(p, 0) for p in range(self._partitions))
        self._heard[name] = heard
        if name in self._guests:
            self._guests[name] = self._clock.now()

    async def _cut(self, cut: Mapping[tuple[Origin, int], int]) -> None:
        if not cut:
            return
        before = self.log_bytes()
        await self._kv.sync()
        logs = self._store.held()
        for (origin, partition), below in cut.items():
            source = logs.get(origin)
            if source is None:
                continue
            # Read just before the call: a rebuild that begins takes this back to its own start.
            below = min(below, self._applied(origin).get(partition, 0))
            if below > source.first_lsn(partition):
                await source.truncate_below(partition, below)
        freed = before - self.log_bytes()
        if freed > 0:
            log.info("%d bytes of the logs were cut, %d are left", freed, before - freed)

    async def _take(self) -> None:
        name, seals = self.shelf.new_name(), self._seals.known()
        path = self.shelf.path(name)
        try:
            await self._kv.snapshot(path)
        except BaseException:
            await self.shelf.drop(name + ".new")  # what is left of it
            raise
        try:
            checkpoints = await asyncio.to_thread(lmdb_snapshot.checked, path)
            vector = folded(checkpoints, self._partitions).vector
            own = self._store.own()
            taken_by = str(own.origin) if own else self._idc
            await self.shelf.put(Description(name, self._clock.wall_ms(), taken_by, vector, seals))
        except BaseException:
            # Nobody knows of it, and the next look takes another: these would fill the disk.
            await self.shelf.drop(name)
            raise
        log.info("the snapshot %s is taken and verified", name)

    # --------------------------------------------------------------------------- for a rebuild

    async def checkpoint(self, partition: int) -> bytes | None:
        found = await self.shelf.newest_safe()
        if found is None:
            return None
        self._loading = found[0]
        return found[1].get(partition)

    async def load(self, partition: int, applier_epoch: int, checkpoint: bytes) -> None:
        assert self._loading is not None
        path = self.shelf.path(self._loading.name)
        await self._kv.load_partition(path, partition, applier_epoch, checkpoint)

    # ------------------------------------------------------------------------- for other IDCs

    async def offer(self, reader: str) -> Offer | None:
        """Only a safe one: above it all records are here. What the reader held before counts no
        more from now on."""
        async with self._checking:
            found = await self.shelf.newest_safe()
        if found is None:
            return None
        description = found[0]
        path = self.shelf.path(description.name)
        self._heard[reader] = description.vector
        self._guests[reader] = self._clock.now()
        digest = await asyncio.to_thread(lmdb_snapshot.manifest_digest, path)
        return Offer(
            description.name, path / lmdb_snapshot.DATA, digest, description.dump().decode()
        )

    # ---------------------------------------------------------------------------------- facts

    def log_bytes(self) -> int:
        return self._bytes_above({})

    def _bytes_above(self, vector: Ends) -> int:
        return sum(
            source.stored_bytes(partition, row[partition] if partition < len(row) else 0)
            for source in self._store.held().values()
            for row in [vector.get(source.origin, ())]
            for partition in range(self._partitions)
        )

    def status(self) -> dict[str, Any]:
        return {
            "log_bytes": self.log_bytes(),
            "first": {
                str(origin): [source.first_lsn(p) for p in range(self._partitions)]
                for origin, source in self._store.held().items()
            },
            "snapshots": [
                {"name": d.name, "taken_ms": d.taken_ms, "taken_by": d.taken_by, "safe": d.safe}
                for d in self.shelf.kept
            ],
            "waiting_for": list(self._plan.waiting_for),
        }

    def alarms(self) -> list[str]:
        found = [problem for problem in (self.problem, self.shelf.problem) if problem]
        stored = self.log_bytes()
        if stored > 2 * self._limits.log_bytes and self._plan.waiting_for:
            found.append(
                f"the logs take {stored >> 20} MiB and cannot be cut before "
                f"{' and '.join(self._plan.waiting_for)} hold more of them"
            )
        return found
