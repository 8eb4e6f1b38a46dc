"""Which contents say what is searched for."""

from __future__ import annotations

import pytest

from services.im.text import PARTS_MAX, Wanted

FOUND = [
    ("meet", b"Meeting at noon"),
    ("NOON meet", b"meeting at noon"),
    ("noon", b"at noon."),
    ("iphone", "用iPhone手机".encode()),
    ("手机", "用iPhone手机".encode()),
    ("明天见", "我们明天见吧".encode()),
    ("明天 吧", "我们明天见吧".encode()),
    ("我", "我们".encode()),
    ("カタ", "ｶﾀｶﾅ".encode()),  # of half the width
    ("strasse", "Straße 7".encode()),
    ("cafe\u0301", "café".encode()),
    ("c++ \U0001f600 7", b"C# 7"),  # what is no letter and no figure says nothing
    ("a_b", b"a_b"),
    ("สวัส", "ว่าสวัสดี".encode()),
]
NOT_FOUND = [
    ("eeting", b"meeting"),
    ("meet noon", b"meeting at one"),
    ("明见", "明天见".encode()),
    ("text", b"text \xff\xfe"),
    ("text", b"\x00\x89PNG\xe4text"),
]


@pytest.mark.parametrize(("words", "content"), FOUND)
def test_words_are_found(words: str, content: bytes) -> None:
    assert Wanted(words).said_in(content)


@pytest.mark.parametrize(("words", "content"), NOT_FOUND)
def test_other_words_and_what_is_no_text_are_not(words: str, content: bytes) -> None:
    assert not Wanted(words).said_in(content)


@pytest.mark.parametrize("words", ["", " .,!", "x" * 129, " ".join("abcdefghi"[: PARTS_MAX + 1])])
def test_nothing_and_too_much_cannot_be_searched_for(words: str) -> None:
    with pytest.raises(ValueError, match="search"):
        Wanted(words)
