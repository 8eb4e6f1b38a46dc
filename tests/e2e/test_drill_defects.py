"""Defects that no drill may miss.

Two are planted by a patch of the nodes, which the drill knows nothing of: it wakes when the drill's
method begins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.drilling import deployed, drill

pytestmark = pytest.mark.e2e

WAKES = """
import pathlib
FLAGS = pathlib.Path(__file__).parent
"""
# Each while its flag is there. iad's mirror of fra's log stands still, and says that all is well.
PAUSED_MIRROR = """
import asyncio
from services.mirror.follow import Follower
run = Follower.run
def still(self):
    return (FLAGS / "paused-mirror").exists() and (self.own, self.idc) == ("iad", "fra")
async def stands_still(self):
    while True:
        task = asyncio.ensure_future(run(self))
        while not still(self):
            await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while still(self):
            self.heard_at = self.clock.now()
            await asyncio.sleep(0.1)
Follower.run = stands_still
"""
# iad's ipconf goes on with the policy that it had.
OLD_EPOCH = """
from services.ipconf.server import IpconfServer
class Old:
    stale = False
    def __init__(self, holder):
        self.holder, self.kept = holder, None
    @property
    def policy(self):
        self.kept = (self.kept or self.holder.policy) if (FLAGS / "old-epoch").exists() else None
        return self.kept or self.holder.policy
made = IpconfServer.__init__
def init(self, own, *rest, **more):
    made(self, own, *rest, **more)
    if own == "iad":
        self._holder = Old(self._holder)
IpconfServer.__init__ = init
"""


def test_a_survivor_without_headroom_is_found(tmp_path: Path) -> None:
    """It carries its own clients, and not those of a lost IDC too."""

    def small(spec: dict[str, Any]) -> None:
        for idc in spec["idcs"]:
            if idc["name"] != "fra":
                idc["capacity"] = {"sessions": 17}

    with deployed(tmp_path, small) as data:
        status, said, report = drill(data, "idc-loss", tmp_path / "out")
    assert (status, report["outcome"]) == (5, "deviated"), said
    # Who is slow to take them loses some to the other one.
    assert re.search("(iad|sin) carries .*: no headroom", report["reason"]), report["reason"]


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A deployment with both defects, neither of which is planted yet."""
    with deployed(
        tmp_path_factory.mktemp("patched"), None, WAKES + PAUSED_MIRROR + OLD_EPOCH
    ) as data:
        yield data


def planted(
    data: Path, out: Path, flag: str, name: str, *more: str
) -> tuple[int, str, dict[str, Any]]:
    """From the first look at the steady state until the drill has undone its fault and waits for
    that state again: it has looked enough by then, and its end is not what is tried here."""
    planting = data.parent / flag

    def turn(line: str) -> None:
        if line.startswith("== checking the steady state"):
            planting.touch()
        elif line.startswith("== waiting for the steady state"):
            planting.unlink()

    try:
        return drill(data, name, out, *more, on_line=turn)
    finally:
        planting.unlink(missing_ok=True)


def test_a_mirror_that_stands_still_without_an_alarm_is_found(
    patched: Path, tmp_path: Path
) -> None:
    status, said, report = planted(
        patched, tmp_path, "paused-mirror", "wan-partition", "--var", "b=sin"
    )
    assert (status, report["outcome"]) == (5, "deviated"), said
    assert "iad lacks what fra.1 has in its log" in report["reason"]


def test_an_ipconf_that_answers_with_an_old_epoch_is_found(patched: Path, tmp_path: Path) -> None:
    status, said, report = planted(
        patched, tmp_path, "old-epoch", "planned-switchover", "--var", "source=fra"
    )
    assert (status, report["outcome"]) == (5, "deviated"), said
    assert "the ipconf of iad answers with an old epoch" in report["reason"]
