"""One line of the list of conversations, and the order in which they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from imcore.convert import key_of, place_of
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey
from services.sdk.core.view import key_text


class Last(NamedTuple):
    """The last message of a conversation. ``content`` is what it says now, empty once it is
    ``recalled``; ``composed_ms`` is the sender's clock, for people. Of one that is ``encrypted``
    the content is that of the view, and empty when it is not shown there."""

    key: str
    uid: str
    content: bytes
    composed_ms: int
    recalled: bool
    encrypted: bool = False


class Summary(NamedTuple):
    """``name``: of a group. ``unread``: others' messages above the user's read cursor, without
    those recalled; ``more_unread``: there may be more. ``last`` None: nothing was said yet."""

    conversation: str
    name: str
    unread: int
    more_unread: bool
    last: Last | None
    pinned: bool
    muted: bool
    encrypted: bool = False


def ordered(
    found: Iterable[pb.ConversationSummary], shown: Callable[[ClientKey], bytes]
) -> tuple[Summary, ...]:
    """What is pinned first, then by the last message, the newest first. ``shown``: what an
    encrypted message says now in its view."""
    rows = sorted(
        found,
        key=lambda row: (row.pinned, place_of(row.last.place), row.conversation),
        reverse=True,
    )
    return tuple(_summary(row, shown) for row in rows)


def _summary(row: pb.ConversationSummary, shown: Callable[[ClientKey], bytes]) -> Summary:
    last = None
    if row.HasField("last"):
        told = row.last
        key = key_of(told.key)
        content = shown(key) if told.encrypted else told.content
        last = Last(
            key_text(key), key.uid, content, told.composed_ms, told.recalled, told.encrypted
        )
    return Summary(
        row.conversation, row.name, row.unread, row.more_unread, last, row.pinned, row.muted,
        row.encrypted,
    )  # fmt: skip
