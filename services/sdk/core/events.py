"""What the application's callback receives."""

from __future__ import annotations

from typing import NamedTuple

from imcore.media import MediaRef


class Message(NamedTuple):
    """A message is shown for the first (and only) time: inserted at ``index`` of the view.

    ``key`` names it for ever, the same on every device. ``late``: it lies below the stable
    watermark, so it may stand above messages that were read long ago. ``composed_ms`` is the
    sender's clock, for people. ``reply``: the key of the message that it answers, which may not be
    shown (yet), or empty. ``mentions``: uids. ``encrypted``: end to end. ``undecryptable``: why
    this device cannot read it (docs/encryption.md), and ``content`` is empty then; a ``Changed``
    tells when it can. ``media``: files, for ``Client.download``. ``sticker``: its code, of
    ``Client.stickers``, or empty."""

    conversation: str
    key: str
    uid: str
    device: str
    content: bytes
    index: int  # type: ignore[assignment]  # hides tuple.index, which means nothing here
    late: bool
    composed_ms: int
    reply: str = ""
    mentions: tuple[str, ...] = ()
    encrypted: bool = False
    undecryptable: str = ""
    media: tuple[MediaRef, ...] = ()
    sticker: str = ""


class Moved(NamedTuple):
    """A shown message turned out to stand elsewhere: taken out at ``from_index``, put in at
    ``to_index`` (counted after it was taken out)."""

    conversation: str
    key: str
    from_index: int
    to_index: int


class Changed(NamedTuple):
    """A message was edited, recalled or reacted to. ``content`` is what it says now, empty once it
    is ``recalled``; ``reactions`` are all that stand, as (uid, code), sorted. ``undecryptable``:
    as of a Message."""

    conversation: str
    key: str
    content: bytes
    recalled: bool
    reactions: tuple[tuple[str, str], ...]
    undecryptable: str = ""


class CursorMoved(NamedTuple):
    """``uid`` has read up to the message ``key`` (None: to before the first shown one): the own
    user, or another one of a conversation of at most ten. What moved while there was no connection
    is not told; ``Client.readers`` knows it."""

    conversation: str
    uid: str
    key: str | None


class ConnectionChanged(NamedTuple):
    """Empty names: not connected. ``reason`` is a sentence for people."""

    idc: str
    gateway: str
    reason: str


class Typing(NamedTuple):
    """``uid`` types (``on``) in the conversation, or has stopped, or has sent what was typed."""

    conversation: str
    uid: str
    on: bool


class Presence(NamedTuple):
    """``online``: on which kinds of device, empty when on none; a device of which its token says
    nothing counts as kind "". ``last_seen_ms``: on the wall clock; 0 while online, or when the user
    was never seen. ``unwatched``: too many watch this user, so no change is told."""

    uid: str
    online: tuple[str, ...]
    last_seen_ms: int
    unwatched: bool = False


class GroupChanged(NamedTuple):
    """``actor`` has let ``joined`` in, put ``left`` out (or has left), given ``roles``, as (uid,
    role), the ``name`` or the ``announcement`` (empty: taken back; None: as before). It is told in
    the order in which devices hear of it, and may come twice: what stands says ``Client.group``."""

    conversation: str
    actor: str
    joined: tuple[str, ...]
    left: tuple[str, ...]
    roles: tuple[tuple[str, str], ...]
    name: str
    announcement: str | None = None


class FriendChanged(NamedTuple):
    """What ``uid`` is to this user from now on: ``friend``, ``asked`` (by this user, without an
    answer), ``asking`` (this user), ``blocked`` (by this user), or nothing. Told to devices that
    are connected, and owed to nobody."""

    uid: str
    state: str


class Missed(NamedTuple):
    """Though the connection stands, events may not have come that are owed to nobody: ask anew what
    is shown of ``Client.friends`` and ``Client.readers``. Who is watched is asked for already, and
    messages come anyway. ``reason`` is a sentence for people."""

    reason: str


class IdentitySeen(NamedTuple):
    """The keys of a device were seen for the first time and are trusted from now on, or
    (``changed``) it has others than before: nothing is encrypted for it, and nothing of it read,
    until ``Client.trust``."""

    uid: str
    device: str
    fingerprint: str
    changed: bool


Event = (
    Message
    | Moved
    | Changed
    | CursorMoved
    | ConnectionChanged
    | Typing
    | Presence
    | GroupChanged
    | FriendChanged
    | Missed
    | IdentitySeen
)
