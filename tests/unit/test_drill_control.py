"""Under plain `chaos run` the toolkit passes over every error of a control but one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chaoslib.exceptions import InterruptExecution

from imctl.drill import control
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
