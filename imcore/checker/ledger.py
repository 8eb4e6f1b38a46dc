"""The ledger of canary messages by pair of IDCs: what of them was acked, delayed, lost, shown
twice or out of order. All times µs.

A canary is a user with one conversation with another canary; its pair is its own home IDC and the
other's. *Delayed*: acked before the fault, not found by a fresh login at a survivor right after,
and there in the end. *Lost*: acked, and absent from a final view of the conversation or from the
receiver's device.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from imcore import history as h
from imcore.checker.latency import Summary, summarize

Pair = tuple[str, str]  # from the sender's home IDC to the receiver's


@dataclass(slots=True)
class Entry:
    """Of one pair of IDCs."""

    sent: int = 0
    acked: int = 0
    delayed: int = 0
    lost: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    receive_us: array[int] = field(default_factory=lambda: array("q"))

    def latency(self) -> Summary:
        return summarize(self.receive_us)


@dataclass(slots=True)
class _Message:
    pair: Pair
    sender: int
    conversation: int
    composed: int
    acked: int = 0
    received: bool = False


class Ledger:
    """``feed`` every event of one history in order. ``pairs``: of each canary's uid."""

    def __init__(self, pairs: Mapping[str, Pair]) -> None:
        self._pairs = pairs
        self._uids: dict[int, str] = {}
        self._messages: dict[str, _Message] = {}  # by tag, as composed
        self._shown: set[tuple[int, str]] = set()
        self._fault: int | None = None
        self._purpose: dict[int, str] = {}
        self._rpo: dict[int, set[str]] = {}  # conversation: what a survivor could serve
        self._final: dict[int, list[list[str]]] = {}
        self._sets: dict[int, list[set[str]]] = {}
        self._duplicates: dict[Pair, int] = {}
        self._latencies: dict[Pair, array[int]] = {}

    def feed(self, event: h.Event) -> None:
        match event:
            case h.Shown() if event.tag in self._messages and event.n in self._uids:
                self._show(event)
            case h.Compose() if event.n in self._uids:
                pair = self._pairs[self._uids[event.n]]
                self._messages[event.tag] = _Message(pair, event.n, event.c, event.t)
            case h.Ack() if event.tag in self._messages:
                self._messages[event.tag].acked = event.t
            case h.Fault(what="killed") if self._fault is None:
                self._fault = event.t
            case h.Device() if event.uid in self._pairs:
                self._uids[event.n] = event.uid
            case h.Login():
                self._purpose[event.n] = event.purpose
            case h.View():
                if self._purpose.get(event.n) == "rpo":
                    self._rpo.setdefault(event.c, set()).update(event.tags)
                else:
                    self._final.setdefault(event.c, []).append(event.tags)
                    self._sets.setdefault(event.c, []).append(set(event.tags))

    def _show(self, event: h.Shown) -> None:
        message = self._messages[event.tag]
        if (event.n, event.tag) in self._shown:
            self._duplicates[message.pair] = self._duplicates.get(message.pair, 0) + 1
        elif event.n != message.sender:
            message.received = True
            self._latencies.setdefault(message.pair, array("q")).append(event.t - message.composed)
        self._shown.add((event.n, event.tag))

    def entries(self) -> dict[Pair, Entry]:
        """Of every pair, also of those that sent nothing."""
        found = {pair: Entry() for pair in sorted(set(self._pairs.values()))}
        for pair, times in self._latencies.items():
            found[pair].receive_us = times
        for pair, count in self._duplicates.items():
            found[pair].duplicates += count
        for tag, message in self._messages.items():
            entry = found[message.pair]
            entry.sent += 1
            if not message.acked:
                continue
            entry.acked += 1
            views = self._sets.get(message.conversation, [])
            if not message.received or any(tag not in view for view in views):
                entry.lost += 1
            elif self._was_delayed(tag, message):
                entry.delayed += 1
        for finals in self._final.values():
            for view in finals:
                self._judge_view(view, found)
        return found

    def _was_delayed(self, tag: str, message: _Message) -> bool:
        looked = self._rpo.get(message.conversation)
        before = self._fault is not None and message.acked <= self._fault
        return before and looked is not None and tag not in looked

    def _judge_view(self, view: list[str], found: dict[Pair, Entry]) -> None:
        """Twice in one view, or behind a later message of the same sender."""
        seen: set[str] = set()
        latest: dict[int, int] = {}
        for tag in view:
            if (message := self._messages.get(tag)) is None:
                continue
            entry = found[message.pair]
            entry.duplicates += tag in seen
            seen.add(tag)
            entry.out_of_order += message.composed < latest.get(message.sender, 0)
            latest[message.sender] = max(message.composed, latest.get(message.sender, 0))
