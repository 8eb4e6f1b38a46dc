"""Viewers and operators against a whole running node, over mutual TLS: with their own certificates,
and with calls that no `imctl` would make."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass

from imcore.errors import OutcomeUnknown, Refused
from imcore.proto import peer_pb2 as pb
from imcore.roles import TABLE, Role
from imcore.runtime import SystemClock
from imcore.tls import grpc_channel
from imctl import admin, roles
from imctl.audit import own_writer
from imctl.target.local import Local
from imctl.testing.onenode import running
from imctl.traffic import Control
from services.control.acceptor import BUCKETS, Ballot, accept, bucket_of, decode, encode, record_key
from services.control.caspaxos import Proposer
from services.control.rules import Change, Kind
from services.engines.registry_grpc import RemoteRegistry
from services.node.identity import register_key
from services.node.node import Node
from services.policy.document import POLICY_KEY, IdcState, from_json

OVERRIDE = ("active-idcs-min",)


@contextlib.asynccontextmanager
async def channel_of(node: Node, name: str) -> AsyncIterator[grpc.aio.Channel]:
    address = node.config.idc.endpoints.peer
    async with grpc_channel(node.config.pki, name, "fra", address) as channel:
        yield channel


@contextlib.asynccontextmanager
async def registry_of(node: Node, name: str) -> AsyncIterator[RemoteRegistry]:
    async with channel_of(node, name) as channel:
        yield RemoteRegistry(channel, "fra")


async def called(channel: grpc.aio.Channel, service: str, method: str) -> grpc.aio.AioRpcError:
    """The error of a call with an empty request."""
    described = pb.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    request = GetMessageClass(described.input_type)()
    make: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    streams = described.client_streaming, described.server_streaming
    call = make[streams](
        f"/im.v1.{service}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(described.output_type).FromString,
    )
    reply = call(iter([request]) if streams[0] else request, timeout=20.0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if streams[1]:
            async for _ in reply:
                break
        else:
            await reply
    return caught.value


async def held(node: Node) -> dict[str, bytes | None]:
    """What an attacker is after: the committed values, and what stands in no record."""
    keys = (POLICY_KEY, register_key("fra"))
    found = {key: (await node.proposer.read(key))[0] for key in keys}
    strange = [row.key for row in await node.own_registry.range(b"") if b"attack" in row.key]
    return found | {"strange": b",".join(strange)}


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
async def test_every_call_above_a_role_is_refused_and_changes_nothing(
    tmp_path: Path, role: Role
) -> None:
    async with running(tmp_path, faults=True) as node, channel_of(node, role) as channel:
        before = await held(node)
        tried = 0
        for service, methods in TABLE.items():
            if service in ("Front", "Ipconf"):
                continue  # a node with all roles has none to offer
            for method, access in methods.items():
                if access.role is not None and role.covers(access.role):
                    continue
                error = await called(channel, service, method)
                assert error.code() is grpc.StatusCode.PERMISSION_DENIED, method
                assert f"has the role {role}" in (error.details() or "")
                if access.role is not None:
                    assert f"needs the role {access.role}" in (error.details() or "")
                tried += 1
        assert tried >= 11
        assert await held(node) == before
        assert node.serving
        assert node.clock.offset_ms == 0
        assert not node.disk.faults.full


async def test_a_viewer_sees_all_and_writes_nothing_into_a_registry(tmp_path: Path) -> None:
    async with running(tmp_path, faults=False) as node, registry_of(node, "viewer") as registry:
        before = await held(node)
        proposer = Proposer({"fra": registry}, "viewer", SystemClock(), random.Random(1))
        value, _ = await proposer.read(POLICY_KEY)
        assert value == before[POLICY_KEY]
        with pytest.raises(Refused, match=r"needs the role operator .* the role viewer"):
            await proposer.change(POLICY_KEY, lambda _: b"{}")
        with pytest.raises(Refused):
            await registry.put(b"attack", b"x")
        with pytest.raises(Refused):
            await registry.compare_and_swap(b"attack", 0, b"x")
        with pytest.raises(Refused):
            await registry.grant_lease(1000)
        await proposer.close()
        assert await held(node) == before


async def test_an_operator_writes_the_policy_but_no_retirement_and_no_other_key(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, faults=False) as node, registry_of(node, "operator") as registry:
        before = await held(node)
        proposer = Proposer({"fra": registry}, "operator", SystemClock(), random.Random(1))

        def retired(current: bytes | None) -> bytes:
            policy = from_json(current or b"")
            row = replace(policy.idcs["fra"], state=IdcState.RETIRED)
            return replace(policy, epoch=policy.epoch + 1, idcs={"fra": row}).to_json()

        with pytest.raises(OutcomeUnknown):  # refused behind the promise, when it was offered
            await proposer.change(POLICY_KEY, retired)
        with pytest.raises(Refused, match="needs the role admin"):
            await proposer.change(register_key("fra"), lambda _: b"{}")
        with pytest.raises(Refused, match="audit/fra"):
            await proposer.change("audit/fra", lambda _: b'{"seq":0,"hash":"0"}')
        for write in (
            registry.put(b"attack", b"x"),
            registry.put(b"caspaxos/attack", None),
            registry.compare_and_swap(b"attack", 0, b"x"),
            registry.compare_and_swap(b"caspaxos/attack", 0, encode(decode(await a_record(node)))),
        ):
            with pytest.raises(Refused):
                await write
        await proposer.close()
        assert await held(node) == before


async def a_record(node: Node) -> bytes:
    store = (await node.own_registry.store_id()).hex()
    row = await node.own_registry.get(record_key(store, bucket_of(POLICY_KEY)))
    assert row is not None
    return row.value


async def test_an_operator_cannot_act_under_the_ballot_of_an_idc(tmp_path: Path) -> None:
    """It would take the IDC's round over, with another value."""
    async with running(tmp_path, faults=False) as node, registry_of(node, "operator") as registry:
        store = (await registry.store_id()).hex()
        for bucket in range(BUCKETS):
            row = await registry.get(record_key(store, bucket))
            assert row is not None
            record = decode(row.value)
            forged = accept(record, POLICY_KEY, Ballot(10_000, "fra.1"), b"{}")
            assert forged is not None
            with pytest.raises(Refused, match="another's ballot"):
                await registry.compare_and_swap(row.key, row.mod_revision, encode(forged))


