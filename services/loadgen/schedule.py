"""When which message is sent: an open-loop schedule that no slow answer holds back. Pure.

Arrivals are Poisson; sizes log-normal with a median of 120 bytes, cut at 1,200 (chat messages:
mostly a sentence, now and then a page). A third are answers: composed by whoever was just shown
something in the conversation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SIZE_MEDIAN = 120
SIZE_SIGMA = 0.9
SIZE_MIN = 1
SIZE_MAX = 1_200
ANSWERS = 0.33
BIG_GROUP_SHARE = 0.05  # of the group messages: its fan-out is that of ten others


class Arrival(NamedTuple):
    """``at``: seconds from the start. ``target``: index of a pair, or of a group."""

    at: float
    group: bool
    target: int
    size: int
    answer: bool


class Rates(NamedTuple):
    """Messages per second, all told and to groups."""

    total: float
    groups: float


def arrivals(
    rates: Rates, pairs: int, groups: Sequence[int], rng: random.Random
) -> Iterator[Arrival]:
    """Endless. ``groups``: the sizes of the groups; the largest gets BIG_GROUP_SHARE of their
    messages. Raises ValueError for a rate that cannot be."""
    if rates.total <= 0 or not 0 <= rates.groups <= rates.total:
        raise ValueError(f"expected 0 <= group rate <= rate and rate > 0, got {rates}")
    share = rates.groups / rates.total
    weights = [1.0] * len(groups)
    if len(groups) > 1:
        big = max(range(len(groups)), key=lambda number: groups[number])
        weights[big] = BIG_GROUP_SHARE / (1 - BIG_GROUP_SHARE) * (len(groups) - 1)
    at = 0.0
    while True:
        at += rng.expovariate(rates.total)
        to_group = bool(groups) and rng.random() < share
        among = rng.choices(range(len(groups)), weights)[0] if to_group else rng.randrange(pairs)
        yield Arrival(at, to_group, among, size(rng), rng.random() < ANSWERS)


def size(rng: random.Random) -> int:
    """Bytes of one message's text."""
    drawn = rng.lognormvariate(math.log(SIZE_MEDIAN), SIZE_SIGMA)
    return max(SIZE_MIN, min(SIZE_MAX, round(drawn)))


WORDS = (
    "the", "a", "we", "you", "see", "at", "tomorrow", "ok", "yes", "no", "train", "lunch", "great",
    "thanks", "meeting", "when", "where", "on", "my", "way", "photo", "late", "sorry", "call",
)  # fmt: skip


class Text:
    """Bodies, cut from one long run of words."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._words = " ".join(rng.choices(WORDS, k=8 * SIZE_MAX))

    def take(self, size_bytes: int) -> str:
        start = self._rng.randrange(len(self._words) - size_bytes)
        return self._words[start : start + size_bytes]
