"""Verdicts: nothing passes by default, what went wrong first is the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Made
from typing import Any, cast

import pytest

from imcore.checker.availability import Availability, Outage
from imcore.region.load import load_region
from imcore.runtime import SystemClock
from imctl.drill import judging
from imctl.drill.observer import Observer
from imctl.drill.session import Loss, Session
from imctl.drill.verdict import Facts, Look, Outcome, error_of, judge, looks_of
from imctl.drill.watch import Standing
from imctl.report.model import Promise
from imctl.report.promises import UNPROVEN

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
HELD = Promise("Acked messages missing", "0", "0", True)
DURING = [Look("during", float(t)) for t in range(10, 20)]
GOOD = Facts(
    looks=[Look("before", 5.0), *DURING, Look("after", 30.0), Look("restored", 40.0)],
    promises=[HELD],
    acked=500,
    acked_min=400,
    canaries={("fra", "iad"): 30},
    canaries_min=20,
    finished=True,
)


def test_only_a_whole_run_passes() -> None:
    verdict = judge(GOOD)
    assert verdict.outcome is Outcome.PASS and verdict.line() == "pass: every promise held"
    assert judge(Facts()).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"acked": 10}, "too little load: 10 messages acked, 400 are needed"),
        ({"canaries": {("fra", "iad"): 3}}, "too few canaries: 3 acked from fra to iad"),
        ({"finished": False}, "the history ends early"),
        (
            {"promises": [HELD._replace(name=UNPROVEN, ok=False, measured="2")]},
            "Conversations not checked in an IDC: 2",
        ),
        ({"broken": "OSError: no"}, "the drill itself failed: OSError: no"),
        ({"looks": GOOD.looks[1:]}, 'no "before" check of the steady state'),
        (
            {"looks": [GOOD.looks[0], *GOOD.looks[9:]]},
            "only 2 checks during the drill, at least 5 are needed",
        ),
        ({"looks": GOOD.looks[:-1]}, 'no "restored" check of the steady state'),
        (
            {"looks": [Look("before", 1.0, broken="x is 3"), *GOOD.looks[1:]]},
            "not steady before the drill: x is 3",
        ),
        (
            {"looks": [*(look._replace(blind="y: no") for look in GOOD.looks[1:5]), *GOOD.looks]},
            "probes failed in 4 of 14 checks: y: no",
        ),
    ],
)
def test_what_is_not_shown_is_inconclusive(changed: dict[str, object], said: str) -> None:
    verdict = judge(replace(GOOD, **changed))  # type: ignore[arg-type]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.startswith(said)


def test_the_first_that_went_wrong_is_the_reason_even_of_a_run_that_shows_too_little() -> None:
    looks = [*GOOD.looks, Look("during", 12.5, broken="b: 9"), Look("during", 11.5, "a: 7")]
    facts = replace(
        GOOD,
        looks=looks,
        failed=(25.0, "the move: refused"),
        promises=[HELD._replace(ok=False, measured="3")],
        acked=0,
    )
    verdict = judge(facts)
    assert verdict.outcome is Outcome.DEVIATED
    assert verdict.line() == "deviated: a: 7 (during, at 12 s) (and 4 more)"
    assert [found.sentence for found in verdict.findings[1:4]] == [
        "b: 9 (during, at 12 s)",
        "the move: refused",
        "Acked messages missing: 3, promised 0",
    ]


def test_one_probe_is_named_once_for_each_part_of_the_run() -> None:
    looks = [*GOOD.looks, *(Look("during", 50.0 + n, broken=f"wait: {n}") for n in range(5))]
    assert len(judge(replace(GOOD, looks=looks)).findings) == 1


def test_an_end_by_hand_is_neither_a_pass_nor_a_deviation() -> None:
    facts = replace(GOOD, operator="ended by hand", finished=False)
    assert judge(facts).outcome is Outcome.ABORTED
    assert judge(replace(facts, left=["fra is killed"])).outcome is Outcome.DEVIATED


@pytest.mark.parametrize(
    "changed",
    [
        {"disputes": ["epoch 3 is one thing at fra and another at iad"]},
        {"left": ["the link is cut, and it could not be undone"]},
        {"condition": (3.0, "longest_wait_s is 50, over 45")},
    ],
)
def test_split_brain_leftovers_and_abort_conditions_deviate(changed: dict[str, object]) -> None:
    assert judge(replace(GOOD, **changed)).outcome is Outcome.DEVIATED  # type: ignore[arg-type]


def test_looks_are_read_from_the_toolkits_journal() -> None:
    def state(met: bool, output: object, status: str = "succeeded", **more: object) -> object:
        probe = {
            "activity": {"name": "wait", "tolerance": {"type": "range", "range": [0, 8]}},
            "start": "2026-01-01T00:00:10+00:00",
            "status": status,
            "output": output,
            **more,
        }
        return {"steady_state_met": met, "probes": [probe]}

    journal = {
        "steady_states": {
            "before": state(True, 1.0),
            "during": [
                state(False, 9.5, about="fra -> iad"),
                state(False, None, "failed", exception=["a.B: c.D: no look\n"]),
            ],
            "after": None,
        }
    }
    began = 1767225600.0  # 2026-01-01T00:00:00Z
    before, broken, blind = looks_of(journal, began)
    assert before == Look("before", 10.0)
    assert broken.broken == "wait: 9.5, steady is at most 8; fra -> iad"
    assert blind.blind == "wait: no look"


def test_errors_are_told_without_the_names_of_classes() -> None:
    text = "chaoslib.exceptions.ActivityFailed: imcore.errors.Unavailable: fra: no answer\n"
    assert error_of({"exception": ["Traceback\n", text]}).endswith("no answer")


def test_each_loss_of_an_idc_has_its_own_steps() -> None:
    """Steady again is the first look after it that says so, committed the first failover."""
    found = Availability()
    found.outages = [Outage("fra", 40_000_000, set()), Outage("fra", 70_000_000, set())]
    control: Any = Made(voters="abc", region=REGION, idcs=["fra"])
    observer = Observer(cast(Any, None), control, SystemClock(), lambda *_: None)
    observer._note_votes([Standing("iad", "fra", 1_000)])  # of no loss of this drill
    for loss_ms, failed_ms in ((40_000, 43_000), (70_000, 75_000)):
        observer.begin_loss("fra")
        observer._note_votes([Standing("iad", "fra", loss_ms + 1_000)])
        observer._failed_ms.setdefault("fra", []).append(failed_ms)
    losses = [Loss("fra", 40.0, 40_000, 0), Loss("fra", 70.0, 70_000, 0)]
    session = Made(losses=losses, steadied=[30.0, 62.0, 95.0], observer=observer)
    steps = [one.steps for one in judging._recoveries(cast(Session, session), found)]
    assert [each["steady"] for each in steps] == [22.0, 25.0]
    assert [each["committed"] for each in steps] == [3.0, 5.0]
    assert [each["detected"] for each in steps] == [1.0, 1.0]
