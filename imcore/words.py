"""The words of the domain (docs/architecture.md, "Words") as plain values.

All are tuples, so they compare, hash and sort the way every IDC must agree on:
an origin first by the IDC's name as a string, then by its incarnation as an *integer*.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Origin(NamedTuple):
    """The IDC in which an operation was accepted, and which life of that IDC it was."""

    idc: str
    incarnation: int

    def __str__(self) -> str:
        return f"{self.idc}.{self.incarnation}"


def parse_origin(text: str) -> Origin:
    """Inverse of ``str(Origin)``. Raises ValueError."""
    idc, dot, incarnation = text.rpartition(".")
    if not dot or not idc:
        raise ValueError(f"expected IDC.INCARNATION, got {text!r}")
    return Origin(idc, int(incarnation))


class Place(NamedTuple):
    """Where a message stands in its conversation: (hlc, origin, seq) of its first acceptance."""

    hlc: int
    origin: Origin
    seq: int


class Identity(NamedTuple):
    """What names one accepted entry of a conversation; seq is contiguous from 1 per origin."""

    conversation: str
    origin: Origin
    seq: int


class ClientKey(NamedTuple):
    """What names one message on the sender's side, however often and wherever it was accepted."""

    uid: str
    device: str
    outbox: str
    conversation: str
    cid: int


class Lane(NamedTuple):
    """The sequence that cids count in: one outbox store of one device, one conversation."""

    uid: str
    device: str
    outbox: str
    conversation: str


class Attested(NamedTuple):
    """A place that some IDC has vouched for with the region key (``imcore.attest``)."""

    key: ClientKey
    content_hash: bytes
    origin: Origin
    seq: int
    place: Place
    key_id: int
    mac: bytes


class Stamp(NamedTuple):
    """An HLC that some IDC handed out, with its truncated MAC."""

    hlc: int
    key_id: int
    mac: bytes


# What a token may say of its device; empty: it says nothing.
DEVICE_KINDS = ("phone", "desktop", "web", "tablet", "")

# A position in a conversation (or, with lsn in place of seq, in a partition).
Vector = dict[Origin, int]


def lane_of(key: ClientKey) -> Lane:
    return Lane(key.uid, key.device, key.outbox, key.conversation)


def direct_conversation(uid_a: str, uid_b: str) -> str:
    """The conversation id of two users, the same whoever asks. Uids hold no ':' (``valid_uid``)."""
    low, high = sorted((uid_a, uid_b))
    return f"d:{low}:{high}"


def direct_members(conversation: str) -> tuple[str, str] | None:
    """The two uids of a direct conversation, or None when the id is not of that form."""
    form = _DIRECT.fullmatch(conversation)
    if form is None or form[1] > form[2]:
        return None
    return form[1], form[2]


def is_group(conversation: str) -> bool:
    return _GROUP.fullmatch(conversation) is not None


def valid_conversation(conversation: str) -> bool:
    """Whether the id is of a known form. Every id that a client names is judged by this before it
    gets near a log: it becomes part of keys, and one that the KV cannot take as a key would, once
    logged, stop the fold of its partition in every IDC for ever."""
    return is_group(conversation) or direct_members(conversation) is not None


def valid_id(text: str) -> bool:
    """Whether a uid, device, outbox id or IDC name has only the characters that keys allow, and
    few enough of them for the longest key (tests/unit/test_key_lengths.py)."""
    return _ID.fullmatch(text) is not None


IDC_HEADER = "X-Im-Idc"  # of each answer of an ipconf: whose it is

_ID_PATTERN = "[A-Za-z0-9._@-]{1,64}"
_ID = re.compile(_ID_PATTERN)
_DIRECT = re.compile(f"d:({_ID_PATTERN}):({_ID_PATTERN})")
_GROUP = re.compile(f"g:{_ID_PATTERN}")
