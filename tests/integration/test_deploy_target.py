"""What a deploy needs of the local target, on one IDC's real process; and `destroy`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from imcore.errors import BadInput, ImError
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imctl import admin, startup
from imctl.commands.destroy import _delete
from imctl.errors import Failed
from imctl.plan.scale import scaled
from imctl.planning import check_data_fit, fields_of
from imctl.rollout.ground import LocalGround
from imctl.rollout.record import Kind, Rollout
from imctl.target import process, runfile
from imctl.target.local import Local
from imctl.target.places import Places, free_ports
from imctl.target.runfile import RunFile
from imctl.testing import schema
from imctl.testing.cli import begin, ok
from imctl.testing.lab import lab_region
from imctl.testing.onenode import one_idc
from imctl.traffic import Control
from services.policy.document import Policy, initial

IMCTL = Path(sys.executable).with_name("imctl")


def changed(region: Path, name: str, **spec: Any) -> Path:
    document = yaml.safe_load(region.read_text())
    document["spec"] |= spec
    path = region.with_name(name)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture
def region(tmp_path: Path) -> Path:
    return lab_region(tmp_path, one_idc)


@pytest.fixture
def target(tmp_path: Path, region: Path) -> Iterator[Local]:
    """Its one IDC runs."""
    made = Local.prepare(region, tmp_path / "deployment", False, SystemClock())
    made.start(["fra"])
    yield made
    with contextlib.suppress(Failed):
        made.look_again()
    made.stop()


def arguments(target: Local) -> list[str]:
    (unit,) = target.units()
    return Path(f"/proc/{unit.pid}/cmdline").read_text().split("\0")


def test_a_restart_brings_the_file_and_twice_is_once_more(target: Local, region: Path) -> None:
    (before,) = target.units()
    first = target.region_of("fra")
    wanted = target.keep_wanted(changed(region, "v2.yaml", client={"grace_ms": 9_000}))
    assert wanted != first
    for _ in range(2):
        target.restart("fra", wanted)
        (after,) = target.units()
        assert after.pid != before.pid
        assert target.region_of("fra") == wanted
        assert any(wanted in argument for argument in arguments(target))
        assert process.identify(before.pid) is None, "one process, not two"
        before = after
    plan = fields_of(target, target.keep_wanted(region))
    assert [change.units for change in plan.changes] == [("fra",)]
    assert fields_of(target, wanted).changes == ()

    # Killed and started by hand it has what it had, until the deployment's own file says it too.
    target.kill("fra")
    target.start(["fra"])
    assert (target.region_of("fra"), target.own_region()) == (wanted, first)
    target.adopt(wanted)
    assert Local.open(target.data).own_region() == wanted


def test_a_split_idc_gets_and_loses_gateways_with_its_file(tmp_path: Path, region: Path) -> None:
    target = Local.prepare(region, tmp_path / "split", False, SystemClock(), split=True)

    def runs() -> list[str]:
        return sorted(unit.name for unit in target.units() if unit.state == "running")

    def scaled_to(count: int) -> str:
        return target.keep_changed(
            lambda document: scaled(document, idc="fra", counts={"gateway": count})
        )

    try:
        target.start(["fra"])
        assert runs() == ["fra", "fra.gateway-1"]
        for count in (2, 1):
            target.restart("fra", scaled_to(count))
            # Also for the next `imctl`, before the file is the deployment's own.
            for seen in (target, Local.open(target.data)):
                fronts = [f"fra.gateway-{number}" for number in range(1, count + 1)]
                assert (seen.fronts_of("fra"), runs()) == (fronts, ["fra", *fronts])
            target.adopt(target.region_of("fra"))
    finally:
        target.stop()


class Agreed:
    """The control of a policy that nobody changes."""

    def __init__(self, region: Region) -> None:
        self._region = region

    async def policy(self) -> Policy:
        return initial(self._region, 0)


def test_a_restart_that_died_before_the_gateways_is_done_again(
    tmp_path: Path, region: Path
) -> None:
    target = Local.prepare(region, tmp_path / "split", False, SystemClock(), split=True)
    ground = LocalGround(target, cast(Control, Agreed(target.region)), SystemClock())

    def seen_to_run(restarting: str) -> bool:
        own = target.own_region()
        begun = Rollout("d1", Kind.DEPLOY, own, own, ("fra",), restarting=restarting, started_ms=0)
        return asyncio.run(ground.look(begun))["fra"].runs

    try:
        target.start(["fra"])
        assert seen_to_run("fra")
        target.kill_role("fra", "gateway")  # as if `imctl` had been killed before it was started
        assert not seen_to_run("fra")
        # One that dies by itself is no reason to leave its IDC out of a rollout.
        assert seen_to_run("")
    finally:
        target.stop()


def test_a_process_that_was_not_written_down_is_found_again(target: Local, region: Path) -> None:
    """`kill -9` of imctl between the start of a child and the note of it."""
    wanted = target.keep_wanted(changed(region, "v2.yaml", client={"grace_ms": 9_000}))
    target.restart("fra", wanted)
    run = runfile.read(target.data)
    assert run is not None
    started = run.processes.pop("fra")
    run.regions.clear()
    run.write(target.data)

    later = Local.open(target.data)
    assert later.units() == []
    later.find_lost()
    assert [(unit.name, unit.pid) for unit in later.units()] == [("fra", started.pid)]
    assert later.region_of("fra") == wanted
    with pytest.raises(Failed, match="still run"):
        Local.prepare(region, target.data, False, SystemClock())


def test_nobody_elses_process_is_taken_for_it(target: Local, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    RunFile(str(target.data / "region.yaml"), False, "127.0.0.1:1").write(other)
    found = Local.open(other)
    found.find_lost()
    assert found.units() == []


def imctl(data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [IMCTL, *words, "--data", str(data)],
        env=os.environ | {"COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    schema.check_output(words, done.stdout)
    return done


def test_destroy_stops_and_deletes_what_is_the_deployments(target: Local) -> None:
    (unit,) = target.units()
    (target.data / "notes.txt").write_text("mine")
    (target.data / "audit-000000000001.jsonl").write_text("put aside")
    other = imctl(target.data, "destroy", "--yes-name", "mars", "--with-clients")
    assert (other.returncode, "nothing was done" in other.stderr) == (2, True)
    unasked = imctl(target.data, "destroy", "--with-clients")
    assert unasked.returncode == 1, "nobody there to type the name"
    assert process.identify(unit.pid) is not None

    done = imctl(target.data, "destroy", "--yes-name", "three-idc", "--with-clients")
    assert (done.returncode, ": notes.txt" in done.stdout) == (0, True), done.stderr
    assert process.identify(unit.pid) is None
    assert [path.name for path in target.data.iterdir()] == ["notes.txt"]
    again = imctl(target.data, "destroy", "--yes-name", "three-idc")
    assert (again.returncode, "not a deployment's folder" in again.stderr) == (1, True)


def test_destroy_goes_on_where_it_was_interrupted(target: Local) -> None:
    """All but the region file, which goes last."""
    target.stop()
    done = imctl(target.data, "destroy", "--yes-name", "three-idc")
    assert (done.returncode, target.data.exists()) == (0, False), done.stderr


def test_a_wrong_file_is_refused_as_by_validate(target: Local, region: Path) -> None:
    wrong = changed(region, "wrong.yaml", partitions=0)
    for command in ("plan", "diff", "deploy"):
        found = imctl(target.data, command, str(wrong))
        assert (found.returncode, "wrong.yaml:" in found.stderr) == (2, True), found
        assert "spec.partitions: expected" in found.stderr


def test_a_file_that_cannot_be_deployed_changes_nothing(target: Local, region: Path) -> None:
    fixed = changed(region, "fixed.yaml", partitions=8, client={"grace_ms": 9_000})
    shown = imctl(target.data, "diff", str(fixed), "-o", "json")
    assert shown.returncode == 2
    takes = {row["field"]: row["takes"] for row in json.loads(shown.stdout)}
    assert takes == {"spec.partitions": "not changeable", "spec.client.grace_ms": "restart"}
    (unit,) = target.units()
    assert process.identify(unit.pid) is not None


def test_an_idc_that_is_alone_is_taken_down_and_deployed(target: Local, region: Path) -> None:
    """Once drained it could never come back: nobody else holds its log's tail."""
    asyncio.run(startup.wait_serving(target, ["fra"], lambda name, serving: None))
    (before,) = target.units()
    wanted = str(changed(region, "v2.yaml", client={"grace_ms": 9_000}))
    refused = imctl(target.data, "deploy", wanted, "--yes", "--override", "active-idcs-min")
    assert (refused.returncode, "fra is the only IDC" in refused.stderr) == (3, True), (
        refused.stderr
    )
    assert not (target.data / "rollout.json").exists()
    assert process.identify(before.pid) is not None

    assert imctl(target.data, "down").returncode == 0
    assert imctl(target.data, "plan", wanted).returncode == 2, "nothing runs"
    done = imctl(target.data, "deploy", wanted, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["kind"], json.loads(done.stdout)["state"]) == ("up", "done")
    assert imctl(target.data, "plan", wanted).returncode == 0
    assert imctl(target.data, "rollout", "undo", "--yes").returncode == 1, "nothing before it"


