"""Makes the feeds of the region file's webhooks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imcore.proto import oplog_pb2 as oplog
from imcore.region.model import HookEvent, Webhook
from services.im import keys
from services.policy.document import IdcState
from services.webhooks import events
from services.webhooks.feed import Feed, Make, Post, always

if TYPE_CHECKING:
    from services.node.node import Node

PUSH_AFTER_MS = 3_000  # what is on its way to a device that is just connecting, is there by then


class Webhooks:
    """``feeds``: of the own log, one or, with offline push, up to three of each webhook.
    ``others``: by another IDC, the same of its log, for when it is lost. Raises BadInput."""

    def __init__(self, node: Node, stack: AsyncExitStack) -> None:
        self._node = node
        self._named_above = node.config.region.spec.messages.push_group_members_max
        self.feeds: list[Feed] = []
        self.others: dict[str, list[Feed]] = {
            idc.name: [] for idc in node.config.region.spec.idcs if idc.name != node.idc
        }
        for hook in node.config.region.spec.webhooks:
            poster = node.outside.poster(hook.url, hook.ca_file, hook.timeout_ms / 1000)
            stack.push_async_callback(poster.close)
            own = frozenset(hook.events)
            self.feeds += self._of(hook, own, poster.post, node.idc)
            # A lost IDC has no devices any more: what it said of them is not told late.
            for idc, feeds in self.others.items():
                feeds += self._of(hook, own - {HookEvent.PRESENCE}, poster.post, idc)

    def _of(self, hook: Webhook, told: frozenset[HookEvent], post: Post, idc: str) -> list[Feed]:
        node, stands_in = self._node, idc != self._node.idc
        return [
            Feed(
                name=f"{name}@{idc}" if stands_in else name,
                idc=idc,
                make=make,
                post=post,
                secret_file=Path(hook.secret_file),
                store=node.store,
                applied=node.replication.applied,
                registry=node.own_registry,
                clock=node.median_clock,  # receivers judge by theirs, and ops have its time
                rng=node.rng,
                teller=node.idc,
                on_duty=(lambda: self._tells_for(idc)) if stands_in else always,
                delay_ms=delay_ms,
                waiting_max=hook.waiting_max,
            )
            for name, make, delay_ms in self._parts(hook, told)
        ]

    def _tells_for(self, lost: str) -> bool:
        """One IDC does, the first by name that is active."""
        policy = self._node.traffic.holder.policy
        if policy is None or policy.state(lost) not in (IdcState.FAILED, IdcState.RETIRED):
            return False
        names = sorted([*self.others, self._node.idc])
        active = [name for name in names if policy.state(name) is IdcState.ACTIVE]
        return bool(active) and active[0] == self._node.idc

    def told(self) -> dict[str, dict[str, int]]:
        """What the other IDCs have to know in case this one is lost."""
        return {feed.name: feed.told() for feed in self.feeds}

    def heard(self, idc: str, told: Mapping[str, Mapping[str, int]]) -> None:
        """What that IDC has told itself."""
        for feed in self.others[idc]:
            if (reached := told.get(feed.name.rpartition("@")[0])) is not None:
                feed.heard(reached)

    def _parts(self, hook: Webhook, told: frozenset[HookEvent]) -> list[tuple[str, Make, int]]:
        found: list[tuple[str, Make, int]] = []
        if told - {HookEvent.OFFLINE_PUSH}:
            found.append((hook.name, lambda op: self._plain(hook, told, op), 0))
        if HookEvent.OFFLINE_PUSH in told:
            late_ms = self._node.config.region.spec.client.grace_ms + PUSH_AFTER_MS
            found.append((f"{hook.name}/push", lambda op: self._push(op, False), PUSH_AFTER_MS))
            found.append((f"{hook.name}/push-late", lambda op: self._push(op, True), late_ms))
        return found

    async def _plain(
        self, hook: Webhook, told: frozenset[HookEvent], op: oplog.Op
    ) -> list[events.Event]:
        made: list[events.Event] = []
        if HookEvent.MESSAGE in told:
            made += events.message(op, hook.content)
        if HookEvent.GROUP in told:
            made += events.group(op)
        if HookEvent.PRESENCE in told:
            made += events.presence(op, self._node.live)
        return made

    async def _push(self, op: oplog.Op, late: bool) -> list[events.Event]:
        if not op.HasField("message"):
            return []
        partition = self._node.im.partition(op.conversation)
        conversation = await partition.conversations.load(op.conversation)
        whom: Sequence[str] = conversation.members()
        if len(whom) > self._named_above:
            # To look at each of 10,000 members takes 15 ms of the loop a message.
            whom = [uid for uid in events.mentioned(op) if conversation.is_member(uid)]
        away = events.away(op, whom, self._node.live, late)
        return events.offline_push(op, await self._wanted(op, partition.number, away))

    async def _wanted(self, op: oplog.Op, partition: int, uids: list[str]) -> list[str]:
        """Without those who have muted the conversation, and are not mentioned."""
        rows = await self._node.kv.get_many(
            [keys.settings(partition, uid, op.conversation) for uid in uids]
        )
        named = events.mentioned(op)
        return [
            uid
            for uid, row in zip(uids, rows, strict=True)
            if uid in named or not oplog.SettingsRow.FromString(row or b"").muted.on
        ]

    def all(self) -> list[Feed]:
        return [*self.feeds, *itertools.chain.from_iterable(self.others.values())]

    def alarms(self) -> list[str]:
        feeds = self.all()
        return [feed.problem for feed in feeds if feed.problem] + [
            f"the webhook {feed.name} was not told of {feed.left_out} records"
            for feed in feeds
            if feed.left_out
        ]

    def status(self) -> dict[str, Any]:
        """Those that stand in for a lost IDC only once they had something to do."""
        known = {feed.name for feed in self.feeds}
        return {
            feed.name: feed.status()
            for feed in self.all()
            if feed.name in known or feed.delivered or feed.left_out or feed.problem
        }
