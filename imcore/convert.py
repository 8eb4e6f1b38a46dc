"""Between the words of the domain and their Protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from imcore.proto import client_pb2 as pb
from imcore.words import Attested, ClientKey, Origin, Place, Stamp, Vector


def origin_pb(origin: Origin) -> pb.Origin:
    return pb.Origin(idc=origin.idc, incarnation=origin.incarnation)


def origin_of(message: pb.Origin) -> Origin:
    return Origin(message.idc, message.incarnation)


def place_pb(place: Place) -> pb.Place:
    return pb.Place(hlc=place.hlc, origin=origin_pb(place.origin), seq=place.seq)


def place_of(message: pb.Place) -> Place:
    origin = message.origin
    return Place(message.hlc, Origin(origin.idc, origin.incarnation), message.seq)


def key_pb(key: ClientKey) -> pb.ClientKey:
    return pb.ClientKey(
        uid=key.uid,
        device=key.device,
        outbox=key.outbox,
        conversation=key.conversation,
        cid=key.cid,
    )


def key_of(message: pb.ClientKey) -> ClientKey:
    return ClientKey(message.uid, message.device, message.outbox, message.conversation, message.cid)


def attested_pb(attested: Attested) -> pb.Attested:
    return pb.Attested(
        key=key_pb(attested.key),
        content_hash=attested.content_hash,
        origin=origin_pb(attested.origin),
        seq=attested.seq,
        place=place_pb(attested.place),
        key_id=attested.key_id,
        mac=attested.mac,
    )


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


def positions_pb(vector: Mapping[Origin, int]) -> list[pb.Position]:
    return [pb.Position(origin=origin_pb(origin), seq=vector[origin]) for origin in sorted(vector)]


def vector_of(positions: Iterable[pb.Position]) -> Vector:
    return {origin_of(position.origin): position.seq for position in positions}