def test_a_scale_is_judged_as_the_deploy_that_it_is(target: Local) -> None:
    asyncio.run(startup.wait_serving(target, ["fra"], lambda name, serving: None))
    same = imctl(target.data, "scale", "fra", "gateway=1", "--dry-run")
    assert (same.returncode, "no difference" in same.stdout) == (0, True), same.stderr
    assert imctl(target.data, "scale", "fra", "gateway=1", "--yes").returncode == 0
    for words, why in (
        (("fra", "im=2"), "im cannot be scaled"),
        (("mars", "gateway=2"), "expected one of fra"),
        (("fra", "gateway=65"), "error: spec.idcs[0].gateways: expected"),
    ):
        refused = imctl(target.data, "scale", *words, "--yes")
        assert (refused.returncode, why in refused.stderr) == (2, True), refused.stderr
    would = imctl(target.data, "scale", "fra", "gateway=2", "--dry-run", "-o", "json")
    did = imctl(target.data, "scale", "fra", "gateway=2", "--yes")
    for each in (would, did):
        assert (each.returncode, "fra is the only IDC" in each.stderr) == (3, True), each.stderr
    (change,) = json.loads(would.stdout)["changes"]
    assert (change["field"], change["after"]) == ("spec.idcs[fra].gateways", 2)
    assert not (target.data / "rollout.json").exists()


