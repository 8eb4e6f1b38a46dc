"""A gateway goes on as another process: whose connection is whose, whatever comes meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from imcore.attest import RegionKeys
from imcore.listener import Listener
from imcore.proto import client_pb2 as pb
from imcore.runtime import ManualClock, SystemClock
from imcore.words import Origin
from services.gateway.handover import Handover, Standing
from services.gateway.server import Gateway
from services.node import succession
from services.ports import Audience
from services.state import spread
from services.state.testing import Front

KEYS = RegionKeys({1: b"k" * 32}, 1)
FRA = Origin("fra", 1)


class Seen:
    """A state role that takes everybody, and notes the numbers of who is new."""

    def __init__(self) -> None:
        self.new: list[int] = []

    def opened(self, gateway: str, connection: int, peer_address: str) -> None:
        self.new.append(connection)

    def received(self, *what: object) -> None: ...

    def closed(self, *what: object) -> None: ...

    def overflowed(self, *what: object) -> None: ...

    def joined(self, gateway: str, connection: int, session: str) -> bool:
        return True


class Link:
    origin, since = FRA, b"token"

    def ended(self) -> list[Any]:
        return []

    def ended_before(self, ended: object) -> None: ...

    def catch_up_from(self, since: object) -> None: ...


async def test_who_comes_while_connections_are_taken_up_gets_a_number_of_his_own() -> None:
    """Else he would be served as whoever has that number."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=50)
    listening.setblocking(False)
    behind = socket.create_server(("127.0.0.1", 0), backlog=50)
    ends, standing = [], []
    for number in range(5, 45):
        ends.append(socket.create_connection(behind.getsockname()))
        standing.append(Standing(behind.accept()[0].detach(), number, f"s{number}", b"", 0))
    ends.append(socket.create_connection(listening.getsockname()))  # waits in the kernel's queue
    seen = Seen()
    gateway = Gateway(
        "g", cast(Any, seen), SystemClock(), cast(Any, None),
        lambda *how: cast(Any, Listener)(*how, [listening]),
    )  # fmt: skip
    await gateway.start("127.0.0.1", 0, None)
    handover = Handover("g", "fra.1", b"", 1, [], standing)
    await succession.go_on(handover, gateway, cast(Any, seen), cast(Any, Link()))
    await asyncio.sleep(0.1)
    assert len(gateway) == 41
    assert seen.new == [45]
    await gateway.stop()
    for each in (*ends, behind):
        each.close()


async def _kept(path: Path, clock: SystemClock | ManualClock) -> pb.ConnectOk:
    """A session of bob's, as a checkpoint of a gateway that goes on as another process has it."""
    async with Front(KEYS, checkpoint_path=path, clock=clock) as front:
        _, ok = await front.connect("bob")
        await front.state.write_checkpoint()
        kept = path.read_bytes()  # noqa: ASYNC240
    path.write_bytes(kept)  # noqa: ASYNC240
    return ok


async def test_a_session_that_was_resumed_meanwhile_stays_with_its_newest_connection(
    tmp_path: Path,
) -> None:
    path = tmp_path / "sessions.json"
    ok = await _kept(path, SystemClock())
    async with Front(KEYS, checkpoint_path=path) as front:
        client, again = await front.connect("bob", 2, resume_token=ok.resume_token)
        assert again.resumed and again.session == ok.session
        assert not front.state.joined(front.gateways[0].name, 1_000, ok.session)
        front.im.push("d:ann:bob", [front.im.store("d:ann:bob", b"x")])
        await client.event("push", 2)


async def test_a_session_that_outlives_it_has_not_been_away_since(tmp_path: Path) -> None:
    path, clock = tmp_path / "sessions.json", ManualClock()
    ok = await _kept(path, clock)
    front = Front(KEYS, checkpoint_path=path, clock=clock)
    state, name = front.state, front.gateways[0].name
    state.gateways[name] = front.gateways[0]
    state.load_checkpoint()
    assert state.joined(name, 1, ok.session)
    clock.advance(3_600)
    state.received(name, 1, 1, pb.Request(bye=pb.Bye()).SerializeToString())
    assert [one.away_ms for one in front.im.over] == [0]


async def test_what_a_huge_group_was_told_is_owed_before_it_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "_SHARE", 2_000.0)  # as if many others were to be told before
    path = tmp_path / "sessions.json"
    async with Front(KEYS, checkpoint_path=path) as front:
        for uid in ("u000", "u999"):
            await front.connect(uid)
        uids = tuple(f"u{number:03}" for number in range(1_000))
        entry = front.im.store("g:all", b"x")
        front.state.push_group(Audience("g:all", uids), [entry], {FRA: 1}, 0, False)
        assert front.state.waiting()
        [gateway] = front.gateways
        listener = gateway._listener
        handover = await succession.hand_over(
            gateway, cast(Any, listener), front.state, cast(Any, Link()), 1
        )
        for fd in (*handover.listeners, *(one.fd for one in handover.standing)):
            os.close(fd)
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[1:]]
        assert [list(row["owed"]) for row in rows] == [["g:all"], ["g:all"]]
