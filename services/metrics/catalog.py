"""Every metric that a node of an IDC shows, and that an operator does, with its meaning. Pure.

docs/metrics.md is written from these lists, and collectors can show nothing that is not in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """``labels``: their names, in order. Seconds, bytes or plain numbers, as the name says."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


def _gauge(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, labels, help_)


def _counter(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, labels, help_)


METRICS = (
    # ------------------------------------------------------------------------------ process
    _gauge("im_ready", "1 while the IDC is in discovery and serves, as /readyz says"),
    _gauge("im_uptime_seconds", "since the roles of this process were started"),
    _gauge("im_alarms", "sentences under alarms in the status document"),
    _gauge("im_clock_offset_seconds", "of the own clock from the median of the IDCs' clocks"),
    _gauge("im_clock_skewed", "1 while the clock is being clamped"),
    _gauge(
        "im_certificate_expires_timestamp_seconds",
        "when the certificate that new connections are shown ends, and when its CA does",
        "certificate",
    ),
    # ----------------------------------------------------------------------------- requests
    Metric(
        "im_request_seconds", Kind.HISTOGRAM, ("role", "verb"),
        "from a request to its answer, failed ones too: gateway (`request`: it sees frames, not "
        "verbs), state (requests of sessions, behind it), im, ipconf, admin (the admin API); "
        "route: how long a signal waits for its batch",
    ),
    _counter(
        "im_request_failures_total",
        "answers that are an error, by its code; short_deadline: a deadline that the client itself "
        "set so short that it proves nothing",
        "role", "verb", "code",
    ),
    _gauge("im_served_share", "share of the users whose requests are taken; below 1: it sheds"),
    _gauge("im_breaker_open", "1 while im answers nothing, and is asked nothing"),
    _counter(
        "im_limited_total",
        "what was turned away: shed; overloaded (requests, for whatever reason, shed ones too); "
        "turned_away (connections); conversations_limited (sends)",
        "limit",
    ),
    _gauge("im_capacity_sessions", "that the IDC can carry, by the region file"),
    _gauge("im_capacity_messages_per_second", "that the IDC can carry, by the region file"),
    # -------------------------------------------------------------------- gateways, sessions
    _gauge("im_gateway_connections", "client connections, those without a session too", "gateway"),
    _gauge(
        "im_gateway_transport_connections",
        "the same by transport: tcp (TLS as a rule), websocket, polling, quic",
        "gateway", "transport",
    ),
    _counter(
        "im_gateway_quic_total",
        "where QUIC is spoken: quic (connections that came by it), migrated (a client went on from "
        "another address), unproven (told to come again with a token), dropped_datagrams (rubbish, "
        "beyond a limit, or of no connection)",
        "gateway", "event",
    ),
    _counter(
        "im_gateway_events_total",
        "of connections: accepted, refused, rubbish, limited, idle, slow; pushed and dropped "
        "events; writes to sockets",
        "gateway", "event",
    ),
    _gauge("im_sessions", "connected sessions that a move would take along, by geo shard", "shard"),
    _counter(
        "im_session_events_total",
        "pushed (copies sent to devices), signalled, resumed, replaced, drained, overflowed, "
        "deadlines",
        "event",
    ),
    _counter("im_messages_total", "sends: accepted, known, refused, degraded", "outcome"),
    _gauge(
        "im_queue_depth",
        "connects (connections without a session), requests (not answered), sends (waiting for "
        "their lane to be read), acks (waiting for another IDC), signals (by the IDC they go to)",
        "queue", "peer",
    ),
    # ------------------------------------------------------------------------------- media
    _counter(
        "im_media_events_total",
        "uploads: begun, completed, known (the same user had uploaded the same bytes), "
        "refused_hash, swept; downloads and other IDCs' requests: served (it was here), fetched "
        "(from another IDC), unavailable (who may have it does not answer), evicted (a "
        "copy that made room for others)",
        "event",
    ),
    _counter(
        "im_media_transferred_bytes_total",
        "of files: in and out (clients), fetched (from other IDCs)", "way",
    ),
    _gauge("im_media_stored_bytes", "files here, and what has come of uploads"),
    _gauge("im_media_copies_bytes", "copies from other IDCs, which make room beyond their limit"),
    _gauge("im_media_files", "files here, each once"),
    _gauge("im_media_uploads", "under way"),
    # -------------------------------------------------------------------------- replication
    _gauge(
        "im_replication_lag_records",
        "records of another IDC: log: known to exist and not held here; kv: held and not folded; "
        "mirrormaker2: at the source and not copied by it, for each partition",
        "peer", "flow", "partition",
    ),
    _gauge(
        "im_replication_lag_seconds",
        "kv: what the last ops of another IDC took from acceptance there to the fold here; "
        "mirrormaker2: age of the last heartbeat of the source that was copied",
        "peer", "flow",
    ),
    _gauge("im_replication_heard_seconds", "since another IDC's log was last heard of", "peer"),
    _gauge("im_replication_unheld_records", "own records that another IDC does not hold", "peer"),
    _gauge("im_mirror_worker_age_seconds", "since MirrorMaker's flow gave a sign of life", "peer"),
    _gauge("im_mirror_problem", "1 while MirrorMaker's lag cannot be measured", "peer"),
    # --------------------------------------------------------------------------- partitions
    _gauge("im_sequencer_epoch", "of the partition's sequencer", "partition"),
    _gauge("im_sequencer_open", "1 while the partition takes writes", "partition"),
    _gauge("im_log_end", "lsn of the own log's durable end", "partition"),
    _gauge("im_sequencer_lanes", "outboxes' lanes in memory", "partition"),
    _gauge("im_sequencer_known_cids", "known cids in memory, above the senders' floors",
           "partition"),
    _gauge("im_sequencer_pending", "messages accepted and not folded yet", "partition"),
    _gauge("im_log_bytes", "of all logs held here"),
    _gauge("im_kv_move", "1 while the KV moves to another engine"),
    _counter(
        "im_pulls_total",
        "pages of pulls by where they came from: memory; shared (a read that was under way); kv. "
        "The share of kv is what goes through to it",
        "source",
    ),
    _counter(
        "im_conversations_total",
        "conversations asked for by requests and folds, by where they were: memory; shared (a read "
        "that was under way); kv; absent (read, and not there: what goes through for nothing)",
        "source",
    ),
    _gauge("im_recent_bytes", "of last entries of conversations in memory"),
    _gauge("im_recent_conversations", "of which memory has the last entries"),
    _gauge("im_route_gateways", "gateways linked to this route instance; of a core, to any"),
    # ------------------------------------------------------------------------------- policy
    _gauge("im_policy_epoch", "newest committed policy that is known here"),
    _gauge("im_policy_stale", "1: no majority has confirmed the policy lately"),
    _gauge("im_policy_state", "1 for the state that the policy gives the IDC", "idc", "state"),
    _gauge("im_policy_operation", "1 while a move of traffic is under way"),
    _gauge(
        "im_policy_left_halfway",
        "1: a drain or failback of this IDC was ended on the way and nobody carries it on; an "
        "alarm says what to do",
    ),
    _gauge("im_registry_up", "1 while the registry answers", "registry"),
    # ----------------------------------------------------------------------------- hottest
    _gauge(
        "im_hot",
        "of the last whole minute, by rank: messages of a conversation or group, reads of a KV "
        "key; who it is stands in /hot alone, since names would make a series of each",
        "kind", "rank",
    ),
)  # fmt: skip

