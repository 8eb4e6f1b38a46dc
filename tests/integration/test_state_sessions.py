"""Sessions over real sockets: who may have one, how it goes on, what it is told."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from imcore.attest import RegionKeys
from imcore.limits import PULLS_MAX
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.region.model import ClientParameters
from imcore.runtime import ManualClock
from imcore.tokens import LEEWAY_MS, Claims, mint
from imcore.words import Origin
from services.state.checkpoint import Checkpoint
from services.state.server import BEHIND_S
from services.state.session import Record
from services.state.testing import Front

KEYS = RegionKeys({1: b"k" * 32}, 1)
CONVERSATION = "d:ann:bob"
FRA = Origin("fra", 1)
SHORT_GRACE = ClientParameters(grace_ms=200)


def send(cid: int = 1) -> pb.Request:
    return pb.Request(send=pb.Send(conversation=CONVERSATION, cid=cid, content=b"hi"))


def heartbeat(seq: int | None = None) -> pb.Request:
    request = pb.Request()
    request.heartbeat.SetInParent()
    if seq is not None:
        ack = request.heartbeat.acks.add(conversation=CONVERSATION)
        ack.heads.add(origin=pb.Origin(idc="fra", incarnation=1), seq=seq)
    return request


async def until(condition, timeout_s: float = 5.0) -> None:
    """For what another task brings about without an event of its own."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(0.005)


# ------------------------------------------------------------------------------ who is it


@pytest.mark.parametrize("token", [b"", b"a.b", b"\xff\xfe", b"forged"], ids=repr)
async def test_a_bad_token_is_refused_with_a_code_and_closed(token):
    async with Front(KEYS) as front:
        client = await front.dial()
        response = await client.ask(pb.Request(connect=pb.Connect(token=token)))
        assert response.error.code == "unauthenticated"
        assert (await client.event("close")).close.reason == "unauthenticated"
        await client.gone()
        assert front.state.sessions() == []


async def test_an_expired_token_is_refused():
    async with Front(KEYS) as front:
        client = await front.dial()
        expired_ms = front.clock.wall_ms() - LEEWAY_MS
        token = mint(KEYS, Claims("ann", "phone", expired_ms)).encode()
        response = await client.ask(pb.Request(connect=pb.Connect(token=token)))
        assert response.error.code == "unauthenticated"


async def test_the_first_request_must_be_a_connect():
    async with Front(KEYS) as front:
        client = await front.dial()
        assert (await client.ask(send())).error.code == "unauthenticated"
        await client.gone()


async def test_a_second_connect_is_a_breach_of_protocol():
    async with Front(KEYS) as front:
        client, _ = await front.connect("ann")
        client.send(front.hello("ann", 2))
        assert (await client.event("close")).close.reason == "protocol"


@pytest.mark.parametrize("said", ["left", "forbidden"])
async def test_who_may_not_have_what_he_is_owed_is_owed_it_no_more(said, monkeypatch):
    async with Front(KEYS) as front:
        client, _ = await front.connect("ann")
        front.im.push(CONVERSATION, [front.im.store(CONVERSATION, b"hi")])
        await client.event("push")
        await asyncio.sleep(BEHIND_S)
        assert (await client.ask(heartbeat())).heartbeat_ok.behind
        response = pb.Response()
        if said == "left":
            response.pull_ok.left = True
        else:
            response.error.code = said
        monkeypatch.setattr(front.im, "submit", lambda session, request, reply: reply(response))
        await client.ask(pb.Request(pull=pb.Pull(conversation="d:ann:eve")))
        assert (await client.ask(heartbeat())).heartbeat_ok.behind
        await client.ask(pb.Request(pull=pb.Pull(conversation=CONVERSATION)))
        assert not (await client.ask(heartbeat())).heartbeat_ok.behind


