"""A front that is told to end: out of discovery, its clients at another gateway, then it stops."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest

from imcore import pki
from imcore.errors import BadInput
from imcore.region.load import load_region
from imcore.region.model import Idc
from imcore.runtime import SystemClock
from imcore.tokens import Claims, mint
from imctl.target.local import pki_names
from imctl.target.places import free_ports
from imctl.testing.lab import lab_region
from imctl.testing.onenode import one_idc
from services.ipconf.directory import PREFIX
from services.node import front
from services.node.config import NodeConfig, load
from services.node.front import FrontNode
from services.node.metrics import registry_of_front
from services.node.node import Node
from services.node.roles import Roles
from services.sdk import Client, ConnectionChanged, IpconfClient, Message
from services.sdk.core import passage
from tests.integration.test_split import CONVERSATION, until


def two_gateways(spec: dict[str, Any]) -> None:
    one_idc(spec)
    (only,) = spec["idcs"]
    only["gateways"] = 2
    only["endpoints"]["gateway"] = f"127.0.0.1:{free_ports(1)[0]}"


def with_quic(spec: dict[str, Any]) -> None:
    two_gateways(spec)
    spec["client"] = {**spec.get("client", {}), "quic": True}


def prepared(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None] = two_gateways
) -> tuple[Path, Idc, Path]:
    """A region file of one IDC with two gateways, that IDC, and its certificates."""
    file = lab_region(tmp_path, edit)
    region = load_region(file)
    folder = tmp_path / "pki"
    pki.init(folder, pki_names(region), datetime.now(UTC))
    return file, region.spec.idcs[0], folder


async def asked(port: int, path: str, ca: Path) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"https://127.0.0.1:{port}{path}", ssl=context) as answer,
    ):
        return answer.status, await answer.text()


Run = Callable[[Node | FrontNode], asyncio.Task[None]]


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    """``run(node)``: its task. What still runs is stopped after the test, however it ended."""
    nodes: list[Node | FrontNode] = []
    tasks: list[asyncio.Task[None]] = []

    def start(node: Node | FrontNode) -> asyncio.Task[None]:
        nodes.append(node)
        tasks.append(asyncio.create_task(node.run()))
        return tasks[-1]

    yield start
    for node in nodes:
        node.stop()
    if tasks:
        _, stuck = await asyncio.wait(tasks, timeout=30)
        for task in stuck:
            task.cancel()


@pytest.mark.parametrize("transport", ["tcp", "quic"])
async def test_its_clients_are_at_another_gateway_before_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, transport: str
) -> None:
    # On a machine that is busy with others TLS would win now and then.
    monkeypatch.setattr(passage, "HEAD_START_S", 5.0)
    monkeypatch.setattr(passage, "HEAD_START_MAX_S", 5.0)
    by_quic = transport == "quic"
    file, idc, folder = prepared(tmp_path, with_quic if by_quic else two_gateways)
    monitors = free_ports(2)

    def process(kind: Any, roles: Roles, number: int = 1, **more: Any) -> tuple[Any, Any]:
        data = tmp_path / f"{roles.name}-{number}"
        config = load(
            file, idc.name, data, folder, None, False, roles=roles, instance=number, **more
        )
        made = kind(config)
        return made, run(made)

    core, _ = process(Node, Roles.CORE)
    fronts = [
        process(FrontNode, Roles.FRONT, number, monitor_port=monitors[number - 1], leaves=True)
        for number in (1, 2)
    ]
    await until(lambda: core.serving and not any(each.not_ready() for each, _ in fronts), 20)
    assert await asked(monitors[0], "/readyz", folder / "ca.pem") == (200, "ok\n")
    await until(lambda: len(core.traffic.directory.live_in(idc.name)) == 2, 5)
    keys = pki.load_region_keys(folder)
    ipconf = IpconfClient(
        [f"https://{idc.endpoints.ipconf}"], folder / "ca.pem", random.Random(1)
    )  # fmt: skip

    def client(uid: str) -> tuple[Client, list[Any]]:
        claims = Claims(uid, "phone", SystemClock().wall_ms() + 600_000)
        made = Client(token=mint(keys, claims), ipconf=ipconf, rng=random.Random(2))
        told: list[Any] = []
        made.on(told.append)
        return made, told

    (ann, to_ann), (bob, to_bob) = client("ann"), client("bob")
    async with ann, bob:
        await ann.send(CONVERSATION, b"one")
        assert ann.state.quic is bob.state.quic is by_quic
        named = next(each.gateway for each in to_ann if isinstance(each, ConnectionChanged))
        going, task = next(pair for pair in fronts if pair[0].gateway.name == named)
        (staying,) = [each for each, _ in fronts if each is not going]
        number = fronts.index((going, task))
        own = f'gateway="{number + 1}"'  # not the name, which is another one in each life
        shown = generate_latest(registry_of_front(going)).decode()
        assert f"im_gateway_connections{{{own}}}" in shown and "im_ready 1.0" in shown
        standing = f'im_gateway_transport_connections{{{own},transport="{transport}"}}'
        assert f"{standing} {len(going.gateway)}.0" in shown
        going.leave()
        await until(lambda: bool(going.not_ready()), 5)
        code, said = await asked(monitors[number], "/readyz", folder / "ca.pem")
        assert code == 503 and "its clients are sent to other gateways" in said
        assert await ann.send(CONVERSATION, b"two")
        await task
        assert await ann.send(CONVERSATION, b"three")
        assert ann.state.quic is bob.state.quic is by_quic
        await until(lambda: sum(isinstance(event, Message) for event in to_bob) == 3)
        for told in (to_ann, to_bob):
            places = [each.gateway for each in told if isinstance(each, ConnectionChanged)]
            assert "" not in places and places[-1] == staying.gateway.name
    await ipconf.close()


@pytest.mark.parametrize("how", ["leave", "restart"])
async def test_it_is_out_of_discovery_before_its_clients_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, how: str
) -> None:
    file, idc, folder = prepared(tmp_path)

    def config(roles: Roles, number: int = 1) -> NodeConfig:
        data = tmp_path / f"{roles.name}-{number}"
        return load(file, idc.name, data, folder, None, False, roles=roles, instance=number)

    core = Node(config(Roles.CORE))
    going, staying = (FrontNode(config(Roles.FRONT, number)) for number in (1, 2))
    there: list[bytes] = []

    async def startable() -> str:
        return ""

    async def told(*_: object) -> None:
        rows = await core.own_registry.range(PREFIX)
        there.extend(row.key.removeprefix(PREFIX) for row in rows)
        going.stop()
        await asyncio.sleep(60)  # which ends with the process

    monkeypatch.setattr(front, "startable", startable)
    monkeypatch.setattr(front, "leave", told)
    _, going_task, _ = [run(each) for each in (core, going, staying)]
    await until(lambda: core.serving and not going.not_ready() and not staying.not_ready(), 20)
    getattr(going, how)()
    async with asyncio.timeout(20):
        await going_task
    assert staying.gateway is not None
    assert there == [staying.gateway.name.encode()]


async def test_it_is_found_at_its_own_port_wherever_it_listens(tmp_path: Path, run: Run) -> None:
    file, idc, folder = prepared(tmp_path)
    inside = free_ports(1)[0]

    def config(roles: Roles, **more: Any) -> NodeConfig:
        data = tmp_path / roles.name
        return load(file, idc.name, data, folder, None, False, roles=roles, **more)

    core = Node(config(Roles.CORE))
    front = FrontNode(config(Roles.FRONT, instance=2, gateway_port=inside))
    for each in (core, front):
        run(each)
    await until(lambda: bool(core.serving and core.traffic.directory.live_in(idc.name)), 20)
    (found,) = core.traffic.directory.live_in(idc.name)
    assert found.port == int(idc.endpoints.gateway.rpartition(":")[2]) + 1
    _, writer = await asyncio.open_connection("127.0.0.1", inside)
    writer.close()


def test_what_only_a_front_has_is_refused_of_others(tmp_path: Path, pki_dir: Path) -> None:
    file = Path(__file__).parents[2] / "regions" / "two-idc.yaml"
    with pytest.raises(BadInput, match="expected only with --roles gateway,state"):
        load(file, "fra", tmp_path, pki_dir, None, False, leaves=True)
