"""What it means that a content says the words that somebody searches for. Pure.

Words are compared without regard to case and forms of the same letter (NFKC, casefold). A word is
said by one that begins with it; of what is written without spaces between words (Chinese, Japanese,
Korean, Thai and others) each run of characters is said where it stands anywhere. All must be said.
Signs that are neither letters nor figures say nothing. Only a content that is UTF-8 is text.
"""

from __future__ import annotations

import re
import unicodedata

CHARACTERS_MAX = 128  # of what is searched for
PARTS_MAX = 8  # words and runs in it

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uac00-\ud7af\U00020000-\U0003ffff"
)
_PART = re.compile(f"[{_UNSPACED}]+|[^\\W{_UNSPACED}]+")
_RUN = re.compile(f"[{_UNSPACED}]+")


def _plain(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


class Wanted:
    """Raises ValueError when there is nothing to search for, or too much."""

    def __init__(self, words: str) -> None:
        parts = dict.fromkeys(_PART.findall(_plain(words[: CHARACTERS_MAX + 1])))
        if not parts or len(parts) > PARTS_MAX or len(words) > CHARACTERS_MAX:
            raise ValueError(
                f"a search is for 1 to {PARTS_MAX} words of at most {CHARACTERS_MAX} characters"
            )
        # Of a word: whether it stands at the beginning of one.
        self._parts = [
            (part, None if _RUN.match(part) else re.compile(f"(?<![^\\W{_UNSPACED}])" + part))
            for part in parts
        ]

    def said_in(self, content: bytes) -> bool:
        try:
            text = _plain(content.decode())
        except UnicodeDecodeError:
            return False
        return all(
            part in text and (begins is None or begins.search(text) is not None)
            for part, begins in self._parts
        )
