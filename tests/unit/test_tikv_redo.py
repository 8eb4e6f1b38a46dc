"""A batch beside itself, and who waits while it is not read back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore.errors import Damaged
from services.engines.tikv.doubts import Doubts
from services.engines.tikv.layout import Meta
from services.engines.tikv.redo import Redo, parse

KEYS = st.binary(min_size=1, max_size=40)


@given(
    st.integers(0, 1 << 63),
    st.integers(0, 1 << 63),
    st.dictionaries(KEYS, st.binary(max_size=300), max_size=8),
    st.lists(KEYS, max_size=8),
)
def test_a_redo_is_read_as_it_was_written(batch, generation, puts, deletes):
    redo = Redo(batch, generation, tuple(puts.items()), tuple(deletes))
    assert parse(redo.packed()) == redo


@given(st.integers(0, 200))
def test_a_cut_one_is_damaged_or_another_number_of_deletes(at):
    redo = Redo(7, 1, ((b"key", b"value"), (b"k2", b"")), (b"gone", b"too"))
    packed = redo.packed()
    if at >= len(packed):
        return
    try:
        found = parse(packed[:at])
    except Damaged:
        return
    assert found.puts == redo.puts and found.deletes in ((), (b"gone",))


@pytest.mark.parametrize("changed", [True, False])
async def test_who_saw_the_batch_waits_and_others_do_not(changed: bool) -> None:
    doubts = Doubts()
    doubts.begin(1, 5)
    assert await doubts.hold({1: Meta(batch=4), 2: Meta(batch=5)})
    waiting = asyncio.ensure_future(doubts.hold({1: Meta(batch=5)}))
    await asyncio.sleep(0)
    doubts.begin(1, 5)  # the transaction is tried again
    await asyncio.sleep(0)
    assert not waiting.done()
    doubts.settle(1, changed)
    assert await waiting is not changed
    assert await doubts.hold({1: Meta(batch=5)})


async def test_an_older_doubt_ends_with_the_next_one() -> None:
    doubts = Doubts()
    doubts.begin(1, 5)
    waiting = asyncio.ensure_future(doubts.hold({1: Meta(batch=5)}))
    await asyncio.sleep(0)
    doubts.begin(1, 6)
    assert await waiting is False
