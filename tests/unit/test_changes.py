"""What changes make of a message does not depend on the order in which they come, nor on how often
one comes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from imcore.changes import merge
from imcore.proto import client_pb2 as pb

# Few values, so that devices give two changes one order, against the rule.
ORDERS = st.builds(
    pb.Order, hlc=st.integers(1, 2), device=st.sampled_from("pt"), number=st.integers(1, 2)
)
EDITS = st.builds(pb.ChangeEntry, order=ORDERS, edit=st.sampled_from([b"", b"a", b"b"]))
REACTIONS = st.builds(
    pb.ChangeEntry,
    actor=st.sampled_from(["ann", "bob"]),
    order=ORDERS,
    react=st.builds(pb.Reaction, code=st.sampled_from("xy"), on=st.booleans()),
)
RECALL = st.just(pb.ChangeEntry(recall=pb.Recall()))


def folded(entries: list[pb.ChangeEntry]) -> bytes:
    changes = pb.Changes()
    for entry in entries:
        before = changes.SerializeToString(deterministic=True)
        changed = merge(changes, entry)
        assert changed == (changes.SerializeToString(deterministic=True) != before)
    return changes.SerializeToString(deterministic=True)


@given(
    st.lists(EDITS | REACTIONS, max_size=12),
    st.none() | RECALL,
    st.randoms(use_true_random=False),
)
def test_whatever_the_order(
    entries: list[pb.ChangeEntry], recall: pb.ChangeEntry | None, rng: random.Random
) -> None:
    entries = [*entries, recall] if recall is not None else entries
    other = entries + rng.sample(entries, len(entries) // 2)
    rng.shuffle(other)
    assert folded(entries) == folded(other)


def test_the_last_one_by_hlc_then_device_then_number_counts() -> None:
    changes = pb.Changes()
    orders = [(1, "t", 9), (2, "p", 9), (2, "t", 1), (2, "t", 2)]
    for number, (hlc, device, count) in enumerate(orders):
        order = pb.Order(hlc=hlc, device=device, number=count)
        assert merge(changes, pb.ChangeEntry(order=order, edit=b"%d" % number))
    assert changes.edit.content == b"3"
