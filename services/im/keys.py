"""Keys of the KV. Every key starts with its partition number, so it belongs to one applier.

Strings hold no NUL byte (``imcore.words.valid_id``), so a NUL ends them and prefixes never
overlap. Integers are big-endian: byte order is number order.

    table  key                                      value
    h      conversation                             HeadsRow
    e      conversation, origin, seq                the Op as its origin logged it
    k      conversation, uid, device, outbox, cid   ClassRow
    o      conversation, place, client key          identity of the copy that is shown
    g      conversation                             GroupRow: its name
    g      conversation, uid                        MemberRow: how this user came and went
    m      uid, conversation                        empty: member of this group
    r      uid, conversation                        Place: read up to here
    s      uid, conversation                        SettingsRow
    f      uid, other uid                           FriendRow, the same for both
    w      uid, device                              RouteRow
    d      uid, device                              DeviceKeysOp: the last word on its keys
    u      uid, conversation                        local timeline number (not replicated state)
    x      uid, device                              a kick, as its op: the last one (nor is this)
    v                                               CheckpointRow (not replicated state)
"""

from __future__ import annotations

import struct
import zlib

from imcore.words import ClientKey, Lane, Origin, Place

_U16 = struct.Struct(">H")
_U64 = struct.Struct(">Q")
_PLACE_REF = struct.Struct(">IQ")

KEY_BYTES_MAX = 511  # what every store behind the Kv port takes (services.ports)
_IDC_BYTES_MAX = 64  # origins count as long as names may be, wherever an op comes from
_ORIGIN_BYTES_MAX = _IDC_BYTES_MAX + 1 + 4
_ORDER_BYTES_MAX = 2 + 1 + 1 + 8 + _ORIGIN_BYTES_MAX + 8 + 1 + 8  # but for the names of the key
_SHORT = KEY_BYTES_MAX // 2 - 8  # a user's key names the conversation and a user who is named in it
_ENTRY_BYTES_MAX = 2 + 1 + 1 + _ORIGIN_BYTES_MAX + 8  # but for the conversation

REPLICATED_TABLES = (b"h", b"e", b"k", b"o", b"g", b"m", b"r", b"s", b"f", b"w", b"d")
SCANNED_DOWN = (b"o",)  # of these, the newest come first


def partition_of(text: str, partitions: int) -> int:
    """Which partition a conversation (or a uid) belongs to: the same in every IDC, for ever."""
    return zlib.crc32(text.encode()) % partitions


def table(partition: int, name: bytes) -> bytes:
    return _U16.pack(partition) + name


def prefix_end(prefix: bytes) -> bytes:
    """The smallest key above all that start with ``prefix`` (none here ends in 0xff)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _origin(origin: Origin) -> bytes:
    return origin.idc.encode() + b"\0" + struct.pack(">I", origin.incarnation)


def heads(partition: int, conversation: str) -> bytes:
    return _U16.pack(partition) + b"h" + conversation.encode()


def conversation_of(heads_key: bytes) -> str:
    return heads_key[3:].decode()


def group(partition: int, conversation: str) -> bytes:
    return _U16.pack(partition) + b"g" + conversation.encode()


def group_member(partition: int, conversation: str, uid: str) -> bytes:
    return group_members_prefix(partition, conversation) + uid.encode()


def group_members_prefix(partition: int, conversation: str) -> bytes:
    return group(partition, conversation) + b"\0"


def surely_fit(*names: str) -> bool:
    """True: a conversation, its users and a client key of such names fit, of whatever origin. Names
    of usual length need no closer look."""
    text = "".join(names)
    return len(text) <= _SHORT and text.isascii() and "\0" not in text


def conversation_fits(conversation: str) -> bool:
    """Whether the keys of such a conversation can be stored, in every IDC alike."""
    size = len(conversation.encode()) + _ENTRY_BYTES_MAX
    return "\0" not in conversation and size <= KEY_BYTES_MAX


def client_key_fits(key: ClientKey) -> bool:
    """The same of a message's class; its longest key is the one of its place."""
    names = "\0".join(key[:4])
    return names.count("\0") == 3 and len(names.encode()) + _ORDER_BYTES_MAX <= KEY_BYTES_MAX


def user_key_fits(uid: str, other: str) -> bool:
    """The same of what is kept of a user in a conversation, or of a user's device."""
    return "\0" not in uid + other and len(member(0, uid, other)) <= KEY_BYTES_MAX


def entry(partition: int, conversation: str, origin: Origin, seq: int) -> bytes:
    return (
        _U16.pack(partition)
        + b"e"
        + conversation.encode()
        + b"\0"
        + _origin(origin)
        + _U64.pack(seq)
    )


