"""Moves of traffic by the command line, under load: as predicted, steered by other commands than
the one that began them, and what a failover would cost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imcore.errors import ImError
from imctl import admin
from imctl.target.local import Local
from imctl.testing.cli import begin, imctl, ok
from imctl.testing.lab import lab_region
from services.control.predict import apart

pytestmark = pytest.mark.e2e

Figures = Callable[[str, object], None]

USERS = 120
RATE = 10
LOAD_S = 600  # at most: it is ended with the test
SLOW = 3  # so that a pause comes before the end, on a busy machine too


def status(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(imctl(data, "status", "-o", "json").stdout)
    return found


def sessions(data: Path, idc: str) -> int:
    return int(status(data)["idcs"][idc].get("sessions", 0))


def look(data: Path, idc: str) -> list[tuple[float, int]]:
    """When, and how many sessions it had; nothing when it does not answer at once."""
    found = asyncio.run(admin.statuses(Local.open(data), [idc], 1.0))[idc]
    return [] if isinstance(found, ImError) else [(time.time(), int(found["sessions"]))]


def until_connected(data: Path, idc: str) -> int:
    """How many sessions it has once all users have one (some have several devices), and their
    numbers stand still."""
    before: dict[str, int] = {}
    for _ in range(120):
        rows = status(data)["idcs"]
        now = {name: int(row.get("sessions", 0)) for name, row in rows.items()}
        if now == before and sum(now.values()) >= USERS:
            return now[idc]
        before = now
        time.sleep(1.0)
    raise AssertionError(f"not all clients are connected: {before}")


def until_said(holds: Callable[[], object]) -> None:
    """Each look is a command."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def until_still(data: Path, idc: str) -> int:
    """How many sessions it has once those have gone who were told to."""
    found = [sessions(data, idc)]
    while len(found) < 2 or found[-1] != found[-2]:
        assert len(found) < 60, found
        time.sleep(1.5)
        found.append(sessions(data, idc))
    return found[-1]


def test_a_move_goes_as_its_plan_said_and_is_steered_by_others(
    tmp_path: Path, data: Path, figures: Figures
) -> None:
    ok(data, "up", lab_region(tmp_path), "--data", data, "--faults")
    load = begin(data, "load", "--users", USERS, "--rate", 20, "--seconds", LOAD_S)
    try:
        at_fra = until_connected(data, "fra")
        asked = ("drain", "fra", "--rate", RATE)
        would = json.loads(ok(data, *asked, "--dry-run", "-o", "json"))
        assert would["plan"]["moves"] == [{"from": "fra", "to": "iad", "sessions": at_fra}]
        predicted = would["plan"]["seconds"]
        assert predicted > at_fra / RATE

        looks: list[tuple[float, int]] = []
        drain = begin(data, *asked, "--yes")
        while drain.poll() is None:
            looks += look(data, "fra")
            time.sleep(0.1)
        out, errors = drain.communicate(timeout=60)
        assert drain.returncode == 0, errors
        for line in (*out.splitlines(), *errors.splitlines()):
            assert len(line) <= 80, line
        assert "IDC STATE" in errors and f"  {at_fra} clients from fra to iad" in errors
        drained = json.loads(ok(data, "op", "list", "-o", "json"))[-1]
        measured = (drained["ended_ms"] - drained["started_ms"]) / 1000
        assert measured == pytest.approx(predicted, rel=0.3)
        curve = [(0.0, 0.0)] + [
            (at - drained["started_ms"] / 1000, float(at_fra - left))
            for at, left in looks
            if at > drained["started_ms"] / 1000
        ]
        far = apart(would["plan"]["curve"], curve)
        assert far is not None
        figures("reconnect curve of a drain, predicted and measured, apart", f"{far:.0%}")
        assert far <= 0.3, (would["plan"]["curve"], curve)
        assert sessions(data, "fra") == 0

        name = ok(data, "failback", "fra", "--yes", "--no-wait", "--rate", SLOW).strip()
        ok(data, "op", "pause", name, "--yes")
        watch = begin(data, "op", "watch", name)
        until_said(lambda: status(data)["policy"]["operation_state"] == "paused by operator")
        standing = until_still(data, "fra")
        time.sleep(3.0)
        assert sessions(data, "fra") == standing < at_fra
        assert imctl(data, "drain", "iad", "--dry-run").returncode == 3  # one move at a time
        ok(data, "op", "resume", "--yes")
        seen = watch.communicate(timeout=120)[1]
        assert watch.returncode == 0, seen
        assert f"pause of {name} by operator" in seen and f"{name} is done" in seen
        assert until_connected(data, "fra") == at_fra

        flap = imctl(data, "drain", "fra", "--yes")
        assert flap.returncode == 3
        assert "  anti-flap  " in flap.stderr

        ok(data, "partition", "fra", "iad")
        ok(data, "partition", "fra", "sin")
        deadline = time.monotonic() + 60
        while True:  # the failover may be committed by the others first: then it is refused
            would_fail = imctl(data, "failover", "fra", "--dry-run", "-o", "json")
            loss = json.loads(would_fail.stdout)["estimated_loss"]
            if loss["records_delayed"]:
                break
            assert time.monotonic() < deadline, loss
            time.sleep(0.5)
        # fra, cut off from the others only, went on for its clients: all of it is delayed.
        assert loss["source_answers"]
        assert loss["survivors"]["iad"]["records_missing"] >= loss["records_delayed"]
        ok(data, "heal")
    finally:
        load.terminate()
        load.communicate(timeout=120)
