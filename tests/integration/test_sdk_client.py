"""The client's shell against scripted gateways: the real protocol over TLS on loopback."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore import frame
from imcore.convert import origin_pb
from imcore.proto import client_pb2 as pb
from imcore.tls import gateway_ssl_context
from imcore.words import ClientKey
from services.sdk import (
    AuthError,
    IpconfClient,
    NotConnected,
    Options,
    OutboxFull,
    OutboxLocked,
    RequestRefused,
    SendFailed,
    puller,
)
from services.sdk.ipconf import Lookup, NoAnswer
from services.sdk.session import OnAnswer, Session
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Idc, Region, token_of
from services.tracing.context import traceparent

CHAT = "d:ann:bob"
FAST = {
    "heartbeat_ms": 300,
    "heartbeat_timeout_ms": 10_000,  # a machine may stand still: no test is about these two
    "connect_timeout_ms": 10_000,
    "backoff_base_ms": 5,
    "backoff_max_ms": 40,
    "idle_pull_ms": 60_000,
}


@pytest.fixture
async def region(pki_dir: Path) -> AsyncIterator[Region]:
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=dict(FAST))
    await region.start("fra", "iad")
    yield region
    await region.stop()


def say(idc: Idc, cid: int, uid: str = "bob") -> None:
    idc.accept(ClientKey(uid, "phone", "box", CHAT, cid), b"%s %d" % (uid.encode(), cid))


async def test_two_clients_chat_and_see_one_order(region, ca_file):
    async with App(region, ca_file, "ann") as ann, App(region, ca_file, "bob") as bob:
        chat = ann.client.direct("bob")
        assert chat == bob.client.direct("ann") == CHAT
        for n in range(5):
            await ann.client.send(chat, b"ann %d" % n)
            await bob.client.send(chat, b"bob %d" % n)
        await eventually(lambda: len(ann.list) == len(bob.list) == 10)
        assert ann.list == bob.list == [m.content for m in ann.client.view(chat)]
        assert ann.client.state[:2] == ("fra", "fra-gw-1")


async def test_every_request_carries_the_highest_clock_that_was_seen(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        await ann.client.send(CHAT, b"1")
        before = fra.sends[-1]
        await ann.client.send(CHAT, b"2")
        assert before.cid == 1 and fra.sends[-1].floor == 1


async def test_replicated_is_told_and_empties_the_outbox(region, ca_file):
    async with App(region, ca_file) as ann:
        sent = await ann.client.send(CHAT, b"1")
        assert ann.client.state.outbox == 1
        waiting = asyncio.ensure_future(sent.replicated())
        await asyncio.sleep(0)
        assert not waiting.done()
        region.mirror()
        await waiting
        await sent.replicated()
        assert ann.client.state.outbox == 0


async def test_a_connection_closed_in_the_middle_of_a_burst(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        await ann.client.send(CHAT, b"0")
        fra.drop_sends = 7
        await asyncio.gather(*(ann.client.send(CHAT, b"%d" % n) for n in range(1, 40)))
        contents = [copy.content for copy in fra.own[CHAT]]
        assert contents == [b"%d" % n for n in range(40)]
        assert ann.list == contents and len(fra.connects) == 2
        assert fra.connects[1].connection_epoch > fra.connects[0].connection_epoch
        assert fra.connects[1].resume_token == b"resume"


async def test_a_followed_message_is_offered_again_under_its_trace(region, ca_file, monkeypatch):
    """However often, and whichever IDC: until it is stored, and no other one is followed."""
    offered: list[tuple[bytes, str]] = []
    call = Session.call

    def seen(self: Session, request: pb.Request, on_answer: OnAnswer) -> int:
        if request.HasField("send"):
            trace = traceparent(request.trace) if request.HasField("trace") else ""
            offered.append((request.send.content, trace))
        return call(self, request, on_answer)

    monkeypatch.setattr(Session, "call", seen)
    fra = region.idcs["fra"]
    async with App(region, ca_file, options=Options(trace_one_in=1)) as ann:
        fra.drop_sends = 1
        sent = await ann.client.send(CHAT, b"followed")
        assert len(offered) == 2
        assert set(offered) == {(b"followed", sent.traceparent)}
        again = await ann.client.send(CHAT, b"another")
        assert offered[2:] == [(b"another", again.traceparent)]
        assert again.traceparent not in ("", sent.traceparent)
        assert not ann.client._sender._traces
    async with App(region, ca_file, uid="bob", options=Options(trace_one_in=0)) as bob:
        assert (await bob.client.send(CHAT, b"not")).traceparent == ""
        assert offered[-1] == (b"not", "")


async def test_a_lost_idc_is_left_and_its_acked_messages_are_offered_elsewhere(region, ca_file):
    """What only the lost IDC held is accepted again, at its old place."""
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    async with App(region, ca_file) as ann:
        sent = [await ann.client.send(CHAT, b"%d" % n) for n in range(3)]
        await fra.stop()
        again = await ann.client.send(CHAT, b"3")
        assert again.place.origin.idc == "iad"
        await eventually(lambda: len(iad.own.get(CHAT, [])) == 4)
        assert [copy.place for copy in iad.own[CHAT]] == [s.place for s in [*sent, again]]
        assert ann.list == [b"0", b"1", b"2", b"3"] and ann.moved == 0
        assert {"gateway": "fra-gw-1", "idc": "fra", "failure": "refused"} in region.reports


async def test_a_move_loses_no_send_and_makes_before_it_breaks(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    async with App(region, ca_file) as ann:
        await ann.client.send(CHAT, b"first")
        say(fra, 1)
        await eventually(lambda: len(ann.list) == 2)
        region.order, region.epoch = ["iad", "fra"], 2
        sends = [asyncio.ensure_future(ann.client.send(CHAT, b"%d" % n)) for n in range(30)]
        await asyncio.sleep(0)
        fra.everybody(pb.Event(move=pb.Move(resume_token=b"moved", policy_epoch=2)))
        await asyncio.gather(*sends)
        await eventually(lambda: ann.connections[-1] == "iad")
        await ann.client.send(CHAT, b"last")
        assert ann.connections == ["fra", "iad"]  # never without one
        connect = iad.connects[0]
        assert connect.resume_token == b"moved" and connect.placement == b"dGlja2V0"
        assert [(m.origin.idc, m.lsn) for m in connect.moved_from] != []
        assert connect.connection_epoch > fra.connects[0].connection_epoch
        assert {h.conversation for h in connect.outbox} == {CHAT}
        own = [c for c in ann.list if c != b"bob 1"]
        assert own == [b"first", *(b"%d" % n for n in range(30)), b"last"]
        await eventually(lambda: not fra.connections)
        # The new IDC had not seen bob's message: an answer to it brings its place along.
        assert any(c.key.uid == "bob" for send in iad.sends for c in send.claims)


async def test_a_move_that_fails_stays_and_is_tried_again(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    async with App(region, ca_file) as ann:
        region.order = ["iad", "fra"]
        iad.errors["connect"] = [pb.Error(code="unavailable", message="starting")]
        fra.everybody(pb.Event(move=pb.Move(policy_epoch=1)))
        await eventually(lambda: iad.requests["connect"] == 1)
        await ann.client.send(CHAT, b"still here")
        assert fra.own[CHAT]
        await eventually(lambda: ann.connections == ["fra", "iad"])


async def test_who_is_told_to_leave_a_gateway_knows_it_by_any_name(region, ca_file):
    """Killed and started again, it has a new name, and for some time ipconf tells the old one."""
    fra = region.idcs["fra"]
    fra.listed_as = "fra-gw-0"
    async with App(region, ca_file) as ann:
        assert ann.client.state[:2] == ("fra", fra.gateway)
        fra.listed_as = fra.gateway
        fra.everybody(pb.Event(move=pb.Move(policy_epoch=1)))
        await eventually(lambda: len(ann.connections) == 2)
        assert ann.connections == ["fra", "iad"]


async def test_a_claim_tells_places_that_the_new_idc_never_gets(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    options = Options(claim_after_ms=200)
    async with App(region, ca_file, options=options) as ann:
        say(fra, 1)
        await eventually(lambda: len(ann.list) == 1)
        await fra.stop()
        await eventually(lambda: bool(iad.claims), 5)
        assert [c.key.uid for c in iad.claims[0].claims] == ["bob"]


async def test_a_signal_is_followed_to_the_named_origin(region, ca_file):
    """The own IDC does not get it: the link between the two is cut."""
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    options = Options(signal_wait_ms=50)
    async with App(region, ca_file, options=options) as ann:
        say(iad, 1)
        heads = [pb.Position(origin=origin_pb(iad.origin), seq=1)]
        fra.everybody(pb.Event(signal=pb.Signal(conversation=CHAT, heads=heads)))
        await eventually(lambda: ann.list == [b"bob 1"])
        assert iad.connects[0].mode == pb.CONNECT_MODE_PULL_ONLY
        await ann.client.send(CHAT, b"answer")
        assert [c.key.uid for c in fra.sends[-1].claims] == ["bob"]
        region.mirror()
        await ann.client.send(CHAT, b"again")
        assert not fra.sends[-1].claims and ann.list == [b"bob 1", b"answer", b"again"]


async def test_signals_of_many_conversations_are_followed_together(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    iad.pulls_max, iad.pulls_answered = 50, 30
    names = [f"d:ann:u{number:03}" for number in range(100)]
    async with App(region, ca_file, options=Options(signal_wait_ms=50)) as ann:
        heads = [pb.Position(origin=origin_pb(iad.origin), seq=1)]
        for name in names:
            iad.accept(ClientKey("bob", "phone", "box", name, 1), b"1")
            fra.everybody(pb.Event(signal=pb.Signal(conversation=name, heads=heads)))
        await eventually(lambda: all(len(ann.client.view(name)) == 1 for name in names))
    assert iad.requests["pulls"] + iad.requests["pull"] <= 5


async def test_an_idle_client_pulls_unasked(region, ca_file):
    fra = region.idcs["fra"]
    fra.told_behind = False
    region.parameters["idle_pull_ms"] = 100
    async with App(region, ca_file) as ann:
        fra.drop_pushes = 1
        say(fra, 1)
        await eventually(lambda: ann.list == [b"bob 1"])


async def test_no_ipconf_answers_but_an_old_answer_is_known(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        region.ipconf_down = True
        await fra.stop()
        await ann.client.send(CHAT, b"x")
        assert ann.client.state.idc == "iad"


async def test_a_gateway_that_sends_rubbish_costs_one_connection(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        fra.connections[0].raw(b"\xff" * 64)
        await eventually(lambda: len(ann.connections) >= 3)
        await ann.client.send(CHAT, b"x")


NO_PUSH = zlib.compress(b"\x12\x09")
BOMB = zlib.compress(bytes(50 * 1024 * 1024), 1)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 64,
        pb.Event(packed=pb.Packed(packing=pb.PACKING_ZLIB, size=9, body=b"no zlib")),
        pb.Event(packed=pb.Packed(packing=pb.PACKING_ZLIB, size=256 * 1024, body=BOMB)),
        pb.Event(packed=pb.Packed(packing=pb.PACKING_ZLIB, size=2, body=NO_PUSH)),
        pb.Event(packed=pb.Packed(packing=pb.PACKING_NONE, size=2, body=b"\x0a\x00")),
    ],
    ids=["no event", "not packed", "a bomb", "no push in it", "packed otherwise"],
)
async def test_an_event_that_is_none_costs_one_connection(region, ca_file, body, caplog):
    fra = region.idcs["fra"]
    encoded = body if isinstance(body, bytes) else body.SerializeToString()
    caplog.set_level("INFO", "im.sdk")
    async with App(region, ca_file) as ann:
        fra.connections[0].raw(frame.encode(frame.EVENT, 0, encoded))
        await eventually(lambda: len(ann.connections) >= 3)
        assert "not connected (protocol)" in caplog.text
        await ann.client.send(CHAT, b"x")
        assert ann.list == [b"x"]


async def test_packed_pushes_are_asked_for_and_shown_as_others(region, ca_file):
    fra = region.idcs["fra"]
    fra.packs = True
    async with App(region, ca_file) as ann:
        assert fra.connects[0].packings == [pb.PACKING_ZLIB]
        for cid in range(1, 6):
            say(fra, cid)
        await eventually(lambda: ann.list == [b"bob %d" % cid for cid in range(1, 6)])
        assert not fra.requests["pull"]


async def test_a_refused_token_ends_the_client(region, ca_file):
    region.refuse_tokens = True
    with pytest.raises(AuthError, match="expired"):
        async with App(region, ca_file):
            pass
    region.refuse_tokens = False
    for idc in region.idcs.values():
        idc.errors["connect"] = [pb.Error(code="unauthenticated", message="revoked")]
    with pytest.raises(AuthError, match="revoked"):
        async with App(region, ca_file):
            pass


REFUSED = pb.Error(code="unauthenticated", message="the token is not valid yet")


async def test_one_idc_with_a_wrong_clock_stops_nobody(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    fra.errors["connect"] = [REFUSED] * 50
    async with App(region, ca_file) as ann:
        assert ann.client.state.idc == "iad"
        region.order = ["fra", "iad"]
        iad.connections[0].abort()
        await ann.client.send(CHAT, b"x", timeout_ms=10_000)
        assert ann.client.state.idc == "iad"
        # Nor does one that it is to move to, ...
        iad.everybody(pb.Event(move=pb.Move(policy_epoch=1)))
        await eventually(lambda: fra.requests["connect"] >= 3)
        await ann.client.send(CHAT, b"y", timeout_ms=10_000)
        # ... nor one whose ipconf is the only one that is known.
        region.refuse_tokens = True
        iad.connections[0].abort()
        await ann.client.send(CHAT, b"z", timeout_ms=10_000)
        # The second that refuses ends it.
        iad.errors["connect"] = [REFUSED] * 50
        iad.connections[0].abort()
        with pytest.raises(SendFailed) as failed:
            await ann.client.send(CHAT, b"never", timeout_ms=10_000)
        assert failed.value.code == "unauthenticated"


async def test_a_refusal_counts_only_when_another_idc_refuses_too(region, ca_file):
    """The other one is down: it would perhaps take the token."""
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    await iad.stop()
    fra.errors["connect"] = [REFUSED] * 2
    async with App(region, ca_file) as ann:
        assert ann.client.state.idc == "fra"


async def test_ipconfs_of_two_idcs_have_to_refuse_a_token(region, ca_file):
    other, down = Region(region.tls), Region(region.tls, ipconf_of="sin", ipconf_down=True)
    await other.start()
    await down.start()
    ipconf = IpconfClient([region.url, other.url, down.url], ca_file, random.Random(1))
    lookup = Lookup(token_of("ann"))
    region.refuse_tokens = other.ipconf_down = True
    for _ in range(4):
        with pytest.raises(NoAnswer):
            await ipconf.lookup(lookup)
    other.refuse_tokens = True
    with pytest.raises(NoAnswer):  # both are fra's, whose clock may be wrong
        await ipconf.lookup(lookup)
    other.ipconf_of = "iad"
    with pytest.raises(AuthError):
        await ipconf.lookup(lookup)
    other.ipconf_of, down.ipconf_of, down.refuse_tokens = "fra", "fra", True
    with pytest.raises(AuthError):  # nobody else is known
        await ipconf.lookup(lookup)
    await ipconf.close()
    await other.stop()
    await down.stop()


@pytest.mark.parametrize("reason", ["moved", "drained"])
async def test_a_client_that_did_not_go_is_closed_and_goes(region, ca_file, reason):
    """One ipconf does not know the policy yet: it would send it back to where it was."""
    fra = region.idcs["fra"]
    behind = Region(region.tls, idcs=region.idcs, order=["fra"], parameters=dict(FAST))
    await Region.start(behind)
    behind.order = ["fra"]
    for seed in range(6):
        region.order, region.epoch = ["fra", "iad"], 1
        urls = IpconfClient([behind.url, region.url], ca_file, random.Random(seed))
        async with App(region, ca_file, ipconf=urls) as ann:
            assert ann.client.state.idc == "fra"
            region.order, region.epoch = ["iad"], 2
            fra.everybody(pb.Event(move=pb.Move(policy_epoch=2, within_ms=60_000)))
            fra.everybody(pb.Event(close=pb.Close(reason=reason)))
            await ann.client.send(CHAT, b"%d" % seed, timeout_ms=10_000)
            assert ann.connections == ["fra", "", "iad"]
            await asyncio.sleep(0.05)
            assert ann.client.state.idc == "iad"  # the old move is not made once more
        await urls.close()
    behind.idcs = {}
    await behind.stop()


async def test_without_a_ca_file_the_machines_cas_are_asked(region, ca_file, monkeypatch):
    """The token must never go out in plain text."""
    with pytest.raises(NotConnected):
        async with App(region, None, options=Options(start_timeout_ms=300)):
            pass
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    async with App(region, None) as ann:
        await ann.client.send(CHAT, b"x", timeout_ms=10_000)


async def test_a_pull_that_is_put_off_is_waited_for(region, ca_file):
    fra = region.idcs["fra"]
    for cid in range(1, 4):
        say(fra, cid)
    fra.errors["pull"] = [pb.Error(code="overloaded", message="busy", retry_after_ms=100)]
    async with App(region, ca_file) as ann:  # returns with everything that was missed
        assert len(ann.list) == 3


@pytest.mark.parametrize("answered", [50, 7])
async def test_conversations_that_wait_together_are_pulled_together(region, ca_file, answered):
    fra, many = region.idcs["fra"], 120
    fra.pulls_max, fra.pulls_answered = 50, answered
    long = {f"d:ann:u{number:03}": 1 for number in range(many)} | {CHAT: 3 * fra.page}
    for name, count in long.items():
        for cid in range(1, count + 1):
            fra.accept(ClientKey("bob", "phone", "box", name, cid), b"%d" % cid)
    async with App(region, ca_file) as ann:
        shown = {name: len(ann.client.view(name)) for name in long}
    assert shown == long
    asked = fra.requests["pulls"] + fra.requests["pull"]
    assert asked <= many / answered + 10, fra.requests


async def test_conversations_that_are_refused_together_are_asked_for_together_again(
    region, ca_file
):
    fra = region.idcs["fra"]
    fra.pulls_max = 50
    fra.errors["pulls"] = [pb.Error(code="overloaded", message="busy", retry_after_ms=100)] * 4
    names = [f"d:ann:u{number:03}" for number in range(200)]
    for name in names:
        fra.accept(ClientKey("bob", "phone", "box", name, 1), b"1")
    async with App(region, ca_file) as ann:
        assert all(len(ann.client.view(name)) == 1 for name in names)
    assert fra.requests["pulls"] + fra.requests["pull"] <= 30, fra.requests


async def test_a_gateway_that_promises_what_its_core_does_not_know_is_asked_one_by_one(
    region, ca_file
):
    fra = region.idcs["fra"]
    fra.pulls_max = 50
    fra.errors["pulls"] = [pb.Error(code="bad_request", message="unknown")] * 100
    names = [f"d:ann:u{number:03}" for number in range(20)]
    for name in names:
        fra.accept(ClientKey("bob", "phone", "box", name, 1), b"1")
    async with App(region, ca_file) as ann:
        assert all(len(ann.client.view(name)) == 1 for name in names)
    assert fra.requests["pull"] == 20 and fra.requests["pulls"] <= 4


@pytest.fixture
def asked(monkeypatch) -> list[pb.Request]:
    """What clients ask in this test, in order."""
    requests: list[pb.Request] = []
    call = Session.call

    def seen(self: Session, request: pb.Request, on_answer: OnAnswer) -> int:
        requests.append(request)
        return call(self, request, on_answer)

    monkeypatch.setattr(Session, "call", seen)
    return requests


@pytest.mark.parametrize("kind", ["pull", "sync"])
async def test_a_read_that_takes_long_ends_no_connection(
    region, ca_file, asked, monkeypatch, kind: str
):
    """Heartbeats are answered, so it lives; every client of a slow IDC would come back at once."""
    monkeypatch.setattr(puller, "ANSWER_S", 0.2)
    fra = region.idcs["fra"]
    region.parameters["idle_pull_ms"] = 200
    async with App(region, ca_file) as ann:
        fra.mute.add(kind)
        before = fra.requests[kind]
        if kind == "pull":
            fra.drop_pushes = 1
            say(fra, 1)
        await eventually(lambda: fra.requests[kind] >= before + 3)
        assert len(fra.connects) == 1 and not region.reports
        fra.mute.clear()
        await eventually(lambda: ann.client.view(CHAT) != () or kind == "sync")
        await ann.client.settled()
        assert ann.connections == ["fra"]
        [session] = [ann.client._link.session]
        assert session is not None and len(session._answers) <= 2  # none is kept that is given up
    reads = [request for request in asked if request.WhichOneof("body") == kind]
    # The IDC gives up first and says so.
    assert {request.deadline_ms for request in reads} == {puller.DEADLINE_MS}
    assert 0 < puller.DEADLINE_MS <= 4_500


async def test_idle_pulls_do_not_pile_up_while_reads_fail(region, ca_file):
    """One sync at a time, and ever more rarely: else each idle pull adds one that asks on."""
    fra = region.idcs["fra"]
    region.parameters.update(idle_pull_ms=50, heartbeat_ms=60_000)
    async with App(region, ca_file):
        fra.errors["sync"] = [pb.Error(code="unavailable", message="away")] * 1_000
        before = fra.requests["sync"]
        await asyncio.sleep(1.5)
        assert fra.requests["sync"] - before <= 4
        await eventually(lambda: fra.requests["sync"] - before >= 2)
        fra.errors.clear()
        answered = fra.requests["sync"]
        await eventually(lambda: fra.requests["sync"] >= answered + 3)  # idle pulls go on


async def test_a_pull_that_fails_is_not_repeated_by_everything_that_names_it(region, ca_file):
    """Heartbeats go on naming what is missing."""
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        fra.errors["pull"] = [pb.Error(code="unavailable", message="away")] * 1_000
        fra.drop_pushes = 1
        say(fra, 1)
        await eventually(lambda: fra.requests["pull"] == 1)
        await eventually(lambda: fra.requests["heartbeat"] >= 5)
        assert 2 <= fra.requests["pull"] <= 4
        fra.errors.clear()
        await eventually(lambda: ann.list == [b"bob 1"])


async def test_a_history_that_takes_long_is_no_empty_one(region, ca_file, monkeypatch):
    monkeypatch.setattr(puller, "ANSWER_S", 0.1)
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        fra.errors["history"] = [pb.Error(code="deadline", message="too slow")]
        with pytest.raises(NotConnected):
            await ann.client.sync_history(CHAT)
        fra.mute.add("history")
        with pytest.raises(NotConnected):
            await ann.client.sync_history(CHAT)
        assert ann.connections == ["fra"]


async def test_a_side_connection_that_is_not_answered_on_is_closed(region, ca_file, monkeypatch):
    """No heartbeats go over it."""
    monkeypatch.setattr(puller, "ANSWER_S", 0.1)
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    iad.mute.add("pull")
    async with App(region, ca_file, options=Options(signal_wait_ms=10)):
        heads = [pb.Position(origin=origin_pb(iad.origin), seq=1)]
        fra.everybody(pb.Event(signal=pb.Signal(conversation=CHAT, heads=heads)))
        await eventually(lambda: iad.requests["pull"] == 1)
        await eventually(lambda: not iad.connections, 1.0)


async def test_a_side_connection_that_is_only_beginning_goes_with_its_client(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    iad.mute.add("connect")
    async with App(region, ca_file, options=Options(signal_wait_ms=10)):
        heads = [pb.Position(origin=origin_pb(iad.origin), seq=1)]
        fra.everybody(pb.Event(signal=pb.Signal(conversation=CHAT, heads=heads)))
        await eventually(lambda: iad.requests["connect"] == 1)
        assert iad.open == 1
    await eventually(lambda: not iad.open)


async def test_an_idc_that_does_not_answer_takes_no_workers_place(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    iad.mute.add("pull")
    fra.told_behind = False
    async with App(region, ca_file, options=Options(pulls_max=1, signal_wait_ms=10)) as ann:
        heads = [pb.Position(origin=origin_pb(iad.origin), seq=1)]
        fra.everybody(pb.Event(signal=pb.Signal(conversation=CHAT, heads=heads)))
        await eventually(lambda: iad.requests["pull"] == 1)
        fra.drop_pushes = 1
        say(fra, 1)
        say(fra, 2)
        await eventually(lambda: ann.list == [b"bob 1", b"bob 2"], 3)


async def test_a_worker_that_fails_leaves_its_queue_to_another(region, ca_file):
    """Here by a view that cannot take the answer."""
    fra = region.idcs["fra"]
    async with App(region, ca_file, options=Options(pulls_max=1)) as ann:
        puller, broken = ann.client._puller, ann.client._view("g:broken")
        broken.entries = None  # type: ignore[assignment, method-assign]
        fra.drop_pushes = 1
        say(fra, 1)
        puller.want("g:broken")
        puller.want(CHAT)
        async with asyncio.timeout(8):
            await ann.client.settled()
        assert ann.list == [b"bob 1"]


async def test_a_refused_send_fails_visibly_and_the_next_goes_on(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        await ann.client.send(CHAT, b"0")
        fra.errors["send"] = [pb.Error(code="forbidden", message="not a member")]
        with pytest.raises(SendFailed, match="not a member") as failed:
            await ann.client.send(CHAT, b"1")
        assert failed.value.code == "forbidden" and not failed.value.pending
        await ann.client.send(CHAT, b"2")
        assert ann.list == [b"0", b"2"]


async def test_an_overloaded_idc_is_asked_again_after_its_pause(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        error = pb.Error(code="overloaded", message="busy", retry_after_ms=50)
        fra.errors["send"] = [error, error]
        await ann.client.send(CHAT, b"0")
        assert fra.requests["send"] == 3 and len(fra.own[CHAT]) == 1


async def test_a_full_outbox_fails_visibly(region, ca_file):
    async with App(region, ca_file, options=Options(outbox_entries_max=2)) as ann:
        await ann.client.send(CHAT, b"0")
        await ann.client.send(CHAT, b"1")
        with pytest.raises(OutboxFull):
            await ann.client.send(CHAT, b"2")
        region.mirror()
        await eventually(lambda: ann.client.state.outbox == 0)
        await ann.client.send(CHAT, b"2")


async def test_an_outbox_survives_its_process(region, ca_file, tmp_path):
    fra, box = region.idcs["fra"], tmp_path / "outbox.db"
    async with App(region, ca_file, outbox=box) as ann:
        await ann.client.send(CHAT, b"0")
        fra.mute.add("send")
        with pytest.raises(SendFailed) as failed:
            await ann.client.send(CHAT, b"1", timeout_ms=50)
        assert failed.value.pending
        first = fra.connects[0].connection_epoch
    fra.mute.clear()
    async with App(region, ca_file, outbox=box) as again:
        await eventually(lambda: again.list == [b"0", b"1"])
        await again.client.send(CHAT, b"2")
        assert [copy.key.cid for copy in fra.own[CHAT]] == [1, 2, 3]
        assert fra.connects[-1].connection_epoch > first
        region.mirror()
        await eventually(lambda: again.client.state.outbox == 0)
    async with App(region, ca_file, outbox=box) as third:
        assert third.client.state.outbox == 0
        await third.client.send(CHAT, b"3")
        assert fra.own[CHAT][-1].key.cid == 4


async def test_an_outbox_belongs_to_one_client(region, ca_file, tmp_path):
    box = tmp_path / "outbox.db"
    async with App(region, ca_file, outbox=box):
        with pytest.raises(OutboxLocked, match="in use"):
            async with App(region, ca_file, outbox=box):
                pass


async def test_a_copied_outbox_goes_on_under_a_new_id(region, ca_file, tmp_path):
    box, copy = tmp_path / "outbox.db", tmp_path / "copy.db"
    async with App(region, ca_file, outbox=box) as ann:
        await ann.client.send(CHAT, b"0")
        region.mirror()
        await eventually(lambda: ann.client.state.outbox == 0)
    copy.write_bytes(box.read_bytes())
    async with App(region, ca_file, outbox=box) as ann:
        await ann.client.send(CHAT, b"1")
    async with App(region, ca_file, outbox=copy) as other:
        await other.client.send(CHAT, b"another 1")
        await eventually(lambda: other.list == [b"0", b"1", b"another 1"])


async def test_requests_are_repeated_on_the_next_connection(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        fra.errors["group_create"] = [pb.Error(code="unavailable", message="", retry_after_ms=1)]
        group = await ann.client.create_group(["bob"], "friends")
        assert group.startswith("g:") and fra.requests["group_create"] == 2
        assert await ann.client.members(group) == ("ann",)
        for code in ("unavailable", "not_replicated"):  # the next IDC is slow to hold it
            again = pb.Error(code=code, message="", retry_after_ms=1)
            fra.errors["group_change"] = [again, again]
            await ann.client.join(group, ["eve"])
        assert fra.requests["group_change"] == 6
        fra.errors["group_change"] = [pb.Error(code="forbidden", message="not yours")]
        with pytest.raises(RequestRefused, match="not yours"):
            await ann.client.leave(group)
        fra.connections[0].abort()
        await ann.client.join(group, ["eve"])


async def test_what_no_group_can_be_asked_is_not_sent(region, ca_file):
    async with App(region, ca_file) as ann:
        for asked in (ann.client.set_role("g:1", "bob", "king"), ann.client.rename("g:1", "")):
            with pytest.raises(RequestRefused) as refused:
                await asked
            assert refused.value.code == "bad_request"
        assert region.idcs["fra"].requests["group_change"] == 0


async def test_a_large_group_is_made_and_read_in_pieces(region, ca_file):
    fra = region.idcs["fra"]
    many = [f"u{number:04}" for number in range(1_200)]
    async with App(region, ca_file) as ann:
        group = await ann.client.create_group(many, "all")
        assert (fra.requests["group_create"], fra.requests["group_change"]) == (1, 2)
        fra.members = many[:5]
        assert await ann.client.members(group) == tuple(many[:5])
        assert fra.requests["group_info"] == 3


async def test_what_huge_groups_have_is_pulled_within_a_time_and_acked_when_a_heartbeat_is_due(
    region, ca_file
):
    region.parameters.update(heartbeat_ms=60_000, heartbeat_timeout_ms=300)
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        say(fra, 1)
        await eventually(lambda: fra.acks.get(CHAT) == {fra.origin: 1})  # within a second or so
        fra.drop_pushes = 1
        say(fra, 2)
        heads = [pb.Position(origin=origin_pb(fra.origin), seq=2)]
        told = pb.ConversationHeads(conversation=CHAT, heads=heads)
        pulls = fra.requests["pull"]
        for _ in range(2):
            behind = pb.Behind(conversations=[told], within_ms=300)
            fra.everybody(pb.Event(behind=behind))
        await eventually(lambda: ann.list == [b"bob 1", b"bob 2"])
        assert fra.requests["pull"] == pulls + 1
        await asyncio.sleep(1.3)
        assert fra.acks[CHAT] == {fra.origin: 1}
        say(fra, 3)  # told at once again
        await eventually(lambda: fra.acks[CHAT] == {fra.origin: 3})


NOT_A_MEMBER = pb.Error(code="forbidden", message="not a member")


async def moved(region: Region, app: App) -> Idc:
    """To iad, which may not have heard of everything."""
    region.order, region.epoch = ["iad", "fra"], 2
    region.idcs["fra"].everybody(pb.Event(move=pb.Move(policy_epoch=2)))
    await eventually(lambda: app.connections[-1] == "iad")
    return region.idcs["iad"]


async def test_an_idc_that_has_not_heard_of_the_group_yet_is_asked_again(region, ca_file):
    async with App(region, ca_file) as ann:
        await ann.client.send(CHAT, b"0")
        region.mirror()
        region.idcs["iad"].errors["send"] = [NOT_A_MEMBER] * 2
        region.idcs["iad"].errors["group_info"] = [NOT_A_MEMBER]
        iad = await moved(region, ann)
        sends = [ann.client.send(CHAT, b"%d" % n, timeout_ms=10_000) for n in (1, 2, 3)]
        await asyncio.gather(*sends, ann.client.members("g:1"))
        assert [copy.content for copy in iad.own[CHAT]] == [b"1", b"2", b"3"]


async def test_one_that_still_has_not_after_a_while_is_believed(region, ca_file):
    async with App(region, ca_file, options=Options(lag_wait_ms=300)) as ann:
        iad = await moved(region, ann)
        iad.errors["send"] = [NOT_A_MEMBER] * 4
        with pytest.raises(SendFailed) as failed:
            await ann.client.send(CHAT, b"1", timeout_ms=10_000)
        assert failed.value.code == "forbidden" and not failed.value.pending
        assert 2 <= iad.requests["send"] <= 3 and ann.client.state.outbox == 0


async def test_an_acked_message_that_the_survivor_refuses_at_first_is_not_lost(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    async with App(region, ca_file) as ann:
        sent = [await ann.client.send(CHAT, b"%d" % n) for n in range(3)]
        iad.errors["send"] = [NOT_A_MEMBER, pb.Error(code="not_found", message="no group (yet)")]
        waiting = asyncio.gather(*(message.replicated() for message in sent))
        await fra.stop()
        await eventually(lambda: len(iad.own.get(CHAT, [])) == 3)
        region.mirror()
        await waiting
        assert ann.client.state.outbox == 0


async def test_an_acked_message_that_stays_refused_is_reported_and_kept(region, ca_file):
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    async with App(region, ca_file, options=Options(lag_wait_ms=300)) as ann:
        sent = await ann.client.send(CHAT, b"0")
        iad.errors["send"] = [NOT_A_MEMBER] * 100
        waiting = asyncio.ensure_future(sent.replicated())
        await fra.stop()
        async with asyncio.timeout(10):
            for call in (waiting, sent.replicated()):  # told again, whenever it is asked for
                with pytest.raises(SendFailed) as failed:
                    await call
                assert failed.value.code == "forbidden" and failed.value.pending
            with pytest.raises(SendFailed):
                await ann.client.send(CHAT, b"1")  # nothing waits for ever behind it
        assert ann.client.state.outbox == 1
        iad.errors.clear()
        iad.connections[0].abort()
        await eventually(lambda: CHAT in iad.own)
        region.mirror()
        async with asyncio.timeout(10):
            await sent.replicated()


async def test_cursors_name_messages(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        sent = await ann.client.send(CHAT, b"0")
        await ann.client.cursor(CHAT, sent.key)
        assert fra.requests["read_cursor"] == 1
        place = fra.attest(fra.own[CHAT][0]).place
        moved = pb.CursorMoved(conversation=CHAT, uid="bob", place=place)
        fra.everybody(pb.Event(cursor_moved=moved))
        await eventually(lambda: len(ann.cursors) == 1)
        assert (ann.cursors[0].uid, ann.cursors[0].key) == ("bob", sent.key)


async def test_a_cursor_does_not_go_back_when_an_idc_is_behind(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        sent = [await ann.client.send(CHAT, text) for text in (b"0", b"1", b"2")]
        places = [fra.attest(message).place for message in fra.own[CHAT]]
        for place in (places[1], places[0], places[2]):
            fra.everybody(
                pb.Event(cursor_moved=pb.CursorMoved(conversation=CHAT, uid="bob", place=place))
            )
        await eventually(lambda: any(moved.key == sent[2].key for moved in ann.cursors))
        assert [moved.key for moved in ann.cursors] == [sent[1].key, sent[2].key]


async def test_many_clients_share_one_ipconf_client(region, ca_file):
    shared = IpconfClient([region.url], ca_file, random.Random(1))
    uids = [f"u{n}" for n in range(8)]
    apps = [App(region, ca_file, uid, ipconf=shared) for uid in uids]
    await asyncio.gather(*(app.client.__aenter__() for app in apps))
    await asyncio.gather(*(app.client.send(CHAT, uid.encode()) for app, uid in zip(apps, uids)))  # noqa: B905
    await eventually(lambda: all(len(app.list) == 8 for app in apps))
    assert len({tuple(app.list) for app in apps}) == 1
    for app in apps:
        await app.client.close()
    await shared.close()


async def test_nobody_answers(region, ca_file):
    region.ipconf_down = True
    with pytest.raises(NotConnected, match="no IDC took this client in time: https://"):
        async with App(region, ca_file, options=Options(start_timeout_ms=500)):
            pass


async def test_changes_are_shown_as_their_entries_come(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        sent = await ann.client.send(CHAT, b"0")
        with pytest.raises(KeyError):
            await ann.client.edit(CHAT, sent.key.replace("/1/", "/7/"), b"1")
        await ann.client.edit(CHAT, sent.key, b"1")
        await ann.client.react(CHAT, sent.key, "+1")
        await ann.client.recall(CHAT, sent.key)
        assert fra.requests["change"] == 3
        placed = fra.attest(fra.own[CHAT][0])
        entry = pb.Entry(origin=placed.origin, seq=2)
        entry.change.key.CopyFrom(placed.key)
        entry.change.actor, entry.change.edit = "ann", b"1"
        entry.change.order.hlc = 1
        fra.everybody(pb.Event(push=pb.Push(conversation=CHAT, entries=[entry])))
        await eventually(lambda: ann.client.changes(CHAT, sent.key).content == b"1")
        assert [message.content for message in ann.client.view(CHAT)] == [b"1"]


async def test_a_change_that_is_asked_for_again_is_the_same_change(region, ca_file):
    """As later than what others said meanwhile it would override that; a new one is later."""
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        sent = await ann.client.send(CHAT, b"0")
        fra.errors["change"] = [pb.Error(code="unavailable", retry_after_ms=1)]
        region.clock += 5
        await ann.client.edit(CHAT, sent.key, b"1")
        await ann.client.edit(CHAT, sent.key, b"2")
        first, again, second = fra.changes
        assert first.composed.mac and first.number
        assert first == again
        orders = [(change.composed.hlc, change.number) for change in (first, second)]
        assert orders == sorted(orders) and orders[0] != orders[1]


async def test_the_list_has_what_is_pinned_first_and_then_the_newest(region, ca_file):
    fra = region.idcs["fra"]
    for name, hlc, pinned in (("old", 1, True), ("older", 2, False), ("new", 3, False)):
        listed = pb.ConversationSummary(conversation=f"d:ann:{name}", pinned=pinned, unread=hlc)
        listed.last.place.hlc, listed.last.content, listed.last.key.uid = hlc, b"hello", name
        fra.listed.append(listed)
    fra.listed.insert(0, pb.ConversationSummary(conversation="g:silent", name="nobody spoke"))
    async with App(region, ca_file) as ann:
        found = await ann.client.conversation_list()
        names = [summary.conversation for summary in found]
        assert names == ["d:ann:old", "d:ann:new", "d:ann:older", "g:silent"]
        assert found[1].last is not None and found[1].last.content == b"hello"
        assert found[1].unread == 3 and found[3].last is None
        await ann.client.send(CHAT, b"0")
        await ann.client.pin(CHAT)
        await ann.client.mute(CHAT, on=False)
        pin, mute = fra.settings
        assert (pin.pinned, mute.WhichOneof("what"), mute.muted) == (True, "muted", False)
        assert pin.composed.mac and 0 < pin.number < mute.number


async def test_who_has_read_is_asked_page_by_page(region, ca_file):
    fra = region.idcs["fra"]
    fra.read_by = [
        pb.ReadersOk(read=1, unread=1, read_by=["bob"], unread_by=["eve"]),
        pb.ReadersOk(read=1, read_by=["tom"]),
    ]
    async with App(region, ca_file) as ann:
        sent = await ann.client.send(CHAT, b"0")
        assert await ann.client.readers(CHAT, sent.key) == (("bob", "tom"), ("eve",))
        assert await ann.client.read_counts(CHAT, sent.key) == (2, 1)
        for conversation, key in ((CHAT, "nonsense"), ("d:ann:eve", sent.key)):
            with pytest.raises(RequestRefused):
                await ann.client.readers(conversation, key)


async def test_a_search_goes_on_for_as_long_as_it_is_iterated(region, ca_file):
    fra = region.idcs["fra"]

    def row(cid: int) -> pb.FoundMessage:
        key = pb.ClientKey(uid="bob", device="p", outbox="o", conversation=CHAT, cid=cid)
        return pb.FoundMessage(key=key, content=b"%d" % cid, composed_ms=7)

    pages: list[list[pb.FoundMessage]] = [[row(5), row(4)], [], [row(4), row(3)]]
    fra.found = [pb.SearchOk(found=page) for page in pages]
    async with App(region, ca_file) as ann:
        rows = [row async for row in ann.client.search("words")]
        assert rows[0] == (CHAT, f"bob/p/o/5/{CHAT}", "bob", b"5", 7)
        assert [row.content for row in rows] == [b"5", b"4", b"3"]
        assert fra.requests["search"] == 3
        async for first in ann.client.search("words"):
            assert first.content == b"5"
            break
        assert fra.requests["search"] == 4


async def test_what_a_message_refers_to_is_checked_before_it_is_composed(region, ca_file):
    async with App(region, ca_file) as ann:
        elsewhere = "ann/phone/o1/1/d:ann:eve"
        for refs in (
            {"reply": "no key"}, {"reply": elsewhere}, {"reply": f"ann/phone/o1/-1/{CHAT}"},
            {"mentions": ["not a uid"]}, {"mentions": ["bob"] * 101},
        ):  # fmt: skip
            with pytest.raises(SendFailed) as failed:
                await ann.client.send(CHAT, b"1", **refs)
            assert failed.value.code == "bad_request"
        assert ann.client.state.outbox == 0
        sent = await ann.client.send(CHAT, b"1", mentions=["bob"])
        await ann.client.send(CHAT, b"2", reply=sent.key)
        assert [m.reply for m in ann.client.view(CHAT)] == ["", sent.key]
