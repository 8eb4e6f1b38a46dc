"""The Protobuf handlers: state role and im over real engines. Whatever one connection sends: each
of its requests is answered once or the connection is closed, never with ``internal``; nothing is
logged as an error; another user's message is then accepted and folded at once.

An input is a row of requests (``fuzz.messages``) on one connection; a connect of mallory's goes
before them if the first is none."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from google.protobuf.message import DecodeError

from fuzz import messages
from fuzz.lab import FUZZ, Centre, Loop, hello
from fuzz.target import Target
from imcore.attest import content_hash
from imcore.convert import attested_pb, stamp_pb
from imcore.hlc import from_ms
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey, Origin, Place
from services.im.testing import KEYS

REQUESTS_MAX = 20
_ANSWERED_S = 12.0  # the server's own deadline is 10
_epochs = itertools.count(1)
_loop = Loop()
_centre: list[Centre] = []


def check(data: bytes) -> None:
    _loop.run(_check(messages.bodies(data)[:REQUESTS_MAX]))


async def _check(bodies: list[bytes]) -> None:
    if not _centre:
        centre = Centre()
        await centre.start()
        _centre.append(centre)
    centre = _centre[0]
    connection = centre.connection()
    if not bodies or not _connects(bodies[0]):
        bodies = [hello("mallory", next(_epochs)).SerializeToString(), *bodies]
    asked = 0
    for body in bodies:
        asked += 1
        centre.state.received(FUZZ, connection, asked, body)
        if asked == 1:
            await _answered(centre, connection, 1)
        if connection in centre.answers.closed:
            break
    await _answered(centre, connection, asked)
    centre.state.closed(FUZZ, connection, "closed")
    answers = centre.answers.answers.pop(connection, [])
    ids = [request_id for request_id, _ in answers]
    assert len(set(ids)) == len(ids), f"answered more than once: {ids}"
    for request_id, answer in answers:
        assert answer.error.code != "internal", (request_id, answer.error)
    centre.answers.closed.pop(connection, None)
    await centre.bystander()


async def _answered(centre: Centre, connection: int, count: int) -> None:
    answers = centre.answers
    async with asyncio.timeout(_ANSWERED_S):
        while len(answers.answers.get(connection, ())) < count:
            if connection in answers.closed:
                return
            answers.changed.clear()
            await answers.changed.wait()


def _connects(body: bytes) -> bool:
    try:
        return pb.Request.FromString(body).HasField("connect")
    except DecodeError:
        return True  # it is to be judged as the first thing that a connection says


# ------------------------------------------------------------------------------------- inputs


def _attested(conversation: str, cid: int, content: bytes) -> pb.Attested:
    key = ClientKey("mallory", "phone", "o1", conversation, cid)
    place = Place(from_ms(1_700_000_000_000), Origin("iad", 1), cid)
    digest = content_hash(content)
    return attested_pb(KEYS.attest(key, digest, Origin("iad", 1), cid, place))


def _change(message: pb.Attested, seen: pb.Stamp, **what: Any) -> pb.Request:
    return pb.Request(change=pb.Change(message=message, composed=seen, number=1, **what))


def _requests() -> list[pb.Request]:
    name, group, origin = "d:bob:mallory", "g:all", pb.Origin(idc="fra", incarnation=1)
    placed = _attested(name, 1, b"one")
    seen = stamp_pb(KEYS.stamp(from_ms(1_700_000_000_000)))
    have = [pb.Position(origin=origin, seq=1)]
    return [
        pb.Request(send=pb.Send(conversation=name, outbox="o1", cid=1, floor=1, content=b"one")),
        pb.Request(
            seen=seen,
            send=pb.Send(
                conversation=name, outbox="o1", cid=1, floor=1, content=b"one", placed=placed,
                claims=[_attested(name, 2, b"two")], durability=pb.DURABILITY_REPLICATED,
            ),
        ),
        pb.Request(send=pb.Send(conversation=group, outbox="o2", cid=1, floor=1, content=b"all")),
        pb.Request(
            send=pb.Send(
                conversation=name, outbox="o1", cid=2, floor=1, content=b"two",
                refs=pb.Refs(reply=placed.key, mentions=["bob"]).SerializeToString(),
            )
        ),
        pb.Request(claim=pb.Claim(conversation=name, claims=[placed])),
        pb.Request(pull=pb.Pull(conversation=name, have=have, limit=3), deadline_ms=500),
        pb.Request(history=pb.History(conversation=name, limit=3)),
        pb.Request(history=pb.History(conversation=group, before=placed.place)),
        pb.Request(sync=pb.Sync(limit=2)),
        _change(placed, seen, edit=b"one more"),
        _change(placed, seen, react=pb.Reaction(code="+1", on=True)),
        _change(placed, seen, react=pb.Reaction(code="+1")),
        _change(placed, seen, recall=pb.Recall()),
        pb.Request(read_cursor=pb.ReadCursor(conversation=name, place=placed.place)),
        pb.Request(
            set_conversation=pb.SetConversation(conversation=name, pinned=True, composed=seen)
        ),
        pb.Request(
            set_friend=pb.SetFriend(uid="bob", word=pb.SetFriend.BLOCK, composed=seen)
        ),
        pb.Request(friends=pb.Friends(limit=1)),
        pb.Request(conversations=pb.Conversations(limit=1)),
        pb.Request(readers=pb.Readers(message=placed.key)),
        pb.Request(search=pb.Search(words="hello", limit=1)),
        pb.Request(group_create=pb.GroupCreate(conversation="g:new", members=["bob"], name="n")),
        pb.Request(group_change=pb.GroupChange(conversation="g:new", join=["ann"])),
        pb.Request(
            group_change=pb.GroupChange(
                conversation="g:new", leave=["bob"], name="m",
                roles=[pb.RoleChange(uid="ann", role=pb.GROUP_ROLE_OWNER)],
                announcement=pb.Announcement(text="hello"),
            )
        ),
        pb.Request(group_info=pb.GroupInfo(conversation=group)),
        pb.Request(
            heartbeat=pb.Heartbeat(acks=[pb.ConversationHeads(conversation=name, heads=have)])
        ),
        pb.Request(bye=pb.Bye()),
        hello(
            "mallory", 1 << 40, network="wifi", placement=b"europe",
            outbox=[pb.OutboxHead(conversation=name, outbox="o1", floor=1, top=3)],
            moved_from=[pb.MovedFrom(origin=origin, partition=0, lsn=1)],
        ),
        hello("mallory", 1, mode=pb.CONNECT_MODE_PULL_ONLY),
    ]  # fmt: skip


REQUESTS = _requests()


def seeds() -> list[bytes]:
    encoded = [request.SerializeToString() for request in REQUESTS]
    return [messages.row(encoded[:18]), *(messages.row([one]) for one in encoded)]


def mutate(data: bytes, seed: int, bytes_max: int) -> bytes:
    return messages.mutated(pb.Request, data, seed, bytes_max, REQUESTS)


TARGET = Target("requests", check, seeds, bytes_max=16_384, cpu_s=3.0, mutate=mutate)
