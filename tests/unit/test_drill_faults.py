"""The book of faults: on disk before anything happens, undone in an order that works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imctl.drill.faults import Fault, FaultBook, Kind, RunLock, expired, in_order
from imctl.errors import Failed


def fault(kind: Kind, made_ms: int = 0, name: str = "x") -> Fault:
    return Fault(name, kind, "fra", "iad", "said", made_ms, made_ms + 1_000)


def test_what_is_added_stands_in_the_file_until_it_is_struck_out(tmp_path: Path) -> None:
    book = FaultBook(tmp_path)
    assert book.read().faults == []
    book.begin("idc-loss", "r1", ["fra", "iad"])
    book.add(fault(Kind.LINK, name="a"))
    book.add(fault(Kind.KILL, name="b"))
    again = FaultBook(tmp_path).read()
    assert [(one.id, one.kind) for one in again.faults] == [("a", Kind.LINK), ("b", Kind.KILL)]
    assert (again.drill, again.active) == ("idc-loss", ["fra", "iad"])
    book.strike("a")
    book.end()  # something is left: it stays
    assert FaultBook(tmp_path).read().drill == "idc-loss"
    book.strike("b")
    book.end()
    assert FaultBook(tmp_path).read().drill == ""


def test_no_drill_begins_over_the_faults_of_another(tmp_path: Path) -> None:
    book = FaultBook(tmp_path)
    book.add(fault(Kind.PAUSE))
    with pytest.raises(Failed, match="drill abort"):
        book.begin("idc-loss", "r2", [])


@pytest.mark.parametrize("text", ["", "[]", '{"faults": [{"kind": "flood"}]}', '{"faults": 3}'])
def test_a_damaged_book_is_an_error_and_never_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "drill-faults.json").write_text(text)
    with pytest.raises(Failed, match=r"drill-faults\.json"):
        FaultBook(tmp_path).read()


def test_links_are_joined_before_anything_is_started_and_traffic_comes_last() -> None:
    mixed = [fault(kind) for kind in (Kind.MOVE, Kind.KILL, Kind.LINK, Kind.PAUSE, Kind.CLOCK)]
    kinds = [one.kind for one in in_order(mixed)]
    assert kinds == [Kind.PAUSE, Kind.CLOCK, Kind.LINK, Kind.KILL, Kind.MOVE]
    assert set(Kind) == {one.kind for one in in_order([fault(kind) for kind in Kind])}


def test_faults_expire() -> None:
    old, young = fault(Kind.LINK, 0), fault(Kind.LINK, 500)
    assert expired([old, young], 1_200) == [old]


def test_the_lock_tells_who_has_it_and_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from imctl.drill.faults import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); print(lock.take(), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "True\n"
    lock = RunLock(tmp_path)
    assert lock.held() and not lock.take()
    found = lock.holder()
    assert found is not None and found.pid == holder.pid
    holder.kill()
    holder.wait()
    assert not lock.held()
    assert lock.take()
    assert json.loads((tmp_path / "drill.lock").read_text())["pid"] != holder.pid
    lock.release()
