"""A deployment that somebody else runs: imctl moves its traffic and keeps off its processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imcore.errors import BadInput
from imcore.runtime import SystemClock
from imctl.errors import Failed, Guarded
from imctl.target.local import Local
from imctl.target.runfile import NAME
from imctl.testing.onenode import running
from tests.integration.test_imctl_traffic import imctl

REGION = Path(__file__).parents[2] / "regions" / "three-idc.yaml"
TWO = REGION.with_name("two-idc.yaml")


@pytest.fixture
def folder(tmp_path: Path, pki_dir: Path) -> Path:
    shutil.copytree(pki_dir, tmp_path / "there" / "pki")
    return tmp_path / "there"


def test_it_is_found_again(folder: Path) -> None:
    Local.attach(TWO, folder)
    found = Local.open(folder)
    assert found.names() == ["witness", "fra", "dub"]
    assert {unit.state for unit in found.units()} == {"elsewhere"}
    assert found.address("fra") == "127.0.0.1:18102"


def test_attached_again_it_takes_the_new_region_file(folder: Path) -> None:
    Local.attach(TWO, folder)
    Local.attach(REGION, folder)
    assert Local.open(folder).region.metadata.name == "three-idc"


def test_it_needs_a_pki(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected certificates, found none"):
        Local.attach(TWO, tmp_path)


@pytest.mark.parametrize(
    "does",
    [
        lambda target: target.start(["fra"]),
        lambda target: target.stop(),
        lambda target: target.kill("fra"),
        lambda target: target.terminate("fra"),
        lambda target: target.pause("fra"),
        lambda target: target.wipe("fra"),
        lambda target: target.restart("fra", "x"),
        lambda target: target.adopt("x"),
        lambda target: target.begin_kv("tikv", {"fra": ["pd:1"]}),
    ],
)
def test_nothing_is_done_to_its_processes(folder: Path, does: Callable[[Local], object]) -> None:
    target = Local.attach(TWO, folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(Guarded, match="something else runs its processes"):
        does(target)
    target.end_kv(["fra"])
    assert sorted(folder.rglob("*")) == before


def test_nothing_is_started_in_its_folder(folder: Path) -> None:
    Local.attach(TWO, folder)
    with pytest.raises(Failed, match=f"runs elsewhere; .*{NAME}"):
        Local.prepare(TWO, folder, False, SystemClock())


async def test_its_traffic_moves_and_its_status_shows(tmp_path: Path) -> None:
    """Whoever runs it, here this process."""
    runs, there = tmp_path / "runs", tmp_path / "there"
    runs.mkdir()
    async with running(runs, faults=False, callers=("admin",)):
        with pytest.raises(Failed, match="a deployment on this machine"):
            Local.attach(runs / "region.yaml", runs)
        shutil.copytree(runs / "pki", there / "pki")
        attached = await imctl(there, "attach", runs / "region.yaml", json_too=False)
        assert attached.status == 0, attached.errors
        over = ("--yes", "--override", "active-idcs-min")
        assert (await imctl(there, "cordon", "fra", *over)).status == 0
        status = await imctl(there, "status")
        assert status.document["policy"]["idcs"]["fra"]["state"] == "cordoned"
        table = await imctl(there, "status", json_too=False)
        assert "cordoned" in table.document
        assert "not started" not in table.document
        assert (await imctl(there, "uncordon", "fra", "--yes")).status == 0
        for asked in (("ipconf", "lookup", "203.0.113.9"), ("send", "ann", "bob", "hello")):
            done = await imctl(there, *asked, json_too=False)
            assert done.status == 0, done.errors
        for command in (("kill", "fra"), ("down",), ("logs",), ("deploy", runs / "region.yaml")):
            refused = await imctl(there, *map(str, command), json_too=False)
            assert (refused.status, "something else" in refused.errors) == (3, True), command
