"""Write deploy/monitoring/dashboard.json, for Grafana. With --check: fail when it differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "deploy" / "monitoring" / "dashboard.json"

_IDC = 'idc=~"$idc"'
_RATE = "$__rate_interval"
_COLUMNS = 24  # of Grafana's grid
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    """``curves``: expression -> what its lines are called."""

    title: str
    unit: str
    curves: dict[str, str]
    kind: str = "timeseries"
    width: int = 8


def _quantile(q: float, matchers: str, by: str) -> str:
    buckets = f"rate(im_request_seconds_bucket{{{matchers},{_IDC}}}[{_RATE}])"
    return f"histogram_quantile({q}, sum by ({by}, le) ({buckets}))"


def _sum(name: str, matchers: str, *by: str) -> str:
    inside = f"{matchers},{_IDC}" if matchers else _IDC
    return f"sum by ({', '.join(by)}) (rate({name}{{{inside}}}[{_RATE}]))"


_TAKEN = 'outcome="accepted"'
_SEND = 'role="state",verb="send"'
_FAULTS = 'code=~"unavailable|deadline|not_replicated|internal"'

ROWS: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        Panel("Ready", "none", {f"im_ready{{{_IDC}}}": "{{idc}}"}, "stat", 4),
        Panel("Sessions", "short", {f"sum(im_sessions{{{_IDC}}})": "sessions"}, "stat", 4),
        Panel("Messages", "ops", {_sum("im_messages_total", _TAKEN, "outcome"): "a second"},
              "stat", 4),
        Panel("Failed sends, 1 h", "percentunit", {"im:send_errors:ratio_rate1h": "of all"},
              "stat", 4),
        Panel("Alarms", "none", {f"im_alarms{{{_IDC}}}": "{{idc}}"}, "stat", 4),
        Panel("Policy epoch", "none", {f"im_policy_epoch{{{_IDC}}}": "{{idc}}"}, "stat", 4),
    ),
    "Requests": (
        Panel("Requests by verb", "ops",
              {_sum("im_request_seconds_count", 'role="state"', "verb"): "{{verb}}"}),
        Panel("Sends: time to the ack", "s", {
            _quantile(0.5, _SEND, "idc"): "{{idc}} p50",
            _quantile(0.99, _SEND, "idc"): "{{idc}} p99",
        }),
        Panel("Failures by the service's fault", "ops",
              {_sum("im_request_failures_total", f'role="state",{_FAULTS}', "verb", "code"):
               "{{verb}} {{code}}"}),
        Panel("im: p99 by verb", "s", {_quantile(0.99, 'role="im"', "verb"): "{{verb}}"}),
        Panel("ipconf: answers, p99", "s",
              {_quantile(0.99, 'role="ipconf"', "idc, verb"): "{{idc}} {{verb}}"}),
        Panel("Failed sends", "percentunit", {
            "im:send_errors:ratio_rate5m": "5 min", "im:send_errors:ratio_rate6h": "6 h",
            "im:send_errors:ratio_rate3d": "3 d",
        }),
    ),
    "Gateways and sessions": (
        Panel("Connections", "short",
              {f"sum by (idc) (im_gateway_connections{{{_IDC}}})": "{{idc}}"}),
        Panel("Sessions by shard", "short", {f"sum by (shard) (im_sessions{{{_IDC}}})":
              "{{shard}}"}),
        Panel("Pushed back", "ops", {_sum(
            "im_gateway_events_total", 'event=~"refused|limited|slow|dropped|idle|rubbish"',
            "event"): "{{event}}"}),
        Panel("Pushes to devices", "ops",
              {_sum("im_session_events_total", 'event="pushed"', "idc"): "{{idc}}"}),
        Panel("Sessions: events", "ops", {_sum(
            "im_session_events_total", 'event!="pushed"', "event"): "{{event}}"}),
        Panel("Queues", "short",
              {f"sum by (idc, queue, peer) (im_queue_depth{{{_IDC}}})":
               "{{idc}} {{queue}} {{peer}}"}),
    ),
    "Limits": (
        Panel("Turned away", "ops", {_sum("im_limited_total", "", "idc", "limit"):
              "{{idc}} {{limit}}"}),
        Panel("Share of the users that are served", "percentunit",
              {f"im_served_share{{{_IDC}}}": "{{idc}}"}),
        Panel("Sessions, of what it can carry", "percentunit",
              {f"sum by (idc) (im_sessions{{{_IDC}}}) / "
               f"sum by (idc) (im_capacity_sessions{{{_IDC}}})": "{{idc}}"}),
    ),
    "Replication": (
        Panel("Behind, in time", "s", {f"im_replication_lag_seconds{{{_IDC}}}":
              "{{idc}} of {{peer}}, {{flow}}"}),
        Panel("Behind, in records", "short",
              {f"sum by (idc, peer, flow) (im_replication_lag_records{{{_IDC}}})":
               "{{idc}} of {{peer}}, {{flow}}"}),
        Panel("Held by nobody else", "short",
              {f"min by (idc) (im_replication_unheld_records{{{_IDC}}})": "{{idc}}"}),
        Panel("Last heard of", "s", {f"im_replication_heard_seconds{{{_IDC}}}":
              "{{idc}} of {{peer}}"}),
        Panel("MirrorMaker: last sign of life", "s",
              {f"im_mirror_worker_age_seconds{{{_IDC}}}": "{{idc}} from {{peer}}"}),
        Panel("Logs", "bytes", {f"im_log_bytes{{{_IDC}}}": "{{idc}}"}),
    ),
    "Partitions": (
        Panel("Epochs", "none", {f"im_sequencer_epoch{{{_IDC}}}": "{{idc}} {{partition}}"}),
        Panel("Records", "ops", {f"sum by (idc) (deriv(im_log_end{{{_IDC}}}[5m]))": "{{idc}}"}),
        Panel("Accepted and not folded", "short",
              {f"sum by (idc) (im_sequencer_pending{{{_IDC}}})": "{{idc}}"}),
        Panel("Known cids in memory", "short",
              {f"sum by (idc) (im_sequencer_known_cids{{{_IDC}}})": "{{idc}}"}),
        Panel("Lanes in memory", "short",
              {f"sum by (idc) (im_sequencer_lanes{{{_IDC}}})": "{{idc}}"}),
        Panel("Hottest: count of the first, last minute", "short",
              {f'im_hot{{rank="1",{_IDC}}}': "{{idc}} {{kind}}"}),
    ),
    "Processes": (
        Panel("CPU", "percentunit",
              {f'rate(process_cpu_seconds_total{{job="im",{_IDC}}}[{_RATE}])': "{{idc}}"}),
        Panel("Memory", "bytes",
              {f'process_resident_memory_bytes{{job="im",{_IDC}}}': "{{idc}}"}),
        Panel("Clock, from the median", "s", {f"im_clock_offset_seconds{{{_IDC}}}": "{{idc}}"}),
    ),
    "Operator": (
        Panel("Operators that lead", "none", {"sum(im_operator_leader)": "lead"}, "stat", 4),
        Panel("Since the Lease was renewed", "s",
              {"time() - max(im_operator_lease_renewed_timestamp_seconds)": "ago"}, "stat", 4),
        Panel("Objects", "short", {"sum by (kind) (im_operator_objects)": "{{kind}}"}, "stat", 8),
        Panel("Objects that fail", "short",
              {"sum by (kind) (im_operator_objects_failing)": "{{kind}}"}, "stat", 8),
    ),
    "Operator: work": (
        Panel("Looks at objects", "ops",
              {f"sum by (kind) (rate(im_operator_reconcile_seconds_count[{_RATE}]))": "{{kind}}"}),
        Panel("A look takes, p95", "s",
              {"histogram_quantile(0.95, sum by (queue, le) "
               f"(rate(im_operator_reconcile_seconds_bucket[{_RATE}])))": "{{queue}}"}),
        Panel("Looks that fail", "ops",
              {"sum by (kind, reason) "
               f"(rate(im_operator_reconcile_failures_total[{_RATE}]))": "{{kind}} {{reason}}"}),
        Panel("The oldest that waits", "s",
              {"max by (queue) (im_operator_queue_oldest_seconds)": "{{queue}}"}),
        Panel("Calls of the API server", "ops",
              {f"sum by (verb) (rate(im_operator_api_calls_total[{_RATE}]))": "{{verb}}"}),
        Panel("A call takes, p99", "s",
              {"histogram_quantile(0.99, sum by (verb, le) "
               f"(rate(im_operator_api_seconds_bucket[{_RATE}])))": "{{verb}}"}),
        Panel("Calls without success", "ops",
              {"sum by (verb, reason) "
               f"(rate(im_operator_api_failures_total[{_RATE}]))": "{{verb}} {{reason}}"}),
        Panel("The operator's CPU", "percentunit",
              {f'rate(process_cpu_seconds_total{{job="im-operator"}}[{_RATE}])': "{{pod}}"}),
        Panel("The operator's memory", "bytes",
              {'process_resident_memory_bytes{job="im-operator"}': "{{pod}}"}),
    ),
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        across = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        head = {"id": len(panels) + 1, "type": "row", "title": title, "gridPos": across}
        panels.append(head | {"collapsed": False, "panels": []})
        y, x = y + 1, 0
        height = 4 if row[0].kind == "stat" else 8
        for panel in row:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + height
            at = {"x": x, "y": y, "w": panel.width, "h": height}
            panels.append(_panel(panel, len(panels) + 1, at))
            x += panel.width
        y += height
    return {
        "uid": "imctl",
        "title": "Instant messaging, all IDCs",
        "tags": ["imctl"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _idcs()]},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": _SOURCE, "expr": expr, "legendFormat": name}
            for n, (expr, name) in enumerate(panel.curves.items())
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource",
            "query": "prometheus"}  # fmt: skip


def _idcs() -> dict[str, Any]:
    return {
        "name": "idc", "label": "IDC", "type": "query", "datasource": _SOURCE,
        "query": {"query": "label_values(im_ready, idc)", "refId": "idc"}, "refresh": 2,
        "includeAll": True, "allValue": ".*", "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        if not FILE.exists() or FILE.read_text() != text():
            raise SystemExit("run `make docs`: stale deploy/monitoring/dashboard.json")
    else:
        FILE.write_text(text())
