"""What `imctl audit rules` says of the changes that audit logs have noted: those that the service
makes pass, and each rule that one breaks is named."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from imctl import output
from imctl.auditrules import as_row, judged, sentence, table, verdict
from services.control.evaluate import Decision
from services.control.evidence import Evidence
from services.control.operations import audit
from services.control.rules import Change, Kind
from services.policy.document import Policy, initial
from tests.unit.test_evaluate import (
    NOW,
    REGION,
    change,
    decide,
    evidence,
    facts,
    region,
)

Row = dict[str, Any]
FIRST = initial(REGION, NOW - 60_000)


class Log:
    """Of one IDC: what `services.control.operations` notes of changes that are really judged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.policy: Policy = FIRST
        self.rows: list[Row] = []

    def make(self, what: Change, on: Evidence | None = None) -> Row:
        on = on or evidence()
        made: Decision = decide(what, self.policy, on)
        assert made.policy is not None, made.sentence
        self.policy = made.policy
        with self._caplog.at_level(logging.INFO, "im.audit"):
            self._caplog.clear()
            audit(what, made, on, NOW)
        row: Row = json.loads(self._caplog.messages[-1])
        self.rows.append(row)
        return row


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


def broken(rows: list[Row], within: Any = REGION) -> list[str]:
    return [each.rule for found in judged(rows, within) for each in found.broken]


def test_what_the_service_does_keeps_them(log: Log) -> None:
    log.make(change(Kind.FAILOVER, by="controller iad"))
    log.make(change(Kind.RECOVERING, by="controller fra", request_id="r2"))
    log.make(change(Kind.FAILBACK, request_id="r3"))
    changes = judged(reversed(log.rows), REGION)
    assert [each.epoch for each in changes] == [2, 3, 4]
    assert not any(each.unjudged or each.broken for each in changes)
    assert sentence(changes) == "3 changes judged, none broke a rule"
    assert as_row(changes[0])["change"].startswith("epoch 2: failover of fra by controller iad")


def few_votes(row: Row) -> None:
    row["evidence"]["votes"] = [each for each in row["evidence"]["votes"] if each["voter"] == "iad"]


def own_vote(row: Row) -> None:
    few_votes(row)
    row["evidence"]["votes"].append({"voter": "fra", "held_ms": 9_000, "said": ""})


def short_votes(row: Row) -> None:
    row["evidence"]["votes"][0]["held_ms"] = 2_900


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [(few_votes, "votes-majority"), (own_vote, "votes-majority"), (short_votes, "hold-time")],
)
def test_a_failover_needs_the_votes_of_a_majority(
    log: Log, spoil: Callable[[Row], None], rule: str
) -> None:
    row = log.make(change(Kind.FAILOVER, by="controller iad"))
    assert broken([row]) == []
    spoil(row)
    assert broken([row]) == [rule]


def test_votes_have_held_until_the_change_was_made(log: Log) -> None:
    """They are some time old by then."""
    row = log.make(change(Kind.FAILOVER, by="controller iad"))
    assert {each["held_ms"] for each in row["evidence"]["votes"]} == {3_300}


def old(row: Row) -> None:
    row["evidence"]["idcs"]["sin"]["age_ms"] = 2_100


def unheard(row: Row) -> None:
    del row["evidence"]["idcs"]["iad"]


def away(row: Row) -> None:
    row["evidence"]["idcs"]["sin"]["serving"] = False


def behind(row: Row) -> None:
    row["evidence"]["idcs"]["iad"]["lag_ms"]["fra.1"] = 5_100


def has_not_heard(row: Row) -> None:
    row["evidence"]["idcs"]["fra"]["lag_ms"]["sin.1"] = 5_100


def other_behind(row: Row) -> None:
    """Of two that only take clients, and behind a former life."""
    row["evidence"]["idcs"]["iad"]["lag_ms"] |= {"sin.1": 9_000, "fra.0": 9_000}


