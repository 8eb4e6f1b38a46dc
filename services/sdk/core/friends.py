"""The list of friends, as the service tells of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from imcore.proto import client_pb2 as pb
from services.sdk.core.events import FriendChanged

_STATES = {
    pb.Friend.NONE: "",
    pb.Friend.ASKED: "asked",
    pb.Friend.ASKING: "asking",
    pb.Friend.FRIEND: "friend",
}


class Friends(NamedTuple):
    """Uids, sorted. ``asked``: whom this user has asked, without an answer; ``asking``: who has
    asked this user; ``blocked``: by this user."""

    friends: tuple[str, ...]
    asked: tuple[str, ...]
    asking: tuple[str, ...]
    blocked: tuple[str, ...]


def friends_of(told: Iterable[pb.Friend]) -> Friends:
    changed = sorted(map(changed_friend, told))

    def those(state: str) -> tuple[str, ...]:
        return tuple(each.uid for each in changed if each.state == state)

    return Friends(those("friend"), those("asked"), those("asking"), those("blocked"))


def changed_friend(told: pb.Friend) -> FriendChanged:
    return FriendChanged(told.uid, "blocked" if told.blocked else _STATES.get(told.state, ""))
