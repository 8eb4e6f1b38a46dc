"""The Admin service of a whole running node, over mutual TLS: who may break it, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from imcore import pki
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.tls import grpc_channel
from imctl.target.local import pki_names
from imctl.testing.lab import lab_region
from services.node.config import load
from services.node.node import Node

START_S = 20.0
CLOCK = peer.FaultRequest(clock=peer.ClockFault(offset_ms=600_000))
DISK = peer.FaultRequest(disk=peer.DiskFault(full=True))


def one_idc(spec: dict[str, Any]) -> None:
    spec["idcs"] = spec["idcs"][:1]
    spec["links"] = []
    spec["geo"]["shards"] = [{"name": "all", "weights": {"fra": 1}}]
    spec["geo"]["default"] = "all"


@asynccontextmanager
async def running(folder: Path, faults: bool) -> AsyncIterator[Node]:
    region = lab_region(folder, one_idc)
    names = pki_names(load_region(region)) | {"stranger": []}
    pki.init(folder / "pki", names, datetime.now(UTC))
    node = Node(load(region, "fra", folder / "data", folder / "pki", None, faults))
    task = asyncio.create_task(node.run())
    try:
        async with asyncio.timeout(START_S):
            while not node.serving:
                assert not task.done(), task.exception()
                await asyncio.sleep(0.02)
        yield node
    finally:
        node.stop()
        await task


async def fault(node: Node, caller: str, request: peer.FaultRequest) -> str:
    config = node.config
    address = config.idc.endpoints.peer
    async with grpc_channel(config.pki, caller, "fra", address) as channel:
        return str((await rpc.AdminStub(channel).Fault(request, timeout=3.0)).sentence)


@pytest.mark.parametrize("request_", [CLOCK, DISK], ids=["clock", "disk"])
async def test_a_node_without_faults_refuses_them_even_to_the_admin(
    tmp_path: Path, request_: peer.FaultRequest
) -> None:
    async with running(tmp_path, faults=False) as node:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fault(node, "admin", request_)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "--faults" in (refused.value.details() or "")
        assert node.clock.offset_ms == 0
        assert not node.disk.faults.full


async def test_only_the_admin_may_break_a_node_that_takes_faults(tmp_path: Path) -> None:
    async with running(tmp_path, faults=True) as node:
        for caller in ("fra", "linkproxy", "stranger"):
            for request in (CLOCK, DISK):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await fault(node, caller, request)
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert node.clock.offset_ms == 0
        assert not node.disk.faults.full
        with pytest.raises(grpc.aio.AioRpcError) as wrong:
            await fault(node, "admin", peer.FaultRequest(link=peer.LinkFault(from_idc="fra")))
        assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "shifted" in await fault(node, "admin", CLOCK)
        assert node.clock.offset_ms == 600_000
