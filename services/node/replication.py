"""Replication as one IDC sees it: its followers of the others, what they hold of its own log,
and who is known under which incarnation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import grpc

from imcore.hlc import to_ms
from imcore.runtime import Clock
from imcore.words import Origin
from services.im.applier import Applier
from services.im.incarnation import Register
from services.mirror.follow import Follower
from services.mirror.progress import Progress
from services.node.seals import Seals
from services.ports import Log, LogStore, Mirror
from services.tracing.spans import Tracing

_HEARD_S = 2.0


class Replication:
    def __init__(
        self,
        own: str,
        idcs: list[str],
        partitions: int,
        store: LogStore,
        channels: Mapping[str, grpc.aio.Channel],
        progress: Progress,
        seals: Seals,
        clock: Clock,
        tracing: Tracing | None = None,
    ) -> None:
        self._own = own
        self._store = store
        self._partitions = partitions
        self.appliers: list[Applier] = []
        self.progress = progress
        self.seals = seals
        self.registers: dict[str, Register] = {}
        self._delays: dict[tuple[Origin, int], int] = {}
        peers = {name: channel for name, channel in channels.items() if name in idcs}
        self.followers: dict[str, Mirror] = {
            idc: Follower(
                idc, own, partitions, store, peers, progress, self.applied, seals.of, clock,
                tracing=tracing,
            )
            for idc in idcs
        }  # fmt: skip

    def applied(self, origin: Origin) -> dict[int, int]:
        return {a.partition: a.lsn(origin) for a in self.appliers}

    def wake_appliers(self, origin: Origin, log: Log) -> None:
        """That log has grown, or may have."""
        for applier in self.appliers:
            applier.wake_if_behind(origin, log)

    def watch_copies(self) -> Callable[[], None]:
        """Wakes the appliers whenever a log that is held grows; call again for new logs."""
        seen: set[Origin] = set()

        def refresh() -> None:
            for origin, log in self._store.held().items():
                if origin not in seen:
                    seen.add(origin)
                    log.subscribe(partial(self.wake_appliers, origin, log))
                self.wake_appliers(origin, log)

        return refresh

    # --------------------------------------------------------------------------- incarnations

    def current(self, idc: str) -> Origin:
        register = self.registers.get(idc)
        return Origin(idc, register.incarnation if register else 1)

    def folded(self, origin: Origin, partition: int, hlc: int, wall_ms: int) -> None:
        """A batch is committed; ``hlc``: of its last op."""
        self._delays[origin, partition] = wall_ms - to_ms(hlc)

    def lag(self, wall_ms: int, now: float) -> dict[str, dict[str, int]]:
        """Per other IDC: records known to exist and not held here, and the lag in time: what the
        last ops took from acceptance to the fold here; while nothing is heard of that IDC, how old
        the last closed HLC is."""
        found = {}
        for idc, follower in self.followers.items():
            if idc == self._own:
                continue
            origin = self.current(idc)
            if now - follower.heard_at <= _HEARD_S:
                ms = max(self._delays.get((origin, p), 0) for p in range(self._partitions))
            else:
                closed = [a.closed.get(origin, 0) for a in self.appliers]
                ms = max((wall_ms - to_ms(hlc) for hlc in closed if hlc), default=0)
            found[str(origin)] = {"records": follower.behind(), "ms": max(0, ms)}
        return found

    def heard_s(self, now: float) -> dict[str, float]:
        """By other IDC: how long ago its log was last heard of."""
        return {
            idc: now - follower.heard_at
            for idc, follower in self.followers.items()
            if idc != self._own and follower.heard_at
        }

    def unfolded(self) -> dict[str, int]:
        """By IDC, the own one too: records held here that are not folded yet."""
        found: dict[str, int] = {}
        for origin, log in self._store.held().items():
            behind = sum(
                max(0, log.end(a.partition).lsn - a.lsn(origin))
                for a in self.appliers
                if self.seals.of(origin, a.partition) is None
            )
            found[origin.idc] = found.get(origin.idc, 0) + behind
        return found

    def vectors(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        held, applied = {}, {}
        for origin, log in self._store.held().items():
            held[str(origin)] = [log.end(p).lsn for p in range(self._partitions)]
            applied[str(origin)] = [a.lsn(origin) for a in self.appliers]
        return held, applied

    def announced(self) -> dict[str, list[int]]:
        """The highest ends of the others' logs that were ever heard of here, from whomever."""
        return {
            str(origin): [ends.get(p, 0) for p in range(self._partitions)]
            for origin, ends in self.progress.announced.items()
        }

    def of_own_log(self, origin: Origin) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """What each other IDC holds, and has applied, of the own log."""
        held, applied = {}, {}
        for (idc, of), ends in self.progress.held.items():
            if of == origin:
                held[idc] = [ends.get(p, 0) for p in range(self._partitions)]
        for (idc, of), ends in self.progress.applied.items():
            if of == origin:
                applied[idc] = [ends.get(p, 0) for p in range(self._partitions)]
        return held, applied

    def alarms(self) -> list[str]:
        return [f.alarm for f in self.followers.values() if f.alarm]
