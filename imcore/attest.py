"""The region key: MACs over places and over HLCs that clients carry between IDCs.

Without them a client could place a message in the past or drag the clock into the future
(rules 10 and 12). Keyed BLAKE2b (RFC 7693), truncated: 16 bytes for a place, 8 for an HLC.
A MAC names its key id; retired keys still verify, so a rotation strands no outbox.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping

from imcore.words import Attested, ClientKey, Origin, Place, Stamp

CONTENT_HASH_BYTES = 16
# Six lengths of texts; cid, incarnation, seq; hlc, incarnation and seq of the place.
_PLACE_HEAD = struct.Struct(">6I QIQ QIQ")


def content_hash(content: bytes, refs: bytes = b"") -> bytes:
    """Of a message. One with ``refs`` is hashed apart, so it never equals one without."""
    if not refs:
        return hashlib.blake2b(content, digest_size=CONTENT_HASH_BYTES).digest()
    data = len(refs).to_bytes(4, "big") + refs + content
    return hashlib.blake2b(data, digest_size=CONTENT_HASH_BYTES, person=b"refs").digest()


def _place_bytes(key: ClientKey, digest: bytes, origin: Origin, seq: int, place: Place) -> bytes:
    """What a place's MAC is over. The lengths of all texts and all numbers come first, in a head
    of fixed size, so that no two different places have the same bytes: with a mere separator
    a client could shift it by an id that contains one, and own a place that nobody gave it."""
    uid, device, outbox = key.uid.encode(), key.device.encode(), key.outbox.encode()
    conversation = key.conversation.encode()
    idc, placed_by = origin.idc.encode(), place.origin.idc.encode()
    head = _PLACE_HEAD.pack(
        len(uid), len(device), len(outbox), len(conversation), len(idc), len(placed_by),
        key.cid, origin.incarnation, seq, place.hlc, place.origin.incarnation, place.seq,
    )  # fmt: skip
    return b"".join((head, uid, device, outbox, conversation, idc, placed_by, digest))


class RegionKeys:
    """The keys of one region: ``current`` signs, all of them verify."""

    def __init__(self, keys: Mapping[int, bytes], current: int) -> None:
        self.replace(keys, current)

    def replace(self, keys: Mapping[int, bytes], current: int) -> None:
        """By a rotation, for everybody who holds this object. Raises ValueError, and changes
        nothing then, when ``current`` is none of them."""
        if current not in keys:
            raise ValueError(f"current key id {current} is not among {sorted(keys)}")
        self._keys = dict(keys)
        self._current = current

    def become(self, other: RegionKeys) -> None:
        self.replace(other._keys, other._current)

    @property
    def current(self) -> int:
        return self._current

    @property
    def ids(self) -> list[int]:
        return sorted(self._keys)

    def _mac(self, key_id: int, data: bytes, size: int, purpose: bytes) -> bytes:
        return hashlib.blake2b(
            data, key=self._keys[key_id], digest_size=size, person=purpose
        ).digest()

    def attest(
        self, key: ClientKey, digest: bytes, origin: Origin, seq: int, place: Place
    ) -> Attested:
        mac = self._mac(self._current, _place_bytes(key, digest, origin, seq, place), 16, b"place")
        return Attested(key, digest, origin, seq, place, self._current, mac)

    def verify(self, attested: Attested) -> bool:
        if attested.key_id not in self._keys or len(attested.content_hash) != CONTENT_HASH_BYTES:
            return False
        data = _place_bytes(
            attested.key, attested.content_hash, attested.origin, attested.seq, attested.place
        )
        return hmac.compare_digest(self._mac(attested.key_id, data, 16, b"place"), attested.mac)

    def stamp(self, hlc: int) -> Stamp:
        mac = self._mac(self._current, hlc.to_bytes(8, "big"), 8, b"hlc")
        return Stamp(hlc, self._current, mac)

    def seen(self, stamp: Stamp) -> int:
        """The stamp's HLC if this region handed it out, else 0: a forged one is ignored."""
        if stamp.key_id not in self._keys:
            return 0
        mac = self._mac(stamp.key_id, stamp.hlc.to_bytes(8, "big"), 8, b"hlc")
        return stamp.hlc if hmac.compare_digest(mac, stamp.mac) else 0

    def sign(self, data: bytes, purpose: bytes) -> bytes:
        """key id (4 bytes, big-endian) and 16 bytes of MAC: for tokens."""
        return self._current.to_bytes(4, "big") + self._mac(self._current, data, 16, purpose)

    def check(self, data: bytes, signature: bytes, purpose: bytes) -> bool:
        if len(signature) != 20:
            return False
        key_id = int.from_bytes(signature[:4], "big")
        if key_id not in self._keys:
            return False
        return hmac.compare_digest(self._mac(key_id, data, 16, purpose), signature[4:])
