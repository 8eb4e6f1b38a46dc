"""The known defects of systems like this, each as the change that brings it back.

One line a mutation: take the fix out of ``file`` by putting ``new`` in the place of ``old``, and
``test`` must fail. ``tools/mutations.py`` does it; tests/unit/test_mutations.py checks in every run
that ``old`` stands in its file exactly once and that the test exists.
"""

from __future__ import annotations

from typing import NamedTuple

CONTROL = "tests/integration/test_known_defects_control.py"
GATEWAY = "tests/integration/test_known_defects_gateway.py"
SCALE = "tests/integration/test_known_defects_scale.py"
IM = "tests/integration/test_known_defects_im.py"
SDK = "tests/integration/test_known_defects_sdk.py"

LOST_PUSH = "a push lost between business and gateway"
DEAD_ROUTES = "routes of a dead gateway still used"
OVERWRITTEN = "a second push overwriting the un-acked first one"
PER_CONNECTION = "duplicate checks per connection instead of per conversation"
LOST_LAST = "a lost last message that no gap reveals"
ONE_PAGE = "more missed messages than one page"
EQUAL_TIMES = "equal timestamps losing history"
RECONNECTS = "endless reconnects"
DEAD_CLIENT = "a client that looks online and is dead"
FENCED = "a fenced-off writer that is believed"
UNCOMMITTED = "what is not committed shown as if it were"
LEFT_BEHIND = "a KV that moves and leaves batches behind"
ALL_WOKEN = "every gateway woken for every group message"
ROLLED_BACK = "a sequence rolled back by a storage failover"
NEVER_SHRINKS = "a write buffer that never shrinks"
BLOCKED_HUB = "one blocked hub that stops all sessions"
PUSHED_OFFLINE = "offline push for a device that is online"
PRESENCE = "presence that eats the CPU"
HERD = "a reconnect herd"

DEFECTS = (
    LOST_PUSH, DEAD_ROUTES, OVERWRITTEN, PER_CONNECTION, LOST_LAST, ONE_PAGE, EQUAL_TIMES,
    RECONNECTS, DEAD_CLIENT, FENCED, UNCOMMITTED, LEFT_BEHIND, ALL_WOKEN, ROLLED_BACK,
    NEVER_SHRINKS, BLOCKED_HUB, PUSHED_OFFLINE, PRESENCE, HERD,
)  # fmt: skip


class Mutation(NamedTuple):
    """``what``: the fix that is missing, in words for the table."""

    defect: str
    what: str
    file: str
    old: str
    new: str
    test: str


