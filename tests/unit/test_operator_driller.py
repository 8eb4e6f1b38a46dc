"""What an operator undoes of a run that another one began: it cannot know what that had done."""

from __future__ import annotations

import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from imcore.pki import REGION_KEYS
from imctl.drill.faults import FaultBook, Kind
from imctl.reconcile.driller import Done, Driller, Job
from imctl.target.sites import parts
from tests.unit.test_operator_objects import region


def test_every_link_is_healed_and_every_idc_let_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[list[str]] = []
    monkeypatch.setattr(Driller, "_spawn", lambda self, uid, arguments: spawned.append(arguments))
    names = parts(region())
    job = Job("loss", "", {}, region(), dict.fromkeys(names, "im"), {REGION_KEYS: b"{}"})
    Driller(tmp_path, lambda: 5.0, "").undo("u1", job)
    book = FaultBook(tmp_path / "u1").read()
    links = {(each.unit, each.other) for each in book.faults if each.kind is Kind.LINK}
    assert links == set(combinations(names, 2)) and len(links) == 3  # with the witness
    for kind in (Kind.KILL, Kind.CLOCK, Kind.DISK):
        assert {each.unit for each in book.faults if each.kind is kind} == {"fra", "dub"}
    assert len({each.id for each in book.faults}) == len(book.faults) == 9
    assert (book.active, spawned) == (["fra", "dub"], [["abort"]])


COUNTS = """#!/bin/sh
exec %s -c '
import signal, sys, time
def heard(*_):
    with open("heard", "a") as file:
        file.write("x")
signal.signal(signal.SIGTERM, heard)
open("ready", "w").close()
time.sleep(60)
'
"""


def test_it_is_told_to_end_once_and_a_second_time_when_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told each second, a drill would be interrupted in its undoing."""
    program = tmp_path / "program"
    program.write_text(COUNTS % sys.executable)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    names = parts(region())
    job = Job("loss", "", {}, region(), dict.fromkeys(names, "im"), {REGION_KEYS: b"{}"})
    driller, folder = Driller(tmp_path, lambda: 5.0, ""), tmp_path / "u1"
    driller.begin("u1", job)
    child = driller._children["u1"]

    def heard(hurry: bool, awaited: int) -> int:
        for _ in range(3):
            driller.stop("u1", hurry)
            time.sleep(0.2)
        until = time.monotonic() + 30
        while (count := words()) < awaited and time.monotonic() < until:
            time.sleep(0.05)
        return count

    def words() -> int:
        return len(file.read_text()) if (file := folder / "heard").exists() else 0

    try:
        deadline = time.monotonic() + 60
        while not (folder / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (heard(False, 1), heard(True, 2), heard(False, 2)) == (1, 2, 2)
    finally:
        child.kill()
        child.wait(10)
    driller.forget("u1")


def test_half_a_report_is_none() -> None:
    assert Done(0, "", {"report.json": '{"outc'}).report is None
    assert Done(0, "", {}).report is None
    assert Done(0, "", {"report.json": '{"outcome": "pass"}'}).report == {"outcome": "pass"}
