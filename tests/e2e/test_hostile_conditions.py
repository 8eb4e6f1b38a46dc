"""Bad clients, a wrong clock, a sender that is moved about, a registry that comes back blank."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl

import pytest

from imcore import frame
from imcore.hlc import to_ms
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.runtime import SystemClock
from imcore.tls import client_ssl_context
from imctl.identity import token_for
from imctl.testing import disklog
from imctl.testing.cast import Actor, Cast, Couple
from imctl.testing.lab import Lab, until
from services.control.rules import Kind

pytestmark = pytest.mark.e2e

TEN_MINUTES_MS = 600_000


async def judged(lab: Lab, cast: Cast) -> None:
    await cast.judge()
    await lab.converged()


async def gateway_socket(lab: Lab, idc: str, receive_bytes: int = 65_536) -> socket.socket:
    (gateway,) = (await lab.status(idc))["gateways"]
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", gateway["port"]))
    return raw


async def gateway_stream(
    lab: Lab, idc: str, receive_bytes: int = 65_536
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """TLS to a gateway, nothing said yet."""
    raw = await gateway_socket(lab, idc, receive_bytes)
    context = client_ssl_context(lab.target.pki / "ca.pem")
    return await asyncio.open_connection(
        sock=raw, ssl=context, server_hostname="127.0.0.1", limit=4_096
    )


def connect_frame(token: str) -> bytes:
    request = pb.Request()
    request.connect.token = token.encode()
    request.connect.connection_epoch = 1
    return frame.client_preface() + frame.encode(frame.REQUEST, 1, request.SerializeToString())


RUBBISH = {
    "no preface": os.urandom(4_000),
    "half a preface": b"IM",
    "an unknown version": b"IMCP\xf0\xf1",
    "noise after the preface": frame.client_preface() + os.urandom(4_000),
    "a response": frame.client_preface() + frame.encode(frame.RESPONSE, 7, b"x"),
    "a body that is no request": frame.client_preface()
    + frame.encode(frame.REQUEST, 1, b"\xff" * 99),
    "a message without an end": frame.client_preface()
    + b"".join(frame.HEADER.pack(1, 1, 1_000, 5) + bytes(1_000) for _ in range(400)),
    "a token that nobody signed": connect_frame("bm90LWEtdG9rZW4.bm90LWEtc2lnbmF0dXJl"),
}


async def test_a_client_that_never_reads(stage) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(6, "fra", "fra")
        before = (await lab.status("fra"))["sessions"]
        reader, writer = await gateway_stream(lab, "fra", receive_bytes=4_096)
        writer.write(connect_frame(token_for(lab.target, "deaf", "phone", SystemClock())))
        await reader.readexactly(frame.SERVER_PREFACE_BYTES + frame.HEADER.size)

        assert (await lab.status("fra"))["sessions"] == before + 1
        body = "x" * 12_000  # in all more than the buffers of the kernel and of the gateway hold
        talkers = [actor for c in couples for actor in (c.here, c.there)]
        to_deaf = [(actor, actor.to("deaf")) for actor in talkers]
        for actor, conversation in to_deaf:
            cast.members(conversation, "deaf", actor.uid)
        sends = asyncio.gather(*(a.burst(c, 60, body) for a, c in to_deaf))
        others = [await c.here.send(c.conversation) for c in couples for _ in range(10)]
        assert all(others)
        assert sum(map(len, await sends)) == 60 * len(talkers)

        async def cut() -> bool:
            status = await lab.status("fra")
            (gateway,) = status["gateways"]
            return bool(gateway["connections"] == status["sessions"] == before)

        await until(cut, 60, "the client that never reads keeps its connection")
        writer.transport.abort()
        found = (await cast.found_at(["fra"]))["fra"]
        assert cast.acked.keys() <= found
        await judged(lab, cast)


async def test_a_registry_that_comes_back_blank(stage) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(3, "fra", "iad", "sin")
        await lab.change(Kind.CORDON, "iad")
        epoch = await lab.policy_epoch()
        await lab.stop("sin")
        shutil.rmtree(lab.data("sin") / "registry")
        log_before = len(lab.log("sin"))

        # Not every other registry answers: it abstains, so there is no majority for it to serve by.
        await lab.cut("iad", "sin")
        await lab.start("sin", serving=False)

        async def abstains() -> bool:
            return "the blank registry of sin abstains" in lab.log("sin")[log_before:]

        await until(abstains, 60, "the blank registry does not say that it abstains")
        await asyncio.sleep(2.0)
        assert not (await lab.status("sin"))["serving"]
        await lab.heal()

        async def serves() -> bool:
            return bool((await lab.status("sin"))["serving"])

        await until(serves, 60, "sin does not serve once all registries answer")
        assert (await lab.status("sin"))["origin"] == "sin.1"

        # It counts again and knows what was committed: without fra it is half of the majority.
        await lab.kill("fra")

        async def goes_on() -> bool:
            return bool(await lab.policy_epoch() > epoch)

        await until(goes_on, 60, "nothing is committed without fra")
        assert await lab.policy_state("iad") == "cordoned"
        await lab.change(Kind.UNCORDON, "iad")
        assert await lab.policy_state("iad") == "active"
        await lab.start("fra")
        await lab.all_active()
        await asyncio.gather(*(c.here.burst(c.conversation, 5) for c in couples))
        await judged(lab, cast)


async def test_clients_that_send_rubbish(visit) -> None:
    async with visit() as (lab, cast):
        couples = await cast.couples(3, "fra", "iad", "sin")
        connections = cast.recorder.where.copy()

        async def one(rubbish: bytes) -> None:
            """The gateway closes this connection, with nothing but a word of farewell."""
            reader, writer = await gateway_stream(lab, "fra")
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                writer.write(rubbish)
                await writer.drain()
                async with asyncio.timeout(60):
                    while await reader.read(4_096):
                        pass
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

        async def plain(rubbish: bytes) -> None:
            """Not even TLS."""
            with await gateway_socket(lab, "fra") as raw, contextlib.suppress(ConnectionError):
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(raw, rubbish)
                async with asyncio.timeout(60):
                    while await loop.sock_recv(raw, 4_096):
                        pass

        talk = asyncio.gather(*(c.here.burst(c.conversation, 50) for c in couples))
        async with asyncio.TaskGroup() as group:
            for rubbish in RUBBISH.values():
                group.create_task(one(rubbish))
            group.create_task(plain(os.urandom(4_000)))
        assert sum(map(len, await talk)) == 50 * len(couples)
        assert cast.recorder.where == connections

        async def gone() -> bool:
            """Each connection that is left has a session, which a bad client never got."""
            status = await lab.status("fra")
            (gateway,) = status["gateways"]
            return bool(gateway["connections"] == status["sessions"])

        await until(gone, 60, "the bad clients' connections do not end")
        await judged(lab, cast)


async def test_a_clock_that_is_ten_minutes_ahead(visit) -> None:
    async with visit() as (lab, cast):
        couples = await cast.couples(4, "iad", "fra", "sin")
        await lab.clock_offset("iad", TEN_MINUTES_MS)
        await asyncio.gather(*(c.here.burst(c.conversation, 20) for c in couples))
        alarms = await lab.wait_alarm("iad", "off the median")
        print(alarms)
        assert (await lab.status("iad"))["clock"]["skewed"]

        async def talk(couple: Couple) -> None:
            """Each waits until it was shown the other's, then answers."""
            for number in range(8):
                speaker, other = (couple.here, couple.there)[:: 1 if number % 2 else -1]
                seen = other.ear.seen[couple.conversation]
                await speaker.send(couple.conversation)

                async def shown(other: Actor = other, seen: int = seen) -> bool:
                    return other.ear.seen[couple.conversation] > seen

                await until(shown, 60, f"{other.uid} is not shown {speaker.uid}'s message", 0.01)

        await asyncio.gather(*(talk(couple) for couple in couples))
        assert [await lab.policy_state(idc) for idc in lab.idcs] == ["active"] * 3
        for partition in disklog.partitions(lab.data("iad"), "iad.1"):
            *_, last = disklog.records(lab.data("iad"), "iad.1", partition)
            ahead_ms = to_ms(oplog.Op.FromString(last.payload).hlc) - lab.clock.wall_ms()
            assert ahead_ms < 2_000, f"partition {partition} is {ahead_ms} ms ahead"
        await lab.clock_offset("iad", 0)
        await lab.wait_calm("iad")
        await asyncio.gather(*(talk(couple) for couple in couples))
        await judged(lab, cast)


async def test_a_sender_that_is_moved_in_the_middle_of_a_burst_and_back(visit) -> None:
    async with visit() as (lab, cast):
        couples = await cast.couples(3, "fra", "iad", "sin")
        stop = asyncio.Event()
        seen_in: set[str] = set()

        async def keep_sending(couple: Couple) -> None:
            while not stop.is_set():
                tags = await couple.here.burst(couple.conversation, 5)
                seen_in.update(cast.acked_at[tag] for tag in tags)
                await asyncio.sleep(0.05)

        async def send_at(idc: str) -> None:
            """Until all are there, and something was acked to one that was there all the time."""
            seen_in.discard(idc)

            async def all_there() -> bool:
                return {couple.here.idc for couple in couples} == {idc} and idc in seen_in

            await until(all_there, 60, f"the senders do not come to {idc}")

        sending = [asyncio.ensure_future(keep_sending(couple)) for couple in couples]
        await send_at("fra")
        await lab.switchover("fra", "iad")
        await send_at("iad")
        await lab.failback("fra")
        await send_at("fra")
        stop.set()
        await asyncio.gather(*sending)
        assert cast.refusals == []
        await judged(lab, cast)