# fmt: off
MUTATIONS = (
    Mutation(
        LOST_PUSH, "no signal names what is not acked", "services/state/outgoing.py",
        "connected.append(record)\n                if record.patient or record not in self._owing:",
        "connected.append(record)\n                if False:",
        f"{GATEWAY}::test_a_push_lost_between_business_and_gateway",
    ),
    Mutation(
        LOST_PUSH, "the SDK looks for no holes", "services/sdk/client.py",
        "if view.received.hole():", "if False:",
        f"{SDK}::test_a_push_lost_on_the_way_is_a_hole_that_a_pull_fills",
    ),
    Mutation(
        DEAD_ROUTES, "leases are not asked for", "services/route/table.py",
        "if not route.gone and usable(route.origin.idc, route.gateway)", "if not route.gone",
        f"{GATEWAY}::test_routes_of_a_dead_gateway_still_used",
    ),
    Mutation(
        DEAD_ROUTES, "every route is good", "services/node/traffic.py",
        "return gateway in self._live_in(idc)", "return True",
        f"{CONTROL}::test_routes_of_a_dead_gateway_are_not_used_any_more",
    ),
    Mutation(
        OVERWRITTEN, "what is owed is replaced", "services/state/session.py",
        "owed.merge(heads, now)", "self.owed[conversation] = Owed(heads, now)",
        f"{GATEWAY}::test_a_second_push_overwriting_the_unacked_first_one",
    ),
    Mutation(
        OVERWRITTEN, "the SDK acks the last push only", "services/sdk/client.py",
        "self._to_ack[conversation] = None", "self._to_ack = {conversation: None}",
        f"{SDK}::test_a_second_push_does_not_take_the_place_of_the_unacked_first",
    ),
    Mutation(
        PER_CONNECTION, "a message has another key on each connection", "services/sdk/sender.py",
        "send.outbox = lane.outbox", 'send.outbox = f"{lane.outbox}-{session.epoch}"',
        f"{SDK}::test_a_duplicate_check_is_per_message_not_per_connection",
    ),
    Mutation(
        PER_CONNECTION, "each connection has keys of its own", "services/im/server.py",
        "ClientKey(session.uid, session.device, send.outbox, send.conversation, send.cid)",
        "ClientKey(session.uid, session.device, session.id, send.conversation, send.cid)",
        f"{IM}::test_duplicate_checks_per_connection_instead_of_per_conversation",
    ),
    Mutation(
        PER_CONNECTION, "what is folded is not asked", "services/im/partition.py",
        "state.known |= known", "pass",
        f"{IM}::test_duplicate_checks_per_connection_instead_of_per_conversation",
    ),
    Mutation(
        LOST_LAST, "heartbeats are answered without what is owed", "services/state/server.py",
        "record.behind(now, BEHIND_S)[:_BEHIND_MAX]", "record.behind(now, BEHIND_S)[:0]",
        f"{GATEWAY}::test_a_lost_last_message_that_no_gap_reveals",
    ),
    Mutation(
        LOST_LAST, "the SDK does not read the answer", "services/sdk/client.py",
        "self._puller.heads(response.heartbeat_ok.behind)", "pass",
        f"{SDK}::test_a_lost_last_message_is_found_by_the_heartbeats_answer",
    ),
    Mutation(
        ONE_PAGE, "one page of a conversation", "services/sdk/puller.py",
        "elif self._pulled(view, answer.pull_ok) and view.received.prefix != had:",
        "elif self._pulled(view, answer.pull_ok) and False:",
        f"{SDK}::test_more_missed_messages_than_one_page",
    ),
    Mutation(
        ONE_PAGE, "one page of conversations", "services/sdk/puller.py",
        "if not ok.next_page or ok.next_page == page:", "if True:",
        f"{SDK}::test_more_missed_messages_than_one_page",
    ),
    Mutation(
        EQUAL_TIMES, "one position for all origins", "services/sdk/puller.py",
        "fill_positions(pull.have, view.received.prefix)",
        "fill_positions(pull.have, dict.fromkeys(view.received.expected,"
        " max(view.received.prefix.values(), default=0)))",
        f"{SDK}::test_equal_timestamps_lose_no_history",
    ),
    Mutation(
        EQUAL_TIMES, "the server takes one position for all origins", "services/im/reads.py",
        "start = have.get(origin, 0) + 1", "start = max(have.values(), default=0) + 1",
        f"{IM}::test_equal_timestamps_losing_history_in_a_pull",
    ),
    Mutation(
        EQUAL_TIMES, "history goes back by time alone", "services/im/reads.py",
        "keys.order_at(partition, conversation.id, before)",
        'keys.order_at(partition, conversation.id, Place(before.hlc, Origin("", 0), 0))',
        f"{IM}::test_equal_timestamps_losing_history_in_a_screen",
    ),
    Mutation(
        RECONNECTS, "an older connection takes over", "services/state/server.py",
        "if former.connection_epoch >= record.connection_epoch:", "if False:",
        f"{GATEWAY}::test_endless_reconnects_of_two_connections_that_replace_each_other",
    ),
    Mutation(
        RECONNECTS, "being accepted ends the back-off", "services/sdk/core/reconnect.py",
        "if lost.lived_ms >= STEADY_MS:", "if lost.lived_ms:",
        "tests/unit/test_sdk_connection.py::"
        "test_a_gateway_that_accepts_and_drops_at_once_is_backed_off_from",
    ),
    Mutation(
        RECONNECTS, "who was replaced comes back", "services/sdk/core/reconnect.py",
        'if lost.reason in FOR_GOOD:', "if False:",
        f"{SDK}::test_a_replaced_connection_does_not_reconnect",
    ),
    Mutation(
        DEAD_CLIENT, "silence is not noticed", "services/gateway/server.py",
        'connection.end("idle")', "pass",
        f"{GATEWAY}::test_a_client_that_looks_online_and_is_dead",
    ),
    Mutation(
        DEAD_CLIENT, "the SDK waits for its heartbeat's answer for ever",
        "services/sdk/core/liveness.py",
        "return Due.DEAD if now >= self._asked + self._timeout else Due.NOTHING",
        "return Due.NOTHING",
        f"{SDK}::test_a_client_that_looks_online_and_is_dead",
    ),
    Mutation(
        FENCED, "readers of Kafka take records below the highest marker",
        "services/engines/kafka/union.py",
        "record.lsn <= end.lsn or record.epoch < end.epoch:", "record.lsn <= end.lsn:",
        "tests/unit/test_engine_kafka_union.py::"
        "test_a_record_of_a_lower_epoch_is_not_taken_though_it_would_continue_the_log",
    ),
    Mutation(
        FENCED, "a batch on Kafka is acked wherever it stands", "services/engines/kafka/log.py",
        "if offset != expected:", "if False:",
        "tests/integration/test_kafka_log.py::test_two_sequencers_fence_each_other",
    ),
    Mutation(
        FENCED, "TiKV takes batches of an older applier", "services/engines/tikv/kv.py",
        "if newest != epoch:", "if False:",
        "tests/contract/test_kv_contract.py::test_a_partition_that_was_not_opened_takes_no_commit",
    ),
    Mutation(
        UNCOMMITTED, "records of an aborted transaction are read",
        "services/engines/kafka/batches.py",
        "        READ_COMMITTED,\n    )", "        0,\n    )",
        "tests/integration/test_kafka_log.py::test_an_aborted_transaction_is_not_read",
    ),
    Mutation(
        UNCOMMITTED, "a batch is seen before its commit has come back", "services/im/applier.py",
        "        began = asyncio.get_running_loop().time()\n",
        "        began = asyncio.get_running_loop().time()\n"
        "        self._conversations.publish(flying.conversations)\n",
        "tests/unit/test_applier_doubts.py::test_nobody_sees_a_batch_that_has_not_come_back",
    ),
    Mutation(
        LEFT_BEHIND, "the switch does not play what is left", "services/engines/moving_kv.py",
        "while await player.play():", "while False:",
        "tests/integration/test_moving_kv.py::test_a_slow_and_unsure_store_catches_up",
    ),
    Mutation(
        ALL_WOKEN, "what is pushed goes to every front", "services/split/fronts.py",
        "return list(self._where.of(uids).items())",
        "return [(link, list(uids)) for link in self.gateways]",
        f"{SCALE}::test_every_gateway_woken_for_every_group_message",
    ),
    Mutation(
        ROLLED_BACK, "the KV's word is taken as it is", "services/im/partition.py",
        "        await self.applier.drain()\n"
        "        end, folded = self._log.end(self.number), self.applier.lsn(self.origin)\n"
        "        if folded < end.lsn:",
        "        end, folded = self._log.end(self.number), self.applier.lsn(self.origin)\n"
        "        if False:",
        f"{SCALE}::test_a_sequence_rolled_back_by_a_storage_failover",
    ),
    Mutation(
        NEVER_SHRINKS, "all that a slow client does not read is kept",
        "services/gateway/connection.py",
        "        if self.paused:\n            self._gateway.counters.dropped += 1",
        "        if False:\n            self._gateway.counters.dropped += 1",
        f"{SCALE}::test_a_write_buffer_that_never_shrinks",
    ),
    Mutation(
        BLOCKED_HUB, "what a front does not read is kept without end", "services/split/pipe.py",
        "if self._bytes > self._max:", "if False:",
        f"{SCALE}::test_one_blocked_hub_that_stops_all_sessions",
    ),
    Mutation(
        PUSHED_OFFLINE, "a live route does not count", "services/webhooks/events.py",
        "if routes.alive(route):", "if False:",
        "tests/unit/test_webhooks.py::test_a_device_that_is_online_gets_no_offline_push",
    ),
    Mutation(
        PRESENCE, "every change of a route is looked at", "services/route/presence.py",
        "if now - looked.get(uid, -HOLD_S) >= HOLD_S", "if True",
        "tests/unit/test_presence.py::test_presence_does_not_eat_the_cpu",
    ),
    Mutation(
        HERD, "clients wait as long as they may, and all as long", "services/sdk/core/reconnect.py",
        "delay_ms = self._rng.randint(0, self._bound())", "delay_ms = self._bound()",
        f"{SCALE}::test_a_reconnect_herd",
    ),
)
# fmt: on
