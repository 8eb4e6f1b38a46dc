"""Entries as clients get them: what was logged, where its class stands, and the attestation."""

from __future__ import annotations

from imcore.attest import RegionKeys
from imcore.convert import fill_attested, fill_origin, key_of
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey, Origin, Place
from services.im.fold import Entry


def attest(
    out: pb.Attested,
    key: ClientKey,
    digest: bytes,
    origin: Origin,
    seq: int,
    place: Place,
    region_keys: RegionKeys,
) -> None:
    """Fill in the attestation."""
    fill_attested(out, region_keys.attest(key, digest, origin, seq, place))


def build(entry: Entry, region_keys: RegionKeys) -> pb.Entry:
    op = entry.op
    built = pb.Entry()
    built.seq, built.hlc = op.seq, op.hlc
    fill_origin(built.origin, entry.origin)
    if op.HasField("trace"):
        built.trace.CopyFrom(op.trace)
    kind = op.WhichOneof("body")
    if kind == "message":
        if entry.place is None:
            raise ValueError(f"message {entry.origin}:{op.seq} of {op.conversation} has no place")
        message, out = op.message, built.message
        key, digest = key_of(message.key), message.content_hash
        attest(out.placed, key, digest, entry.origin, op.seq, entry.place, region_keys)
        if not entry.recalled:
            out.content, out.refs = message.content, message.refs
        out.composed_ms, out.encrypted = message.composed_ms, message.encrypted
        out.alias = entry.alias
        built.claims.extend(message.claims)
    elif kind == "place":
        built.place_op.key.CopyFrom(op.place.key)
        built.place_op.place.CopyFrom(op.place.place)
        built.claims.extend(op.place.claims)
    elif kind == "change":
        built.change.CopyFrom(op.change)
        if entry.recalled and op.change.HasField("edit"):
            built.change.edit = b""
    elif kind == "membership":
        built.membership.changes.extend(op.membership.changes)
        built.membership.name = op.membership.name
        built.membership.create = op.membership.create
        built.membership.actor = op.membership.actor
        built.membership.encrypted = op.membership.encrypted
        built.membership.roles.extend(op.membership.roles)
        if op.membership.HasField("announcement"):
            built.membership.announcement.CopyFrom(op.membership.announcement)
    return built
