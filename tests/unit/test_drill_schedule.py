"""Which drill is due when, and what is left out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest

from imcore.errors import BadInput
from imctl.drill.keeper import keep
from imctl.drill.schedule import Blackout, Due, Entry, Schedule, dues, load_schedule

WEEKLY = Path("regions/drills/schedules/weekly.yaml")
START = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)  # a Saturday


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def blackout(start: str, end: str) -> Blackout:
    return Blackout(start=at(start), end=at(end), reason="year's end")


def test_the_example_is_due_in_the_order_of_its_times_and_rests_over_the_year() -> None:
    found = list(islice(dues(load_schedule(WEEKLY), START), 9))
    assert [(due.at, due.entry.drill) for due in found[:4]] == [
        (at("2026-12-01T09:00"), "idc-loss"),  # ten o'clock in Berlin
        (at("2026-12-02T13:00"), "full-region-gameday"),
        (at("2026-12-03T09:00"), "planned-switchover"),
        (at("2026-12-08T09:00"), "idc-loss"),
    ]
    left_out = [due.at.date().isoformat() for due in found if due.blackout]
    assert left_out == ["2026-12-22", "2026-12-24"]


def test_hours_are_those_of_the_time_zone_in_summer_and_in_winter() -> None:
    entry = Entry(drill="idc-loss", cron="0 10 * * *", timezone="Europe/Berlin")
    found = islice(dues(Schedule(drills=[entry]), at("2027-03-26T12:00")), 3)
    assert [due.at.hour for due in found] == [9, 8, 8]  # 28 March: summer time


def test_an_end_of_a_blackout_is_outside() -> None:
    entry = Entry(drill="idc-loss", cron="0 0 * * *")
    window = blackout("2026-11-29T00:00", "2026-11-30T00:00")
    found = list(islice(dues(Schedule(drills=[entry], blackouts=[window]), START), 2))
    assert [due.blackout for due in found] == [window, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("drills: []\n", "drills: List should have at least 1 item"),
        ("drills: [{drill: idc-loss, cron: daily}]\n", "drills.0.cron: expected a cron line"),
        (
            "drills: [{drill: idc-loss, cron: '0 1 * * *', timezone: Mars/Base}]\n",
            "drills.0.timezone: expected a time zone as Europe/Berlin, got 'Mars/Base'",
        ),
        ("drills: [{drill: nothing, cron: '0 1 * * *'}]\n", "drills.0: expected a drill file"),
        (
            "drills: [{drill: idc-loss, cron: '0 1 * * *', var: {foe: iad}}]\n",
            "drills.0: --var foe: the drill idc-loss has these variables: victim",
        ),
        (
            "drills: [{drill: idc-loss, cron: '0 1 * * *'}]\n"
            "blackouts: [{start: 2026-01-02T00:00:00Z, end: 2026-01-01T00:00:00Z, reason: x}]\n",
            "blackouts.0: expected an end after its start",
        ),
        ("drills: {\n", "expected"),
        ("[]\n", "the file: "),
    ],
)
def test_a_wrong_file_is_told_by_field(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        load_schedule(tmp_path / "s.yaml")
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path / "s.yaml"))


class Stop(Exception):
    pass


def kept(schedule: Schedule, takes_s: Callable[[Due], float], until: datetime) -> list[str]:
    """What is said until then, with drills that take so long."""
    clock, said = [START], list[str]()

    def wait(seconds: float) -> None:
        assert 0 < seconds <= 30
        clock[0] += timedelta(seconds=seconds)
        if clock[0] > until:
            raise Stop

    def run(due: Due) -> int:
        clock[0] += timedelta(seconds=takes_s(due))
        return 5 if due.entry.drill == "b" else 0

    with pytest.raises(Stop):
        keep(schedule, lambda: clock[0], wait, run, said.append)
    return said


def test_each_begins_at_its_time_and_what_another_one_held_up_waits_for_its_next() -> None:
    entries = [
        Entry(drill="a", cron="0 13 * * *"),
        Entry(drill="b", cron="2 13 * * *"),
        Entry(drill="c", cron="4 13 * * *"),
    ]
    window = blackout("2026-11-29T00:00", "2026-11-30T00:00")
    schedule = Schedule(drills=entries, blackouts=[window])

    def takes_s(due: Due) -> float:
        return {"a": 200.0, "b": 400.0, "c": 1.0}[due.entry.drill]

    assert kept(schedule, takes_s, at("2026-11-29T13:03")) == [
        "2026-11-28 13:00 UTC a: started",
        "2026-11-28 13:00 UTC a: pass",
        "2026-11-28 13:02 UTC b: started",
        "2026-11-28 13:02 UTC b: deviated",
        "2026-11-28 13:04 UTC c: skipped: too late (another drill ran, or this process did not)",
        "2026-11-29 13:00 UTC a: skipped: year's end, until 2026-11-30T00:00:00+00:00",
        "2026-11-29 13:02 UTC b: skipped: year's end, until 2026-11-30T00:00:00+00:00",
    ]


CHILD = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
signal.signal(signal.SIGINT, lambda *_: None)
(here / "up").touch()
until = time.monotonic() + 1.0
while time.monotonic() < until:
    time.sleep(0.1)
(here / "undone").touch()
"""
PARENT = """
import subprocess, sys
from imctl.drill.keeper import until_ended
until_ended(subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]]))
"""


def test_ctrl_c_waits_until_the_drill_has_undone_what_it_did(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), CHILD],
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert (tmp_path / "undone").exists()
