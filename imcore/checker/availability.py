"""Recovery time, switchover gap and RPO of a history, as its clients felt them. All times µs.

RTO: from the ``kill`` mark until 99 % of the devices that were connected to the victim have sent a
message and had it acked again; only messages composed after ``killed`` count.
Switchover gap: the longest time from a send call to its ack that overlaps a planned move.
RPO: messages acked before the fault that right after the failover no fresh login at a survivor
found; delayed when they stand in a final view, lost when they do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from imcore import history as h
from imcore.checker.state import NEVER

MOVES = ("switchover", "failback", "drain")
RECOVERED_PERCENT = 99


@dataclass(slots=True)
class Outage:
    idc: str
    started: int
    affected: set[int]
    killed: int = NEVER
    recovered: dict[int, int] = field(default_factory=dict)  # device: when
    moved: dict[int, int] = field(default_factory=dict)  # device: when connected elsewhere

    def rto_us(self) -> int | None:
        """None: not enough of the affected have recovered. 0 when nobody was affected."""
        needed = -(-RECOVERED_PERCENT * len(self.affected) // 100)
        times = sorted(self.recovered.values())
        if len(times) < needed:
            return None
        return times[needed - 1] - self.started if needed else 0


@dataclass(slots=True)
class Move:
    """A planned move. ``idc`` is its source, or its target when it is a failback."""

    idc: str
    what: str
    started: int
    ended: int = NEVER
    gap: int = 0
    failed: int = 0
    to_move: set[int] = field(default_factory=set)
    moved: dict[int, int] = field(default_factory=dict)

    def moved_us(self) -> int | None:
        """Until the last client had moved; None: some never did."""
        if self.to_move - self.moved.keys():
            return None
        return max(self.moved.values(), default=self.started) - self.started


@dataclass(slots=True)
class Rpo:
    """Messages acked before the fault in the conversations that were looked at."""

    looked_at: int
    delayed: int
    lost: int


class Availability:
    """``feed`` every event of one history in order."""

    def __init__(self) -> None:
        self.outages: list[Outage] = []
        self.moves: list[Move] = []
        self._idc: dict[int, str] = {}  # where each device is connected
        self._open: dict[str, tuple[int, int]] = {}  # tag: (device, composed)
        self._acked: dict[int, list[tuple[int, str]]] = {}  # conversation: (acked, tag)
        self._conversation: dict[str, int] = {}
        self._purpose: dict[int, str] = {}
        self._rpo: dict[int, set[str]] = {}  # conversation: what survivors could serve
        self._final: dict[int, set[str]] = {}

    def feed(self, event: h.Event) -> None:
        if type(event) is h.Shown:  # most lines are: no need to try them against the rest
            return
        match event:
            case h.Compose():
                self._open[event.tag] = (event.n, event.t)
                self._conversation[event.tag] = event.c
            case h.Ack():
                self._ack(event)
            case h.SendFailed():
                self._failed(event)
            case h.Connection():
                self._connection(event)
            case h.Fault():
                self._fault(event)
            case h.Closed():
                self._open = {t: sent for t, sent in self._open.items() if sent[0] != event.n}
            case h.Quiet():
                self._waiting(event.t)
            case h.Login():
                self._purpose[event.n] = event.purpose
            case h.View():
                views = self._rpo if self._purpose.get(event.n) == "rpo" else self._final
                views.setdefault(event.c, set()).update(event.tags)

    def _ack(self, event: h.Ack) -> None:
        if (sent := self._open.pop(event.tag, None)) is None:
            return
        device, composed = sent
        conversation = self._conversation.pop(event.tag)
        self._acked.setdefault(conversation, []).append((event.t, event.tag))
        for outage in self.outages:
            if device in outage.affected and composed >= outage.killed:
                outage.recovered.setdefault(device, event.t)
        for move in self.moves:
            if composed <= move.ended:  # it is acked after the start: the mark was read before
                move.gap = max(move.gap, event.t - composed)

    def _failed(self, event: h.SendFailed) -> None:
        if (sent := self._open.pop(event.tag, None)) is None:
            return
        for move in self.moves:
            if sent[1] <= move.ended:
                move.failed += 1

    def _waiting(self, now: int) -> None:
        """What has no answer when all is over has waited until then at least."""
        for _, composed in self._open.values():
            for move in self.moves:
                if composed <= move.ended:
                    move.gap = max(move.gap, now - composed)

    def _connection(self, event: h.Connection) -> None:
        self._idc[event.n] = event.idc
        for outage in self.outages:
            if event.n in outage.affected and event.idc not in ("", outage.idc):
                outage.moved.setdefault(event.n, event.t)
        for move in self.moves:
            if event.n in move.to_move and event.idc:
                if event.idc != move.idc:
                    move.moved.setdefault(event.n, event.t)
                elif move.ended == NEVER:
                    move.moved.pop(event.n, None)  # it came back: it has not moved

    def _fault(self, event: h.Fault) -> None:
        if event.what == "kill":
            self.outages.append(Outage(event.idc, event.t, self._devices_at(event.idc)))
        elif event.what == "killed":
            for outage in self.outages:
                if outage.idc == event.idc and outage.killed == NEVER:
                    outage.killed = event.t
        elif event.what in MOVES:
            move = Move(event.idc, event.what, event.t)
            if event.what != "failback":
                move.to_move = self._devices_at(event.idc)
            self.moves.append(move)
        elif event.what == "done" and self.moves:
            self.moves[-1].ended = event.t

    def _devices_at(self, idc: str) -> set[int]:
        return {device for device, where in self._idc.items() if where == idc}

    def rpo(self) -> Rpo | None:
        """Of the first outage. None: nobody looked right after it."""
        if not self.outages or not self._rpo:
            return None
        before = self.outages[0].killed
        result = Rpo(0, 0, 0)
        for conversation, survivors in self._rpo.items():
            for acked, tag in self._acked.get(conversation, ()):
                if acked > before:
                    continue
                result.looked_at += 1
                if tag in survivors:
                    continue
                if tag in self._final.get(conversation, ()):
                    result.delayed += 1
                else:
                    result.lost += 1
        return result
