"""Who owns a group, and who are its admins: worked out of the members and the words on their roles,
so that replicas that hold the same rows agree, whatever IDCs have said at once. Pure.

A word counts for a user who was in the group when it was said, and still is: who comes in again is
a member. A group has one owner. Of several that were made so the last by place is it, and the
others are admins, so that a group is handed over by one word. When none of them is left, the admin
who has come first owns it, or else the member who has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from imcore.proto import client_pb2 as pb
from imcore.words import Place

MEMBER = pb.GROUP_ROLE_MEMBER


class Roles(NamedTuple):
    owner: str  # empty: there is no member
    admins: frozenset[str]


def roles_of(
    words: Mapping[str, tuple[Place, pb.GroupRole.ValueType]],
    members: Iterable[str],
    joined: Callable[[str], Place | None],
) -> Roles:
    """``words``: the last on each user; ``joined``: since when a member is in the group, None: no
    member. All ``members`` are looked at only where there is neither owner nor admin."""
    owners: list[tuple[Place, str]] = []
    admins: list[tuple[Place, str]] = []  # by when they have come
    for uid, (at, role) in words.items():
        since = joined(uid)
        if since is None or at < since:
            continue
        if role == pb.GROUP_ROLE_OWNER:
            owners.append((at, uid))
        elif role == pb.GROUP_ROLE_ADMIN:
            admins.append((since, uid))
    if owners:
        owner = max(owners)[1]
    else:
        came = ((since, uid) for uid in members if (since := joined(uid)) is not None)
        owner = min(admins or came, default=(None, ""))[1]
    named = {uid for _, uid in (*owners, *admins)}
    return Roles(owner, frozenset(named - {owner}))
