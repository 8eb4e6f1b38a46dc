"""The longest ids that are taken make keys that the KV takes: an op whose key it refuses would be
in every IDC's log, and stop the fold there for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imcore.words import (
    ClientKey,
    Lane,
    Origin,
    Place,
    direct_conversation,
    direct_members,
    is_group,
    valid_conversation,
    valid_id,
)
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.im import keys
from services.ports import Batch

ID = "x" * 64
DIRECT = direct_conversation(ID, ID)
GROUP = f"g:{ID}"
PARTITION = 0xFFFE
U64 = (1 << 64) - 1
ORIGIN = Origin(ID, (1 << 32) - 1)
PLACE = Place(U64, ORIGIN, U64)
KEY = ClientKey(ID, ID, ID, DIRECT, U64)
LIMIT = 511  # of LMDB

LONGEST = {
    b"h": keys.heads(PARTITION, DIRECT),
    b"e": keys.entry(PARTITION, DIRECT, ORIGIN, U64),
    b"k": keys.client_key(PARTITION, KEY),
    b"o": keys.order(PARTITION, PLACE, KEY),
    b"g": keys.group_member(PARTITION, GROUP, ID),
    b"m": keys.member(PARTITION, ID, GROUP),
    b"r": keys.cursor(PARTITION, ID, DIRECT),
    b"s": keys.settings(PARTITION, ID, DIRECT),
    b"f": keys.friend(PARTITION, ID, ID),
    b"w": keys.route(PARTITION, ID, ID),
    b"d": keys.device_keys(PARTITION, ID, ID),
    b"u": keys.timeline(PARTITION, ID, DIRECT),
    b"x": keys.kick(PARTITION, ID, ID),
}


def test_the_ids_used_here_are_the_longest_that_are_valid() -> None:
    assert valid_id(ID) and valid_conversation(DIRECT) and valid_conversation(GROUP)
    assert not valid_id(ID + "x")
    assert not valid_conversation(f"d:{ID}:{ID}x") and not valid_conversation(GROUP + "x")
    assert len(DIRECT) > len(GROUP)


def test_every_table_is_looked_at() -> None:
    assert set(LONGEST) == {*keys.REPLICATED_TABLES, b"u", b"x"}
    assert all(key[2:3] == name for name, key in LONGEST.items())


@pytest.mark.parametrize("name", LONGEST)
def test_the_longest_key_is_below_the_limit(name: bytes) -> None:
    assert len(LONGEST[name]) <= LIMIT


async def test_the_kv_takes_all_of_them_and_one_byte_above_the_limit_it_does_not(
    tmp_path: Path,
) -> None:
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk())
    try:
        epoch, _ = await kv.open_partition(PARTITION)
        await kv.commit(Batch(PARTITION, epoch, b"", dict.fromkeys(LONGEST.values(), b"v")))
        assert await kv.get_many(list(LONGEST.values())) == [b"v"] * len(LONGEST)
        too_long = keys.table(PARTITION, b"h").ljust(LIMIT + 1, b"x")
        with pytest.raises(Exception, match="MDB_BAD_VALSIZE"):
            await kv.commit(Batch(PARTITION, epoch, b"", {too_long: b""}))
    finally:
        await kv.close()


@pytest.mark.parametrize(
    "conversation",
    [
        f"d:{'a' * 600}:bob",
        "d:ann\0x:bob",
        "d:ann:bob\0",
        "d:ann:bob\n",
        "d::bob",
        "d:ann:",
        "d:bob:ann",  # the other way round: there is one id for two users
        "d:ann:bob:eve",
        "d:änn:bob",
        f"g:{'a' * 65}",
        "g:\0",
        "g:",
        "g:ä",
        "x:ann",
        "",
    ],
)
def test_ids_that_are_not_taken(conversation: str) -> None:
    assert direct_members(conversation) is None and not is_group(conversation)
    assert not valid_conversation(conversation)


def test_the_ids_of_a_lane_are_a_prefix_of_its_client_keys() -> None:
    lane = keys.lane(PARTITION, Lane(*KEY[:4]))
    assert keys.client_key(PARTITION, KEY).startswith(lane)


@given(st.text(max_size=260), *[st.text(max_size=130)] * 3)
@example("d:" + "a" * 123 + ":" + "b" * 121, "", "", "")
@example("", "a" * 247, "", "")
@example("", "a\0", "", "")
@example("g:\u00e4", "", "", "")
def test_names_that_surely_fit_fit(conversation: str, uid: str, device: str, outbox: str) -> None:
    if keys.surely_fit(conversation, uid, device, outbox):
        assert keys.conversation_fits(conversation)
        assert keys.client_key_fits(ClientKey(uid, device, outbox, conversation, 1))
        for user in (uid, *(direct_members(conversation) or ()), conversation):
            assert keys.user_key_fits(user, conversation)


def test_names_of_usual_length_surely_fit() -> None:
    assert keys.surely_fit(direct_conversation("a" * 20, "b" * 20), "a" * 20, "phone", "o" * 36)
    assert not keys.surely_fit(DIRECT, ID, ID, ID)
