"""Typing and watching at the im role: who may, and what is too much."""

from __future__ import annotations

from imcore.errors import Code
from imcore.limits import TYPING_MEMBERS_MAX, WATCHED_MAX
from imcore.proto import client_pb2 as pb
from services.im.testing import Idc, OpenIdc
from services.ports import NoLive, Session


class Told(NoLive):
    def __init__(self) -> None:
        self.typed: list[tuple[list[str], pb.Typing]] = []
        self.gone: list[tuple[str, str]] = []

    def typing(self, uids, typing: pb.Typing) -> None:
        self.typed.append((list(uids), typing))

    def forget(self, uid: str, device: str) -> None:
        self.gone.append((uid, device))


async def type_in(idc: Idc, session: Session, conversation: str) -> str:
    typing = pb.Typing(conversation=conversation, uid="mallory")
    return (await idc.ask(session, pb.Request(typing=typing))).error.code


async def test_typing_goes_to_the_others_of_a_small_conversation_only(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    fra.im.live = told = Told()
    ann, eve = fra.session("ann"), fra.session("eve")
    end = fra.end()
    assert not await type_in(fra, ann, "d:ann:bob")
    [(uids, typing)] = told.typed
    assert uids == ["bob"] and (typing.uid, typing.conversation) == ("ann", "d:ann:bob")
    assert typing.lives_ms > 0
    assert await type_in(fra, eve, "d:ann:bob") == Code.FORBIDDEN
    assert await type_in(fra, eve, "ann and bob") == Code.BAD_REQUEST
    assert fra.end() == end  # nothing is logged
    crowd = [f"u{number}" for number in range(TYPING_MEMBERS_MAX)]
    await fra.create(ann, "g:crowd", "ann", *crowd)
    assert not await type_in(fra, ann, "g:crowd")
    await fra.create(ann, "g:few", "ann", *crowd[1:])
    assert not await type_in(fra, ann, "g:few")
    assert [typing.conversation for _, typing in told.typed] == ["d:ann:bob", "g:few"]


async def test_whoever_types_without_end_is_answered_and_not_heard(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    fra.im.live = told = Told()
    ann = fra.session("ann")
    for _ in range(50):
        assert not await type_in(fra, ann, "d:ann:bob")
    assert 1 <= len(told.typed) <= 3
    assert not await type_in(fra, ann, "d:ann:eve")
    assert told.typed[-1][0] == ["eve"]


async def test_a_watch_names_so_many_users(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")

    async def watch(uids: list[str]) -> pb.Response:
        return await fra.ask(ann, pb.Request(watch=pb.Watch(uids=uids)))

    many = [f"u{number}" for number in range(WATCHED_MAX)]
    assert len((await watch(many)).watch_ok.users) == WATCHED_MAX
    assert (await watch([*many, "one more"])).error.code == Code.BAD_REQUEST
    assert (await watch(["no uid"])).error.code == Code.BAD_REQUEST
    fra.im.live = told = Told()
    fra.im.disconnected(ann)
    assert told.gone == [("ann", "phone")]
