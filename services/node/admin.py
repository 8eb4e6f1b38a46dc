"""The operators' service: status, state hash, faults (off unless the process was told), stop."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import grpc

from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import SystemClock
from services.node.convergence import partition_hash
from services.node.cuts import Cuts
from services.ports import Kv

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
log = logging.getLogger("im.admin")


class DiskFaults(Protocol):
    full: bool
    fsync_delay_ms: int


class AdminService(rpc.AdminServicer):
    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        stop: Callable[[], None],
        partitions: int,
        clock: SystemClock,
        disk: DiskFaults,
        faults: bool,
        cuts: Cuts | None,
    ) -> None:
        """``cuts``: None: its links are not for this process to cut."""
        self._status = status
        self._stop = stop
        self._partitions = partitions
        self._clock = clock
        self._disk = disk
        self._faults = faults
        self._cuts = cuts
        self._ends: dict[str, asyncio.TimerHandle] = {}  # of faults, by their kind
        self.kv: Kv | None = None  # once it is open

    async def Status(self, request: peer.StatusRequest, context: Context) -> peer.StatusReply:
        status = self._status()
        return peer.StatusReply(idc=status["idc"], json=json.dumps(status))

    async def StateHash(
        self, request: peer.StateHashRequest, context: Context
    ) -> peer.StateHashReply:
        if self.kv is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the KV is not open yet")
        assert self.kv is not None
        hashes = [await partition_hash(self.kv, number) for number in range(self._partitions)]
        return peer.StateHashReply(partitions=hashes)

    async def Fault(self, request: peer.FaultRequest, context: Context) -> peer.FaultReply:
        if not self._faults:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "faults are off: this process was not started with --faults",
            )
        kind = request.WhichOneof("fault")
        if kind == "clock":
            self._shift(request.clock.offset_ms)
            sentence = f"the clock is shifted by {request.clock.offset_ms} ms"
            sentence += self._until(kind, request.clock.lasts_ms, lambda: self._shift(0))
        elif kind == "disk":
            self._break(request.disk.full, request.disk.fsync_delay_ms)
            full = "full" if request.disk.full else "not full"
            sentence = f"the disk is {full}, each fsync takes {request.disk.fsync_delay_ms} ms more"
            sentence += self._until(kind, request.disk.lasts_ms, lambda: self._break(False, 0))
        else:
            try:
                if kind != "link" or self._cuts is None:
                    raise ValueError("an IDC takes clock and disk faults; links have a proxy here")
                sentence = self._cuts.apply(request.link)
            except ValueError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
                raise AssertionError("abort raises") from error
        log.warning("fault: %s", sentence)
        return peer.FaultReply(sentence=sentence)

    def _shift(self, offset_ms: int) -> None:
        self._clock.offset_ms = offset_ms

    def _break(self, full: bool, fsync_delay_ms: int) -> None:
        self._disk.full, self._disk.fsync_delay_ms = full, fsync_delay_ms

    def _until(self, kind: str, lasts_ms: int, heal: Callable[[], None]) -> str:
        """The end of the fault that stands, if it has one: who made it may be gone by then."""
        if before := self._ends.pop(kind, None):
            before.cancel()
        if not lasts_ms:
            return ""

        def end() -> None:
            log.warning("the fault of the %s ends: its time is over", kind)
            heal()

        self._ends[kind] = asyncio.get_running_loop().call_later(lasts_ms / 1000, end)
        return f", for {lasts_ms / 1000:g} s at most"

    async def Shutdown(self, request: peer.ShutdownRequest, context: Context) -> peer.ShutdownReply:
        self._stop()
        return peer.ShutdownReply()
