"""The witness over real mutual TLS: its registry joins, probes answer, strangers are refused."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import pytest

from imcore import pki
from imcore.errors import BadInput, Refused
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imcore.tls import SERVER_OPTIONS, grpc_channel, grpc_server_credentials
from imctl.target.places import free_ports
from services.control.caspaxos import Proposer
from services.engines.disk import RealDisk
from services.engines.registry_grpc import RegistryServicer, RemoteRegistry
from services.engines.registry_store import RegistryStore
from services.node.outside import Machine
from services.policy.document import POLICY_KEY, from_json
from services.ports import Registry
from services.state.testing import FastClock
from services.witness.witness import Witness

REGIONS = Path(__file__).parents[2] / "regions"


def region_at(ports: dict[str, int]) -> Region:
    region = load_region(REGIONS / "two-idc.yaml")
    witness = region.spec.witness
    assert witness is not None
    spec = region.spec.model_copy(
        update={
            "witness": witness.model_copy(update={"peer": f"127.0.0.1:{ports['witness']}"}),
            "idcs": [
                idc.model_copy(
                    update={
                        "endpoints": idc.endpoints.model_copy(
                            update={"peer": f"127.0.0.1:{ports[idc.name]}"}
                        )
                    }
                )
                for idc in region.spec.idcs
            ],
        }
    )
    return region.model_copy(update={"spec": spec})


@asynccontextmanager
async def idc_registry(
    name: str, address: str, folder: Path, pki_dir: Path
) -> AsyncIterator[RegistryStore]:
    """An IDC, reduced to its registry's server."""
    store = await RegistryStore.open(
        str(folder / name), RealDisk(), SystemClock(), random.Random(name)
    )
    server = grpc.aio.server(options=SERVER_OPTIONS)
    rpc.add_RegistryServicer_to_server(RegistryServicer(store), server)
    assert server.add_secure_port(address, grpc_server_credentials(pki_dir, name))
    await server.start()
    try:
        yield store
    finally:
        await server.stop(0)
        await store.close()


async def test_two_idcs_and_a_witness_commit_a_policy(tmp_path: Path) -> None:
    pki_dir = tmp_path / "pki"
    names = ("fra", "dub", "witness", "admin", "operator", "viewer", "linkproxy")
    pki.init(pki_dir, dict.fromkeys(names, ()), datetime.now(UTC))
    ports = dict(zip(("fra", "dub", "witness"), free_ports(3), strict=True))
    region = region_at(ports)
    machine = Machine(pki_dir, "witness")
    machine.clock = FastClock(2)
    witness = Witness(region, tmp_path / "witness", {}, machine)
    running = asyncio.create_task(witness.run())
    clock = SystemClock()
    began = clock.now()
    async with (
        idc_registry("fra", f"127.0.0.1:{ports['fra']}", tmp_path, pki_dir) as fra,
        idc_registry("dub", f"127.0.0.1:{ports['dub']}", tmp_path, pki_dir) as dub,
    ):
        channels = {
            own: {
                name: grpc_channel(pki_dir, own, name, f"127.0.0.1:{ports[name]}")
                for name in ports
                if name != own
            }
            for own in ("fra", "dub", "admin", "operator", "viewer", "linkproxy")
        }
        proposers = []
        for own, store in (("fra", fra), ("dub", dub)):
            registries: dict[str, Registry] = {own: store}
            registries |= {
                name: RemoteRegistry(channel, name) for name, channel in channels[own].items()
            }
            proposers.append(Proposer(registries, own, clock, random.Random(own)))
        try:
            async with asyncio.timeout(8):
                await asyncio.gather(*(proposer.ensure_member() for proposer in proposers))
                while witness.holder.policy is None:  # noqa: ASYNC110 - the witness's own loop
                    await asyncio.sleep(0.02)
                value, _ = await proposers[0].read(POLICY_KEY)
                assert from_json(value or b"") == witness.holder.policy

                reply = await rpc.PeerStub(channels["fra"]["witness"]).Probe(peer.ProbeRequest())
                assert (reply.idc, reply.serving, reply.policy_epoch) == ("witness", True, 1)

                admin = rpc.AdminStub(channels["admin"]["witness"])
                status = json.loads((await admin.Status(peer.StatusRequest())).json)
                assert status["uptime_s"] > 1.5 * (clock.now() - began)  # by its own clock
                assert set(status["registries"]) == {"fra", "dub", "witness"}
                with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
                    await rpc.AdminStub(channels["fra"]["witness"]).Status(peer.StatusRequest())
                with pytest.raises(Refused):
                    await RemoteRegistry(channels["linkproxy"]["witness"], "witness").get(b"x")
                for own in ("viewer", "operator"):
                    lower = channels[own]["witness"]
                    await rpc.AdminStub(lower).Status(peer.StatusRequest())
                    with pytest.raises(Refused, match=f"the role {own}"):
                        await RemoteRegistry(lower, "witness").put(b"x", b"y")
                    with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
                        await rpc.AdminStub(lower).Shutdown(peer.ShutdownRequest())
                await admin.Shutdown(peer.ShutdownRequest())
                await running
        finally:
            running.cancel()
            for proposer in proposers:
                await proposer.close()
            for row in channels.values():
                for channel in row.values():
                    await channel.close(0)


def test_a_region_without_a_witness_is_refused(tmp_path: Path, pki_dir: Path) -> None:
    with pytest.raises(BadInput, match="witness"):
        region = load_region(REGIONS / "three-idc.yaml")
        Witness(region, tmp_path, {}, Machine(pki_dir, "witness"))


async def test_the_process_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.witness",
        "--region",
        str(REGIONS / "three-idc.yaml"),
        "--data",
        str(tmp_path),
        "--pki",
        str(tmp_path),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().splitlines() == [
        "error: the region file has no spec.witness; nothing to run"
    ]


async def test_it_listens_where_it_is_told_and_is_found_at_its_endpoint(
    tmp_path: Path, pki_dir: Path
) -> None:
    """In a container: the endpoint is a Service's name, which is no address of the container."""
    (port,) = free_ports(1)
    region = load_region(REGIONS / "two-idc.yaml")
    assert region.spec.witness is not None
    elsewhere = region.spec.witness.model_copy(update={"peer": f"witness.example.invalid:{port}"})
    region = region.model_copy(
        update={"spec": region.spec.model_copy(update={"witness": elsewhere})}
    )
    witness = Witness(region, tmp_path, {}, Machine(pki_dir, "witness"), listen="127.0.0.1")
    running = asyncio.create_task(witness.run())
    try:
        async with grpc_channel(pki_dir, "fra", "witness", f"127.0.0.1:{port}") as channel:
            reply = await rpc.PeerStub(channel).Probe(
                peer.ProbeRequest(), timeout=5, wait_for_ready=True
            )
        assert reply.idc == "witness"
    finally:
        witness.stop()
        await running