async def test_a_device_that_left_something_unread_for_months_ends_like_any_other(monkeypatch):
    async with Front(KEYS) as front:
        client, _ = await front.connect("ann")
        front.im.push(CONVERSATION, [front.im.store(CONVERSATION, b"hi")])
        await client.event("push")
        now = front.clock.now
        monkeypatch.setattr(front.clock, "now", lambda: now() + 60 * 86_400)
        client.send(pb.Request(bye=pb.Bye()))
        await until(lambda: front.im.over)
        assert oplog.RouteOp(away_ms=front.im.over[0].away_ms).away_ms == (1 << 32) - 1


async def test_requests_that_arrive_while_a_connect_is_pending_wait_for_it():
    async with Front(KEYS) as front:
        front.im.connect_gate.clear()
        client = await front.dial()
        hello, sent = client.send(front.hello("ann")), client.send(send())
        beat = client.send(heartbeat())
        await until(lambda: front.state.sessions() != [])
        assert not hello.done() and not front.state.sessions()[0].connected
        front.im.connect_gate.set()
        assert (await hello).HasField("connect_ok")
        assert (await sent).HasField("send_ack") and (await beat).HasField("heartbeat_ok")


async def test_a_flood_before_the_connect_is_judged_ends_the_connection():
    async with Front(KEYS) as front:
        front.im.connect_gate.clear()
        client = await front.dial()
        client.send(front.hello("ann"))
        for cid in range(80):
            client.send(send(cid))
        assert (await client.event("close")).close.reason == "protocol"


async def test_a_connection_that_goes_while_its_connect_is_pending_leaves_no_session():
    async with Front(KEYS, parameters=SHORT_GRACE) as front:
        front.im.connect_gate.clear()
        client = await front.dial()
        client.send(front.hello("ann"))
        await until(lambda: front.state.sessions() != [])
        client.abort()
        await until(lambda: front.state.sessions() == [])
        assert [session.uid for session in front.im.over] == ["ann"]  # it may have had a route


# ------------------------------------------------------------------------------ rule 16


async def test_a_newer_connection_of_a_device_replaces_the_older_one():
    async with Front(KEYS, gateways=2) as front:
        old, _ = await front.connect("ann", epoch=5)
        desk, _ = await front.connect("ann", epoch=1, device="desk")
        new, _ = await front.connect("ann", epoch=6, gateway=1)
        assert (await old.event("close")).close.reason == "replaced"
        await old.gone()
        await until(lambda: front.state.connected_count() == 2)
        assert {(s.device, s.gateway) for s in front.state.sessions()} == {
            ("phone", "fra-gw-2"),
            ("desk", "fra-gw-1"),
        }
        await new.ask(send())
        await asyncio.gather(new.event("push"), desk.event("push"))


@pytest.mark.parametrize("epoch", [4, 5], ids=["older", "equal"])
async def test_an_older_or_equal_epoch_is_refused_as_replaced(epoch):
    async with Front(KEYS) as front:
        new, _ = await front.connect("ann", epoch=5)
        late = await front.dial()
        late.send(front.hello("ann", epoch))
        assert (await late.event("close")).close.reason == "replaced"
        assert not (await new.ask(send())).HasField("error")


async def test_the_newest_wins_although_all_are_pending():
    async with Front(KEYS) as front:
        front.im.connect_gate.clear()
        clients = []
        for epoch in (2, 4, 3):
            clients.append(await front.dial())
            clients[-1].send(front.hello("ann", epoch))
            await until(lambda: front.state.sessions() != [])
            await asyncio.sleep(0.02)
        front.im.connect_gate.set()
        for loser in (clients[0], clients[2]):
            assert (await loser.event("close")).close.reason == "replaced"
        await until(lambda: front.state.connected_count() == 1)
        assert not (await clients[1].ask(send())).HasField("error")


async def test_a_newer_connection_in_another_idc_replaces_the_one_here():
    async with Front(KEYS) as front:
        client, _ = await front.connect("ann", epoch=5)
        front.state.connected_elsewhere("ann", "phone", 5)  # its own route, folded elsewhere
        front.state.connected_elsewhere("ann", "desk", 9)
        assert not (await client.ask(heartbeat())).HasField("error")
        front.state.connected_elsewhere("ann", "phone", 6)
        assert (await client.event("close")).close.reason == "replaced"
        assert front.state.sessions() == []


