"""etcd beside the IDCs of the local target: real processes, without the IDCs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from imcore.runtime import SystemClock
from imctl.engines.binaries import Program
from imctl.engines.etcd import Server
from imctl.errors import Failed
from imctl.target import process, runfile
from imctl.target.local import LINKPROXY, Local
from imctl.testing.lab import lab_region


@pytest.fixture
def target(tmp_path: Path, etcd_program: Program) -> Iterator[Local]:
    target = Local.prepare(
        lab_region(tmp_path), tmp_path / "data", True, SystemClock(), engines=("etcd",)
    )
    yield target
    target.stop()


def wait_state(target: Local, state: str) -> None:
    """A signal takes a moment."""
    deadline = time.monotonic() + 30
    while [unit.state for unit in target.units()] != [state]:
        assert time.monotonic() < deadline, target.units()
        time.sleep(0.01)


def test_every_idc_gets_an_etcd_in_the_copy_of_the_file(target: Local) -> None:
    assert target.engine_names() == ["fra-etcd", "iad-etcd", "sin-etcd"]
    assert target.names() == [LINKPROXY, "fra", "iad", "sin"]
    places = set()
    for idc in target.region.spec.idcs:
        etcd = idc.engines.registry.etcd
        assert etcd is not None and etcd.cert_file == str(target.pki / f"{idc.name}.pem")
        places.add(etcd.endpoints[0])
        assert (target.pki / f"{idc.name}-etcd.pem").exists()
    assert len(places) == 3
    again = Local.prepare(
        target.data / "region.yaml", target.data, True, SystemClock(), engines=("etcd",)
    )
    assert again.region == target.region  # the file says where


def test_an_etcd_starts_is_killed_paused_and_wiped_by_itself(target: Local) -> None:
    target.start(["fra-etcd"])
    target._wait_for_engine("fra-etcd")
    found = Local.open(target.data)
    assert [(unit.name, unit.state) for unit in found.units()] == [("fra-etcd", "running")]
    assert found.engine_serves("fra-etcd")
    with pytest.raises(Failed, match="fra-etcd is running"):
        found.wipe("fra")
    found.pause("fra")  # whatever of the IDC runs
    wait_state(found, "paused")
    found.resume("fra")
    found.kill("fra")
    assert [unit.state for unit in found.units()] == ["gone"]
    assert (target.data / "fra" / "etcd").is_dir()
    found.wipe("fra-etcd")
    assert not (target.data / "fra" / "etcd").exists()
    assert found.log_file("fra-etcd").exists()
    with pytest.raises(Failed, match=r"fra-etcd ended while starting"):
        found.engine_serves("fra-etcd")


def test_an_engine_that_was_not_written_down_is_found_again_and_ended(target: Local) -> None:
    """`kill -9` of imctl between the start of an engine and the note of it."""
    target.start(["fra-etcd"])
    run = runfile.read(target.data)
    assert run is not None
    started = run.processes.pop("fra-etcd")
    run.write(target.data)
    later = Local.open(target.data)
    assert later.units() == []
    later.stop()
    assert process.state(started) == "gone"


def test_nobody_but_its_own_idc_is_let_in(target: Local) -> None:
    target.start(["fra-etcd"])
    target._wait_for_engine("fra-etcd")
    where = target.region.idc("fra").engines.registry.etcd
    assert where is not None
    address, data = where.endpoints[0], target.engine("fra-etcd").data
    assert Server("fra", data, address, target.pki, "fra-etcd", client="fra").healthy()
    assert not Server("fra", data, address, target.pki, "fra-etcd", client="iad").healthy()


def test_a_folder_is_not_started_on_another_engine(target: Local) -> None:
    document = yaml.safe_load((target.data / "region.yaml").read_text())
    for idc in document["spec"]["idcs"]:
        del idc["engines"]
        (target.data / idc["name"] / "data").mkdir(parents=True)
    plain = target.data.parent / "plain.yaml"
    plain.write_text(yaml.safe_dump(document))
    with pytest.raises(Failed, match=r"the registry of fra in .* is on etcd; start it so again"):
        Local.prepare(plain, target.data, True, SystemClock())


def test_a_port_that_is_taken_is_said_with_the_last_words(target: Local) -> None:
    target.start(["fra-etcd"])
    target._wait_for_engine("fra-etcd")
    other = target.data / "region.yaml"
    document = yaml.safe_load(other.read_text())
    etcds = [idc["engines"]["registry"]["etcd"] for idc in document["spec"]["idcs"]]
    etcds[1]["endpoints"] = list(etcds[0]["endpoints"])
    other.write_text(yaml.safe_dump(document))
    found = Local.open(target.data)
    found.start(["iad-etcd"])
    with pytest.raises(Failed, match=r"iad-etcd ended while starting: .*address already in use"):
        found._wait_for_engine("iad-etcd")
    assert process.send(found._run.processes["fra-etcd"], signal.SIGKILL)