def as_role(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(roles.VARIABLE, role)


def audit(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


async def asked(folder: Path, change: Change) -> str:
    """The sentence of a refusal; empty: committed."""
    async with Control(Local.open(folder), SystemClock(), random.Random(3)) as control:
        decision = await control.submit(change)
    return decision.sentence if decision.policy is None else ""


async def test_an_operator_moves_traffic_and_overrides_no_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, faults=True) as node:
        cordon = Change(Kind.CORDON, "fra", "r1", "operator", overrides=OVERRIDE)
        as_role("operator", monkeypatch)
        why = await asked(tmp_path, cordon)
        assert "needs the role admin; the certificate shown has the role operator" in why
        with pytest.raises(Refused, match=r"needs the role admin; .* the role operator"):
            await admin.fault(
                Local.open(tmp_path), "fra", pb.FaultRequest(clock=pb.ClockFault(offset_ms=9_000))
            )
        assert node.clock.offset_ms == 0
        as_role("viewer", monkeypatch)
        assert "needs the role operator" in await asked(
            tmp_path, Change(Kind.UNCORDON, "fra", "r2", "operator")
        )
        as_role("admin", monkeypatch)
        assert await asked(tmp_path, cordon) == ""
        as_role("operator", monkeypatch)
        assert await asked(tmp_path, Change(Kind.UNCORDON, "fra", "r3", "operator")) == ""
        value, _ = await node.proposer.read(POLICY_KEY)
        assert from_json(value or b"").state("fra") is IdcState.ACTIVE
        anchor, _ = await node.proposer.read(f"audit/{own_writer()}")
        assert json.loads(anchor or b"{}")["seq"] == len(audit(tmp_path))
    done = [
        (row["certificate"], row.get("decision", row.get("outcome"))) for row in audit(tmp_path)
    ]
    assert done == [
        ("operator", "refused"),
        ("operator", "refused"),
        ("viewer", "refused"),
        ("admin", "committed"),
        ("operator", "committed"),
    ]


async def imctl(folder: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("imctl"),
        *arguments,
        env={**os.environ, "IMCTL_DATA": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def test_a_role_that_may_not_is_told_in_one_line_with_exit_status_3(tmp_path: Path) -> None:
    async with running(tmp_path, faults=True) as node:
        for role, words in (
            ("viewer", ("cordon", "fra", "--override", "active-idcs-min")),
            ("operator", ("cordon", "fra", "--override", "active-idcs-min")),
            ("operator", ("fault", "clock", "fra", "9000")),
            ("operator", ("kill", "fra")),
            ("viewer", ("wipe", "fra", "--yes")),
            ("operator", ("down",)),
            ("operator", ("destroy", "--yes-name", "lab", "--with-clients")),
        ):
            status, errors = await imctl(tmp_path, "--as", role, *words)
            assert status == 3, (words, errors)
            last = errors.splitlines()[-1]
            assert last.startswith("error: "), errors
            assert last.endswith(f"; the certificate shown has the role {role}")
        assert (await imctl(tmp_path, "--as", "viewer", "status"))[0] == 0
        assert (await imctl(tmp_path, "--as", "viewer", "op", "list"))[0] == 0
        status, errors = await imctl(tmp_path, "--as", "root", "status")
        assert status == 2
        assert node.serving
        assert node.clock.offset_ms == 0


async def test_an_operator_without_the_admins_key_compares_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, faults=False) as node:
        monkeypatch.setenv("IMCTL_AS", "operator")
        for end in ("pem", "key"):
            (node.config.pki / f"admin.{end}").unlink()
        hashes = await admin.state_hashes(Local.open(tmp_path), ["fra"])
        assert set(hashes["fra"]) == set(range(node.config.region.spec.partitions))


async def test_a_folder_without_a_roles_key_says_which_file_is_missing(tmp_path: Path) -> None:
    """As of a deployment that was started before there were roles; `admin` goes on working."""
    async with running(tmp_path, faults=False) as node:
        for name in ("operator", "viewer"):
            for end in ("pem", "key"):
                (node.config.pki / f"{name}.{end}").unlink()
        status, errors = await imctl(tmp_path, "--as", "viewer", "status")
        assert (await imctl(tmp_path, "status"))[0] == 0
        assert status == 2
        assert "viewer.key" in errors
        assert "imctl pki init" in errors
