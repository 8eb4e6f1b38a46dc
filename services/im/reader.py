"""Which records of a log count (rule 5). Pure.

A reader takes a record only if its epoch is not below the highest marker seen and its lsn is the
next. The first marker of an epoch wins: records of that epoch which another sequencer wrote come
after a marker that was not taken, and their lsn does not continue.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.ports import Record


class Verdict(Enum):
    TAKE = "take"
    KNOWN = "known"  # at or below the position: a repeat of an at-least-once mirror
    STALE = "stale"  # written by a sequencer that a newer epoch has fenced off
    GAP = "gap"  # not the next lsn: something is missing below


@dataclass(slots=True)
class Position:
    """How far one origin's partition has been taken."""

    lsn: int = 0
    epoch: int = 0
    chain: bytes = bytes(16)

    def judge(self, record: Record) -> Verdict:
        if record.epoch < self.epoch:
            return Verdict.STALE
        if record.lsn <= self.lsn:
            return Verdict.KNOWN
        if record.lsn > self.lsn + 1:
            return Verdict.GAP
        return Verdict.TAKE

    def take(self, record: Record) -> None:
        self.lsn, self.epoch, self.chain = record.lsn, record.epoch, record.chain
