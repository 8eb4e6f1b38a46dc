"""A webhook's feed over a real log and real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.runtime import SystemClock
from imctl.testing.onenode import running
from services.im.testing import Idc, OpenIdc
from services.node.posting import Http
from services.ports import Session, Versioned
from services.webhooks import events, feed
from services.webhooks.feed import Feed
from services.webhooks.sign import verifies

CHAT = "d:ann:bob"
SECRET = b"between them"


class Kept:
    """The part of a registry that a feed needs; it survives the feed."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    async def get(self, key: bytes) -> Versioned | None:
        return Versioned(key, self.rows[key], 1) if key in self.rows else None

    async def put(self, key: bytes, value: bytes | None, lease: int = 0) -> None:
        assert value is not None
        self.rows[key] = value


class Server:
    """The operator's: verifies, and answers with ``status`` (from ``statuses``, then 204)."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.refused = 0  # never takes what this message is in
        self.tried = 0
        self.taken: list[dict[str, Any]] = []
        self.url = ""
        self.cookies = False  # each answer has one
        self.shown: list[str] = []  # cookies that came back

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.shown += request.cookies
        timestamp = int(request.headers["X-IM-Timestamp"])
        now_ms = SystemClock().wall_ms()
        assert verifies(SECRET, timestamp, body, request.headers["X-IM-Signature"], now_ms)
        self.tried += 1
        status = self.statuses.pop(0) if self.statuses else 204
        if self.refused in [event["key"][4] for event in json.loads(body)["events"]]:
            status = 400
        if status == 204:
            self.taken += json.loads(body)["events"]
        answer = web.Response(status=status, headers={"Location": self.url})
        if self.cookies:
            answer.set_cookie(f"c{self.tried}", "x" * 100)
        return answer

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/hook", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/hook"
        try:
            yield
        finally:
            await runner.cleanup()

    def contents(self) -> list[int]:
        return [event["key"][4] for event in self.taken]


class Stage:
    def __init__(self, idc: Idc, server: Server, kept: Kept, secret: Path) -> None:
        self.idc, self.server, self.kept, self.secret = idc, server, kept, secret
        self._http: list[Http] = []

    def feed(self, **fields: Any) -> Feed:
        """As a process makes it that starts."""
        http = Http(self.server.url, None, 5.0)
        self._http.append(http)

        async def make(op: oplog.Op) -> list[events.Event]:
            return events.message(op, False)

        def applied(origin: Any) -> dict[int, int]:
            return {0: self.idc.im.partitions[0].applier.applied().get(origin, 0)}

        registry: Any = self.kept
        return Feed(
            name="hook", idc="fra", make=make, post=http.post, secret_file=self.secret,
            store=self.idc.logs, applied=applied, registry=registry, clock=SystemClock(),
            rng=random.Random(1), **fields,
        )  # fmt: skip

    async def say(self, first: int, last: int) -> None:
        ann = self.idc.session("ann")
        for cid in range(first, last + 1):
            await self.idc.send(ann, CHAT, cid)
        await self.idc.folded()

    @contextlib.asynccontextmanager
    async def running(self, **fields: Any) -> AsyncIterator[Feed]:
        made = self.feed(**fields)
        task = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def stored(self) -> bool:
        """The feed has noted down that all of the own log is taken: what is taken, but not yet
        noted, comes again after a restart."""
        rows = [json.loads(row) for row in self.kept.rows.values()]
        return [row["fra.1/0"] for row in rows] == [self.idc.end(0)]

    async def close(self) -> None:
        for http in self._http:
            await http.close()


@pytest.fixture
async def stage(
    open_idc: OpenIdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    monkeypatch.setattr(feed, "LOOK_S", 0.01)
    monkeypatch.setattr(feed, "STORE_S", 0.0)
    monkeypatch.setattr(feed, "BACKOFF_S", 0.01)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\nnot this\n")
    server = Server()
    async with server.running():
        made = Stage(await open_idc(others=()), server, Kept(), secret)
        yield made
        await made.close()


async def until(holds: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(0.01)


async def test_what_is_accepted_is_told_signed_and_in_order_also_over_restarts(stage: Stage):
    await stage.say(1, 2)  # before there was a webhook
    async with stage.running():
        await until(lambda: stage.kept.rows)
        await stage.say(3, 5)
        await until(lambda: stage.server.contents() == [3, 4, 5])
        await until(stage.stored)
    await stage.say(6, 7)  # while it was down
    async with stage.running():
        await until(lambda: stage.server.contents() == [3, 4, 5, 6, 7])
    assert len({event["id"] for event in stage.server.taken}) == 5


async def test_who_stands_in_for_one_that_never_said_how_far_it_was_begins_with_what_comes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feed, "STAND_BY_S", 0.01)
    lost = False
    await stage.say(1, 2)
    async with stage.running(on_duty=lambda: lost) as standing:
        standing.heard({})  # it was only starting
        lost = True
        await until(lambda: stage.kept.rows)
        await stage.say(3, 4)
        await until(lambda: len(stage.server.contents()) >= 2)
        assert stage.server.contents() == [3, 4]


async def test_what_was_not_taken_is_not_lost_by_a_restart(stage: Stage):
    async with stage.running():
        await until(lambda: stage.kept.rows)
        stage.server.statuses = [500] * 1_000
        await stage.say(1, 3)
        await until(lambda: stage.server.tried >= 2)
    stage.server.statuses = []
    async with stage.running():
        await until(lambda: stage.server.contents() == [1, 2, 3])


@pytest.mark.parametrize("status", [500, 404, 429, 307])
async def test_it_is_tried_again_until_it_is_taken_and_redirects_are_not_followed(
    stage: Stage, status: int
):
    stage.server.statuses = [status] * 3
    async with stage.running() as made:
        await until(lambda: stage.kept.rows)
        await stage.say(1, 1)
        await until(lambda: f"{status}" in made.problem)
        await until(lambda: stage.server.contents() == [1])
        await until(lambda: not made.problem)
    assert stage.server.tried == 4


async def test_so_much_waits_and_what_is_left_out_is_counted(stage: Stage):
    async with stage.running():
        await until(lambda: stage.kept.rows)
    await stage.say(1, 30)
    async with stage.running(waiting_max=10) as made:
        await until(lambda: stage.server.contents())
        await until(lambda: stage.server.contents()[-1] == 30)
    assert made.left_out >= 20 and len(stage.server.taken) == 10


async def test_a_delivery_that_is_refused_for_good_is_left_out_when_too_much_waits(stage: Stage):
    """And what came with it, as long as it is among the last, is told all the same."""
    stage.server.refused = 2
    async with stage.running(waiting_max=10) as made:
        await until(lambda: stage.kept.rows)
        await stage.say(1, 5)
        await until(lambda: stage.server.tried >= 3)
        assert stage.server.contents() in ([], [1]) and made.left_out == 0
        await stage.say(6, 11)  # ten wait, and the refused one with them: 2 to 11
        await asyncio.sleep(0.1)
        assert 2 not in stage.server.contents() and "400" in made.problem
        await stage.say(12, 14)
        await until(lambda: stage.server.contents()[-1:] == [14])
        await until(lambda: not made.problem)  # the answer is on its way yet
        # Ticks count too, so it may be a few more.
        first = next(cid for cid in stage.server.contents() if cid > 2)
        assert 3 <= first <= 6 and made.left_out >= 1
        assert stage.server.contents()[-9:] == list(range(6, 15))
        assert len(set(stage.server.contents())) == len(stage.server.contents())
    stage.server.taken.clear()
    async with stage.running(waiting_max=10):  # it is passed over for good
        await stage.say(15, 15)
        await until(lambda: stage.server.contents()[-1:] == [15])


async def test_a_server_that_is_away_is_not_tried_more_often_for_what_is_left_out(
    stage: Stage, monkeypatch
):
    monkeypatch.setattr(feed, "BACKOFF_S", 0.1)
    stage.server.statuses = [503] * 1_000
    async with stage.running(waiting_max=2) as made:
        await until(lambda: stage.kept.rows)
        began = time.monotonic()
        for cid in range(1, 31):
            await stage.say(cid, cid)
            await asyncio.sleep(0.05)
        # Each time it waits twice as long; else it would be tried with each that is left out.
        more = math.log2(max(1.0, (time.monotonic() - began) / 1.5))
        assert made.left_out > 5 and stage.server.tried <= 6 + 2 * more


async def test_what_is_over_is_no_alarm_though_there_is_nothing_to_tell(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    """In an IDC where nothing happens, or by one that stood in for another, it stayed for ever."""
    for name in ("AGAIN_S", "STAND_BY_S"):
        monkeypatch.setattr(feed, name, 0.01)
    async with stage.running() as made:
        await until(lambda: stage.kept.rows)
        good, duty = made.applied, True

        def gone(origin: Any) -> dict[int, int]:
            raise LookupError("no such log")

        made.on_duty, made.applied = (lambda: duty), gone
        await until(lambda: "no such log" in made.problem)
        made.applied = good
        await until(lambda: not made.problem)
        made.applied = gone
        await until(lambda: "no such log" in made.problem)
        duty = False
        await until(lambda: not made.problem)
    assert stage.server.tried == 0


async def test_a_receivers_cookies_are_not_kept(stage: Stage):
    """One with a new name in each answer would make the requests longer without end."""
    stage.server.cookies = True
    stage.server.url = stage.server.url.replace(
        "127.0.0.1", "localhost"
    )  # no cookies are of addresses
    async with stage.running() as made:
        await until(lambda: stage.kept.rows)
        for cid in range(1, 4):
            await stage.say(cid, cid)
            await until(lambda: stage.server.contents()[-1:] == [cid])  # noqa: B023
    assert made.problem == "" and stage.server.shown == []


async def test_a_secret_that_is_missing_sends_nothing_until_it_is_there(stage: Stage):
    stage.secret.unlink()
    async with stage.running() as made:
        await until(lambda: stage.kept.rows)
        await stage.say(1, 1)
        await until(lambda: "secret" in made.problem)
        assert stage.server.tried == 0
        stage.secret.write_bytes(SECRET)
        await until(lambda: stage.server.contents() == [1])


@pytest.mark.parametrize("offset_ms", [-600_000, 600_000], ids=["behind", "ahead"])
async def test_an_idc_whose_clock_is_wrong_tells_at_once_and_is_believed(
    tmp_path: Path, offset_ms: int
) -> None:
    """Receivers refuse what was signed five minutes ago, or is to be in five minutes; and an op has
    the time of the IDCs' median clock, behind which its own may wait."""
    secret, server = tmp_path / "secret", Server()
    secret.write_bytes(SECRET)
    async with server.running():
        hook = {
            "name": "hook", "url": server.url, "secret_file": str(secret), "events": ["message"]
        }  # fmt: skip
        async with running(tmp_path, True, edit=lambda spec: spec.update(webhooks=[hook])) as node:
            assert node.webhooks is not None
            await until(lambda: node.webhooks.feeds[0].told())
            node.clock.offset_ms = offset_ms
            node.traffic.controller._on_clock_offset(-offset_ms)  # as a probe of another IDC says
            session = Session("s", "ann", "phone", 1, "", 0)
            answered: list[pb.Response] = []
            send = pb.Send(conversation=CHAT, outbox="o", cid=1, floor=1, content=b"hi")
            node.im.submit(session, pb.Request(send=send), answered.append)
            await until(lambda: server.taken or server.tried)
            assert answered[0].send_ack.outcome == pb.SendAck.ACCEPTED
            await until(lambda: server.contents() == [1])
