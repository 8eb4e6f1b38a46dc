"""Who owns a group, and who are its admins: worked out of the members and the words on their roles,
so that replicas that hold the same rows agree, whatever IDCs have said at once. Pure.

A word counts for a user who was in the group when it was said, and still is: who comes in again is
a member. A group has one owner. Of several that were made so the last by place is it, and the
others are admins, so that a group is handed over by one word. When none of them is left, the admin
who has come first owns it, or else the member who has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from imcore.proto import client_pb2 as pb
from imcore.words import Place

MEMBER = pb.GROUP_ROLE_MEMBER


class Roles(NamedTuple):
    owner: str  # empty: there is no member
    admins: frozenset[str]


def roles_of(
    since: Mapping[str, Place], words: Mapping[str, tuple[Place, pb.GroupRole.ValueType]]
) -> Roles:
    """``since``: the members, and where each has come in; ``words``: the last on each user."""
    if not since:
        return Roles("", frozenset())
    owners: list[tuple[Place, str]] = []
    admins: list[str] = []
    for uid, (at, role) in words.items():
        if uid not in since or at < since[uid]:
            continue
        if role == pb.GROUP_ROLE_OWNER:
            owners.append((at, uid))
        elif role == pb.GROUP_ROLE_ADMIN:
            admins.append(uid)
    if owners:
        _, owner = max(owners)
        admins += [uid for _, uid in owners]
    else:
        owner = min(admins or since, key=lambda uid: (since[uid], uid))
    return Roles(owner, frozenset(admins) - {owner})
