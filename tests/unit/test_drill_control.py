"""Under plain `chaos run` the toolkit passes over every error of a control but one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace as Made
from typing import Any, cast

import pytest
from chaoslib.exceptions import InterruptExecution

from imcore.errors import BadInput
from imctl.drill import control, judging, running
from imctl.drill.stage import NoSession, stage


@pytest.fixture(autouse=True)
def no_session() -> Iterator[None]:
    assert stage.session is None
    yield
    stage.close()


def test_without_a_deployment_nothing_of_the_experiment_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMCTL_DATA", str(tmp_path))
    with pytest.raises(InterruptExecution, match="no deployment found"):
        control.before_experiment_control({"title": "x"})
    assert stage.session is None


def test_settings_that_are_wrong_are_an_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    extensions = [{"name": "imctl", "load": {"users": 1}}]
    with pytest.raises(InterruptExecution, match="users"):
        control.before_experiment_control({"title": "x", "extensions": extensions})


def test_a_probe_without_a_load_fails_and_says_why() -> None:
    from imctl.drill import probes

    with pytest.raises(NoSession, match="no load runs"):
        probes.longest_wait_s()


def test_a_report_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toolkit passes over what a control raises."""
    report = Made(run=Made(notes=[]), line="pass: every promise held")

    def publish(*_: object) -> None:
        raise BadInput("cannot write report.html: No space left on device")

    monkeypatch.setattr(judging, "judge_run", lambda *_: report)
    monkeypatch.setattr(judging, "publish", publish)
    monkeypatch.setattr("imctl.auditrules.of_folder", lambda *_: [])
    monkeypatch.setattr(stage, "session", Made(region=None, began_ms=0))
    made: Any = running.Run(
        cast(Any, None), "r", cast(Any, Made(data=tmp_path)), tmp_path, cast(Any, None)
    )
    monkeypatch.setattr(running, "current", made)
    running.end({})
    assert "No space left" in report.run.notes[0] and "No space left" in made.problem
    monkeypatch.setattr(stage, "session", None)


def test_what_nobody_has_thought_of_is_an_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the experiment would go on without a load."""

    def broken(*_: object) -> None:
        raise KeyError("iad")

    monkeypatch.setattr(running, "plain_run", broken)
    with pytest.raises(InterruptExecution, match="iad"):
        control.before_experiment_control({"title": "x"})
