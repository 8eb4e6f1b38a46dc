"""The control that makes an experiment of the Chaos Toolkit a drill: load, canaries and the ledger
around it; what is left of faults undone, the hypothesis once more, and the judgement in the end.

An experiment names it under `controls`; `imctl drill run` and plain `chaos run` both obey it."""

from __future__ import annotations

import logging
from typing import Any

from chaoslib.exceptions import InterruptExecution
from chaoslib.hypothesis import run_steady_state_hypothesis

from imcore.errors import ImError
from imctl.drill import running
from imctl.drill.bridge import Interrupted
from imctl.drill.model import EXTENSION, Settings
from imctl.drill.session import Why
from imctl.drill.stage import stage
from imctl.drill.verdict import error_of

log = logging.getLogger("imctl.drill")

STEADY_S = 60.0


def before_experiment_control(
    context: dict[str, Any], configuration: Any = None, **kwargs: Any
) -> None:
    """Connects everybody. When it cannot, nothing else of the experiment is run."""
    try:
        if stage.session is None:
            rows = context.get("extensions") or []
            ours: dict[str, Any] = next((row for row in rows if row.get("name") == EXTENSION), {})
            settings = Settings.model_validate({k: v for k, v in ours.items() if k != "name"})
            title, values = str(context.get("title", "")), dict(configuration or {})
            running.begin(running.plain_run(title, settings, values))
        stage.listen()
        stage.call(stage.need().open())
        running.note_begin()
    except InterruptExecution:
        raise
    except Exception as error:
        if stage.session is not None:
            stage.session.end_early(Why.BROKEN, str(error))
        raise InterruptExecution(str(error)) from error  # anything else the toolkit passes over


def before_hypothesis_control(context: dict[str, Any], **kwargs: Any) -> None:
    session = stage.need()
    if session.spans[-1].name == "warm-up":
        session.phase("before", "checking the steady state")


def before_activity_control(context: dict[str, Any], **kwargs: Any) -> None:
    _stop_if_asked(context)


def after_activity_control(context: dict[str, Any], state: Any = None, **kwargs: Any) -> None:
    """An action that fails ends the method: the rest would be about another world."""
    session = stage.need()
    if not isinstance(state, dict):
        return
    function = str((context.get("provider") or {}).get("func"))
    if about := session.noticed.pop(function, ""):
        state["about"] = about
    _stop_if_asked(context)
    if state.get("status") == "failed" and context.get("type") == "action" and not stage.undoing:
        said = f"{context['name']}: {error_of(state)}"
        session.failed = session.failed or (session.t(), said)
        session.mark("", f"failed: {said}")
        raise InterruptExecution(said)


def _stop_if_asked(context: dict[str, Any]) -> None:
    if (
        context.get("type") == "action"
        and not stage.undoing
        and (why := stage.need().stop_reason())
    ):
        raise InterruptExecution(why)


def before_rollback_control(context: dict[str, Any], **kwargs: Any) -> None:
    stage.undoing = True


def after_experiment_control(
    context: dict[str, Any],
    state: Any = None,
    configuration: Any = None,
    secrets: Any = None,
    **kwargs: Any,
) -> None:
    """Whatever happened before: nothing of it is left, and the run is judged as far as it came, or
    as somebody waits for it."""
    session, journal = stage.need(), state if isinstance(state, dict) else {}
    stage.undoing = True
    try:
        running.undo()
        if session.opened:
            _restored(context, journal, configuration, secrets)
            stage.unhurried(session.finish())
    except (ImError, Interrupted) as error:
        session.end_early(Why.OPERATOR if stage.hurried else Why.BROKEN, str(error))
    except Exception as error:  # the toolkit would swallow it
        log.exception("The drill's end failed.")
        session.end_early(Why.BROKEN, f"{type(error).__name__}: {error}")
    finally:
        stage.undisturbed(session.close())
        running.end(journal)


def _restored(
    context: dict[str, Any], journal: dict[str, Any], configuration: Any, secrets: Any
) -> None:
    """Steady again after the rollbacks, by the drill's own hypothesis too."""
    session = stage.need()
    if not session.restored():
        session.phase("settle", "waiting for the steady state")
        try:
            stage.unhurried(session.steady(STEADY_S))
        except ImError as error:
            session.failed = session.failed or (session.t(), str(error))
    if context.get("steady-state-hypothesis"):
        found = run_steady_state_hypothesis(context, configuration, secrets, None, None)
        journal.setdefault("steady_states", {})["restored"] = found