def test_data_with_other_partitions_are_not_started_on(target: Local, region: Path) -> None:
    folder = target.data
    target.stop()
    earlier = Local.prepare(region, folder, False, SystemClock()).region
    check_data_fit(folder, earlier)
    (folder / "fra" / "data").mkdir(parents=True, exist_ok=True)
    other = earlier.spec.model_copy(update={"partitions": 8})
    with pytest.raises(Failed, match=r"the data in .* has 4 partitions"):
        check_data_fit(folder, earlier.model_copy(update={"spec": other}))


# --------------------------------------------------------------- engines beside; nothing runs


def with_engines(folder: Path, region: Path, *engines: str) -> Local:
    """As `imctl up --engines` leaves it, without any process."""
    made = Local.prepare(region, folder, False, SystemClock())
    run = RunFile(str(folder / "region.yaml"), False, "127.0.0.1:1", engines=list(engines))
    run.write(folder)
    text = changed(region, "with.yaml", idcs=_idcs(made, engines)).read_text()
    (folder / "region.yaml").write_text(text)
    return Local.open(folder)


def _idcs(made: Local, engines: tuple[str, ...]) -> list[dict[str, Any]]:
    places = Places(made.data)
    rows = [idc.model_dump(mode="json", exclude_none=True) for idc in made.region.spec.idcs]
    for row in rows:
        pki, name = made.pki, row["name"]
        at = {"endpoints": [places.at(f"{name}-etcd")], "ca_file": str(pki / "ca.pem")}
        at |= {"cert_file": str(pki / f"{name}.pem"), "key_file": str(pki / f"{name}.key")}
        row["engines"] = {"registry": {"etcd": at}} if "etcd" in engines else {}
    places.write()
    return rows


def test_a_wanted_file_gets_the_engines_that_run_beside(tmp_path: Path, region: Path) -> None:
    target = with_engines(tmp_path / "deployment", region, "etcd")
    same = target.keep_wanted(region)
    assert fields_of(target, same).changes == ()
    assert target.keep_wanted(region) == same, "the same file is the same rollout"
    other = target.keep_wanted(changed(region, "v2.yaml", client={"grace_ms": 9_000}))
    assert [c.difference.field for c in fields_of(target, other).changes] == [
        "spec.client.grace_ms"
    ]