async def test_a_kicked_session_is_over_at_once_connected_or_not():
    async with Front(KEYS) as front:
        ann, _ = await front.connect("ann", epoch=5)
        front.state.kick("ann", "phone", 4)  # it has connected since
        front.state.kick("ann", "tablet", 9)
        assert not front.im.over
        front.state.kick("ann", "phone", 5)
        assert (await ann.event("close")).close.reason == "kicked"
        assert [session.device for session in front.im.over] == ["phone"]
        away, _ = await front.connect("ann", epoch=6)
        away.abort()
        await until(lambda: front.state.connected_count() == 0)
        front.state.kick("ann", "phone", 6)  # within its grace
        assert len(front.im.over) == 2 and not front.state.sessions()


async def test_a_client_that_does_not_go_when_it_is_told_to_is_closed():
    async with Front(KEYS) as front:
        client, ok = await front.connect("ann", epoch=5)
        assert not front.state.close_after_move("unknown")
        assert front.state.move(ok.session, 0, 13) and front.state.close_after_move(ok.session)
        assert (await client.event("close")).close.reason == "drained"
        await client.gone()
        await until(lambda: front.state.connected_count() == 0)
        assert not front.state.close_after_move(ok.session)
        # Nothing of the session is lost by it: it goes on.
        _, again = await front.connect("ann", epoch=6, resume_token=ok.resume_token)
        assert again.resumed


async def test_a_pull_only_connection_alone_is_no_session_that_a_drain_waits_for():
    async with Front(KEYS) as front:
        await front.connect("ann", epoch=0, mode=pb.CONNECT_MODE_PULL_ONLY)
        assert front.state.pull_only_count() == 1
        assert front.state.connected_count() == 0


async def test_a_pull_only_connection_reads_beside_the_session_and_changes_nothing():
    async with Front(KEYS) as front:
        main, _ = await front.connect("ann", epoch=5)
        side, _ = await front.connect("ann", epoch=0, mode=pb.CONNECT_MODE_PULL_ONLY)
        assert (await side.ask(send())).error.code == "forbidden"
        await main.ask(send())
        pulled = await side.ask(pb.Request(pull=pb.Pull(conversation=CONVERSATION)))
        assert len(pulled.pull_ok.entries) == 1 and side.events.empty()
        several = pb.Request(pulls=pb.Pulls(pulls=[pb.Pull(conversation=CONVERSATION)] * 2))
        answers = (await side.ask(several)).pulls_ok.answers
        assert [len(each.pull_ok.entries) for each in answers] == [1, 1]
        assert [session.device for session in front.state.sessions()] == ["phone"]
        assert (front.state.connected_count(), front.state.pull_only_count()) == (1, 1)
        side.abort()
        await until(lambda: front.state.pull_only_count() == 0)
        assert front.state.connected_count() == 1
        assert front.im.over == []


async def test_more_pulls_than_a_request_may_hold_are_no_work(monkeypatch):
    acked: list[str] = []
    monkeypatch.setattr(Record, "ack", lambda self, name, have, now: acked.append(name))
    async with Front(KEYS) as front:
        ann, _ = await front.connect("ann", epoch=5)
        pulls = [pb.Pull(conversation=CONVERSATION)] * 10_000
        await ann.ask(pb.Request(pulls=pb.Pulls(pulls=pulls)))
    assert len(acked) == PULLS_MAX


async def test_pull_only_connections_are_closed_apart_from_sessions():
    async with Front(KEYS) as front:
        main, _ = await front.connect("ann", epoch=5)
        side, _ = await front.connect("bob", epoch=0, mode=pb.CONNECT_MODE_PULL_ONLY)
        assert front.state.close_pull_only() == 1
        assert (await side.event("close")).close.reason == "drained"
        assert not (await main.ask(heartbeat())).HasField("error")


