"""A gateway's process becomes its successor under its clients: real processes, real sockets."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imcore import frame, pki
from imcore.proto import client_pb2 as pb
from imcore.region.load import load_region
from imcore.runtime import SystemClock
from imcore.tokens import Claims, mint
from imctl.target.local import pki_names
from imctl.testing.child import Child
from imctl.testing.lab import lab_region, row_of_ports, until
from imctl.testing.onenode import one_idc
from services.gateway.testing import FrameClient, dial
from services.sdk import Client, ConnectionChanged, IpconfClient, Message
from services.sdk.core import passage

CHAT = "d:ann:bob"
SOON_IDLE = {"heartbeat_ms": 1_000, "heartbeat_timeout_ms": 1_000}
START_S = 60.0
ANSWER_S = 30.0  # also while a process becomes its successor


def _serves(log: Path) -> bool:
    return " serves" in log.read_text()


class Idc:
    """One IDC: its core, and a process for each gateway."""

    def __init__(
        self,
        folder: Path,
        gateways: int,
        plain: bool,
        quic: bool,
        client: dict[str, int] | None = None,
    ) -> None:
        def edit(spec: dict[str, Any]) -> None:
            one_idc(spec)
            self.port = row_of_ports(spec, gateways)
            spec["idcs"][0]["gateways"] = gateways
            spec["idcs"][0]["endpoints"]["gateway"] = f"127.0.0.1:{self.port}"
            spec["client"] = {**spec.get("client", {}), "quic": quic, **(client or {})}

        self._region_file = lab_region(folder, edit)
        self.region = load_region(self._region_file)
        self.idc = self.region.spec.idcs[0]
        self.pki = folder / "pki"
        pki.init(self.pki, pki_names(self.region), datetime.now(UTC))
        self.keys = pki.load_region_keys(self.pki)
        self._folder, self._plain = folder, plain
        self.core = self._child("core", "im,route,ipconf,control", 1)
        self.fronts = [
            self._child(f"front-{number}", "gateway,state", number)
            for number in range(1, gateways + 1)
        ]

    def ready(self) -> None:
        """Waits until all of it serves."""
        for child in (self.core, *self.fronts):
            child.until_ready(partial(_serves, child.log), START_S)

    def _child(self, name: str, roles: str, instance: int) -> Child:
        child = Child(name, self._folder / f"{name}.log")
        command = [sys.executable, "-m", "services.node", "--region", str(self._region_file)]
        command += ["--idc", self.idc.name, "--data", str(self._folder / name)]
        command += ["--pki", str(self.pki), "--roles", roles, "--instance", str(instance)]
        child.spawn([*command, *(["--plain-clients"] if self._plain else [])])
        return child

    def token(self, uid: str) -> str:
        return mint(self.keys, Claims(uid, "phone", SystemClock().wall_ms() + 600_000))

    def restart(self, number: int = 0) -> None:
        os.kill(self.fronts[number].pid, signal.SIGHUP)

    async def says(self, text: str, number: int = 0) -> None:
        async def said() -> bool:
            return text in self.fronts[number].log.read_text()

        await until(said, START_S, f"no {text!r} in {self.fronts[number].log.read_text()[-2000:]}")

    def stop(self) -> None:
        for child in (*self.fronts, self.core):
            child.kill()


@pytest.fixture
async def idc(tmp_path: Path) -> AsyncIterator[Callable[[int, bool], Idc]]:
    with ExitStack() as stack:

        def make(gateways: int, plain: bool, quic: bool = False) -> Idc:
            made = Idc(tmp_path, gateways, plain, quic)
            stack.callback(made.stop)
            made.ready()
            return made

        yield make


def sent(cid: int) -> pb.Request:
    send = pb.Send(conversation=CHAT, outbox="o", cid=cid, floor=1, content=b"%d" % cid)
    return pb.Request(send=send)


async def joined(where: Idc, uid: str) -> FrameClient:
    client = await dial(where.port, None)
    connect = pb.Connect(token=where.token(uid).encode(), connection_epoch=1)
    response = await client.ask(pb.Request(connect=connect), ANSWER_S)
    assert not response.HasField("error"), response.error
    return client


async def shown(client: FrameClient, head: int) -> None:
    """Pushed, or named by a signal, up to this message."""
    async with asyncio.timeout(ANSWER_S):
        while True:
            event = await client.events.get()
            kind = event.WhichOneof("body")
            if kind == "push" and any(entry.seq >= head for entry in event.push.entries):
                return
            if kind == "signal" and any(one.seq >= head for one in event.signal.heads):
                return


async def test_plain_connections_survive_a_restart_in_the_middle_of_everything(idc) -> None:
    where = idc(1, True)
    ann, bob = await joined(where, "ann"), await joined(where, "bob")
    pid, acked = where.fronts[0].pid, 0

    async def talk() -> None:
        nonlocal acked
        for cid in range(1, 101):
            response = await ann.ask(sent(cid), ANSWER_S)
            assert response.HasField("send_ack"), response
            acked = cid
            await asyncio.sleep(0.02)

    async def begun() -> bool:
        return acked >= 10

    talking = asyncio.create_task(talk())
    await until(begun, ANSWER_S, "nothing is acked")
    # A message whose second half comes after the restart.
    whole = frame.encode(frame.REQUEST, 7, pb.Request(heartbeat=pb.Heartbeat()).SerializeToString())
    bob.transport.write(whole[:5])
    answer: asyncio.Future[pb.Response] = asyncio.get_running_loop().create_future()
    bob._answers[7] = answer
    await asyncio.sleep(0.1)
    before = acked
    where.restart()
    await where.says("2 of 2 connections stand after a restart")
    late = asyncio.create_task(joined(where, "zoe"))  # the listener has never been away
    bob.transport.write(whole[5:])
    await asyncio.wait_for(answer, ANSWER_S)
    await talking
    await late
    assert where.fronts[0].alive
    assert where.fronts[0].pid == pid
    assert 0 < before < 100
    assert not ann.closed.done()
    assert not bob.closed.done()
    await shown(bob, 100)
    where.restart()  # and once more: a successor has one too
    await where.says("restarts with 3 connections")
    assert (await ann.ask(sent(101), ANSWER_S)).HasField("send_ack")
    await shown(bob, 101)


async def test_a_silence_that_was_granted_outlives_the_restart(tmp_path: Path) -> None:
    """A client in the background is not looked for before its next heartbeat is due."""
    with ExitStack() as stack:
        where = Idc(tmp_path, 1, True, False, SOON_IDLE)
        stack.callback(where.stop)
        where.ready()
        ann, bob = await joined(where, "ann"), await joined(where, "bob")
        await ann.ask(pb.Request(heartbeat=pb.Heartbeat(next_ms=60_000)), ANSWER_S)
        where.restart()
        await where.says("2 of 2 connections stand after a restart")
        await asyncio.wait_for(asyncio.shield(bob.closed), ANSWER_S)  # he asked for nothing
        await asyncio.sleep(1)
        assert not ann.closed.done()


def client_of(where: Idc, uid: str) -> tuple[Client, list[Any], IpconfClient]:
    ipconf = IpconfClient(
        [f"https://{where.idc.endpoints.ipconf}"], where.pki / "ca.pem", random.Random(1)
    )
    client = Client(token=where.token(uid), ipconf=ipconf, rng=random.Random(2))
    told: list[Any] = []
    client.on(told.append)
    return client, told, ipconf


@pytest.mark.parametrize("quic", [False, True], ids=["tls", "quic"])
async def test_tls_clients_move_to_the_other_gateway_first(idc, monkeypatch, quic: bool) -> None:
    # On a machine that is busy with others TLS would win now and then.
    monkeypatch.setattr(passage, "HEAD_START_S", 5.0)
    monkeypatch.setattr(passage, "HEAD_START_MAX_S", 5.0)
    where = idc(2, False, quic)
    ann, to_ann, one = client_of(where, "ann")
    bob, to_bob, two = client_of(where, "bob")
    async with AsyncExitStack() as stack:
        for ipconf in (one, two):
            stack.push_async_callback(ipconf.close)
        await stack.enter_async_context(ann)
        await stack.enter_async_context(bob)
        await ann.send(CHAT, b"one")
        for number in (0, 1):
            where.restart(number)
            await where.says("0 of 0 connections stand after a restart", number)
            await ann.send(CHAT, b"%d" % number)
            assert ann.state.quic is bob.state.quic is quic

        async def all_there() -> bool:
            return sum(isinstance(event, Message) for event in to_bob) == 3

        await until(all_there, ANSWER_S, "bob has not got all")
    for told in (to_ann, to_bob):
        gone = [e for e in told if isinstance(e, ConnectionChanged) and not e.gateway]
        assert gone == []


async def test_a_process_that_could_not_start_again_goes_on_as_it_is(idc) -> None:
    where = idc(1, True)
    ann = await joined(where, "ann")
    (where.pki / "region-keys.json").rename(where.pki / "away")
    where.restart()
    await where.says("no restart, it goes on as it is: error: ")
    assert (await ann.ask(sent(1))).HasField("send_ack")
