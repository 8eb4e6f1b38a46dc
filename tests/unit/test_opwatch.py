"""What the screen says of an operation's steps and end, and the exit status that follows."""

from __future__ import annotations

from typing import cast

import pytest

from imcore.errors import ImError, OutcomeUnknown, Unavailable
from imctl import opwatch
from imctl.errors import ABORTED, ERROR, UNKNOWN, Aborted, Failed, exit_code
from imctl.opwatch import conclude, step_lines, tick_line, until_followed
from imctl.traffic import Control, Left
from services.control.operations import UNDER_WAY, Operation, Step
from services.control.rules import Change, Kind
from services.control.slow import Slow, Took, Usual
from services.policy.document import OperationState

STEPS = (
    Step(1_000, 2, "epoch 2: drain of fra by operator", {}),
    Step(6_500, 3, "epoch 3: drained of fra by controller fra", {"idcs": {"fra": {"closed": 3}}}),
)


def ended(state: OperationState) -> Operation:
    return Operation("drain-fra-2", "drain", "fra", "", "operator", "r", state, 900, 6_500, STEPS)


def test_a_step_has_a_line_with_the_time_since_the_one_before() -> None:
    first, second = step_lines(ended(OperationState.DONE))
    assert first.endswith("epoch 2: drain of fra by operator (0.1 s)")
    assert second.endswith("epoch 3: drained of fra by controller fra (5.5 s)")
    assert step_lines(ended(OperationState.DONE), after=1) == [second]
    assert step_lines(ended(OperationState.DONE), after=2) == []


@pytest.mark.parametrize(
    ("state", "kind", "status", "words"),
    [
        (OperationState.EXCEPTIONS, Failed, ERROR, "3 clients"),
        (OperationState.FAILED, Failed, ERROR, "was ended early"),
        (OperationState.ABORTED, Aborted, ABORTED, "was aborted"),
        (OperationState.UNKNOWN, OutcomeUnknown, UNKNOWN, "was not recorded"),
    ],
)
def test_whatever_is_not_done_is_an_error_of_its_own(
    state: OperationState, kind: type[ImError], status: int, words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        conclude(ended(state))
    assert exit_code(caught.value) == status


def test_done_is_the_only_end_that_is_success() -> None:
    assert conclude(ended(OperationState.DONE)) == "drain-fra-2 is done after 5.6 s"
    ends = set(OperationState) - UNDER_WAY
    for state in ends - {OperationState.DONE}:
        with pytest.raises(ImError):
            conclude(ended(state))


def test_a_slow_step_and_stuck_sessions_are_said() -> None:
    usual = Usual(2_000, 4)
    over = Slow(Took(0, "drain", 5_500, over=True, whole=True), usual)
    (line,) = step_lines(ended(OperationState.DONE), 1, [over])
    assert line.endswith("(5.5 s; slow: drain took 5.5 s, limit 2.0 s (4 earlier))")
    runs = Slow(Took(0, "drain", 5_500, over=False, whole=False), usual)
    left = Left(7, {"fra-gw2.1": 1, "fra-gw1.1": 2})
    assert tick_line(ended(OperationState.RUNNING), left, [runs, over]) == (
        "fra: 7 sessions, 3 stuck (fra-gw1.1: 2, fra-gw2.1: 1), "
        "slow: drain has been running for more than 2.0 s"
    )
    assert tick_line(ended(OperationState.PAUSED), Left(None, {}), []) == (
        "fra: no answer, paused by operator"
    )


class Seen:
    """What the IDCs say, look after look."""

    def __init__(self, *looks: dict[str, int | None]) -> None:
        self._looks = list(looks)

    async def statuses(self, _: float) -> dict[str, dict[str, object] | ImError]:
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        return {
            idc: Unavailable("silent") if epoch is None else {"policy": {"epoch": epoch}}
            for idc, epoch in look.items()
        }


FAILOVER = Change(Kind.FAILOVER, "fra", "r", "operator")


async def test_a_failover_is_waited_for_until_all_who_answer_serve_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opwatch, "TICK_S", 0.001)
    looks = Seen(
        {"fra": None, "iad": 6, "sin": 7, "syd": None},
        {"fra": 6, "iad": 8, "sin": 7, "syd": None},
    )
    assert await until_followed(cast(Control, looks), 7, FAILOVER, 5) == ["iad", "sin"]


@pytest.mark.parametrize(
    ("look", "who"),
    [
        ({"fra": None, "iad": 6, "sin": 7}, "iad did not follow it within 0.05 s"),
        ({"fra": 7, "iad": None, "sin": None}, "no other IDC answered"),
    ],
)
async def test_a_failover_that_is_not_followed_has_an_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch, look: dict[str, int | None], who: str
) -> None:
    monkeypatch.setattr(opwatch, "TICK_S", 0.001)
    with pytest.raises(OutcomeUnknown, match=f"committed as epoch 7.*{who}"):
        await until_followed(cast(Control, Seen(look)), 7, FAILOVER, 0.05)
