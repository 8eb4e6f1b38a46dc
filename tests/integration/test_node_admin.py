"""The Admin service of a whole running node, over mutual TLS: who may break it, and when."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from imcore.errors import BadInput, OutcomeUnknown, Refused, Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.tls import grpc_channel
from imctl import admin
from imctl.commands import users
from imctl.target.local import Local
from imctl.testing.onenode import running
from services.node.node import Node

THREE_IDCS = Path(__file__).resolve().parents[2] / "regions" / "three-idc.yaml"

CLOCK = peer.FaultRequest(clock=peer.ClockFault(offset_ms=600_000))
DISK = peer.FaultRequest(disk=peer.DiskFault(full=True))


async def test_faults_asked_for_through_imctl_stand_in_the_audit(tmp_path: Path) -> None:
    async with running(tmp_path, faults=False):
        target = Local.open(tmp_path)
        with pytest.raises(Refused):
            await admin.fault(target, "fra", CLOCK)
    with pytest.raises(Unavailable):
        await admin.fault(target, "fra", CLOCK)
    rows = [json.loads(line) for line in target.audit_file().read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["refused", "not done"]
    assert "offset_ms: 600000" in rows[0]["sentence"]


async def test_an_operator_kicks_a_user_through_imctl(tmp_path: Path) -> None:
    async with running(tmp_path, faults=False) as node:
        target = Local.open(tmp_path)
        kicked: list[tuple[str, str]] = []
        node.im.kicked = lambda op: kicked.append((op.kick.uid, op.kick.device))
        await admin.kick(target, "fra", "ann", "phone")
        with pytest.raises(BadInput):
            await admin.kick(target, "fra", "no uid", "")
        for partition in node.partitions:
            await partition.applier.drain()
        assert kicked == [("ann", "phone")]
        async with grpc_channel(node.config.pki, "viewer", "fra", target.address("fra")) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await rpc.UsersStub(channel).Kick(peer.KickRequest(uid="ann"), timeout=20.0)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    rows = [json.loads(line) for line in target.audit_file().read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["done", "refused"]


async def test_a_kick_is_asked_of_the_next_idc_where_one_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A paused one takes the call and says nothing; asking twice is harmless."""
    asked, silent = list[str](), {"fra"}

    async def kick(target: Any, name: str, uid: str, device: str) -> None:
        asked.append(name)
        if name in silent:
            raise OutcomeUnknown(f"{name} did not answer in time")

    monkeypatch.setattr(admin, "kick", kick)
    target: Any = SimpleNamespace(region=load_region(THREE_IDCS))
    await users._kick(target, "ann", "")
    assert asked == ["fra", "iad"]
    silent |= {"iad", "sin"}
    with pytest.raises(OutcomeUnknown, match="sin"):
        await users._kick(target, "ann", "")


async def fault(node: Node, caller: str, request: peer.FaultRequest) -> str:
    config = node.config
    address = config.idc.endpoints.peer
    async with grpc_channel(config.pki, caller, "fra", address) as channel:
        return str((await rpc.AdminStub(channel).Fault(request, timeout=20.0)).sentence)


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
    async with running(tmp_path, faults=True, callers=["stranger"]) as node:
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


async def test_a_fault_with_an_end_heals_by_itself_and_a_new_one_has_its_own_end(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, faults=True) as node:

        async def made(offset_ms: int, lasts_ms: int) -> str:
            disk = peer.DiskFault(full=True, fsync_delay_ms=5, lasts_ms=lasts_ms)
            await fault(node, "admin", peer.FaultRequest(disk=disk))
            clock = peer.ClockFault(offset_ms=offset_ms, lasts_ms=lasts_ms)
            return await fault(node, "admin", peer.FaultRequest(clock=clock))

        def broken() -> tuple[int, bool, int]:
            disk = node.disk.faults
            return node.clock.offset_ms, disk.full, disk.fsync_delay_ms

        assert await made(500, 300) == "the clock is shifted by 500 ms, for 0.3 s at most"
        assert await made(700, 0) == "the clock is shifted by 700 ms"
        await asyncio.sleep(0.5)
        assert broken() == (700, True, 5), "the first one's end is not the second one's"
        await made(900, 200)
        await asyncio.sleep(0.4)
        assert broken() == (0, False, 0)
