"""Telling huge groups, those above ``push_group_members_max``: between the applier and the pushes.

A message of such a group wakes nothing for each member. Who of them is here is looked up once (an
``Audience`` is one object until the members change), and the group's heat decides what is done:
told at once; merged, one push for all of a window (``group_window_ms``, and so long that pushes are
no more than ``group_merge_deliveries_per_s``); or not pushed at all, and whoever has a session is
told every ``group_signal_ms`` that there is something, in one event for all such groups of his. All
groups of the last kind are told in the same turn, so that this event is one.

Other IDCs are told by signals only while a group is told at once: a signal makes a client come to
this IDC, and 10,000 who do are a herd. What is merged comes to them with the mirror.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imcore.proto import client_pb2 as pb
from imcore.region.model import Limits
from imcore.words import Origin, Vector
from services.im import entries
from services.im.conversation import Conversation
from services.im.fold import Effects, Entry
from services.im.heat import Bounds, Crowding, Heat, Level
from services.im.partition import Partition
from services.ports import Audience

if TYPE_CHECKING:
    from services.im.server import ImServer

_QUIET = 0.05  # messages a second; a group that is told at once and says less is forgotten


@dataclass(slots=True)
class Counters:
    """Messages of huge groups, by how they were told; and what that took."""

    at_once: int = 0
    merged: int = 0
    signalled: int = 0
    pushes: int = 0
    signals: int = 0


@dataclass(slots=True)
class _Group:
    partition: Partition
    heat: Heat
    audience: Audience
    heads: Vector
    reached: int  # users of the audience who were here when something was said last
    begun: int  # the fold's beginning that ``waiting`` is of
    waiting: list[Entry] = field(default_factory=list)
    due: float = math.inf


class Diffusion:
    def __init__(self, server: ImServer, limits: Limits) -> None:
        self._server = server
        self._bounds = Bounds(
            limits.group_merge_deliveries_per_s, limits.group_signal_deliveries_per_s
        )
        self._window_s = limits.group_window_ms / 1000
        self._signal_s = limits.group_signal_ms / 1000
        self._groups: dict[str, _Group] = {}
        self._crowding = Crowding()
        self._timer: asyncio.TimerHandle | None = None
        self.counters = Counters()

    def levels(self) -> list[Level]:
        """Of the groups that said something lately."""
        return [group.heat.level for group in self._groups.values()]

    def __contains__(self, conversation: str) -> bool:
        """Whether it said something lately; it may have become smaller since."""
        return conversation in self._groups

    def level(self, conversation: str) -> Level:
        group = self._groups.get(conversation)
        return Level.AT_ONCE if group is None else group.heat.level

    # ----------------------------------------------------------------------- from the applier

    def told(
        self,
        partition: Partition,
        conversation: Conversation,
        said: Sequence[Entry],
        partings: Mapping[int, Sequence[str]],
    ) -> None:
        """A batch is committed: these entries of it, and who left with which of them."""
        group = self._group(partition, conversation)
        _leave_out_recalled(conversation.id, group.waiting, said)
        group.waiting += said
        if partings:
            self._server.push_partings(
                conversation, partings, said, self._built(group), self._server.stable(partition)
            )
        now = self._server.clock.now()
        group.reached = self._server.pushes.reached(group.audience)
        level = group.heat.said(len(said), self._counted(group), now)
        if level is Level.AT_ONCE:
            self._flush(group)
        elif level is Level.MERGED:
            group.due = min(group.due, now + self._window(group))
        else:
            period_s = self._period()
            group.due = min(group.due, math.floor(now / period_s + 1) * period_s)
        self._turn_later()

    def _counted(self, group: _Group) -> float:
        """Its audience, as what its deliveries are judged by."""
        return group.reached * self._crowding.factor

    def _window(self, group: _Group) -> float:
        """Longer for a larger audience: its pushes a second have a bound too."""
        return max(self._window_s, self._counted(group) / self._bounds.merged)

    def _period(self) -> float:
        """Between two signals."""
        return self._signal_s * self._crowding.factor

    def _group(self, partition: Partition, conversation: Conversation) -> _Group:
        name, begun = conversation.id, partition.applier.begun
        group = self._groups.get(name)
        if group is None:
            heat = Heat(self._bounds, self._server.clock.now())
            audience = Audience(name, conversation.members())
            group = _Group(partition, heat, audience, conversation.heads, 0, begun)
            self._groups[name] = group
        self._refresh(group, conversation)
        return group

    def _refresh(self, group: _Group, conversation: Conversation) -> None:
        if group.audience.uids is not conversation.members():
            group.audience = Audience(conversation.id, conversation.members())
        group.heads = conversation.heads
        if group.begun != group.partition.applier.begun:
            # It was folded again since: what was folded out is nobody's to be told.
            group.begun = group.partition.applier.begun
            heads = conversation.heads
            group.waiting = [e for e in group.waiting if e.op.seq <= heads.get(e.origin, 0)]

    # --------------------------------------------------------------------------------- turns

    def _turn_later(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._window_s, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now, behind = self._server.clock.now(), []
        self._crowding.look(self._server.pushes.waiting())
        for name, group in list(self._groups.items()):
            level = group.heat.look(self._counted(group), now)
            if group.waiting:
                if level is Level.SIGNALS:
                    if group.due <= now:
                        behind.append(group)
                elif group.due <= now or level is Level.AT_ONCE:
                    self._flush(group)
            elif level is Level.AT_ONCE and group.heat.rate(now) < _QUIET:
                del self._groups[name]
        self._signal([group for group in behind if self._ready(group)])
        if self._groups:
            self._turn_later()

    def _ready(self, group: _Group) -> bool:
        """False: the partition is being folded again, and nobody can say how far it reaches."""
        conversations = group.partition.conversations
        if conversations.withheld:
            return False
        conversation = conversations.get(group.audience.conversation)
        if conversation is not None:
            self._refresh(group, conversation)
        elif group.begun != group.partition.applier.begun:
            group.waiting.clear()  # a sync finds what there is
        return True

    def _flush(self, group: _Group) -> None:
        if not self._ready(group):
            return
        merged = group.heat.level is not Level.AT_ONCE
        if merged:
            self.counters.merged += len(group.waiting)
        else:
            self.counters.at_once += len(group.waiting)
            self._tell_other_idcs(group)
        self.counters.pushes += 1
        if built := self._built(group):
            stable = self._server.stable(group.partition)
            self._server.pushes.push_group(group.audience, built, group.heads, stable, merged)
        group.waiting.clear()
        group.due = math.inf

    def _built(self, group: _Group) -> list[pb.Entry]:
        return [entries.build(entry, self._server.keys) for entry in group.waiting]

    def _signal(self, groups: Sequence[_Group]) -> None:
        if not groups:
            return
        server = self._server
        for group in groups:
            self.counters.signalled += len(group.waiting)
            group.waiting.clear()
            group.due = math.inf
        self.counters.signals += 1
        behind = [(g.audience, g.heads, server.stable(g.partition)) for g in groups]
        server.pushes.tell_behind(behind, round(self._period() * 1000))

    def _tell_other_idcs(self, group: _Group) -> None:
        own: Origin = self._server.origin
        if any(entry.origin == own for entry in group.waiting):
            name, head = group.audience.conversation, group.heads.get(own, 0)
            self._server.signal(name, (), own, head)


def _leave_out_recalled(name: str, waiting: list[Entry], said: Sequence[Entry]) -> None:
    """What waits and was recalled since goes out without its content."""
    if waiting:
        recalled = Effects(entries={name: list(said)}).recalled()
        Effects(entries={name: waiting}).leave_out(recalled)
