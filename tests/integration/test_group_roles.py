"""Roles of groups over the real im role: who may what, and that IDCs agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from services.im import groups
from services.im.testing import Idc, OpenIdc
from services.node.convergence import partition_hash

GROUP = "g:team"
MEMBER, ADMIN, OWNER = pb.GROUP_ROLE_MEMBER, pb.GROUP_ROLE_ADMIN, pb.GROUP_ROLE_OWNER


async def ask(idc: Idc, uid: str, *, roles: Mapping[str, Any] | None = None, **what: Any) -> str:
    words = [pb.RoleChange(uid=other, role=role) for other, role in (roles or {}).items()]
    change = pb.GroupChange(conversation=GROUP, roles=words, **what)
    return (await idc.ask(idc.session(uid), pb.Request(group_change=change))).error.code


async def told(idc: Idc, uid: str = "ann") -> tuple[str, list[str], list[str], str]:
    """Owner, admins, members and name."""
    await idc.folded()
    info = pb.Request(group_info=pb.GroupInfo(conversation=GROUP))
    answer = (await idc.ask(idc.session(uid), info)).group_info_ok
    return answer.owner, list(answer.admins), list(answer.members), answer.name


async def pair(open_idc: OpenIdc) -> tuple[Idc, Idc]:
    """Both have the group of ann, who owns it, bob, an admin, carl and dora."""
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    await fra.create(fra.session("ann"), GROUP, "bob", "carl", "dora")
    assert not await ask(fra, "ann", roles={"bob": ADMIN})
    await fra.mirror_to(iad)
    return fra, iad


async def meet(fra: Idc, iad: Idc) -> None:
    """What each has done while neither knew of the other."""
    await fra.mirror_to(iad)
    await iad.mirror_to(fra)
    assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)
    assert await told(fra, "dora") == await told(iad, "dora")


async def test_who_may_remove_name_and_give_roles(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    await fra.create(fra.session("ann"), GROUP, "bob", "carl", "dora")
    assert await told(fra) == ("ann", [], ["ann", "bob", "carl", "dora"], "a group")
    for what in ({"leave": ["carl"]}, {"name": "x"}, {"roles": {"bob": ADMIN}}):
        assert await ask(fra, "bob", **what) == Code.FORBIDDEN, what
        assert await ask(fra, "eve", **what) == Code.FORBIDDEN, what
    assert not await ask(fra, "ann", roles={"bob": ADMIN, "carl": ADMIN})
    assert not await ask(fra, "bob", name="the team")
    assert not await ask(fra, "bob", leave=["dora"])
    for what in (
        {"leave": ["carl"]}, {"leave": ["ann"]}, {"roles": {"carl": MEMBER}},
        {"roles": {"bob": OWNER}},
    ):  # fmt: skip
        assert await ask(fra, "bob", **what) == Code.FORBIDDEN, what
    assert await told(fra) == ("ann", ["bob", "carl"], ["ann", "bob", "carl"], "the team")
    assert not await ask(fra, "carl", roles={"carl": MEMBER})  # resigns
    assert await ask(fra, "ann", roles={"ann": MEMBER}) == Code.BAD_REQUEST
    assert await ask(fra, "ann", roles={"bob": pb.GROUP_ROLE_NONE}) == Code.BAD_REQUEST
    assert await ask(fra, "ann", roles={"dora": ADMIN}) == Code.NOT_FOUND
    assert await ask(fra, "ann", name="x" * 129) == Code.BAD_REQUEST
    assert not await ask(fra, "ann", leave=["bob"])
    assert (await told(fra))[:3] == ("ann", [], ["ann", "carl"])


async def test_who_was_removed_comes_in_by_a_member_only(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    bob = fra.session("bob")
    await fra.create(fra.session("ann"), GROUP, "bob", "carl")
    assert not await ask(fra, "ann", roles={"bob": ADMIN})
    assert not await ask(fra, "ann", leave=["bob"])
    await fra.folded()
    assert (await fra.send(bob, GROUP, 1)).error.code == Code.FORBIDDEN
    assert any("bob" in uids for _, uids, _ in fra.pushes.entries[-1:])  # he is told
    assert await ask(fra, "bob", join=["bob"]) == Code.FORBIDDEN
    assert not await ask(fra, "carl", join=["bob"])
    assert await told(fra) == ("ann", [], ["ann", "bob", "carl"], "a group")
    # Who has left by himself comes back by himself.
    assert not await ask(fra, "bob", leave=["bob"])
    assert not await ask(fra, "bob", join=["bob"])
    # Asked for again, what stands is not refused: its answer may have been lost.
    assert not await ask(fra, "ann", roles={"carl": OWNER})
    assert not await ask(fra, "ann", roles={"carl": OWNER})
    assert (await told(fra))[:2] == ("carl", ["ann"])
    assert not await ask(fra, "ann", leave=["bob"])
    assert not await ask(fra, "ann", leave=["bob"])


async def test_whoever_is_added_where_his_leaving_is_not_known_yet_has_left(
    open_idc: OpenIdc,
) -> None:
    """He is a member there, so nothing is done. The simulation took it for an invitation."""
    fra, iad = await pair(open_idc)
    assert not await ask(fra, "dora", leave=["dora"])
    assert not await ask(iad, "ann", join=["dora"])
    await meet(fra, iad)
    for idc in (fra, iad):
        assert (await told(idc))[2] == ["ann", "bob", "carl"]
    assert not await ask(iad, "ann", join=["dora"])
    assert (await told(iad))[2] == ["ann", "bob", "carl", "dora"]


async def test_a_group_always_has_one_owner(open_idc: OpenIdc) -> None:
    fra, _ = await pair(open_idc)
    assert not await ask(fra, "ann", leave=["ann"])
    assert (await told(fra, "dora"))[:2] == ("bob", [])  # the admin
    assert not await ask(fra, "bob", leave=["bob"])
    assert (await told(fra, "dora"))[:2] == ("carl", [])  # who is in it the longest, by name
    assert not await ask(fra, "carl", leave=["dora"])


async def test_idcs_that_hand_a_group_over_at_once_agree_on_one_owner(open_idc: OpenIdc) -> None:
    fra, iad = await pair(open_idc)
    assert not await ask(fra, "ann", roles={"carl": OWNER})
    assert not await ask(iad, "ann", roles={"dora": OWNER})
    assert (await told(fra))[0] == "carl" and (await told(iad))[0] == "dora"
    await meet(fra, iad)
    owner, admins, *_ = await told(fra, "dora")
    assert sorted([owner, *admins]) == ["ann", "bob", "carl", "dora"]


async def test_idcs_that_contradict_each_other_end_with_one_state(open_idc: OpenIdc) -> None:
    """An admin is demoted here and removes one there; is removed here and made owner there; a name
    here and another there."""
    fra, iad = await pair(open_idc)
    assert not await ask(fra, "ann", roles={"bob": MEMBER}, name="here")
    assert not await ask(iad, "bob", leave=["carl"], name="there")
    await meet(fra, iad)
    owner, admins, members, name = await told(fra)
    assert (owner, admins, members) == ("ann", [], ["ann", "bob", "dora"])
    assert name in ("here", "there")
    assert await ask(iad, "bob", leave=["dora"]) == Code.FORBIDDEN
    assert not await ask(fra, "ann", leave=["bob"])
    assert not await ask(iad, "ann", roles={"bob": OWNER})
    await meet(fra, iad)
    assert (await told(fra))[:3] == ("ann", [], ["ann", "dora"])


async def test_a_role_is_answered_when_another_idc_holds_it(open_idc: OpenIdc) -> None:
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    await fra.create(fra.session("ann"), GROUP, "bob")
    fra.followers.clear()
    fra.hurry()
    for _ in range(2):
        assert await ask(fra, "ann", roles={"bob": ADMIN}) == Code.UNAVAILABLE
        assert await ask(fra, "ann", name="x") == Code.UNAVAILABLE
    fra.hurry(False)
    await fra.folded()
    fra.hold("iad")
    assert not await ask(fra, "ann", roles={"bob": ADMIN}, name="x")


@pytest.mark.parametrize(
    "what",
    [
        {"roles": {"bob": ADMIN}},
        {"name": "x"},
        {"leave": ["bob"]},
        {"announcement": pb.Announcement(text="x")},
    ],
)
async def test_the_state_that_replicas_compare_has_roles(
    open_idc: OpenIdc, what: dict[str, Any]
) -> None:
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    await fra.create(fra.session("ann"), GROUP, "bob")
    await fra.mirror_to(iad)
    assert not await ask(fra, "ann", **what)
    rows = [await idc.kv.scan(b"\0\0g", b"\0\0h", 10) for idc in (fra, iad)]
    assert rows[0] != rows[1]
    await fra.mirror_to(iad)
    assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)


async def announced(idc: Idc) -> tuple[str, str]:
    await idc.folded()
    info = pb.Request(group_info=pb.GroupInfo(conversation=GROUP))
    answer = (await idc.ask(idc.session("ann"), info)).group_info_ok
    assert answer.HasField("announcement") == (answer.announced_ms > 0)
    return answer.announcement.text, answer.announced_by


async def test_the_last_announcement_stands_in_every_idc(open_idc: OpenIdc) -> None:
    """By place, also when two IDCs take one at once; who joins later sees it."""
    fra, iad = await pair(open_idc)
    assert await announced(fra) == ("", "")

    def text(said: str) -> dict[str, Any]:
        return {"announcement": pb.Announcement(text=said)}

    for uid in ("carl", "eve"):
        assert await ask(fra, uid, **text("mine")) == Code.FORBIDDEN
    assert await ask(fra, "ann", **text("x" * 4_097)) == Code.TOO_LARGE
    assert not await ask(fra, "ann", **text("here"))
    end = fra.end()
    assert not await ask(fra, "ann", **text("here"))
    assert fra.end() == end  # it said nothing new
    assert not await ask(iad, "bob", **text("there"))
    _, _, pushed = fra.pushes.entries[-1]
    assert pushed.membership.announcement.text == "here"
    await meet(fra, iad)
    assert await announced(fra) == await announced(iad)
    assert await announced(fra) in (("here", "ann"), ("there", "bob"))
    assert not await ask(iad, "ann", **text("last"))
    assert not await ask(iad, "ann", name="renamed")  # says nothing of the announcement
    await meet(fra, iad)
    assert await announced(fra) == ("last", "ann")
    assert not await ask(fra, "bob", **text(""))
    assert await announced(fra) == ("", "")


async def test_a_group_has_so_many_admins(
    open_idc: OpenIdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "GROUP_ADMINS_MAX", 2)
    fra = await open_idc(others=())
    await fra.create(fra.session("ann"), GROUP, "bob", "carl", "dora")
    assert not await ask(fra, "ann", roles={"bob": ADMIN, "carl": ADMIN})
    assert await ask(fra, "ann", roles={"dora": ADMIN}) == Code.TOO_LARGE
    assert not await ask(fra, "ann", roles={"bob": ADMIN})  # so already
    assert await ask(fra, "ann", roles={"dora": ADMIN, "bob": MEMBER}) == Code.TOO_LARGE
    assert not await ask(fra, "ann", roles={"bob": MEMBER})
    assert not await ask(fra, "ann", roles={"dora": ADMIN})
