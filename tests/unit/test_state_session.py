"""What a session is owed; resume tokens; the checkpoint. Pure parts."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from imcore.attest import RegionKeys
from imcore.words import Origin
from services.state import checkpoint, resume
from services.state.session import Record
from services.state.table import Connections, SessionTable

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
KEYS = RegionKeys({1: b"k" * 32}, 1)
vectors = st.dictionaries(st.sampled_from((FRA, IAD)), st.integers(1, 9), max_size=2)


def record(uid: str = "ann", device: str = "phone", epoch: int = 1) -> Record:
    return Record(f"s-{uid}-{device}", uid, device, epoch, "fra-gw", 1)


@given(st.lists(vectors, max_size=6), vectors)
def test_owed_is_paid_exactly_when_a_position_covers_every_head_ever_pushed(pushed, position):
    session = record()
    for heads in pushed:
        session.owe("d:a:b", heads, 0.0)
    session.ack("d:a:b", position, 0.0)
    covered = all(position.get(o, 0) >= seq for heads in pushed for o, seq in heads.items())
    assert ("d:a:b" not in session.owed) == covered


def test_a_vector_that_many_are_owed_is_changed_for_none_of_them():
    said, more = {FRA: 3}, {FRA: 9, IAD: 2}
    first, second = record(), record("bob")
    for session in (first, second):
        session.owe("d:a:b", said, 0.0)
    first.owe("d:a:b", {IAD: 1}, 1.0)
    first.ack("d:a:b", {FRA: 1}, 2.0)
    first.owe("d:a:b", more, 3.0)
    first.excuse("d:a:b", FRA, 5)
    assert first.owed["d:a:b"].heads == {FRA: 5, IAD: 2}
    assert second.owed["d:a:b"].heads is said
    assert (said, more) == ({FRA: 3}, {FRA: 9, IAD: 2})


class Plainly:
    """What ``Owed`` says, without sharing anything."""

    def __init__(self) -> None:
        self.heads: dict[Origin, int] = {}
        self.waiting: dict[Origin, float] = {}
        self.acked: dict[Origin, int] = {}

    def owe(self, heads: dict[Origin, int], now: float) -> None:
        for origin, seq in heads.items():
            if seq > self.heads.get(origin, 0):
                self.heads[origin] = seq
                self.waiting[origin] = min(now, self.waiting.get(origin, now))

    def ack(self, position: dict[Origin, int], now: float) -> None:
        for origin in list(self.waiting):
            reached = position.get(origin, 0)
            if reached >= self.heads[origin]:
                del self.waiting[origin]
            elif origin in self.acked and reached > self.acked[origin]:
                self.waiting[origin] = now
            self.acked[origin] = max(reached, self.acked.get(origin, 0))


@given(st.lists(st.tuples(st.sampled_from(("owe", "ack", "excuse")), vectors), max_size=12))
def test_what_is_shared_makes_no_difference(steps):
    session, plainly = record(), Plainly()
    for now, (what, vector) in enumerate(steps, 1):
        if what == "owe" and vector:
            since = now + 3 * (now % 2)  # of what is merged
            session.owe("d:a:b", dict(vector), since)
            plainly.owe(vector, since)
        elif what == "ack":
            session.ack("d:a:b", vector, now)
            plainly.ack(vector, now)
        else:
            for origin, end in vector.items():
                session.excuse("d:a:b", origin, end)
                if plainly.heads.get(origin, 0) > end:
                    plainly.heads[origin] = end
        owed = session.owed.get("d:a:b")
        if not plainly.waiting:
            assert owed is None
            plainly = Plainly()
        else:
            assert owed is not None
            assert owed.heads == plainly.heads
            assert owed.waits_since() == min(plainly.waiting.values())


def test_progress_starts_the_waiting_time_anew_and_standing_still_does_not():
    session = record()
    session.owe("d:a:b", {FRA: 5}, 10.0)
    session.ack("d:a:b", {FRA: 2}, 11.0)  # where it stood: no progress yet
    assert session.behind(11.0, 1.0)
    session.ack("d:a:b", {FRA: 3}, 12.0)
    assert not session.behind(12.5, 1.0)
    session.ack("d:a:b", {FRA: 3}, 14.0)
    assert [name for name, _ in session.behind(14.0, 1.0)] == ["d:a:b"]


def test_progress_of_one_origin_hides_nothing_of_another():
    """Defect: a lost last message of one origin, in a conversation that another keeps busy."""
    session = record()
    session.owe("d:a:b", {FRA: 1, IAD: 1}, 0.0)  # what iad's push said is lost
    for second in range(1, 6):
        session.owe("d:a:b", {FRA: second + 1, IAD: 1}, float(second))
        session.ack("d:a:b", {FRA: second}, float(second))
    assert [name for name, _ in session.behind(6.0, 5.0)] == ["d:a:b"]
    session.ack("d:a:b", {FRA: 6, IAD: 1}, 6.0)
    assert not session.owed


def test_what_lies_above_a_seal_is_not_owed():
    session = record()
    session.owe("d:a:b", {FRA: 9}, 0.0)
    session.excuse("d:a:b", FRA, 6)
    session.ack("d:a:b", {FRA: 6}, 0.0)
    assert not session.owed


def token(**changes: object) -> resume.Resume:
    whole = resume.Resume("s1", "ann", "phone", 4, 1_000, "fra", 2, {"0": 17})
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_resume_token_says_what_was_sealed_until_it_expires():
    sealed = resume.seal(KEYS, token())
    assert resume.open_token(KEYS, sealed, 999) == token()
    assert resume.open_token(KEYS, sealed, 1_000) is None


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_resume_token_that_was_not_given_out_is_none(rubbish, at):
    assert resume.open_token(KEYS, rubbish, 0) is None
    sealed = bytearray(resume.seal(KEYS, token()))
    sealed[at % len(sealed)] ^= 1
    assert resume.open_token(KEYS, bytes(sealed), 0) is None


def test_the_table_keeps_one_session_a_device():
    table = SessionTable()
    old, new, other = record(epoch=1), record(epoch=2), record(device="desk")
    new.id = "s-new"
    for each in (old, other, new):
        table.put(each)
    assert sorted(r.id for r in table) == ["s-ann-desk", "s-new"]
    assert table.by_id(old.id) is None and not table.remove(old)
    assert {r.id for r in table.of_users(["ann", "nobody"])} == {"s-ann-desk", "s-new"}
    assert table.remove(new) and table.remove(other)
    assert table.of_users(["ann"]) == [] and list(table) == []


def test_what_has_changed_is_told_once_and_adds_up_to_who_is_here():
    """So a mover need not look at all of them."""
    rng, table = random.Random(1), SessionTable()
    seen: dict[str, Record] = {}
    here: dict[str, Record] = {}
    for step in range(2_000):
        uid, device = rng.choice("abc"), rng.choice(("phone", "desk"))
        held = table.of_device(uid, device)
        if held is None or rng.random() < 0.2:
            if held is not None:
                held.connected = False  # as whoever replaces it does
            new = record(epoch=step, uid=uid, device=device)
            new.id = held.id if held is not None and rng.random() < 0.5 else f"s{step}"
            table.put(new)
        elif rng.random() < 0.3:
            held.connected = False
            table.remove(held)
        else:
            held.connected = not held.connected
            table.tell(held)
        if rng.random() < 0.3:
            changed = table.since()
            for session, row in changed.items():
                seen.pop(session, None)
                if row is not None:
                    seen[session] = row
            here = {each.id: each for each in table if each.connected}
            assert seen == here and table.since() == {}
    assert here  # or it was nobody that was looked at


def test_connections_are_counted_as_they_come_and_go():
    rng, connections = random.Random(1), Connections()
    for step in range(2_000):
        address = (rng.choice(("gw1", "gw2")), rng.randrange(8))
        if rng.random() < 0.5:
            assert connections.pop(address, None) is None or address not in connections
        else:
            new = record(epoch=step)
            new.shard, new.pull_only = rng.choice(("europe", "asia")), rng.random() < 0.3
            connections[address] = new
        rows = list(connections.values())
        assert connections.pull_only == sum(row.pull_only for row in rows)
        assert connections.shards == Counter(row.shard for row in rows if not row.pull_only)


async def test_a_checkpoint_brings_sessions_back(tmp_path):
    session = record(epoch=7)
    session.shard, session.lsns, session.seen_hlc = "europe", {2: 40}, 99
    session.unpacks = True
    session.owe("d:ann:bob", {FRA: 3, IAD: 1}, 5.0)
    path = tmp_path / "sessions"
    await checkpoint.Checkpoint(path).save([session, record(uid="bob")])
    back, bob = checkpoint.load(path, 100.0)
    assert (back.id, back.connection_epoch, back.shard) == ("s-ann-phone", 7, "europe")
    assert back.lsns == {2: 40} and back.seen_hlc == 99 and not back.connected
    assert back.owed["d:ann:bob"].heads == {FRA: 3, IAD: 1}
    assert (back.unpacks, bob.unpacks) == (True, False)


async def test_a_checkpoint_that_was_begun_later_stands(tmp_path: Path, monkeypatch):
    path, write = tmp_path / "sessions.json", Path.write_bytes
    begun, goes_on = threading.Event(), threading.Event()

    def slowly(file: Path, data: bytes) -> int:
        if b"ann" in data:
            begun.set()
            goes_on.wait(5)
        return write(file, data)

    monkeypatch.setattr(Path, "write_bytes", slowly)
    kept = checkpoint.Checkpoint(path)
    every_5_s = asyncio.create_task(kept.save([record(uid="ann")]))
    await asyncio.to_thread(begun.wait, 5)
    every_5_s.cancel()  # the process restarts: nobody waits for that one any more
    last = asyncio.create_task(kept.save([record(uid="bob")]))
    await asyncio.wait([last], timeout=0.2)
    goes_on.set()
    await last
    await asyncio.get_running_loop().shutdown_default_executor()
    assert [one.uid for one in checkpoint.load(path, 0.0)] == ["bob"]


@given(data=st.data())
def test_a_damaged_checkpoint_never_raises(data, tmp_path_factory):
    whole = b'{"format": 1, "sessions": 1}\n' + checkpoint.line(record())
    path = tmp_path_factory.mktemp("damaged") / "sessions"
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut])
    assert checkpoint.load(path, 0.0) == []
    flipped = bytearray(whole)
    flipped[cut] = data.draw(st.integers(0, 255))
    path.write_bytes(flipped)
    assert len(checkpoint.load(path, 0.0)) <= 1
