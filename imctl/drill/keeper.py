"""Begins the drills of a schedule at their times, one at a time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import datetime

from imctl.drill.schedule import Due, Schedule, dues

WAIT_S = 30.0  # at most at once: the clock may be set, the machine may sleep
LATE_S = 300.0  # a drill that could not begin for so long waits for its next time

OUTCOMES = {
    0: "pass",
    3: "refused",
    4: "inconclusive",
    5: "deviated",
    6: "ended by hand",
}


def until_ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit status. Ctrl-C is the terminal's to all of its programs: the drill ends by it, and
    is waited for while it undoes what it did; ``subprocess.run`` would kill it instead."""
    interrupted = False
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return status


def keep(
    schedule: Schedule,
    now: Callable[[], datetime],
    wait: Callable[[float], None],
    run: Callable[[Due], int],
    say: Callable[[str], None],
) -> None:
    """Returns when nothing is due any more. ``run``: returns the exit status of the drill."""
    for due in dues(schedule, now()):
        while (left := (due.at - now()).total_seconds()) > 0:
            wait(min(left, WAIT_S))
        what = f"{due.at:%Y-%m-%d %H:%M} UTC {due.entry.drill}"
        if due.blackout is not None:
            say(f"{what}: skipped: {due.blackout.reason}, until {due.blackout.end.isoformat()}")
        elif (now() - due.at).total_seconds() > LATE_S:
            say(f"{what}: skipped: too late (another drill ran, or this process did not)")
        else:
            say(f"{what}: started")
            status = run(due)
            say(f"{what}: {OUTCOMES.get(status, f'exit status {status}')}")