async def test_whoever_asks_what_has_changed_knows_who_is_here():
    async with Front(KEYS) as front:
        seen: dict[str, str] = {}

        def look() -> set[str]:
            for session, row in front.state.changed().items():
                seen.pop(session, None)
                if row is not None:
                    seen[session] = row.uid
            assert seen.keys() == {s.session for s in front.state.sessions() if s.connected}
            assert front.state.connected_count() == len(seen)
            assert sum(front.state.shards().values()) == len(seen)
            return set(seen.values())

        ann, ok = await front.connect("ann", epoch=1)
        assert look() == {"ann"}
        bob, _ = await front.connect("bob", epoch=1)
        await front.connect("eve", epoch=0, mode=pb.CONNECT_MODE_PULL_ONLY)
        assert look() == {"ann", "bob"}
        ann.abort()
        await until(lambda: front.state.connected_count() == 1)
        assert look() == {"bob"}
        _, again = await front.connect("ann", epoch=2, resume_token=ok.resume_token)
        assert again.resumed and look() == {"ann", "bob"}
        await front.connect("ann", epoch=3)  # a new session in its place
        assert look() == {"ann", "bob"} and again.session not in seen
        bob.send(pb.Request(bye=pb.Bye()))
        await until(lambda: front.state.connected_count() == 1)
        assert look() == {"ann"}
        front.state.kick("ann", "phone", 3)
        assert look() == set()


# ------------------------------------------------------------------------------- resume


async def test_a_session_is_resumed_within_its_grace_and_told_what_it_missed():
    async with Front(KEYS, speed=10) as front:
        first, ok = await front.connect("ann", epoch=1)
        first.abort()
        await until(lambda: not front.state.sessions()[0].connected)
        front.im.push(CONVERSATION, [front.im.store(CONVERSATION, b"while away")])
        again, resumed = await front.connect("ann", epoch=2, resume_token=ok.resume_token)
        assert resumed.resumed and resumed.session == ok.session
        assert front.im.over == []
        signal = (await again.event("signal")).signal
        assert (signal.conversation, signal.heads[0].seq) == (CONVERSATION, 1)


async def test_after_its_grace_a_session_is_over_and_a_new_one_begins():
    async with Front(KEYS, parameters=SHORT_GRACE) as front:
        first, ok = await front.connect("ann", epoch=1)
        first.abort()
        await until(lambda: front.im.over != [])
        assert front.state.sessions() == []
        _, fresh = await front.connect("ann", epoch=2, resume_token=ok.resume_token)
        assert not fresh.resumed and fresh.session != ok.session


@pytest.mark.parametrize("token", [b"", b"rubbish", b"\x00" * 300], ids=len)
async def test_a_bad_resume_token_costs_the_resume_and_nothing_else(token):
    async with Front(KEYS) as front:
        first, _ = await front.connect("ann", epoch=1)
        first.abort()
        _, ok = await front.connect("ann", epoch=2, resume_token=token)
        assert not ok.resumed


async def test_somebody_elses_resume_token_is_worth_nothing():
    async with Front(KEYS) as front:
        _, ann = await front.connect("ann")
        _, bob = await front.connect("bob", resume_token=ann.resume_token)
        assert not bob.resumed and bob.session != ann.session


async def test_bye_ends_a_session_at_once():
    async with Front(KEYS) as front:
        client, _ = await front.connect("ann")
        client.send(pb.Request(bye=pb.Bye()))
        await client.gone()
        assert front.state.sessions() == [] and len(front.im.over) == 1