def lane(partition: int, lane_: Lane) -> bytes:
    text = f"{lane_.conversation}\0{lane_.uid}\0{lane_.device}\0{lane_.outbox}\0"
    return _U16.pack(partition) + b"k" + text.encode()


def client_key(partition: int, key: ClientKey) -> bytes:
    text = f"{key.conversation}\0{key.uid}\0{key.device}\0{key.outbox}\0"
    return _U16.pack(partition) + b"k" + text.encode() + _U64.pack(key.cid)


def cid_of(class_key: bytes) -> int:
    return int(_U64.unpack(class_key[-8:])[0])


def order_prefix(partition: int, conversation: str) -> bytes:
    return _U16.pack(partition) + b"o" + conversation.encode() + b"\0"


def order_at(partition: int, conversation: str, place: Place) -> bytes:
    """The start of all order keys at this place."""
    return (
        order_prefix(partition, conversation)
        + _U64.pack(place.hlc)
        + _origin(place.origin)
        + _U64.pack(place.seq)
    )


def order(partition: int, place: Place, key: ClientKey) -> bytes:
    tie = f"{key.uid}\0{key.device}\0{key.outbox}\0".encode() + _U64.pack(key.cid)
    return order_at(partition, key.conversation, place) + tie


def order_above(partition: int, conversation: str, place: Place) -> bytes:
    """Above all order keys at this place: no uid begins with such a byte."""
    return order_at(partition, conversation, place) + b"\xff"


def named_in(order_key: bytes, conversation: str) -> ClientKey:
    """The message whose order key this is."""
    at = 2 + 1 + len(conversation.encode()) + 1 + 8
    at = order_key.index(b"\0", at) + 1 + 4 + 8  # behind the origin and the seq
    uid, device, outbox = order_key[at:-9].decode().split("\0")
    return ClientKey(uid, device, outbox, conversation, cid_of(order_key))


def placed_in(order_key: bytes, conversation: str) -> tuple[Place, ClientKey]:
    """Where it stands, and which message it is."""
    at = 2 + 1 + len(conversation.encode()) + 1
    hlc = number_from(order_key[at : at + 8])
    end = order_key.index(b"\0", at + 8)
    incarnation, seq = _PLACE_REF.unpack_from(order_key, end + 1)
    origin = Origin(order_key[at + 8 : end].decode(), incarnation)
    return Place(hlc, origin, seq), named_in(order_key, conversation)


def identity_value(origin: Origin, seq: int) -> bytes:
    return _PLACE_REF.pack(origin.incarnation, seq) + origin.idc.encode()


def identity_from(value: bytes) -> tuple[Origin, int]:
    incarnation, seq = _PLACE_REF.unpack_from(value)
    return Origin(value[_PLACE_REF.size :].decode(), incarnation), seq


def member(partition: int, uid: str, conversation: str) -> bytes:
    return member_prefix(partition, uid) + conversation.encode()


def member_prefix(partition: int, uid: str) -> bytes:
    return _U16.pack(partition) + b"m" + uid.encode() + b"\0"


def cursor(partition: int, uid: str, conversation: str) -> bytes:
    return _U16.pack(partition) + b"r" + uid.encode() + b"\0" + conversation.encode()


def settings(partition: int, uid: str, conversation: str) -> bytes:
    return _U16.pack(partition) + b"s" + uid.encode() + b"\0" + conversation.encode()


def friend(partition: int, uid: str, other: str) -> bytes:
    return friends_prefix(partition, uid) + other.encode()


def friends_prefix(partition: int, uid: str) -> bytes:
    return _U16.pack(partition) + b"f" + uid.encode() + b"\0"


def route(partition: int, uid: str, device: str) -> bytes:
    return _U16.pack(partition) + b"w" + uid.encode() + b"\0" + device.encode()


def device_keys(partition: int, uid: str, device: str) -> bytes:
    """Of no device: the start of those of all."""
    return _U16.pack(partition) + b"d" + uid.encode() + b"\0" + device.encode()


def kick(partition: int, uid: str, device: str) -> bytes:
    return _U16.pack(partition) + b"x" + uid.encode() + b"\0" + device.encode()


def timeline_prefix(partition: int, uid: str) -> bytes:
    return _U16.pack(partition) + b"u" + uid.encode() + b"\0"


def timeline(partition: int, uid: str, conversation: str) -> bytes:
    return timeline_prefix(partition, uid) + conversation.encode()


def number(value: int) -> bytes:
    return _U64.pack(value)


def number_from(value: bytes) -> int:
    return int(_U64.unpack(value)[0])
