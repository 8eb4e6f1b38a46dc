"""Between the words of the domain and their Protobuf messages.

Fields are assigned one by one where the message stands (``fill_...``): made apart with arguments
and copied in, a place costs 2.2 us instead of 0.8, and a message on its way has a dozen of them.
Tuples are made by ``tuple.__new__``: a NamedTuple's own constructor is a function of Python, which
costs as much as all else about an origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from imcore.proto import client_pb2 as pb
from imcore.words import Attested, ClientKey, Origin, Place, Stamp, Vector

_new = tuple.__new__


class _Positions(Protocol):
    def add(self) -> pb.Position: ...


def error_pb(stamp: pb.Stamp, code: str, message: str, retry_after_ms: int = 0) -> pb.Response:
    """The answer to a request that cannot be done, or not now."""
    response = pb.Response(stamp=stamp)
    response.error.code = code
    response.error.message = message
    response.error.retry_after_ms = retry_after_ms
    return response


def fill_origin(message: pb.Origin, origin: Origin) -> None:
    message.idc, message.incarnation = origin


def origin_pb(origin: Origin) -> pb.Origin:
    message = pb.Origin()
    fill_origin(message, origin)
    return message


def origin_of(message: pb.Origin) -> Origin:
    return _new(Origin, (message.idc, message.incarnation))


def fill_place(message: pb.Place, place: Place) -> None:
    message.hlc, origin, message.seq = place
    fill_origin(message.origin, origin)


def place_pb(place: Place) -> pb.Place:
    message = pb.Place()
    fill_place(message, place)
    return message


def place_of(message: pb.Place) -> Place:
    origin = message.origin
    by = _new(Origin, (origin.idc, origin.incarnation))
    return _new(Place, (message.hlc, by, message.seq))


def fill_key(message: pb.ClientKey, key: ClientKey) -> None:
    message.uid, message.device, message.outbox, message.conversation, message.cid = key


def key_pb(key: ClientKey) -> pb.ClientKey:
    message = pb.ClientKey()
    fill_key(message, key)
    return message


def key_of(message: pb.ClientKey) -> ClientKey:
    return _new(
        ClientKey,
        (message.uid, message.device, message.outbox, message.conversation, message.cid),
    )


def fill_attested(message: pb.Attested, attested: Attested) -> None:
    fill_key(message.key, attested.key)
    message.content_hash, message.seq = attested.content_hash, attested.seq
    fill_origin(message.origin, attested.origin)
    fill_place(message.place, attested.place)
    message.key_id, message.mac = attested.key_id, attested.mac


def attested_pb(attested: Attested) -> pb.Attested:
    message = pb.Attested()
    fill_attested(message, attested)
    return message


def attested_of(message: pb.Attested) -> Attested:
    return Attested(
        key_of(message.key),
        message.content_hash,
        origin_of(message.origin),
        message.seq,
        place_of(message.place),
        message.key_id,
        message.mac,
    )


def stamp_pb(stamp: Stamp) -> pb.Stamp:
    return pb.Stamp(hlc=stamp.hlc, key_id=stamp.key_id, mac=stamp.mac)


def stamp_of(message: pb.Stamp) -> Stamp:
    return Stamp(message.hlc, message.key_id, message.mac)


def fill_positions(positions: _Positions, vector: Mapping[Origin, int]) -> None:
    """``positions``: the field, to which they are added in order."""
    for origin in sorted(vector):
        position = positions.add()
        position.seq = vector[origin]
        wire = position.origin
        wire.idc, wire.incarnation = origin


def positions_pb(vector: Mapping[Origin, int]) -> list[pb.Position]:
    made = pb.ConversationHeads()
    fill_positions(made.heads, vector)
    return list(made.heads)


def vector_of(positions: Iterable[pb.Position]) -> Vector:
    found = {}
    for position in positions:
        origin = position.origin
        found[_new(Origin, (origin.idc, origin.incarnation))] = position.seq
    return found