@pytest.mark.parametrize(
    ("spoil", "rules"),
    [
        (old, ["evidence-age"]), (unheard, ["evidence-age"]), (away, ["serving"]),
        (behind, ["replication-lag"]), (has_not_heard, ["replication-lag"]), (other_behind, []),
    ],
)  # fmt: skip
def test_a_drain_needs_evidence_of_all_whom_it_concerns(
    log: Log, spoil: Callable[[Row], None], rules: list[str]
) -> None:
    row = log.make(change(Kind.DRAIN))
    assert broken([row]) == []
    spoil(row)
    assert broken([row]) == rules


def test_a_rule_that_the_change_overrides_is_not_judged(log: Log) -> None:
    late = facts("iad", lag_ms={"fra.1": 9_000, "sin.1": 0})
    row = log.make(change(Kind.DRAIN, overrides=("replication-lag",)), evidence(iad=late))
    assert broken([row]) == []
    row["evidence"]["overridden"] = []
    assert broken([row]) == ["replication-lag"]


def test_documents_are_judged_as_well(log: Log) -> None:
    row = log.make(change(Kind.DRAIN))
    assert broken([row], region(active_idcs_min=3)) == ["active-idcs-min"]
    assert broken([row], region(approval=["drain"])) == ["approval"]
    window = {"start": "2023-11-14T00:00:00Z", "end": "2023-11-15T00:00:00Z"}
    frozen = region().spec.safety.model_validate({"freeze": [window]}).freeze
    assert broken([row], region(freeze=frozen)) == ["freeze-window"]
    second = copy.deepcopy(row)
    second["policy"]["epoch"] = 3
    second["policy"]["operation"]["id"] = "drain-iad-3"
    assert broken([row, second]) == ["one-move-at-a-time"]
    failed = log.make(change(Kind.FAILOVER, by="controller iad", request_id="r2"))
    assert broken([row, failed], region(automatic_failover=False)) == ["automatic-failover"]


def test_what_was_asked_for_again_stands_where_its_change_is_not_noted(log: Log) -> None:
    """By a controller that died when it had been committed."""
    row = log.make(change(Kind.FAILOVER, by="controller iad"))
    again = copy.deepcopy(row) | {"repeated": True}
    again["evidence"]["votes"] = []
    assert broken([again]) == broken([row, again]) == broken([again, row]) == []


def test_what_cannot_be_judged_is_said(log: Log) -> None:
    log.make(change(Kind.DRAIN))
    second = log.make(change(Kind.UNDRAIN, request_id="r2"))
    (found,) = judged([second], REGION)
    assert verdict(found) == "not judged: no log has epoch 2"
    assert sentence([found]) == "0 changes judged, none broke a rule; 1 not judged"
    first = log.rows[0]
    senseless: list[Any] = [None, 7, [], {"votes": "all", "idcs": {}, "overridden": []}]
    for strange in senseless:
        (found, _) = judged([first | {"evidence": strange}, second], REGION)
        assert verdict(found) == "not judged: its evidence cannot be read"


def test_other_lines_are_passed_over(log: Log) -> None:
    row = log.make(change(Kind.DRAIN))
    strange: list[Row] = [
        {}, {"decision": "refused", "policy": None}, {"decision": "committed"},
        {"decision": "committed", "policy": 7}, {"decision": "committed", "policy": {"epoch": "x"}},
        {"fault": "kill", "outcome": "done"}, row | {"at_ms": "soon"},
    ]  # fmt: skip
    assert [each.epoch for each in judged(strange, REGION)] == [2]


def test_what_is_shown_of_a_planted_line_steers_no_terminal(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = log.make(change(Kind.DRAIN)) | {"sentence": "kept\x1b[2K\x1b[1A"}
    planted["evidence"]["idcs"]["sin"]["age_ms"] = 9_999
    output.console().print(table(judged([planted], REGION)))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "BROKEN evidence-age" in shown
