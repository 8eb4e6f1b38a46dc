"""The region key: MACs over places and over HLCs that clients carry between IDCs.

Without them a client could place a message in the past or drag the clock into the future
(rules 10 and 12). Keyed BLAKE2b (RFC 7693), truncated: 16 bytes for a place, 8 for an HLC.
A MAC names its key id; retired keys still verify, so a rotation strands no outbox.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from imcore.words import Attested, ClientKey, Origin, Place, Stamp


def content_hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _place_bytes(key: ClientKey, digest: bytes, origin: Origin, seq: int, place: Place) -> bytes:
    fields = (
        f"{key.uid}\0{key.device}\0{key.outbox}\0{key.conversation}\0{key.cid}\0"
        f"{origin}\0{seq}\0{place.hlc}\0{place.origin}\0{place.seq}\0"
    )
    return fields.encode() + digest


class RegionKeys:
    """The keys of one region: ``current`` signs, all of them verify."""

    def __init__(self, keys: Mapping[int, bytes], current: int) -> None:
        if current not in keys:
            raise ValueError(f"current key id {current} is not among {sorted(keys)}")
        self._keys = dict(keys)
        self._current = current

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
        if attested.key_id not in self._keys:
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
