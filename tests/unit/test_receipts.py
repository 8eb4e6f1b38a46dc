"""Read cursors that wait to be told."""

from __future__ import annotations

from imcore.words import Origin, Place
from services.im.readers import TOLD_A_TURN, Receipts


def _place(hlc: int) -> Place:
    return Place(hlc, Origin("fra", 1), 1)


def test_the_last_place_of_each_reader_is_told_once() -> None:
    receipts = Receipts()
    for hlc in (2, 3, 1):
        receipts.moved("bob", "d:ann:bob", _place(hlc))
    receipts.moved("bob", "d:bob:eve", _place(1))
    expected = [("bob", "d:ann:bob", _place(3)), ("bob", "d:bob:eve", _place(1))]
    assert receipts.taken() == expected
    assert receipts.taken() == []


def test_what_waits_and_what_is_told_in_a_turn_are_bounded() -> None:
    receipts = Receipts()
    for number in range(20_000):
        receipts.moved(f"u{number}", "g:team", _place(1))
    turns = []
    while found := receipts.taken():
        turns.append(len(found))
    assert turns == [TOLD_A_TURN] * (10_000 // TOLD_A_TURN)
