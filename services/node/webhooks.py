"""Makes the feeds of the region file's webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imcore.proto import oplog_pb2 as oplog
from imcore.region.model import HookEvent, Webhook
from services.im import keys
from services.webhooks import events
from services.webhooks.feed import Feed, Make

if TYPE_CHECKING:
    from services.node.node import Node

PUSH_AFTER_MS = 3_000  # what is on its way to a device that is just connecting, is there by then


class Webhooks:
    """``feeds``: one or, with offline push, up to three of each webhook. Raises BadInput."""

    def __init__(self, node: Node, stack: AsyncExitStack) -> None:
        self._node = node
        self._named_above = node.config.region.spec.messages.push_group_members_max
        self.feeds: list[Feed] = []
        for hook in node.config.region.spec.webhooks:
            poster = node.outside.poster(hook.url, hook.ca_file, hook.timeout_ms / 1000)
            stack.push_async_callback(poster.close)
            for name, make, delay_ms in self._parts(hook):
                self.feeds.append(
                    Feed(
                        name=name,
                        idc=node.idc,
                        make=make,
                        post=poster.post,
                        secret_file=Path(hook.secret_file),
                        store=node.store,
                        applied=node.replication.applied,
                        registry=node.own_registry,
                        clock=node.clock,
                        rng=node.rng,
                        delay_ms=delay_ms,
                        waiting_max=hook.waiting_max,
                    )
                )

    def _parts(self, hook: Webhook) -> list[tuple[str, Make, int]]:
        found: list[tuple[str, Make, int]] = []
        if set(hook.events) - {HookEvent.OFFLINE_PUSH}:
            found.append((hook.name, lambda op: self._plain(hook, op), 0))
        if HookEvent.OFFLINE_PUSH in hook.events:
            late_ms = self._node.config.region.spec.client.grace_ms + PUSH_AFTER_MS
            found.append((f"{hook.name}/push", lambda op: self._push(op, False), PUSH_AFTER_MS))
            found.append((f"{hook.name}/push-late", lambda op: self._push(op, True), late_ms))
        return found

    async def _plain(self, hook: Webhook, op: oplog.Op) -> list[events.Event]:
        made: list[events.Event] = []
        if HookEvent.MESSAGE in hook.events:
            made += events.message(op, hook.content)
        if HookEvent.GROUP in hook.events:
            made += events.group(op)
        if HookEvent.PRESENCE in hook.events:
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

    def alarms(self) -> list[str]:
        return [feed.problem for feed in self.feeds if feed.problem] + [
            f"the webhook {feed.name} was not told of {feed.left_out} records"
            for feed in self.feeds
            if feed.left_out
        ]

    def status(self) -> dict[str, Any]:
        return {feed.name: feed.status() for feed in self.feeds}
