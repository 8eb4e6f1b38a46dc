"""Who types, on the client's side."""

from __future__ import annotations

import pytest

from services.sdk.core import typed
from services.sdk.core.typed import AGAIN_S, TypingSeen, TypingTold


def test_it_is_told_again_only_after_a_while() -> None:
    told = TypingTold()
    assert told.due("d:a:b", 0) and not told.due("d:a:b", AGAIN_S - 0.1)
    assert told.due("d:a:c", 1) and told.due("d:a:b", AGAIN_S)


def test_after_a_message_it_is_told_at_once() -> None:
    told = TypingTold()
    assert told.due("d:a:b", 0)
    told.sent("d:a:b")
    told.sent("d:a:c")
    assert told.due("d:a:b", 0.1)


def test_it_expires_by_itself_and_with_the_message() -> None:
    seen = TypingSeen()
    assert seen.heard("d:a:b", "b", 6) and not seen.heard("d:a:b", "b", 8)
    assert seen.heard("g:1", "b", 7)
    assert seen.next_end() == 7 and seen.ended(7) == [("g:1", "b")]
    assert seen.wrote("d:a:b", "b") and not seen.wrote("d:a:b", "b")
    assert seen.next_end() is None and seen.ended(99) == []


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed, "_SEEN_MAX", 2)
    monkeypatch.setattr(typed, "_TOLD_MAX", 1)
    seen, told = TypingSeen(), TypingTold()
    for number in (3, 1, 2):
        seen.heard("d:a:b", f"u{number}", number)
    assert seen.ended(9) == [("d:a:b", "u3"), ("d:a:b", "u2")]
    assert told.due("x", 0) and told.due("y", 0) and told.due("x", 0)
