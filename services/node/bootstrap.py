"""How an IDC starts that cannot go on from its own logs: from a snapshot (rule 8).

Its own snapshot, when its KV was lost and its logs are there but cut; another IDC's, when it is
blank, or lacks records that are cut away everywhere. In the second case its log store has taken
another id first, so that the IDC goes on as a new incarnation: what it holds above the seal of the
old one is published again (rule 7, ``services.node.seals``).

Order: the snapshot is on the shelf, then in the KV, then copies begin at its positions. A crash
in between leaves an IDC that is still cut off, or a KV with a gap, and the start does it again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc

from imcore.convert import origin_of
from imcore.errors import Damaged, ImError, Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.words import Origin
from services.engines import lmdb_snapshot
from services.mirror.fetch import Fetch
from services.ports import LogEnd, LogStore
from services.retention.shelf import Description, Positions, folded
from services.retention.start import Range, Ranges, gaps, restarts

if TYPE_CHECKING:
    from services.node.node import Node

log = logging.getLogger("im.retention")

_ASK_S = 1.5
_RETRY_S = 1.0


def ranges_here(store: LogStore) -> dict[tuple[Origin, int], Range]:
    return {
        (origin, p): Range(held.first_lsn(p), held.end(p).lsn)
        for origin, held in store.held().items()
        for p in range(held.partitions)
    }


def ranges_there(reply: peer.EndsReply) -> dict[tuple[Origin, int], Range]:
    return {
        (origin_of(row.origin), end.partition): Range(end.first_lsn, end.lsn)
        for row in reply.origins
        for end in row.held
    }


class Bootstrap:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._partitions = node.config.region.spec.partitions
        self._life = node.config.data / "timeline-life"
        self._demanded = node.config.data / "snapshot-demanded"
        self.alarm: str | None = None

    # ------------------------------------------------------------------------- while it serves

    async def ask_again(self, reason: str) -> bool:
        """Start the roles again, if another IDC has a snapshot to give; else go on as it is."""
        if not await offers(self._node.channels, self._node.config.peer_idcs()):
            return False
        self._begin_again(reason)
        return True

    def _begin_again(self, reason: str) -> None:
        log.warning("%s starts again from a snapshot: %s", self._node.idc, reason)
        self._node.begin_again()

    async def demand(self, reason: str) -> None:
        """What is held here cannot be folded any more, although nothing is missing. Raises
        DiskFull and OutcomeUnknown when the disk does not take the demand.

        Written down only once there is a snapshot to be had: a start that finds a demand takes
        another incarnation and waits for one, and while nobody's logs are cut nobody has one."""
        if not await offers(self._node.channels, self._node.config.peer_idcs()):
            return
        await asyncio.to_thread(self._node.disk.write_whole, str(self._demanded), reason.encode())
        self._begin_again(reason)

    # --------------------------------------------------------------------------- own snapshot

    async def mend(self) -> bool:
        """After a KV was lost: put the newest safe snapshot in its place. False when the KV cannot
        be made to join the logs that are here."""
        if self._node.kv.rolled_back or await self._lost():
            await self._new_timeline()
        if self._demanded.exists():
            return False
        own = ranges_here(self._node.store)
        if all(held.first <= 1 for held in own.values()):
            return True
        if not gaps(own, await self._positions()):
            return True
        found = await self._node.retention.shelf.newest_safe()
        if found is None or gaps(own, folded(found[1], self._partitions).positions):
            return False
        log.warning("the KV does not reach the logs: it starts from the snapshot %s", found[0].name)
        await self._restore(found[0].name)
        return True

    async def _lost(self) -> bool:
        """The KV is empty, and what was folded into it is in the logs: it gives out its numbers
        again, and for other changes."""
        if not any(held.end for held in ranges_here(self._node.store).values()):
            return False
        positions = await self._positions()
        return not any(positions.values())

    async def _positions(self) -> Positions:
        found = {p: await self._node.kv.open_partition(p) for p in range(self._partitions)}
        checkpoints = {p: row for p, (_, row) in found.items() if row is not None}
        return folded(checkpoints, self._partitions).positions

    async def _restore(self, name: str) -> None:
        await self._new_timeline()
        await self._node.kv.restore(self._node.retention.shelf.path(name))

    # --------------------------------------------------------------------- sync tokens' validity

    async def _new_timeline(self) -> None:
        """The KV went back: numbers that it gave out will be given out again, for other changes."""
        await asyncio.to_thread(
            self._node.disk.write_whole, str(self._life), self._node.rng.randbytes(16)
        )

    def timeline_life(self) -> bytes:
        """What sync tokens are bound to: the log store's id, until the KV goes back once."""
        try:
            return self._life.read_bytes()
        except FileNotFoundError:
            return self._node.store.log_id

    # ----------------------------------------------------------------------- another's snapshot

    async def from_peers(self) -> None:
        """Until one of them has given a snapshot that fits."""
        while True:
            for name in self._node.config.peer_idcs():
                try:
                    await self._from(name)
                    self.alarm = None
                    return
                except (ImError, LookupError, OSError, grpc.RpcError, TimeoutError) as error:
                    self._say(f"cannot start from a snapshot of {name} yet: {error}")
            await asyncio.sleep(_RETRY_S)

    def _say(self, sentence: str) -> None:
        if sentence != self.alarm:
            log.warning(sentence)
        self.alarm = sentence

    async def _from(self, name: str) -> None:
        node = self._node
        stub = rpc.LogsStub(node.channels[name])
        source = ranges_there(await stub.Ends(peer.EndsRequest(), timeout=_ASK_S))
        fetch = Fetch(node.channels[name], name)
        try:
            header = await fetch.header()
            description, checkpoints = await self._fetched(fetch, header)
        finally:
            fetch.cancel()
        older = [d.name for d in node.retention.shelf.kept]
        try:
            positions = folded(checkpoints, self._partitions).positions
            anew = restarts(ranges_here(node.store), positions, source)
            await node.retention.shelf.put(description)
            await self._restore(description.name)
        except BaseException:
            # It is fetched anew each time: those of earlier tries would fill the disk.
            await node.retention.shelf.drop(description.name)
            raise
        for old in older:
            await node.retention.shelf.drop(old)
        await self._restart_copies(anew)
        await asyncio.to_thread(node.disk.remove, str(self._demanded))
        log.warning("%s starts from the snapshot %s of %s", node.idc, header.name, name)

    async def _fetched(
        self, fetch: Fetch, header: peer.SnapshotHeader
    ) -> tuple[Description, Mapping[int, bytes]]:
        shelf = self._node.retention.shelf
        name = shelf.new_name()
        folder = shelf.path(name)
        await asyncio.to_thread(self._node.disk.make_folder, str(folder))
        try:
            description = Description.parse(header.description)
            await fetch.into(folder / lmdb_snapshot.DATA, header)
            await asyncio.to_thread(
                lmdb_snapshot.write_manifest, folder, header.digest, self._node.disk
            )
            checkpoints = await asyncio.to_thread(lmdb_snapshot.checked, folder)
            if any(partition >= self._partitions for partition in checkpoints):
                raise Damaged("the snapshot is of a region with more partitions")
            if folded(checkpoints, self._partitions).vector != description.vector:
                raise Damaged("the snapshot does not stand where its description says")
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, True)
            raise
        return replace(description, name=name, safe=True), checkpoints

    async def _restart_copies(self, anew: Mapping[tuple[Origin, int], LogEnd]) -> None:
        own = self._node.store.own()
        for (origin, partition), at in sorted(anew.items(), key=lambda item: item[0]):
            if own is not None and origin == own.origin:
                raise Unavailable(f"the snapshot is ahead of the own log {origin}")
            copy = await self._node.store.open_copy(origin)
            await copy.restart_at(partition, at)


async def offers(channels: Mapping[str, grpc.aio.Channel], names: Sequence[str]) -> bool:
    """Whether any of them has a snapshot to give."""
    for name in names:
        fetch = Fetch(channels[name], name)
        try:
            await fetch.header()
            return True
        except ImError:
            continue
        finally:
            fetch.cancel()
    return False


def awaited(store: LogStore, replies: Sequence[Ranges]) -> dict[tuple[Origin, int], int]:
    """What is on its way here: how far the others hold each log."""
    ends: dict[tuple[Origin, int], int] = {}
    for ranges in replies:
        for key, theirs in ranges.items():
            ends[key] = max(theirs.end, ends.get(key, 0))
    here = ranges_here(store)
    return {key: end for key, end in ends.items() if key not in here or here[key].end < end}
