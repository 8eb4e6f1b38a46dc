"""What objects in a cluster say, as `imctl status` shows it."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from imctl.objectsview import SHOWN, age, document_of, table_of

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def made(name: str, at: str, status: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = {"namespace": "im-fra", "name": name, "creationTimestamp": at}
    return {"metadata": metadata, "spec": {"region": "r"} | spec, "status": status}


def move(number: int, **status: Any) -> dict[str, Any]:
    at = f"2026-01-01T11:{number:02}:00Z"
    return made(f"m{number}", at, status, move="switchover", idc="fra", target="dub")


def shown(document: dict[str, Any]) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=120, color_system=None).print(table_of(document))
    return [" ".join(line.split()) for line in text.getvalue().splitlines()[1:]]


def test_the_last_moves_and_drills_and_what_views_say_stand_in_rows() -> None:
    condition = {"type": "WithinObjective", "status": "False", "message": "dub is behind"}
    steps = [{"name": "drain"}]
    found = {
        "TrafficOperation": [
            move(59, phase="Running", steps=steps, operation="switchover-fra-9", state="running"),
            move(58, phase="Refused", outcome="no", blockers=[{"rule": "headroom"}]),
            move(30, phase="Waiting", blocked_by=["Secret x is not there"]),
            *(move(number) for number in range(9)),
        ],
        "DrillRun": [
            made(
                "d", "2026-01-01T09:00:00Z",
                {"phase": "Ended", "verdict": "deviated", "reason": "too slow", "rto_s": 7.5},
                drill="idc-loss",
            ),
        ],
        "Drill": [
            {
                "metadata": {"namespace": "im-fra", "name": "weekly"},
                "spec": {"cron": "0 10 * * TUE", "run": {"region": "r"}},
                "status": {"phase": "Scheduled", "next": "2026-01-06T10:00:00Z"},
            },
        ],
        "Replication": [
            made("v", "", {"worst_lag_ms": 9000, "conditions": [condition]}, lag_slo_ms=3000),
        ],
        "GeoPolicy": [
            made("v", "", {"epoch": 7, "conditions": [{"type": "Served", "status": "True"}]}),
        ],
    }  # fmt: skip
    document = document_of(found, "r", NOW)
    assert [row["object"] for row in document["moves"]] == [
        f"im-fra/m{number}" for number in (7, 8, 30, 58, 59)
    ]
    assert len(document["moves"]) == SHOWN and document["moves"][-1]["age_s"] == 60.0
    assert shown(document)[2:] == [
        "imop im-fra/m30 switchover fra to dub Waiting Secret x is not there 30 min",
        "imop im-fra/m58 switchover fra to dub Refused refused: headroom 2 min",
        "imop im-fra/m59 switchover fra to dub drain switchover-fra-9: running 60 s",
        "imdr im-fra/d idc-loss Ended deviated, RTO 7.50 s: too slow 3 h",
        "imd im-fra/weekly drills at 0 10 * * TUE Scheduled next 2026-01-06T10:00:00Z -",
        "imrep im-fra/v lag at most 3000 ms 9000 ms not within: dub is behind -",
        "imgeo im-fra/v policy epoch 7 served -",
    ]
    assert [age(seconds) for seconds in (None, 5, 400, 9_000, 300_000)] == [
        "-", "5 s", "7 min", "2 h", "3 d",
    ]  # fmt: skip


def test_of_another_region_or_of_none_nothing_is_shown() -> None:
    assert document_of({"TrafficOperation": [move(1)]}, "other", NOW) == {}
    assert document_of({}, "r", NOW) == {}
