"""What stands of words on friends, settings and groups, as an application finds it by the SDK."""

from __future__ import annotations

from collections.abc import Sequence

from services.loadgen.ports import Standing
from services.sdk import Client, Group, Summary


async def standing(
    client: Client, words: Sequence[tuple[str, str]], listed: Sequence[Summary] | None = None
) -> list[Standing]:
    """Of each (kind, about) of ``imcore.history.Word``; empty: nothing stands. ``listed``: the list
    of conversations where it was asked for already, which is not little work. Raises ImError."""
    kinds = {kind for kind, _ in words}
    friends: dict[str, str] = {}
    rows: dict[str, Summary] = {}
    groups: dict[str, Group] = {}
    if "friend" in kinds:
        told = await client.friends()
        for state, uids in zip(("friend", "asked", "asking", "blocked"), told, strict=True):
            friends.update(dict.fromkeys(uids, state))
    if kinds & {"pin", "mute"}:
        listed = await client.conversation_list() if listed is None else listed
        rows = {row.conversation: row for row in listed}
    found: list[Standing] = []
    for kind, about in words:
        name, _, uid = about.partition(" ")
        if kind == "friend":
            value = friends.get(about, "")
        elif kind in ("pin", "mute"):
            row = rows.get(about)
            on = row is not None and (row.pinned if kind == "pin" else row.muted)
            value = "on" if on else "off"
        else:
            if name not in groups:
                groups[name] = await client.group(name)
            value = _of_group(groups[name], kind, uid)
        found.append(Standing(kind, about, value))
    return found


def _of_group(group: Group, kind: str, uid: str) -> str:
    if kind == "name":
        return group.name
    if kind == "owner":
        return group.owner
    if kind == "announcement":
        return group.announcement.text if group.announcement is not None else ""
    if kind == "member":
        return "in" if uid in group.members else "out"
    if uid == group.owner:
        return "owner"
    return "admin" if uid in group.admins else "member"
