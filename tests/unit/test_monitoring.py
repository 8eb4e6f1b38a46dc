"""Alert rules and dashboard name only what a node shows. Each expression is parsed as PromQL;
nothing evaluates them here (no Prometheus is)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from imcore.errors import Unavailable
from imctl.reconcile.cluster import reason_of
from imctl.reconcile.reconciler import QUEUES
from services.gateway.server import Counters as GatewayCounters
from services.im.server import Counters as ImCounters
from services.metrics.catalog import METRICS, OPERATOR, Kind
from services.metrics.verbs import Verbs
from services.node.metrics import _LIMITS, FAULTS, Measured
from services.node.roles import Roles
from services.state.outgoing import Counters as StateCounters
from tools.gendashboard import FILE, ROOT, text

RULES = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text())
TARGET = {"job", "idc", "instance"}  # labels that the scrape gives


def rules() -> Iterator[dict[str, Any]]:
    for group in RULES["groups"]:
        yield from group["rules"]


def _shown() -> dict[str, set[str]]:
    """By name as Prometheus stores it, the labels."""
    found: dict[str, set[str]] = {"up": set()}
    for metric in (*METRICS, *OPERATOR):
        labels = set(metric.labels)
        if metric.kind is Kind.HISTOGRAM:
            found[f"{metric.name}_bucket"] = labels | {"le"}
            found |= {f"{metric.name}_{part}": labels for part in ("count", "sum")}
        else:
            found[metric.name] = labels
    for family in ProcessCollector(registry=CollectorRegistry()).collect():
        found |= {sample.name: set() for sample in family.samples}
    return found | {rule["record"]: set() for rule in rules() if "record" in rule}


SHOWN = _shown()
VALUES = {
    "role": set(Measured(random.Random(1), Roles.ALL.value).verbs),
    "code": {str(code) for code in FAULTS},
    "event": {*GatewayCounters.__slots__, *StateCounters.__slots__},
    "outcome": set(ImCounters.__slots__),
    "limit": set(_LIMITS),
    "flow": {"log", "kv", "mirrormaker2"},
    "job": {"im", "im-operator"},
    "reason": {reason_of(Unavailable(""))},
}


def expressions() -> list[tuple[str, str]]:
    found = [(str(rule.get("alert") or rule.get("record")), rule["expr"]) for rule in rules()]
    for panel in json.loads(FILE.read_text())["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel.get("targets", ())]
    return found


def _parsed(expression: str) -> Any:
    plain = expression.replace("$__rate_interval", "5m").replace("$idc", ".*")
    return promql.parse(plain)


def _selectors(expression: Any) -> list[Any]:
    found = []

    def see(node: Any) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        return True

    promql.walk(expression, see)
    return found


@pytest.mark.parametrize(("name", "expression"), expressions())
def test_an_expression_is_promql_of_metrics_and_labels_that_exist(name, expression):
    selectors = _selectors(_parsed(expression))
    assert selectors
    for selector in selectors:
        assert selector.name in SHOWN
        for matcher in selector.matchers.matchers:
            assert matcher.name in SHOWN[selector.name] | TARGET
            known = VALUES.get(matcher.name)
            if selector.name.startswith("im_operator_") and matcher.name == "queue":
                known = set(QUEUES)  # others are those of a node
            assert known is None or set(matcher.value.split("|")) <= known


def test_an_expression_with_an_unknown_metric_would_be_found():
    (selector,) = _selectors(_parsed('rate(im_no_such_total{idc=~"$idc"}[$__rate_interval])'))
    assert selector.name not in SHOWN
    with pytest.raises(ValueError):
        _parsed("sum by (idc) (rate(im_ready[5m])")


@pytest.mark.parametrize("rule", [r for r in rules() if "alert" in r], ids=lambda r: r["alert"])
def test_an_alert_says_how_urgent_it_is_and_what_to_do(rule):
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"] and rule["annotations"]["do"]


def test_names_of_rules_are_their_own():
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(set(names)) == len(names) > 20


def test_burn_rates_are_of_the_same_windows_as_their_records():
    """A record whose name says one window and whose expression another would page too late."""
    for rule in rules():
        if "record" in rule:
            window = rule["record"].rpartition("ratio_rate")[2]
            assert rule["expr"].count(f"[{window}]") == 2


def test_the_dashboard_is_not_stale():
    assert FILE.read_text() == text()


def test_panels_lie_beside_each_other():
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(FILE.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_verbs_that_rules_name_are_shown_before_the_first_request():
    known: dict[str, Verbs] = Measured(random.Random(1), Roles.ALL.value).verbs
    assert {"send", "connect"} <= set(known["state"].known)
