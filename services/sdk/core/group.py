"""A group as the service tells of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from imcore.proto import client_pb2 as pb
from services.sdk.core.events import GroupChanged

ROLES = {
    "member": pb.GROUP_ROLE_MEMBER,
    "admin": pb.GROUP_ROLE_ADMIN,
    "owner": pb.GROUP_ROLE_OWNER,
}
_NAMES = {role: name for name, role in ROLES.items()}


class Announcement(NamedTuple):
    """``at_ms``: on the wall clock of the IDC that took it."""

    text: str
    uid: str
    at_ms: int


class Group(NamedTuple):
    """``members``: all of them, the owner and the admins too."""

    conversation: str
    name: str
    members: tuple[str, ...]
    owner: str
    admins: tuple[str, ...]
    announcement: Announcement | None = None
    encrypted: bool = False


def group_of(told: pb.GroupInfoOk, members: Iterable[str]) -> Group:
    """``told``: a page; ``members``: those of all pages."""
    said = None
    if told.HasField("announcement"):
        said = Announcement(told.announcement.text, told.announced_by, told.announced_ms)
    admins = tuple(told.admins)
    return Group(
        told.conversation, told.name, tuple(members), told.owner, admins, said, told.encrypted
    )


def changed(conversation: str, entry: pb.MembershipEntry) -> GroupChanged:
    return GroupChanged(
        conversation,
        entry.actor,
        tuple(change.uid for change in entry.changes if change.member),
        tuple(change.uid for change in entry.changes if not change.member),
        tuple((word.uid, _NAMES.get(word.role, "")) for word in entry.roles),
        entry.name,
        entry.announcement.text if entry.HasField("announcement") else None,
    )
