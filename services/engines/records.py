"""The record codec: the same bytes on disk and between IDCs (``TailRecord.record``). Pure.

    length u32     of the payload
    crc u32        CRC-32 of all that follows, seeded with the length
    partition u16
    kind u8        also the format's version
    epoch u64
    lsn u64
    chain 16       BLAKE2b over the predecessor's chain, partition, epoch, lsn and payload
    payload

The CRC finds damaged bytes; the chain finds a record that is whole but of another history.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence

from imcore.errors import Damaged
from services.ports import LogEnd, Record

_PREFIX = struct.Struct(">II")
_BODY = struct.Struct(">HBQQ16s")
_CHAINED = struct.Struct(">HQQ")

KIND = 0xA1
HEADER_BYTES = _PREFIX.size + _BODY.size
PAYLOAD_BYTES_MAX = 64 * 1024 * 1024
NO_CHAIN = bytes(16)
EMPTY_END = LogEnd(0, NO_CHAIN, 0)


def chain_after(prev_chain: bytes, partition: int, epoch: int, lsn: int, payload: bytes) -> bytes:
    """The chain of the record that follows the one whose chain is ``prev_chain``."""
    digest = hashlib.blake2b(prev_chain, digest_size=16)
    digest.update(_CHAINED.pack(partition, epoch, lsn))
    digest.update(payload)
    return digest.digest()


def record_after(end: LogEnd, partition: int, epoch: int, payload: bytes) -> Record:
    lsn = end.lsn + 1
    chain = chain_after(end.chain, partition, epoch, lsn, payload)
    return Record(partition, epoch, lsn, chain, payload)


def records_after(
    end: LogEnd, partition: int, epoch: int, payloads: Sequence[bytes]
) -> list[Record]:
    found: list[Record] = []
    for payload in payloads:
        record = record_after(end, partition, epoch, payload)
        found.append(record)
        end = LogEnd(record.lsn, record.chain, epoch)
    return found


def follows(end: LogEnd, record: Record) -> bool:
    """Whether the record is the next of the log that ends at ``end``."""
    if record.lsn != end.lsn + 1:
        return False
    chain = chain_after(end.chain, record.partition, record.epoch, record.lsn, record.payload)
    return chain == record.chain


def pack(record: Record) -> bytes:
    partition, epoch, lsn, chain, payload = record
    length = len(payload)
    if length > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a record holds at most {PAYLOAD_BYTES_MAX} bytes, not {length}")
    body = _BODY.pack(partition, KIND, epoch, lsn, chain) + payload
    return _PREFIX.pack(length, zlib.crc32(body, length)) + body


def unpack(data: bytes) -> Record:
    """Exactly one record. Raises Damaged."""
    record = unpack_at(data, 0)
    if record is None or len(record.payload) + HEADER_BYTES != len(data):
        raise Damaged("the bytes are not one whole record")
    return record


def unpack_at(data: bytes, offset: int) -> Record | None:
    """The record that starts at ``offset``; None when it is cut short or fails its check."""
    if len(data) - offset < HEADER_BYTES:
        return None
    length, crc = _PREFIX.unpack_from(data, offset)
    body_at = offset + _PREFIX.size
    end = offset + HEADER_BYTES + length
    if end > len(data) or zlib.crc32(memoryview(data)[body_at:end], length) != crc:
        return None
    partition, kind, epoch, lsn, chain = _BODY.unpack_from(data, body_at)
    if kind != KIND:
        return None
    return Record(partition, epoch, lsn, chain, data[offset + HEADER_BYTES : end])


def highest_behind(data: bytes, offset: int, partition: int, lsn: int) -> int:
    """The highest lsn above ``lsn`` of a valid record anywhere behind ``offset``; 0: there is none.
    Finds out whether bad bytes are a torn tail or damage with good records behind it."""
    mark = struct.pack(">HB", partition, KIND)
    highest = 0
    at = data.find(mark, offset + _PREFIX.size)
    while at >= 0:
        record = unpack_at(data, at - _PREFIX.size)
        # The bound keeps a record that somebody hid in a payload from counting, most of the time.
        if record is not None and lsn < record.lsn <= lsn + len(data) // HEADER_BYTES + 1:
            highest = max(highest, record.lsn)
            at = data.find(mark, at + HEADER_BYTES + len(record.payload))
        else:
            at = data.find(mark, at + 1)
    return highest
