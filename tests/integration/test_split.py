"""Fronts and the core of an IDC as processes see each other: over gRPC, with im in memory."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from imcore import pki
from imcore.attest import RegionKeys
from imcore.errors import BadInput
from imcore.listener import Listener
from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.proto import front_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.region.model import Limits
from imcore.runtime import SystemClock
from imcore.tls import SERVER_OPTIONS, grpc_channel, grpc_server_credentials
from imcore.tokens import Claims, mint
from imcore.words import Origin
from imctl.target.local import pki_names
from imctl.target.places import free_port
from imctl.testing.lab import lab_region
from imctl.testing.onenode import one_idc
from services.gateway.handover import taken
from services.im.server import ImServer
from services.node.authorize import Authorizer
from services.node.config import load
from services.node.front import FrontNode
from services.node.front_load import LoadReport
from services.node.metrics import Measured
from services.node.node import Node
from services.node.roles import Roles, parse_roles
from services.node.route import RouteNode
from services.node.succession import go_on, hand_over
from services.ports import Audience
from services.sdk import Client, ConnectionChanged, IpconfClient, Message, Missed, Presence
from services.split import ways
from services.split.core import AGAIN_S, CoreLink
from services.split.fronts import TELL_S, Fronts
from services.split.pipe import Pipe
from services.split.route import Route
from services.split.ways import Straight
from services.state.testing import Front, MemoryIm

KEYS = RegionKeys({1: b"k" * 32}, 1)
FRA = Origin("fra", 1)
CONVERSATION = "d:ann:bob"


def sent(cid: int) -> pb.Request:
    return pb.Request(send=pb.Send(conversation=CONVERSATION, cid=cid, content=b"hi"))


class SyncingIm(MemoryIm):
    """Tells a sync of every conversation that it has."""

    failing, failed = False, 0

    def submit(self, session, request, reply) -> None:
        if not request.HasField("sync"):
            super().submit(session, request, reply)
            return
        response = pb.Response()
        if self.failing:
            self.failed += 1
            response.error.code = "unavailable"
            reply(response)
            return
        for name in self.entries:
            heads = [pb.Position(origin=pb.Origin(idc="fra", incarnation=1), seq=self.seq(name))]
            response.sync_ok.conversations.add(conversation=name, heads=heads)
        reply(response)

    def seq(self, name: str) -> int:
        return len(self.entries[name])


class Core:
    """The core's end. ``stop`` and ``start``: as if its process had been killed and begun again."""

    limits = Limits()

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._folder = folder
        self.port = port
        self.entries: dict[str, list[pb.Entry]] = {}

    async def start(self) -> None:
        stamp = pb.Stamp(hlc=7)
        self.fronts = Fronts(
            "fra",
            lambda: stamp,
            lambda: 12,
            lambda: 0,
            lambda: b"token",
            SystemClock(),
            self.limits,
        )
        self.im = SyncingIm(self.fronts, lambda: stamp, FRA)
        self.im.entries = self.entries
        self.fronts.im, self.fronts.origin, self.fronts.open = self.im, FRA, True
        guard = Authorizer(["fra", "iad"])
        self.server = grpc.aio.server(interceptors=[guard], options=SERVER_OPTIONS)
        rpc.add_FrontServicer_to_server(self.fronts, self.server)
        credentials = grpc_server_credentials(self._folder, "fra")
        self.port = self.server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self.server.start()
        self.telling = asyncio.create_task(self.fronts.run())

    async def stop(self) -> None:
        self.telling.cancel()
        await self.server.stop(None)


