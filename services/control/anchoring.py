"""Keeps the head of an audit chain in the registers of all IDCs (CASPaxos key ``audit/<writer>``).

Whoever can write one machine's files can cut the chain there, or write it anew, but cannot take
back what a majority of the registries holds. An anchor is only ever raised, and only over a chain
that still has the line of the old one: a cut is not hidden by what is written behind it.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imcore import auditfile
from imcore.audit import EMPTY, Anchor, Verdict, against, anchor_from_json, verify
from imcore.errors import ImError
from services.control.caspaxos import Proposer

log = logging.getLogger("im.control")

EACH_S = 1.0
LOOKS = 3
PIECE_BYTES = 1 << 20  # judged at once: what is known of its events costs six times as much
_HASH = 32  # bytes


def anchor_key(writer: str) -> str:
    return f"audit/{writer}"


class Broken(ImError):
    """The chain is not what it was; the anchor stays where it is."""


class Walked(NamedTuple):
    """As ``Verdict``, of a chain that may be long: of its events the hashes alone are kept."""

    head: Anchor
    problem: str
    behind: Anchor
    hashes: bytes

    def hash_of(self, seq: int) -> str:
        at = (seq - self.behind.seq - 1) * _HASH
        return self.hashes[at : at + _HASH].hex()


def raised(current: bytes | None, found: Verdict | Walked) -> Anchor:
    """The anchor after a look at the file. Raises Broken; ValueError for a strange anchor."""
    before = anchor_from_json(current) if current else EMPTY
    if problem := found.problem or against(found, before):
        raise Broken(problem)
    return found.head


def _raised(found: Walked, current: bytes | None) -> bytes:
    return raised(current, found).to_json()


class Judged(NamedTuple):
    """Where the last line begins of a chain that was found whole, the line before it, and how many
    lines those were, torn ones too."""

    at: int
    behind: Anchor
    lines: int


NOTHING_JUDGED = Judged(0, EMPTY, 0)


def _judge(path: Path, writer: str, before: Judged) -> tuple[Walked, Judged]:
    """What is in the file behind ``before``, the last line of then included; a piece at a time, as
    a chain may be of millions of events."""
    at, head, lines = before
    judged, hashes, most = before, bytearray(), PIECE_BYTES
    while True:
        data = auditfile.read(path, at, most)
        rest = len(data) < most
        piece = data if rest else data[: data.rfind(b"\n") + 1]
        found = verify(piece, writer, behind=head, before=lines)
        if not rest and (found.problem or not piece):
            most *= 2  # what a crash tore is noted behind it, and a line may be missing or long
            continue
        hashes += b"".join(bytes.fromhex(row["hash"]) for row in found.rows)
        if not found.problem and found.rows and piece.endswith(b"\n"):
            last, behind = piece.rfind(b"\n", 0, -1) + 1, head
            if len(found.rows) > 1:
                row = found.rows[-2]
                behind = Anchor(row["seq"], row["hash"])
            judged = Judged(at + last, behind, lines + piece.count(b"\n") - 1)
        if rest:
            return Walked(found.head, found.problem, before.behind, bytes(hashes)), judged
        at, head, lines = at + len(piece), found.head, lines + piece.count(b"\n")
        most = PIECE_BYTES


async def anchored(
    proposer: Proposer, path: Path, writer: str, before: Judged = NOTHING_JUDGED
) -> Judged:
    """Raise the anchor of this chain; what was judged ``before`` is not judged again, unless it
    does not fit. Raises Broken, Unavailable, OutcomeUnknown; OSError."""
    for again in range(LOOKS - 1, -1, -1):
        # In a thread, and from where it ended: a chain is never cut, and to walk over 100,000 lines
        # takes 1.6 s, in which nobody else would have had his turn, each second.
        found, judged = await asyncio.to_thread(_judge, path, writer, before)
        try:
            await proposer.change(anchor_key(writer), partial(_raised, found))
            return judged
        except Broken:
            # Another process may have written and anchored a line since the file was read.
            if not again:
                raise
            before = NOTHING_JUDGED
    raise AssertionError("the loop returns or raises")


async def read_anchor(proposer: Proposer, writer: str) -> Anchor:
    """Raises Unavailable; ValueError."""
    value, _ = await proposer.read(anchor_key(writer))
    return anchor_from_json(value) if value else EMPTY


class Anchoring:
    """``alarm``: what is wrong with the chain, for the status document."""

    def __init__(self, path: Path, writer: str, proposer: Proposer) -> None:
        self._path = path
        self._writer = writer
        self._proposer = proposer
        self._seen = -1
        self._judged = NOTHING_JUDGED
        self.alarm: str | None = None

    async def run(self) -> None:
        """Until cancelled; an event is anchored within about a second of being written."""
        while True:
            await self.look()
            await asyncio.sleep(EACH_S)

    async def look(self) -> None:
        """Anchor what is new since the last look."""
        try:
            size = auditfile.size(self._path)
            if size == self._seen:
                return
            if size or await read_anchor(self._proposer, self._writer) != EMPTY:
                self._judged = await anchored(
                    self._proposer, self._path, self._writer, self._judged
                )
            self._seen, self.alarm = size, None
        except Broken as error:
            said = f"the audit log {self._path.name} is not whole: {error}"
            if said != self.alarm:
                log.error(said)
            self.alarm, self._seen, self._judged = said, size, NOTHING_JUDGED
        except ValueError as error:  # and so it stays, until an admin has taken it away
            said = f"the audit log {self._path.name} is not anchored: in the registries is {error}"
            if said != self.alarm:
                log.error(said)
            self.alarm = said
        except (ImError, OSError) as error:
            log.debug("the audit log's head is not anchored: %s", error)
