"""The witness over real mutual TLS: its registry joins, probes answer, strangers are refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from imcore import pki
from imcore.errors import BadInput, Refused, Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imcore.tls import SERVER_OPTIONS, client_ssl_context, grpc_channel, grpc_server_credentials
from imctl.target.places import free_ports
from services.control.caspaxos import Proposer
from services.engines.disk import RealDisk
from services.engines.registry_grpc import RegistryServicer, RemoteRegistry
from services.engines.registry_store import RegistryStore
from services.metrics.catalog import METRICS
from services.node.identity import register_key
from services.node.outside import Machine
from services.policy.document import POLICY_KEY, from_json, initial
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
            async with asyncio.timeout(40):
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


async def test_a_witness_shows_its_metrics_to_people_and_probes_learn_whether_it_is_ready(
    tmp_path: Path,
) -> None:
    pki.init(tmp_path / "pki", {"witness": (), "fra": (), "viewer": ()}, datetime.now(UTC))
    region = load_region(REGIONS / "two-idc.yaml")
    assert region.spec.witness is not None
    peer_port, port = free_ports(2)
    here = {"peer": f"127.0.0.1:{peer_port}", "metrics": f"127.0.0.1:{port}"}
    spec = {"witness": region.spec.witness.model_copy(update=here)}
    region = region.model_copy(update={"spec": region.spec.model_copy(update=spec)})
    machine = Machine(tmp_path / "pki", "witness")
    witness = Witness(region, tmp_path / "data", {}, machine, pki=tmp_path / "pki")
    running = asyncio.create_task(witness.run())

    async def get(path: str, shows: str) -> tuple[int, str]:
        context = client_ssl_context(tmp_path / "pki" / "ca.pem")
        context.load_cert_chain(tmp_path / f"pki/{shows}.pem", tmp_path / f"pki/{shows}.key")
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.get(
                f"https://127.0.0.1:{port}{path}", server_hostname=pki.dns_name("witness")
            ) as response,
        ):
            return response.status, await response.text()

    try:
        async with asyncio.timeout(30):
            while not running.done() and not await _listens(port):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await get("/livez", "fra") == (200, "ok\n")
        status, said = await get("/readyz", "fra")
        assert (status, "no policy yet" in said) == (503, True)
        await witness.holder.offer(initial(region, 0))
        assert await get("/readyz", "fra") == (200, "ok\n")
        assert (await get("/metrics", "fra"))[0] == 403
        assert (await get("/hot", "viewer"))[0] == 404
        status, text = await get("/metrics", "viewer")
        assert status == 200
    finally:
        witness.stop()
        await running
    shown = {family.name: family for family in text_string_to_metric_families(text)}
    listed = {metric.name.removesuffix("_total") for metric in METRICS}
    assert {name for name in shown if name.startswith("im_")} <= listed
    figures = {name: shown[name].samples[0].value for name in ("im_ready", "im_policy_epoch")}
    assert figures == {"im_ready": 1, "im_policy_epoch": 1}
    registries = {s.labels["registry"]: s.value for s in shown["im_registry_up"].samples}
    assert registries == {"fra": 0, "dub": 0, "witness": 1}
    assert shown["im_alarms"].samples and "process_resident_memory_bytes" in shown


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


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
                peer.ProbeRequest(), timeout=30, wait_for_ready=True
            )
        assert reply.idc == "witness"
    finally:
        witness.stop()
        await running


async def test_what_a_lost_idc_said_of_itself_is_had_from_the_witness_and_the_other_one(
    tmp_path: Path,
) -> None:
    """The witness was away when it was said, and the one IDC may not write it there."""
    pki.init(tmp_path / "pki", dict.fromkeys(("fra", "dub", "witness"), ()), datetime.now(UTC))
    ports = dict(zip(("fra", "dub", "witness"), free_ports(3), strict=True))
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    key = register_key("dub")
    async with contextlib.AsyncExitStack() as stack:

        async def proposer(own: str, store: Registry) -> Proposer:
            registries: dict[str, Registry] = {own: store}
            for name in addresses.keys() - {own}:
                channel = grpc_channel(tmp_path / "pki", own, name, addresses[name])
                stack.push_async_callback(channel.close, 0)
                registries[name] = RemoteRegistry(channel, name)
            made = Proposer(registries, own, SystemClock(), random.Random(own))
            stack.push_async_callback(made.close)
            return made

        @asynccontextmanager
        async def witness() -> AsyncIterator[Witness]:
            machine = Machine(tmp_path / "pki", "witness")
            found = Witness(region_at(ports), tmp_path / "witness", {}, machine)
            running = asyncio.create_task(found.run())
            yield found
            found.stop()
            await running

        async with (
            asyncio.timeout(60),
            idc_registry("fra", addresses["fra"], tmp_path, tmp_path / "pki") as store,
        ):
            fra = await proposer("fra", store)
            async with idc_registry("dub", addresses["dub"], tmp_path, tmp_path / "pki") as other:
                dub = await proposer("dub", other)
                async with witness() as third:
                    while third.store is None:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                    own = await proposer("witness", third.store)
                    await asyncio.gather(*(each.ensure_member() for each in (fra, dub, own)))
                await dub.change(key, lambda _: b"incarnation 2")
            async with witness():
                while True:
                    with contextlib.suppress(Unavailable):
                        assert (await fra.read(key))[0] == b"incarnation 2"
                        break