async def test_a_restarted_process_finds_sessions_in_its_checkpoint(tmp_path: Path):
    path = tmp_path / "sessions.json"
    async with Front(KEYS, checkpoint_path=path, clock=ManualClock()) as front:
        _, ok = await front.connect("ann", placement=b"europe")
        _, lost = await front.connect("bob")
    parameters, clock = ClientParameters(grace_ms=400), ManualClock()
    async with Front(KEYS, checkpoint_path=path, parameters=parameters, clock=clock) as front:
        assert [(s.uid, s.shard, s.connected) for s in front.state.sessions()] == [
            ("ann", "europe", False),
            ("bob", "", False),
        ]
        _, again = await front.connect("ann", epoch=2, resume_token=ok.resume_token)
        assert again.resumed and again.session == ok.session
        clock.advance(1.0)
        await until(lambda: [session.id for session in front.im.over] == [lost.session])


async def test_a_slow_start_of_the_process_takes_nothing_from_the_graces(tmp_path: Path):
    path = tmp_path / "sessions.json"
    clock = ManualClock()
    async with Front(KEYS, checkpoint_path=path, clock=clock) as front:
        _, ok = await front.connect("ann")
    parameters = ClientParameters(grace_ms=1_000)
    front = Front(KEYS, checkpoint_path=path, parameters=parameters, clock=clock)
    clock.advance(1.1)  # stores are opened, peers are asked: nobody can come back yet
    async with front:
        await asyncio.sleep(0)
        front.state.tick()
        _, again = await front.connect("ann", epoch=2, resume_token=ok.resume_token)
        assert again.resumed


async def test_a_damaged_checkpoint_costs_resumes_only(tmp_path: Path):
    path = tmp_path / "sessions.json"
    path.write_bytes(b'{"format": 1, "sessions": 3}\n{"id":')
    async with Front(KEYS, checkpoint_path=path) as front:
        assert front.state.sessions() == []
        await front.connect("ann")


# ------------------------------------------------------------------------ moves and answers


async def test_a_move_names_the_policy_and_brings_lsns_to_the_other_idc():
    async with Front(KEYS) as fra, Front(KEYS, origin=Origin("iad", 3)) as iad:
        client, ok = await fra.connect("ann", placement=b"europe")
        await client.ask(send())
        [info] = fra.state.sessions()
        assert (info.session, info.shard, info.connected) == (ok.session, "europe", True)
        assert fra.state.move(info.session, 500, 13)
        assert not fra.state.move("nobody", 500, 13)
        move = (await client.event("move")).move
        assert (move.within_ms, move.policy_epoch) == (500, 13)
        moved, there = await iad.connect("ann", epoch=2, resume_token=move.resume_token)
        assert not there.resumed and there.origin.idc == "iad"
        [moved_from] = iad.im.moved_from
        assert (moved_from.origin.idc, moved_from.partition, moved_from.lsn) == ("fra", 0, 1)
        assert not (await moved.ask(send())).HasField("error")


async def test_a_client_that_was_told_to_move_is_not_told_that_another_has_its_device():
    """`replaced` forbids a reconnect; the newer connection is its own, and may fail yet."""
    async with Front(KEYS) as front:
        client, ok = await front.connect("ann")
        assert front.state.move(ok.session, 0, 13)
        front.state.connected_elsewhere("ann", "phone", 2)
        assert (await client.event("close")).close.reason == "moved"


async def test_an_answer_that_is_too_large_for_one_message_is_an_error():
    async with Front(KEYS) as front:
        client, _ = await front.connect("ann")
        for _ in range(3):
            front.im.store(CONVERSATION, bytes(100_000))
        pull = pb.Request(pull=pb.Pull(conversation=CONVERSATION))
        assert (await client.ask(pull)).error.code == "too_large"
        assert not (await client.ask(send())).HasField("error")


async def test_an_im_that_never_answers_is_a_deadline_error():
    async with Front(KEYS) as front:
        client, _ = await front.connect("ann")
        front.im.mute = True
        request = send()
        request.deadline_ms = 150
        assert (await client.ask(request)).error.code == "deadline"
        front.im.mute = False
        assert not (await client.ask(send())).HasField("error")


