"""One session, and what it is owed. Pure.

Owed is a vector per conversation, merged by maximum and never replaced, so that a second push
cannot overwrite the first, un-acked one; it is paid by an ack whose position covers it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from imcore.words import Origin, Vector
from services.ports import Session

_SENT_BEFORE_S = 2.0  # from an acceptance, in whatever IDC, to the push here


class Owed:
    """Since when each origin's head is unpaid, or since when an ack last made progress towards it:
    per origin, because one that is busy must not hide that the last message of another was lost.

    Thousands of sessions are owed the same by one push, so ``heads`` is one vector of all of them:
    it is never changed here, only replaced, and what is kept for each origin is made when needed.
    """

    __slots__ = ("_acked", "_since", "_waiting", "heads")

    def __init__(self, heads: Vector, now: float) -> None:
        self.heads = heads
        self._since = now
        self._waiting: dict[Origin, float] | None = None  # None: all of them, since then
        self._acked: Vector | None = None

    def _each(self) -> dict[Origin, float]:
        if self._waiting is None:
            self._waiting = dict.fromkeys(self.heads, self._since)
        return self._waiting

    def merge(self, heads: Vector, now: float) -> None:
        own = self.heads
        if len(heads) == len(own) == 1 and self._waiting is None and now >= self._since:
            for origin, seq in heads.items():  # nearly always: nobody else, and no ack in between
                if origin in own:
                    if seq > own[origin]:
                        self.heads = heads
                    return
        raised, covers = False, True
        for origin, seq in heads.items():
            known = own.get(origin, 0)
            if seq > known:
                raised = True
                if self._waiting is not None or origin not in own or now < self._since:
                    waiting = self._each()  # what was merged waits since a time yet to come
                    waiting[origin] = min(now, waiting.get(origin, now))
            elif seq < known:
                covers = False
        if not raised:
            return
        if covers and own.keys() <= heads.keys():
            self.heads = heads
        else:
            self.heads = own | {o: seq for o, seq in heads.items() if seq > own.get(o, 0)}

    def excuse(self, origin: Origin, end: int) -> None:
        if self.heads.get(origin, 0) > end:
            self.heads = self.heads | {origin: end}

    def paid_by(self, position: Vector, now: float) -> bool:
        """A position that is on its way to the heads starts the waiting time anew: a busy
        conversation always has something that is not acked yet."""
        waiting = self._each()
        acked = self._acked = self._acked if self._acked is not None else {}
        for origin in list(waiting):
            reached = position.get(origin, 0)
            if reached >= self.heads[origin]:
                del waiting[origin]
            elif reached > acked.get(origin, reached):
                waiting[origin] = now
            acked[origin] = max(reached, acked.get(origin, 0))
        return not waiting

    def waits_since(self) -> float:
        if self._waiting is None:
            return self._since if self.heads else math.inf
        return min(self._waiting.values(), default=math.inf)


class SessionInfo(NamedTuple):
    """What others see of a session (``StateServer.sessions``)."""

    session: str
    uid: str
    device: str
    shard: str
    gateway: str
    connection: int  # of that gateway: the present one, or the last
    connected: bool


@dataclass(slots=True, eq=False)
class Record(Session):
    shard: str = ""
    connected: bool = False  # its Connect was answered, and the connection stands
    owed: dict[str, Owed] = field(default_factory=dict)
    unreplicated: dict[int, int] = field(default_factory=dict)  # partition -> highest lsn
    lsns: dict[int, int] = field(default_factory=dict)  # partition -> last op accepted here
    away_at: float = math.inf  # since when it has had no connection
    moving: bool = False  # it was told to connect elsewhere
    unpacks: bool = False  # its client knows what to do with a packed push
    in_flight: int = 0  # requests that im has not answered
    patient: bool = False  # the next look at what it owes waits for a heartbeat's ack
    signals: int = 0  # sent in a row without everything being acked

    def owe(self, conversation: str, heads: Vector, now: float) -> None:
        """Nobody changes this vector any more: it is kept, and by many."""
        owed = self.owed.get(conversation)
        if owed is None:
            self.owed[conversation] = Owed(heads, now)
        else:
            owed.merge(heads, now)

    def ack(self, conversation: str, position: Vector, now: float) -> None:
        owed = self.owed.get(conversation)
        if owed is not None and owed.paid_by(position, now):
            del self.owed[conversation]

    def excuse(self, conversation: str, origin: Origin, end: int) -> None:
        """What lies above a seal will never come."""
        owed = self.owed.get(conversation)
        if owed is not None:
            owed.excuse(origin, end)

    def forget(self, conversation: str) -> None:
        """It is in there no more, and will never have what was owed."""
        self.owed.pop(conversation, None)

    def behind(self, now: float, older_than_s: float) -> list[tuple[str, Owed]]:
        return [
            (name, owed)
            for name, owed in self.owed.items()
            if now - owed.waits_since() >= older_than_s
        ]

    def waits_since(self) -> float:
        """Of all that it is owed; it may be a time that is yet to come."""
        return min((owed.waits_since() for owed in self.owed.values()), default=math.inf)

    def unheard_s(self, now: float) -> float:
        """How long nothing shows that the device was there: for so long it had no connection, or
        left what it was sent un-acked (the connection was dead, and nobody knew)."""
        return max(0.0, now - min(self.away_at, self.waits_since() - _SENT_BEFORE_S))

    def info(self) -> SessionInfo:
        where = self.gateway, self.connection, self.connected
        return SessionInfo(self.id, self.uid, self.device, self.shard, *where)
