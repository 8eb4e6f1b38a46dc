"""What an operator undoes of a run that another one began: it cannot know what that had done."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from imcore.pki import REGION_KEYS
from imctl.drill.faults import FaultBook, Kind
from imctl.reconcile.driller import Driller, Job
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
    assert {each.unit for each in book.faults if each.kind is Kind.KILL} == {"fra", "dub"}
    assert (book.active, spawned) == (["fra", "dub"], [["abort"]])