async def until(condition, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(0.01)


@pytest.fixture
async def core(tmp_path):
    names = {"fra": ["127.0.0.1"], "iad": ["127.0.0.1"]}
    pki.init(tmp_path, names, datetime.now(UTC))
    core = Core(tmp_path)
    await core.start()
    yield core
    await core.stop()


@pytest.fixture(params=["core", "route"])
async def door(core, tmp_path, request):
    """The port at which fronts link: the core's, or that of a route instance before it."""
    if request.param == "core":
        yield lambda: core.port
        return
    async with routed(tmp_path, core) as (_, port):
        yield lambda: port


@asynccontextmanager
async def routed(folder: Path, core: Core, name: str = "one") -> AsyncIterator[tuple[Route, int]]:
    """A route instance that is linked, and its port."""
    channel = grpc_channel(folder, "fra", "fra", f"127.0.0.1:{core.port}")
    route = Route("fra", f"fra-route.{name}", rpc.FrontStub(channel))
    server = grpc.aio.server(interceptors=[Authorizer(["fra", "iad"])], options=SERVER_OPTIONS)
    rpc.add_FrontServicer_to_server(route, server)
    port = server.add_secure_port("127.0.0.1:0", grpc_server_credentials(folder, "fra"))
    await server.start()
    running = asyncio.create_task(route.run())
    try:
        async with asyncio.timeout(10):
            await route.linked.wait()
        yield route, port
    finally:
        running.cancel()
        await server.stop(None)
        await channel.close(None)


@pytest.fixture
async def front_of(door, tmp_path):
    """``await front_of("gw1")``: a front that is linked, as (front, link)."""
    async with AsyncExitStack() as stack:

        async def make(gateway: str) -> tuple[Front, CoreLink]:
            made = Front(KEYS, origin=Origin(gateway, 1))
            channel = grpc_channel(tmp_path, "fra", "fra", f"127.0.0.1:{door()}")
            stack.push_async_callback(channel.close, None)
            way = Straight(rpc.FrontStub(channel))
            link = CoreLink(way, KEYS, made.clock, lambda _: None, front.Load)
            made.state.im, link.state, made.state.origin = link, made.state, FRA
            link.hello = front.Hello(gateway=made.gateways[0].name, port=1, grows=True)
            made.state.watch(link.changed)
            running = asyncio.create_task(link.run())
            stack.callback(running.cancel)
            await stack.enter_async_context(made)
            async with asyncio.timeout(10):
                await link.linked.wait()
            return made, link

        yield make


async def test_a_message_goes_from_one_front_to_another_and_is_acked(core, front_of):
    here, _ = await front_of("one")
    there, _ = await front_of("two")
    ann, _ = await here.connect("ann")
    bob, _ = await there.connect("bob")
    await until(lambda: core.fronts.connected_count() == 2)
    response = await ann.ask(sent(1))
    assert response.send_ack.lsn == 1
    assert response.stamp.hlc == 7
    assert (await bob.event("push")).push.entries[0].message.content == b"hi"
    core.fronts.replicated(FRA, 0, 1)
    assert (await ann.event("replicated")).replicated.lsn == 1


async def test_what_nobody_logs_comes_through_the_front(core, front_of):
    here, _ = await front_of("one")
    there, _ = await front_of("two")
    ann, _ = await here.connect("ann")
    bob, _ = await there.connect("bob")
    await until(lambda: core.fronts.connected_count() == 2)
    typing = pb.Event(typing=pb.Typing(conversation=CONVERSATION, uid="ann"))
    core.fronts.tell(["bob", "eve"], typing)
    event = await bob.event("typing")
    assert event.typing.uid == "ann" and event.stamp.mac
    presence = pb.Event(presence=pb.PresenceChanged(users=[pb.Presence(uid="bob")]))
    core.fronts.tell_devices([("ann", "phone"), ("ann", "desktop"), ("eve", "web")], presence)
    assert [row.uid for row in (await ann.event("presence")).presence.users] == ["bob"]


async def test_the_members_of_a_huge_group_are_named_to_a_front_once(core, front_of):
    here, _ = await front_of("one")
    there, _ = await front_of("two")
    ann, _ = await here.connect("ann")
    bob, _ = await there.connect("bob")
    await until(lambda: core.fronts.connected_count() == 2)
    audience = Audience("g:huge", ("ann", "bob", *(f"u{number:05}" for number in range(9_998))))
    numbers = []
    for number in range(1, 4):
        assert core.fronts.reached(audience) == 2
        entry = core.im.store("g:huge", b"%d" % number)
        core.fronts.push_group(audience, [entry], {FRA: number}, 0, True)
        for client in (ann, bob):
            push = (await client.event("push")).push
            assert (push.entries[0].message.content, push.merged) == (b"%d" % number, True)
        numbers.append([link.audiences.number(audience) for link in core.fronts.gateways])
    assert numbers == [[1, 1]] * 3
    eve, _ = await here.connect("u00007")
    await until(lambda: core.fronts.connected_count() == 3)
    core.fronts.tell_behind([(audience, {FRA: 3}, 9)], 500)
    for client in (ann, bob, eve):
        behind = (await client.event("behind")).behind
        assert (behind.within_ms, behind.conversations[0].heads[0].seq) == (500, 3)
    assert [link.audiences.number(audience) for link in core.fronts.gateways] == [1, 1]
    left = Audience("g:huge", audience.uids[1:])
    core.fronts.push_group(left, [core.im.store("g:huge", b"4")], {FRA: 4}, 0, True)
    for client in (bob, eve):
        assert (await client.event("push")).push.entries[0].message.content == b"4"
    with pytest.raises(TimeoutError):  # she has left
        await ann.event("push", timeout_s=0.2)


async def test_the_newest_connection_of_a_device_wins_between_fronts_too(core, front_of):
    here, _ = await front_of("one")
    there, _ = await front_of("two")
    old, _ = await here.connect("ann", 1)
    await there.connect("ann", 2)
    assert (await old.event("close")).close.reason == "replaced"
    late = await here.dial()
    late.send(here.hello("ann", 1))
    assert (await late.event("close")).close.reason == "replaced"
    await until(lambda: [row.connection_epoch for row in core.fronts.sessions()] == [2])


async def test_connections_stand_while_the_core_is_away_and_learn_what_they_missed(core, front_of):
    here, link = await front_of("one")
    ann, _ = await here.connect("ann")
    await until(lambda: core.fronts.connected_count() == 1)
    core.im.mute = True
    unanswered = asyncio.create_task(ann.ask(sent(1)))
    await asyncio.sleep(0.05)
    await core.stop()
    response = await unanswered
    assert (response.error.code, response.error.retry_after_ms) == ("unavailable", 100)
    assert (await ann.ask(sent(1))).error.code == "unavailable"
    core.im.store(CONVERSATION, b"meanwhile")  # and nobody was told
    await core.start()
    signal = (await ann.event("signal")).signal
    assert (signal.conversation, signal.heads[0].seq) == (CONVERSATION, 1)
    assert link.linked.is_set()
    assert core.fronts.connected_count() == 1
    assert [session.uid for session in core.im.stood_before] == ["ann"]
    await here.connect("bob")  # who did not stand before
    assert len(core.im.stood_before) == 1
    assert (await ann.ask(sent(2))).send_ack.placed.seq == 2


async def test_a_core_that_does_not_keep_up_sheds_what_its_fronts_have_taken(core, front_of):
    await core.stop()
    core.limits = Limits(delay_ms=20)
    await core.start()
    here, _ = await front_of("one")
    # So many that there are some of either kind, whichever users' turn it is.
    clients = [(await here.connect(f"u{number}"))[0] for number in range(100)]
    until_s = time.monotonic() + 20
    while core.fronts.load()["served_share"] >= 0.5:
        assert time.monotonic() < until_s
        time.sleep(0.05)  # noqa: ASYNC251 - too long for the core, and not for the front
        await asyncio.sleep(0)
    assert here.state.load()["served_share"] == 1.0
    answers = [await client.ask(sent(1)) for client in clients]
    errors = [answer.error for answer in answers if answer.HasField("error")]
    assert {error.code for error in errors} == {"overloaded"} and len(errors) < 100
    assert all(error.retry_after_ms >= 500 for error in errors)
    assert core.fronts.load()["shed"] == core.fronts.load()["overloaded"] == len(errors)
    await until(lambda: core.fronts.load()["served_share"] == 1.0)
    assert not any([(await client.ask(sent(2))).HasField("error") for client in clients])


async def test_fronts_catch_up_with_a_core_that_sheds_and_with_one_link(
    core, front_of, monkeypatch
):
    here, link = await front_of("one")
    clients = [(await here.connect(f"u{number}"))[0] for number in range(60)]
    await core.stop()
    core.im.store("d:u1:u2", b"meanwhile")
    await core.start()
    monkeypatch.setattr(core.fronts.shedder, "_sample", lambda seconds, now: None)
    core.fronts.shedder.level = 0.05
    for client in clients:
        assert (await client.event("signal")).signal.conversation == "d:u1:u2"
    await until(lambda: not link._behind)
    assert (await clients[0].ask(pb.Request(heartbeat=pb.Heartbeat()))).HasField("heartbeat_ok")


async def test_a_sync_that_fails_for_long_costs_no_link_and_leaves_nothing_behind(core, front_of):
    here, link = await front_of("one")
    clients = [(await here.connect(f"u{number}"))[0] for number in range(40)]
    await core.stop()
    core.im.store("d:u1:u2", b"meanwhile")
    await core.start()
    core.im.failing = True
    await until(lambda: core.fronts.gateways)
    (before,) = core.fronts.gateways
    await asyncio.sleep(2.5)
    assert core.fronts.gateways == [before] and core.im.failed < 100
    core.im.failing = False
    for client in clients:
        assert (await client.event("signal")).signal.conversation == "d:u1:u2"
    await until(lambda: not link._behind)


async def test_more_huge_groups_at_once_than_a_front_remembers(core, front_of):
    here, _ = await front_of("one")
    ann, _ = await here.connect("ann")
    await until(lambda: core.fronts.connected_count() == 1)
    groups = [Audience(f"g:{number}", ("ann",)) for number in range(600)]
    core.fronts.tell_behind([(group, {FRA: 1}, 0) for group in groups], 500)
    told: set[str] = set()
    while len(told) < 600:
        behind = (await ann.event("behind")).behind
        told |= {row.conversation for row in behind.conversations}


async def test_a_group_that_was_never_named_costs_a_link_and_no_process(core, front_of):
    here, link = await front_of("one")
    ann, _ = await here.connect("ann")
    (before,) = core.fronts.gateways
    push = front.PushEntries(conversation="g:huge", audience=99)
    before.pipe.put(front.Down(push=push))
    await until(lambda: core.fronts.gateways and core.fronts.gateways != [before])
    await until(lambda: link.linked.is_set())
    assert (await ann.ask(sent(1))).send_ack.lsn == 1


async def test_a_session_that_ended_while_the_core_was_away_is_over_there_too(core, front_of):
    here, _ = await front_of("one")
    ann, _ = await here.connect("ann")
    await core.stop()
    await until(lambda: core.fronts.gateways == [])
    ann.send(pb.Request(bye=pb.Bye()))
    await ann.gone()
    await asyncio.sleep(3 * AGAIN_S)  # it tries to link, in vain
    await core.start()
    await until(lambda: [session.uid for session in core.im.over] == ["ann"])
    await asyncio.sleep(2 * TELL_S)  # and is not told of it again once the core has taken it
    await core.stop()
    await until(lambda: core.fronts.gateways == [])
    await core.start()
    await until(lambda: core.fronts.gateways)
    await asyncio.sleep(0.1)
    assert core.im.over == []


async def test_a_session_that_ended_before_a_restart_is_over_although_the_core_was_away(
    core, front_of, monkeypatch
):
    here, link = await front_of("one")
    ann, _ = await here.connect("ann")
    await core.stop()
    await until(lambda: core.fronts.gateways == [])
    ann.send(pb.Request(bye=pb.Bye()))
    await ann.gone()
    listener = here.gateways[0]._listener
    assert isinstance(listener, Listener)
    handed = await hand_over(here.gateways[0], listener, here.state, link, 1)
    monkeypatch.setattr(os, "set_inheritable", lambda fd, on: None)
    handed.keep()
    handover = taken()
    assert handover is not None
    for fd in handover.listeners:
        os.close(fd)
    link._over.clear()  # its process is another one now
    await core.start()
    there, successor = await front_of("two")
    await go_on(handover, there.gateways[0], there.state, successor)
    await until(lambda: [session.uid for session in core.im.over] == ["ann"])
    await until(lambda: not successor.ended())


class Real:
    """A core and a front of one IDC, real but for their processes, and SDKs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._region_file = lab_region(folder, one_idc)
        region = load_region(self._region_file)
        pki.init(folder / "pki", pki_names(region), datetime.now(UTC))
        self._idc = region.spec.idcs[0]
        self._keys = pki.load_region_keys(folder / "pki")
        ipconf = f"https://{self._idc.endpoints.ipconf}"
        self._ipconf = IpconfClient([ipconf], folder / "pki" / "ca.pem", random.Random(1))
        self._clients = AsyncExitStack()
        self.told: dict[str, list[Any]] = {}  # by uid
        self.front, self._front_task = self._process(FrontNode, Roles.FRONT)

    def _process(self, kind: Any, roles: Roles, **more: Any) -> tuple[Any, asyncio.Task[None]]:
        folder, made = self._folder / roles.name, self._folder / "pki"
        config = load(
            self._region_file, self._idc.name, folder, made, None, True, roles=roles, **more
        )
        node = kind(config)
        return node, asyncio.create_task(node.run())

    async def start_core(self) -> Any:
        self.core, self._core_task = self._process(Node, Roles.CORE)
        await until(lambda: self.core.serving and self.core.fronts.gateways, 60)
        return self.core

    async def stop_core(self) -> None:
        self.core.stop()
        await self._core_task

    @asynccontextmanager
    async def route(self) -> AsyncIterator[RouteNode]:
        """A route instance that gateways find."""
        port = free_port(())
        node, task = self._process(RouteNode, Roles.ROUTE, route_port=port)
        try:
            await until(lambda: not node.not_ready())
            yield node
        finally:
            node.stop()
            await task

    async def client(self, uid: str) -> Client:
        claims = Claims(uid, "phone", SystemClock().wall_ms() + 600_000)
        made = Client(token=mint(self._keys, claims), ipconf=self._ipconf, rng=random.Random(2))
        made.on(self.told.setdefault(uid, []).append)
        return await self._clients.enter_async_context(made)

    async def stop(self) -> None:
        await self._clients.aclose()
        await self._ipconf.close()
        self.front.stop()
        await self._front_task
        await self.stop_core()


def _of(told: list[Any], kind: type[Any]) -> list[Any]:
    return [event for event in told if isinstance(event, kind)]


@asynccontextmanager
async def _real(folder: Path) -> AsyncIterator[Real]:
    real = Real(folder)
    try:
        yield real
    finally:
        await real.stop()


async def test_the_real_core_begins_again_behind_clients_that_stay_connected(tmp_path):
    async with _real(tmp_path) as real:
        await real.start_core()
        ann, _ = [await real.client(uid) for uid in ("ann", "bob")]
        await ann.send(CONVERSATION, b"one")
        await real.stop_core()
        waits = asyncio.create_task(ann.send(CONVERSATION, b"two"))
        core = await real.start_core()
        await waits
        await until(lambda: sum(isinstance(event, Message) for event in real.told["bob"]) == 2)
        for told in real.told.values():
            assert sum(isinstance(event, ConnectionChanged) for event in told) == 1
        status = core.status.as_dict()
        assert status["sessions"] == 2
        assert [row["gateway"] for row in status["gateways"]] == [real.front.gateway.name]


@pytest.mark.parametrize("core_restarts", [False, True])
async def test_who_is_kicked_while_its_front_has_no_link_is_out_when_it_has_one(
    tmp_path, core_restarts
):
    async with _real(tmp_path) as real:
        core, (ann, bob) = await real.start_core(), [await real.client(u) for u in ("ann", "bob")]
        core.fronts.open = False
        core.fronts._remove(core.fronts.gateways[0])
        await core.im.kick("ann", "")
        partition = core.im.partition("ann")
        end = core.store.own().end(partition.number).lsn
        await until(lambda: partition.applier.lsn(core.origin) >= end)
        if core_restarts:  # what it has folded it does not fold again
            await real.stop_core()
            core = await real.start_core()
        core.fronts.open = True
        await until(lambda: not ann.state.gateway, 20)
        await until(lambda: [row.uid for row in core.fronts.sessions()] == ["bob"])
        await bob.send("d:bob:eve", b"one")


async def test_who_is_watched_is_told_again_after_the_core_began_again(tmp_path):
    """And whoever is connected learns that he may have missed what nobody owes."""
    async with _real(tmp_path) as real:
        core = await real.start_core()
        ann, bob = [await real.client(uid) for uid in ("ann", "bob")]
        await until(lambda: [row.online for row in core.live.devices("bob")] == [True])
        assert (await ann.watch(["bob"]))[0].online
        await real.stop_core()
        await real.start_core()
        await until(lambda: all(_of(told, Missed) for told in real.told.values()))
        await until(lambda: [row.online for row in _of(real.told["ann"], Presence)][-1:] == [("",)])
        await bob.close()
        await until(lambda: not _of(real.told["ann"], Presence)[-1].online)


async def test_a_front_goes_from_route_to_route_and_is_never_without_its_core(
    tmp_path, monkeypatch
):
    """By the first that is there, by the other one when that is gone, straight to the core without
    any, and back to one that comes, though it has clients."""
    monkeypatch.setattr(ways, "STEADY_S", 0.5)
    monkeypatch.setattr(ways, "SPREAD_S", 0.1)

    def way() -> str:
        (link,) = real.core.fronts.gateways
        return str(link.way.name)

    async with _real(tmp_path) as real:
        core = await real.start_core()
        async with real.route() as one:
            await until(lambda: core.fronts.gateways and way() == one.route.name)
            ann, _ = [await real.client(uid) for uid in ("ann", "bob")]
            async with real.route() as two:
                await ann.send(CONVERSATION, b"1")
                one.stop()
                await until(lambda: core.fronts.gateways and way() == two.route.name)
                await ann.send(CONVERSATION, b"2")
            await until(lambda: core.fronts.gateways and way() == real.front.gateway.name)
            await ann.send(CONVERSATION, b"3")
        async with real.route() as three:
            await until(lambda: core.fronts.gateways and way() == three.route.name)
            await ann.send(CONVERSATION, b"4")
            waiting = three.route.fronts
            await real.stop_core()
            await until(lambda: three.not_ready() == ["it has no link to its core"])
            core = await real.start_core()
            assert way() == three.route.name and three.route.fronts is not waiting
            await ann.send(CONVERSATION, b"5")
            status = core.status.as_dict()["routes"]
            assert status == [{"route": three.route.name, "gateways": 1}]
        await until(lambda: len(_of(real.told["bob"], Message)) == 5)
        got = [event.content for event in _of(real.told["bob"], Message)]
        assert got == [b"1", b"2", b"3", b"4", b"5"]
        assert [len(_of(told, ConnectionChanged)) for told in real.told.values()] == [1, 1]


async def test_a_number_that_the_core_never_named_costs_a_route_instance_its_link_alone(
    core, tmp_path
):
    async with routed(tmp_path, core) as (route, _):
        (before,) = core.fronts.routes
        before.pipe.put(front.Down(push=front.PushEntries(conversation="g:huge", audience=99)))
        await until(lambda: core.fronts.routes and core.fronts.routes != [before])
        await until(route.linked.is_set)


async def test_only_processes_of_its_idc_link_to_a_route_instance(core, tmp_path):
    async with routed(tmp_path, core) as (_, port):
        for name, why in (("iad", "a front of fra shows the certificate of fra, not of iad"),
                          ("fra", "a front begins with a hello")):  # fmt: skip
            async with grpc_channel(tmp_path, name, "fra", f"127.0.0.1:{port}") as channel:
                call = rpc.FrontStub(channel).Link(_hello(front.Hello(route="another")))
                with pytest.raises(grpc.aio.AioRpcError, match=why):
                    await anext(aiter(call))


async def _hello(hello: front.Hello) -> AsyncIterator[front.UpBatch]:
    yield front.UpBatch(items=[front.Up(hello=hello)])
    await asyncio.sleep(10)


async def test_a_route_that_the_core_took_along_is_written_again(tmp_path, monkeypatch):
    async with _real(tmp_path) as real:
        await real.start_core()
        with monkeypatch.context() as dies_before_it_has_logged_it:
            dies_before_it_has_logged_it.setattr(ImServer, "_route", lambda *_, **__: None)
            await real.client("ann")
        await real.stop_core()
        core = await real.start_core()
        await until(lambda: [bool(row.online) for row in core.live.devices("ann")] == [True])


async def test_an_end_that_the_core_took_along_is_told_again(tmp_path, monkeypatch):
    async with _real(tmp_path) as real:
        core = await real.start_core()
        bob = await real.client("bob")
        await until(lambda: [row.online for row in core.live.devices("bob")] == [True])
        with monkeypatch.context() as dies_before_it_has_logged_it:
            dies_before_it_has_logged_it.setattr(ImServer, "_route", lambda *_, **__: None)
            await bob.close()
            await until(lambda: not core.fronts.sessions())
            await asyncio.sleep(3 * TELL_S)
            await real.stop_core()
        core = await real.start_core()
        await until(lambda: [row.online for row in core.live.devices("bob")] == [False])
        route = core.live.routes("bob")["phone"]
        assert route.gone and route.away_ms >= 3_000 * TELL_S


async def test_only_the_own_idc_may_link(core, tmp_path):
    async with grpc_channel(tmp_path, "iad", "fra", f"127.0.0.1:{core.port}") as channel:
        call = rpc.FrontStub(channel).Link(iter(()))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_fronts_count_is_shown_by_their_core_once(core, front_of):
    there, link = await front_of("one")
    verbs = Measured(random.Random(1), Roles.FRONT.value).verbs
    there.state.measure(verbs["state"])
    [gateway] = there.gateways
    gateway.verbs = verbs["gateway"]
    shown = core.fronts.verbs = Measured(random.Random(1), Roles.ALL.value).verbs
    report = LoadReport(there.state, verbs)
    ann, _ = await there.connect("ann")
    for cid in (1, 2):
        assert (await ann.ask(sent(cid))).send_ack.lsn == cid
    for _ in range(3):  # the first says it all
        link._pipe.put(front.Up(load=report.make(gateway)))
        await until(lambda: core.fronts.gateways[0].load.connections == 1)
        await asyncio.sleep(0.05)
        counts = {n: sum(v.buckets) for n, v in shown["state"].known.items()}
        assert (counts["connect"], counts["send"]) == (1, 2)
        assert sum(shown["gateway"].known["request"].buckets) == 3
        assert core.fronts.gateway_events[1]["accepted"] == 1
    await ann.ask(pb.Request(heartbeat=pb.Heartbeat()))
    link._pipe.put(front.Up(load=report.make(gateway)))
    await until(lambda: sum(shown["gateway"].known["request"].buckets) == 4)


async def test_what_is_put_in_one_turn_leaves_as_one_batch_and_a_full_pipe_closes():
    pipe: Pipe[pb.Signal] = Pipe(waiting_bytes_max=100)
    batches = pipe.batches()
    for name in ("a", "b", "c"):
        pipe.put(pb.Signal(conversation=name))
    assert [signal.conversation for signal in await anext(batches)] == ["a", "b", "c"]
    pipe.put(pb.Signal(conversation="x" * 200))
    assert pipe.overflowed
    assert await anext(batches, None) is None


@pytest.mark.parametrize(
    ("roles", "flags", "why"),
    [
        (Roles.ROUTE, {}, "--route-port: expected a port with --roles route"),
        (Roles.ROUTE, {"route_port": 70_000}, "--route-port: expected a port with --roles route"),
        (Roles.CORE, {"route_port": 7445}, "--route-port: expected a port with --roles route"),
        (Roles.ROUTE, {"route_port": 1, "advertise": "pod"}, "--advertise pod: expected HOST:PORT"),
        (Roles.ROUTE, {"route_port": 1, "advertise": "pod:x"}, "--advertise pod:x: expected HOST"),
        (Roles.FRONT, {"advertise": "pod:1"}, "--advertise: expected only with --roles route"),
        (Roles.ROUTE, {"route_port": 1, "instance": 65}, "--instance 65: expected 1 to 1"),
    ],
)
def test_what_only_a_route_instance_has_is_asked_of_it_alone(tmp_path, pki_dir, roles, flags, why):
    file = Path(__file__).parents[2] / "regions" / "two-idc.yaml"
    with pytest.raises(BadInput, match=why):
        load(file, "fra", tmp_path, pki_dir, None, False, roles=roles, **flags)


@pytest.mark.parametrize("text", ["all", "state,gateway", "route", "im, route,ipconf,control"])
def test_roles_that_go_together(text):
    assert parse_roles(text) in Roles


@pytest.mark.parametrize("text", ["", "gateway", "im", "gateway,state,im", "im,im"])
def test_other_sets_of_roles_are_refused_in_one_line(text):
    with pytest.raises(BadInput, match="expected all, or gateway,state or im,route,ipconf,control"):
        parse_roles(text)