def test_a_kv_that_has_moved_is_no_difference(tmp_path: Path, region: Path) -> None:
    """`imctl migrate kv` has told the IDC and the deployment's file; what the IDC was started with
    is the file's too."""
    target = with_engines(tmp_path / "deployment", region)
    target.pin_regions()
    (pd,) = free_ports(1)
    target.begin_kv("tikv", {"fra": [f"127.0.0.1:{pd}"]})
    later = Local.open(tmp_path / "deployment")
    moved = later.region_named(later.region_of("fra")).idc("fra").engines.kv.tikv
    assert moved is not None and moved.pd == [f"127.0.0.1:{pd}"]
    found = fields_of(later, later.keep_wanted(region))
    assert [(c.difference.field, str(c.takes)) for c in found.changes] == [
        ("spec.idcs[fra].engines.kv.tikv", "not changeable")
    ]
    document = yaml.safe_load(region.read_text())
    document["spec"]["idcs"][0]["engines"] = {"kv": {"tikv": {"pd": moved.pd}}}
    says = tmp_path / "says.yaml"
    says.write_text(yaml.safe_dump(document))
    assert fields_of(later, later.keep_wanted(says)).changes == ()
    with pytest.raises(BadInput):
        later.region_named("0000000000000000")


@pytest.mark.parametrize("stays", [True, False])
def test_a_kv_that_has_not_moved_leaves_the_region_file_as_it_was(
    target: Local, region: Path, stays: bool
) -> None:
    """Nobody answers where its TiKV is to be. Whoever waits for the move and whoever only cancels
    it puts the file right."""
    until_its_kv(target, "serves", lambda kv: kv["move"] is None)
    (pd,) = free_ports(1)
    moving = begun_move(target, pd)
    try:
        target.look_again()
        assert fields_of(target, target.keep_wanted(region)).changes
        if not stays:
            moving.kill()
        ok(target.data, "migrate", "kv", "--to", "tikv", "--cancel")
    finally:
        out, _ = moving.communicate()
    assert not stays or (moving.returncode == 1 and "it was cancelled" in " ".join(out.split()))
    target.look_again()
    assert fields_of(target, target.keep_wanted(region)).changes == ()
    until_its_kv(target, "is as it was", lambda kv: kv == {"engine": "embedded", "move": None})


def test_a_kv_whose_move_nobody_could_follow_keeps_what_was_asked_for(
    target: Local, region: Path
) -> None:
    """It may go on there."""
    until_its_kv(target, "serves", lambda kv: kv["move"] is None)
    (pd,) = free_ports(1)
    moving = begun_move(target, pd)
    target.kill("fra")
    moving.communicate()
    assert moving.returncode == 1
    target.look_again()
    kv = target.region.idc("fra").engines.kv.tikv
    assert kv is not None and kv.pd == [f"127.0.0.1:{pd}"]


def begun_move(target: Local, pd: int) -> subprocess.Popen[str]:
    """The command that waits for it. On a busy machine an IDC may not answer it in time, and then
    it ends."""
    command = ("migrate", "kv", "--to", "tikv", "--pd", f"fra=127.0.0.1:{pd}", "--yes")
    said = ""
    for _ in range(3):
        moving = begin(target.data, *command)
        until_its_kv(
            target,
            "moves",
            lambda kv, moving=moving: (  # type: ignore[misc]
                moving.poll() is not None or (kv["move"] and kv["move"]["phase"] == "open")
            ),
        )
        if moving.poll() is None:
            return moving
        said, _ = moving.communicate()
    raise AssertionError(said)


def until_its_kv(target: Local, what: str, holds: Callable[[dict[str, Any]], object]) -> None:
    deadline = time.monotonic() + 30
    kv: dict[str, Any] = {}
    while not kv or not holds(kv):
        assert time.monotonic() < deadline, (what, kv)
        time.sleep(0.1)
        status = asyncio.run(admin.statuses(target, ["fra"]))["fra"]
        kv = {} if isinstance(status, ImError) else status.get("kv", {})


def test_nothing_of_processes_apart_or_of_drills_outlives_destroy(tmp_path: Path) -> None:
    """An ipconf would go on with the policy of the deployment that was destroyed."""
    for name in ("fra/data", "fra.gateway-1/data", "fra.ipconf-2/data", "fra.route-1", "drills/r"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("region.yaml", "fra.ipconf-2/data/policy.json", "drill-faults.json", "drill.lock"):
        (tmp_path / name).write_text("x")
    (tmp_path / "archive").mkdir()
    region = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
    assert _delete(tmp_path, region) == ["archive"]
