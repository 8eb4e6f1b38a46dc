"""What a region file may allow can always be delivered: a message that was taken but fits no answer
would stop its readers at its place for ever."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from imcore import frame
from imcore.attest import RegionKeys, content_hash
from imcore.convert import attested_pb
from imcore.limits import CLAIMS_MAX, CONTENT_BYTES_MAX
from imcore.proto import client_pb2 as pb
from imcore.region.model import Messages
from imcore.words import Attested, ClientKey, Origin, Place


def longest() -> Attested:
    """An attestation in which every name is as long as names may be."""
    name = "x" * 64
    origin = Origin(name, 0xFFFF_FFFF)
    key = ClientKey(name, name, name, f"d:{name}:{name}", 1 << 63)
    place = Place((1 << 64) - 1, origin, 1 << 63)
    keys = RegionKeys({1 << 31: b"k" * 32}, 1 << 31)
    return keys.attest(key, content_hash(b""), origin, 1 << 63, place)


def test_the_largest_message_with_the_most_claims_fits_a_push_and_a_pull() -> None:
    limit = Messages(content_bytes_max=CONTENT_BYTES_MAX).content_bytes_max
    attested = attested_pb(longest())
    entry = pb.Entry(origin=attested.origin, seq=1 << 63, hlc=1)
    entry.message.placed.CopyFrom(attested)
    entry.message.content = bytes(limit // 2)
    entry.message.refs = bytes(limit - limit // 2)  # they share the limit
    entry.claims.extend([attested] * CLAIMS_MAX)
    heads = [pb.Position(origin=attested.origin, seq=1 << 63)] * 50
    pull = pb.Response()
    pull.pull_ok.conversation = attested.key.conversation
    pull.pull_ok.entries.append(entry)
    pull.pull_ok.heads.extend(heads)
    assert frame.encode(frame.RESPONSE, 1, pull.SerializeToString())
    push = pb.Event()
    push.push.conversation = attested.key.conversation
    push.push.entries.append(entry)
    assert frame.encode(frame.EVENT, 0, push.SerializeToString())


def test_a_region_file_may_not_allow_larger_ones() -> None:
    with pytest.raises(ValidationError):
        Messages(content_bytes_max=CONTENT_BYTES_MAX + 1)