async def test_unanswered_requests_of_a_session_are_bounded():
    async with Front(KEYS) as front:
        client, _ = await front.connect("ann")
        front.im.mute = True
        [record] = front.im.sessions
        record.in_flight = 1_000  # type: ignore[attr-defined]
        assert (await client.ask(send())).error.code == "overloaded"


async def test_replicated_is_told_to_those_who_wait_and_only_once():
    async with Front(KEYS) as front:
        ann, _ = await front.connect("ann")
        bob, _ = await front.connect("bob")
        await ann.ask(send(1))
        await ann.ask(send(2))
        front.state.replicated(FRA, 0, 1)
        front.state.replicated(FRA, 0, 2)
        told = (await ann.event("replicated")).replicated
        assert (told.origin.idc, told.partition, told.lsn) == ("fra", 0, 2)
        front.state.replicated(FRA, 0, 3)
        await bob.ask(send(3))  # lsn 3
        front.state.replicated(FRA, 0, 4)
        assert (await bob.event("replicated")).replicated.lsn == 4
        assert all(not e.HasField("replicated") for e in _drain(ann))


def _drain(client) -> list[pb.Event]:
    events = []
    while not client.events.empty():
        events.append(client.events.get_nowait())
    return events


async def test_a_catch_up_of_many_entries_goes_in_several_pushes():
    async with Front(KEYS) as front:
        ann, _ = await front.connect("ann")
        entries = [front.im.store(CONVERSATION, bytes(16_000)) for _ in range(50)]
        front.im.push(CONVERSATION, entries)
        seqs: list[int] = []
        while len(seqs) < 50:
            seqs += [entry.seq for entry in (await ann.event("push")).push.entries]
        assert seqs == list(range(1, 51))


async def test_signals_and_cursors_reach_every_device_of_a_user():
    async with Front(KEYS) as front:
        phone, _ = await front.connect("ann")
        desk, _ = await front.connect("ann", device="desk")
        front.state.signal(["ann", "nobody"], CONVERSATION, {Origin("iad", 1): 4})
        front.state.cursor_moved("ann", pb.CursorMoved(conversation=CONVERSATION, uid="ann"))
        for client in (phone, desk):
            assert (await client.event("signal")).signal.heads[0].seq == 4
            assert (await client.event("cursor_moved")).cursor_moved.uid == "ann"
            beat = await client.ask(heartbeat())
            assert not beat.heartbeat_ok.behind  # another IDC's news is not owed here


async def test_a_heartbeat_that_covers_everything_is_answered_with_nothing_behind():
    async with Front(KEYS, speed=10) as front:
        ann, _ = await front.connect("ann")
        await ann.ask(send())
        await asyncio.sleep(0.15)
        answer = (await ann.ask(heartbeat(seq=1))).heartbeat_ok
        assert not answer.behind and answer.policy_epoch == 12


async def test_the_highest_hlc_a_client_has_seen_reaches_im_and_a_forged_one_does_not():
    async with Front(KEYS) as front:
        request = front.hello("ann")
        request.seen.CopyFrom(front.stamp())
        client = await front.dial()
        await client.ask(request)
        [session] = front.im.sessions
        assert session.seen_hlc == request.seen.hlc
        beat = heartbeat()
        beat.seen.hlc = request.seen.hlc << 1
        await client.ask(beat)
        assert session.seen_hlc == request.seen.hlc


async def test_a_disk_that_hangs_keeps_no_request_from_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr("services.state.server._CHECKPOINT_S", 0.05)
    monkeypatch.setattr(Checkpoint, "_write", lambda *_: hangs.wait(10))
    try:
        async with Front(KEYS, checkpoint_path=tmp_path / "sessions.json") as front:
            client, _ = await front.connect("ann")
            await asyncio.sleep(0.3)
            front.im.mute = True
            asked = pb.Request(pull=pb.Pull(conversation="d:ann:bob"), deadline_ms=200)
            assert (await client.ask(asked, 2.0)).error.code == "deadline"
            hangs.set()
    finally:
        hangs.set()
