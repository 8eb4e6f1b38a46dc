"""A drill run by chaostoolkit-lib, and what becomes of it."""

from __future__ import annotations

import logging
from typing import Any

from imctl import startup
from imctl.drill import running
from imctl.drill.running import Run
from imctl.drill.session import Why
from imctl.drill.stage import stage
from imctl.errors import Failed
from imctl.report.drill import DrillReport

LOG = "drill.log"
# Rollbacks are played whatever happened; by default the toolkit leaves them out after a failure.
SETTINGS: dict[str, Any] = {"runtime": {"rollbacks": {"strategy": "always"}}, "controls": {}}


def run(prepared: Run) -> DrillReport:
    """Until the report is written. Ctrl-C and SIGTERM end the method: everything is undone and
    judged all the same. Raises ImError when it could not begin."""
    from chaoslib.experiment import run_experiment
    from chaoslib.types import Schedule, Strategy

    logger, handler = logging.getLogger("chaostoolkit"), None
    try:
        with startup.interruptible():
            session = running.begin(prepared)
            handler = _log_to(logger, prepared)
            experiment = dict(prepared.drill.experiment)
            frequency = prepared.drill.settings.probe_every_s
            journal = run_experiment(
                experiment,
                settings=SETTINGS,
                experiment_vars=(dict(prepared.values), {}),
                strategy=Strategy.CONTINUOUS,
                schedule=Schedule(continuous_hypothesis_frequency=frequency),
                event_handlers=[_interrupts()],
            )
    finally:
        with startup.deaf():
            _undo_whatever_is_left()
            running.release()
        if handler is not None:
            logger.removeHandler(handler)
            handler.close()
    if prepared.report is None:
        stop = prepared.problem or session.stop_reason() or f"the experiment is {journal['status']}"
        raise Failed(f"the drill has no report: {stop}; see {prepared.out / LOG}")
    return prepared.report


def _undo_whatever_is_left() -> None:
    """The control has done so, unless a second Ctrl-C came into it."""
    session = stage.session
    if session is not None and session.opened:
        stage.undoing = True
        stage.undisturbed(session.breakage.undo_all())
        stage.undisturbed(session.close())


def _log_to(logger: logging.Logger, prepared: Run) -> logging.Handler:
    handler = logging.FileHandler(prepared.out / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return handler


def _interrupts() -> Any:
    from chaoslib.run import RunEventHandler

    class Interrupts(RunEventHandler):  # type: ignore[misc]
        """Ctrl-C, and SIGTERM of `imctl drill abort`. What else interrupts has its reason noted
        already, and the first one counts."""

        def signal_exit(self) -> None:
            if stage.session is not None:
                stage.session.end_early(Why.OPERATOR, "ended by hand")

        def interrupted(self, experiment: Any, journal: Any) -> None:
            if stage.session is not None and stage.session.failed is None:
                stage.session.end_early(Why.OPERATOR, "ended by hand")

    return Interrupts()
