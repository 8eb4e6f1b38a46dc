"""The record codec, and what it makes of bad bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore.errors import Damaged
from services.engines.records import (
    EMPTY_END,
    HEADER_BYTES,
    chain_after,
    follows,
    highest_behind,
    pack,
    record_after,
    unpack,
    unpack_at,
)
from services.ports import LogEnd, Record

records = st.builds(
    Record,
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**64 - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=300),
)


@given(records)
def test_what_is_packed_is_unpacked(record: Record) -> None:
    assert unpack(pack(record)) == record
    assert unpack_at(b"xyz" + pack(record) + b"behind", 3) == record


@given(records, st.data())
def test_any_flipped_bit_is_found(record: Record, data: st.DataObject) -> None:
    packed = bytearray(pack(record))
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Damaged):
        unpack(bytes(packed))


@given(records, st.data())
def test_a_part_of_a_record_is_no_record(record: Record, data: st.DataObject) -> None:
    packed = pack(record)
    assert unpack_at(packed[: data.draw(st.integers(0, len(packed) - 1))], 0) is None
    with pytest.raises(Damaged):
        unpack(packed + b"\0")


def test_a_record_follows_only_its_own_history() -> None:
    first = record_after(EMPTY_END, 3, 1, b"a")
    end = LogEnd(first.lsn, first.chain, first.epoch)
    second = record_after(end, 3, 1, b"b")
    assert follows(EMPTY_END, first) and follows(end, second)
    for wrong in (
        second._replace(payload=b"c"),
        second._replace(epoch=2),
        second._replace(partition=4),
        second._replace(lsn=3),
        second._replace(chain=chain_after(bytes(16), 3, 1, 2, b"b")),
    ):
        assert not follows(end, wrong)


def test_valid_records_behind_bad_bytes_are_found() -> None:
    first = record_after(EMPTY_END, 3, 1, b"a")
    second = record_after(LogEnd(1, first.chain, 1), 3, 1, b"b")
    data = bytes(20) + pack(second) + b"torn"
    assert highest_behind(data, 0, 3, 0) == 2
    assert highest_behind(data, 0, 3, 2) == 0, "an older record behind is a left-over"
    assert highest_behind(data, 0, 4, 0) == 0, "another partition's"
    assert highest_behind(data[: 20 + HEADER_BYTES], 0, 3, 0) == 0