_BY = "objects: by what stands in the cluster; idcs: by asking processes of IDCs"
_WHY = (
    "unavailable (no answer, or a server in trouble), conflict (another has changed it "
    "meanwhile), rejected (it is wrong or forbidden), other"
)

OPERATOR = (
    _gauge("im_operator_leader", "1 while this operator holds the Lease and may write"),
    _gauge(
        "im_operator_lease_renewed_timestamp_seconds",
        "when it renewed the Lease last; not shown by one that never held it",
    ),
    _gauge("im_operator_objects", "of this kind that it knows", "kind"),
    _gauge("im_operator_objects_failing", "of these, whose last reconcile failed", "kind"),
    _gauge("im_operator_queue_depth", f"objects that wait for a worker ({_BY})", "queue"),
    _gauge(
        "im_operator_queue_oldest_seconds",
        "since that object was asked for that has waited longest and is not done; 0: none is",
        "queue",
    ),
    Metric(
        "im_operator_reconcile_seconds", Kind.HISTOGRAM, ("queue", "kind"),
        "what one look at an object takes, with all that is applied, failed ones too",
    ),
    _counter(
        "im_operator_reconcile_failures_total",
        f"looks that failed and are tried again, by the reason: {_WHY}; unexpected is a bug",
        "queue", "kind", "reason",
    ),
    Metric(
        "im_operator_api_seconds", Kind.HISTOGRAM, ("verb",),
        "from a call of the API server to its answer, failed ones too; kopf's watches are not "
        "among these calls",
    ),
    _counter(
        "im_operator_api_calls_total",
        "by verb and resource, in the words of RBAC; discovery: what the cluster serves at all",
        "verb", "resource",
    ),
    _counter(
        "im_operator_api_failures_total",
        "calls without success, by the reason as above; that nothing is there is an answer",
        "verb", "resource", "reason",
    ),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in (*METRICS, *OPERATOR)}


def table(metrics: Iterable[Metric]) -> str:
    """For docs/metrics.md."""
    rows = ["| metric | kind | labels | what it is |", "| --- | --- | --- | --- |"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows) + "\n"
