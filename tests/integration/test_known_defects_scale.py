"""Known defects of systems like this that show under load and in storms.

Each test fails when its fix is taken out. Three more of them have their tests elsewhere: offline
push for a device that is online (`tests/unit/test_webhooks.py`), presence that eats the CPU
(`tests/unit/test_presence.py`), and routes of dead gateways (`test_known_defects_gateway.py`).
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from pathlib import Path

from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.region.model import Limits
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.gateway.config import GatewayConfig
from services.im.testing import OpenIdc
from services.sdk.core.reconnect import Lost, Reconnect, Where
from services.split.fronts import Fronts
from services.split.links import FrontLink
from services.split.pipe import WAITING_BYTES_MAX, Pipe
from services.state.testing import Front

KEYS = RegionKeys({1: b"k" * 32}, 1)
FRA = Origin("fra", 1)
GROUP = "g:fra:lunch"
DIRECT = "d:ann:bob"


def fronts_of(gateways: int) -> tuple[Fronts, list[FrontLink]]:
    """A core, with as many linked fronts; `userN` is connected to the N-th."""
    fronts = Fronts("fra", pb.Stamp, lambda: 0, lambda: 0, lambda: None, SystemClock(), Limits())
    fronts.origin = FRA
    links = [FrontLink(front.Hello(gateway=f"gw{number}"), Pipe()) for number in range(gateways)]
    for link in links:
        fronts._add(link)
    for number, link in enumerate(links):
        caller = front.Caller(
            id=f"s{number}", uid=f"user{number}", device="phone", connection_epoch=1
        )
        change = front.SessionChange(caller=caller, shard="europe", connected=True)
        fronts._up(link, front.Up(session=change))
        pipe_of(link)._take()
    return fronts, links


def pipe_of(link: FrontLink) -> Pipe[front.Down]:
    assert isinstance(link.pipe, Pipe)
    return link.pipe


def entry_of(content: bytes) -> pb.Entry:
    entry = pb.Entry(seq=1)
    entry.message.content = content
    return entry


def test_every_gateway_woken_for_every_group_message() -> None:
    """Defect: each message of a group is sent to every gateway, and each of them looks for members
    among its connections. Fix: the core knows at which gateways the members are."""
    fronts, links = fronts_of(50)
    entry = entry_of(b"lunch?")
    fronts.push_entries(GROUP, ["user3", "user7", "nobody"], [entry], {FRA: 1}, 0)
    fronts.signal(["user3", "user7", "nobody"], GROUP, {FRA: 1})
    woken = {link.name: len(pipe_of(link)._take()) for link in links}
    assert {name: items for name, items in woken.items() if items} == {"gw3": 2, "gw7": 2}


def test_one_blocked_hub_that_stops_all_sessions() -> None:
    """Defect: one place through which all pushes go waits for the slowest of those that it serves.
    Fix: nothing waits. Each front has a bounded pipe; one that is not read closes, alone, and its
    front begins again with what it has missed."""
    fronts, [blocked, *others] = fronts_of(4)
    entry = entry_of(b"x" * (1 << 20))
    for _ in range(WAITING_BYTES_MAX // (1 << 20) + 1):
        fronts.push_entries(GROUP, [f"user{n}" for n in range(4)], [entry], {FRA: 1}, 0)
        assert [len(pipe_of(link)._take()) for link in others] == [1, 1, 1]
    assert pipe_of(blocked).closed and blocked.pipe.overflowed
    assert not pipe_of(blocked)._items
    assert not any(pipe_of(link).closed for link in others)


async def test_a_sequence_rolled_back_by_a_storage_failover(
    open_idc: OpenIdc, tmp_path: Path
) -> None:
    """Defect: the store from which sequence numbers are given out fails over to a replica that
    lags, and gives numbers out a second time. Fix: numbers come from the log; the KV is folded up
    to the log's end before a partition takes anything."""
    fra = await open_idc(others=())
    for cid in (1, 2):
        await fra.send(fra.session("ann"), DIRECT, cid, b"%d" % cid)
    await fra.stop()
    shutil.copytree(tmp_path / "fra" / "kv", tmp_path / "replica")
    fra = await open_idc(others=())
    for cid in (3, 4):
        await fra.send(fra.session("ann"), DIRECT, cid, b"%d" % cid)
    await fra.stop()
    shutil.rmtree(tmp_path / "fra" / "kv")
    shutil.move(tmp_path / "replica", tmp_path / "fra" / "kv")
    fra = await open_idc(others=())
    ack = (await fra.send(fra.session("ann"), DIRECT, 5, b"5")).send_ack
    assert (ack.outcome, ack.placed.seq) == (pb.SendAck.ACCEPTED, 5)
    assert await fra.contents(fra.session("bob"), DIRECT) == [b"1", b"2", b"3", b"4", b"5"]


async def test_a_write_buffer_that_never_shrinks() -> None:
    """Defect: what a slow client does not read is kept for it, and the buffer stays as large as it
    ever was. Fix: beyond a bound pushes are dropped and a signal says so, since the session is owed
    them anyway; and the buffer goes with what is written."""
    config = GatewayConfig(push_bytes_max=64 * 1024)
    async with Front(KEYS, limits=config) as fra:
        [gateway] = fra.gateways
        client, _ = await fra.connect("ann")
        [connection] = gateway._connections.values()
        client.transport.pause_reading()
        for _ in range(1_000):  # 16 MB, of which the kernel takes a part
            fra.im.push(DIRECT, [fra.im.store(DIRECT, b"x" * 16_384)])
            await asyncio.sleep(0)
            assert connection._unsent() <= config.push_bytes_max + 20_000
        assert gateway.counters.dropped > 100
        client.transport.resume_reading()
        signal = (await client.event("signal")).signal
        assert signal.heads[0].seq == 1_000
        async with asyncio.timeout(5):
            while not connection.settled():  # noqa: ASYNC110 - nothing to wait on
                await asyncio.sleep(0.01)


def test_a_reconnect_herd() -> None:
    """Defect: clients that lost their gateway together come back together, again and again. Fix:
    full jitter over a bound that doubles, so that no turn of a second sees most of them."""
    clients = [Reconnect(random.Random(number)) for number in range(2_000)]
    at_ms = [0] * len(clients)
    for attempt in range(1, 8):
        for number, client in enumerate(clients):
            plan = client.lost(Lost("refused"))
            assert plan.where is not Where.NOWHERE
            at_ms[number] += plan.delay_ms
        fullest = max(Counter(at // 100 for at in at_ms).values())
        if attempt >= 5:  # by then ipconf is asked, and the bound is seconds
            assert fullest < len(clients) / 10, f"attempt {attempt}: {fullest} within 100 ms"
