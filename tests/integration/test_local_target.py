"""Processes by identity, run.json, and the units of the local target, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from imcore.errors import BadInput
from imcore.region.load import load_region
from imcore.runtime import SystemClock
from imctl.errors import Denied, Failed
from imctl.rollout import store
from imctl.target import process, runfile
from imctl.target.local import LINKPROXY, Local, last_line
from imctl.target.runfile import RunFile
from imctl.testing.lab import lab_region

REGIONS = Path(__file__).resolve().parents[2] / "regions"
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def identity_of(child: subprocess.Popen[bytes]) -> process.Identity:
    identity = process.identify(child.pid)
    assert identity is not None
    return identity


def test_a_process_is_known_until_it_ends(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child)
    assert process.state(identity) == "running"
    before = process.age_s(identity)
    time.sleep(0.1)
    assert 0 <= before < process.age_s(identity) - 0.05
    child.kill()
    # Not yet reaped: its remains do not count.
    assert process.wait_gone([identity], 20.0) == []
    assert process.state(identity) == "gone"


def test_another_process_with_the_same_pid_is_not_signalled(
    child: subprocess.Popen[bytes],
) -> None:
    earlier = identity_of(child)._replace(started=1)
    assert not process.send(earlier, signal.SIGKILL)
    other_boot = identity_of(child)._replace(boot="another")
    assert not process.send(other_boot, signal.SIGKILL)
    assert child.poll() is None


def test_a_paused_process_is_seen_and_can_be_stopped(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child)
    process.send(identity, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert process.state(identity) == "paused"
    assert process.stop([identity], 20.0) == []
    assert child.wait(20) == -signal.SIGTERM


def test_pause_and_resume_are_faults_with_a_guard_and_an_audit(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    """They were bare signals: any deployment could be frozen, and nothing told who did it."""
    identity = identity_of(child)
    region = str(REGIONS / "three-idc.yaml")
    environment = {**os.environ, "IMCTL_DATA": str(tmp_path)}

    def imctl(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("imctl"), command, "fra"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    RunFile(region, False, "127.0.0.1:1", {"fra": identity}).write(tmp_path)
    for command in ("pause", "resume"):
        refused = imctl(command)
        assert refused.returncode == 3
        assert refused.stderr.startswith("error: faults are off")
    assert process.state(identity) == "running"

    RunFile(region, True, "127.0.0.1:1", {"fra": identity}).write(tmp_path)
    assert imctl("pause").returncode == 0
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert process.state(identity) == "paused"
    assert imctl("resume").returncode == 0
    assert process.state(identity) == "running"

    rows = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["refused", "refused", "done", "done"]
    assert {row["fault"] for row in rows} == {"fra"}
    assert "SIGSTOP" in rows[2]["sentence"]


def test_of_a_split_idc_one_role_is_killed_alone(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    region = str(REGIONS / "three-idc.yaml")
    RunFile(region, False, "127.0.0.1:1", {"fra": identity_of(child)}).write(tmp_path)
    with pytest.raises(Failed, match="`imctl up --split` runs them apart"):
        Local.open(tmp_path).kill_role("fra", "im")

    core, front = identity_of(child), "fra.gateway-1"
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as other:
        processes = {"fra": core, front: identity_of(other)}
        RunFile(region, False, "127.0.0.1:1", processes, split=True).write(tmp_path)
        target = Local.open(tmp_path)
        assert front in target.everything()
        assert front not in target.names()
        with pytest.raises(BadInput, match="--role nobody: expected one of gateway, state, im"):
            target.kill_role("fra", "nobody")
        assert target.kill_role("fra", "gateway") == target.fronts_of("fra")
        assert other.wait(20) == -signal.SIGKILL
        assert process.state(core) == "running"
        assert target.kill_role("fra", "control") == ["fra"]
        assert child.wait(20) == -signal.SIGKILL
        with pytest.raises(Failed, match="not running"):
            target.kill_role("fra", "im")


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    code = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        identity = identity_of(child)
        assert process.stop([identity], 0.2) == [identity]


def test_an_interrupt_waits_until_the_child_is_written_down() -> None:
    noted = False
    with pytest.raises(KeyboardInterrupt), process.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        noted = True
    assert noted


def test_the_run_file_is_read_as_it_was_written(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    written = RunFile("r.yaml", True, "127.0.0.1:1", {"fra": identity_of(child)})
    written.write(tmp_path)
    assert runfile.read(tmp_path) == written


def test_no_run_file_is_no_deployment(tmp_path: Path) -> None:
    assert runfile.read(tmp_path) is None
    with pytest.raises(Failed, match="no deployment found"):
        Local.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"processes": {"fra": 1}}', "rubbish"])
def test_a_damaged_run_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(Failed, match=r"run\.json: expected what `imctl up` writes"):
        runfile.read(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Local]:
    """A region of three IDCs on free ports, prepared and not started."""
    target = Local.prepare(
        lab_region(tmp_path), tmp_path / "data", faults=True, clock=SystemClock()
    )
    yield target
    target.stop()


def test_preparing_makes_folder_copy_and_certificates(target: Local) -> None:
    assert load_region(target.data / "region.yaml") == target.region
    names = {path.stem for path in target.pki.glob("*.pem")}
    assert names == {"ca", "fra", "iad", "sin", "linkproxy", "admin", "operator", "viewer"}
    assert target.names() == [LINKPROXY, "fra", "iad", "sin"]


def test_the_link_proxy_starts_is_found_again_keeps_its_ports_and_stops(target: Local) -> None:
    target.start([LINKPROXY])
    first = json.loads((target.data / "links.json").read_text())
    again = Local.open(target.data)
    assert [(unit.name, unit.state) for unit in again.units()] == [(LINKPROXY, "running")]
    again.kill(LINKPROXY)
    again.start([LINKPROXY])
    assert json.loads((target.data / "links.json").read_text()) == first
    with pytest.raises(Failed, match="linkproxy is running already"):
        again.start([LINKPROXY])
    with pytest.raises(Failed, match=r"still run; `imctl down"):
        Local.prepare(target.data / "region.yaml", target.data, False, SystemClock())
    assert again.stop() == []
    assert not (target.data / "run.json").exists()


def test_a_unit_that_ends_at_once_is_reported_with_its_last_words(
    target: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target.pki / "linkproxy.key").unlink()
    with pytest.raises(Failed, match=r"linkproxy ended while starting: error: .*linkproxy\.key"):
        target.start([LINKPROXY])


def test_commands_on_what_is_not_there_say_so(target: Local) -> None:
    with pytest.raises(BadInput, match="expected one of linkproxy, fra, iad, sin, got 'mars'"):
        target.kill("mars")
    with pytest.raises(Failed, match="fra is not running; `imctl start fra`"):
        target.kill("fra")


def test_wiping_deletes_the_data_and_nothing_else(target: Local) -> None:
    data = target.data / "fra" / "data"
    data.mkdir(parents=True)
    (data / "log").write_text("x")
    (target.data / "fra" / "node.log").write_text("kept")
    target.wipe("fra")
    assert not data.exists()
    assert (target.data / "fra" / "node.log").exists()
    target.wipe("fra")  # nothing there: nothing to do


def test_a_start_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "data"
    with pytest.raises(Failed, match="a port"), store.starting(folder):
        raise Failed("a port is taken")
    assert not folder.exists()
    with store.starting(folder):
        (folder / "run.json").touch()
        with pytest.raises(Failed, match="another imctl is starting"), store.starting(folder):
            pass
    assert (folder / "run.json").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        says = f"cannot write in {folder}: .*; choose another folder with --data"
        with pytest.raises(Failed, match=says), store.starting(folder):
            pass
        with pytest.raises(Failed, match=f"cannot write in {folder}: "), store.driving(folder):
            pass


def test_two_commands_start_a_unit_each_at_once(
    target: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one, which had waited for an engine, wrote the quicker one's process down as the
    former one: `kill` then said that it was not running, and `wipe` deleted data in use."""
    other, spawn = Local.open(target.data), Local._spawn

    def other_meanwhile(self: Local, name: str) -> None:
        monkeypatch.setattr(Local, "_spawn", spawn)
        other.start(["iad"])
        spawn(self, name)

    target.start([LINKPROXY])
    monkeypatch.setattr(Local, "_spawn", other_meanwhile)
    target.start(["fra"])
    now = Local.open(target.data)
    states = {unit.name: unit.state for unit in now.units()}
    assert states == dict.fromkeys((LINKPROXY, "fra", "iad"), "running")
    # Not even what an `imctl` did not live to write down.
    RunFile(now._run.region, True, now._run.link_admin).write(target.data)
    (target.data / "iad" / "data").mkdir(parents=True, exist_ok=True)
    with pytest.raises(Failed, match="iad is running"):
        Local.open(target.data).wipe("iad")
    assert (target.data / "iad" / "data").exists()
    other.kill("iad")  # and reaped


def test_what_a_rollout_starts_again_while_all_is_stopped_is_stopped_too(
    target: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`imctl down` left an IDC running, without its link proxy, and the rollout asked for two
    minutes more."""
    target.start([LINKPROXY, "fra"])
    rollout, stop = Local.open(target.data), Local._stop

    def restarted_meanwhile(self: Local, names: Sequence[str]) -> list[str]:
        killed = stop(self, names)
        if "fra" in names:
            monkeypatch.setattr(Local, "_stop", stop)
            rollout.start(["fra"])
        return killed

    monkeypatch.setattr(Local, "_stop", restarted_meanwhile)
    Local.open(target.data).stop()
    with pytest.raises(Denied, match="is down; somebody stopped it meanwhile"):
        rollout.look_again()
    with pytest.raises(Failed, match="fra is not running"):
        rollout.kill("fra")
    rollout._reap()
    target._reap()


def test_what_others_wrote_into_the_run_file_is_kept(tmp_path: Path) -> None:
    one, two, three = (process.Identity(pid, 1, "boot") for pid in (1, 2, 3))
    base = RunFile("r", False, "a:1", {"fra": one, "iad": one}, ["kafka"], regions={"fra": "x"})
    base.write(tmp_path)
    theirs, ours = base.copy(), base.copy()
    theirs.processes |= {"iad": two, "sin": two}
    theirs.engines, theirs.regions = ["kafka", "tikv"], {}
    theirs.write_over(base, tmp_path)
    ours.processes["fra"] = three
    ours.write_over(base, tmp_path)
    assert ours == runfile.read(tmp_path)
    assert ours.processes == {"fra": three, "iad": two, "sin": two}
    assert (ours.engines, ours.regions) == (["kafka", "tikv"], {})


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_line(path) == ""
    path.write_text("x" * 10_000 + "\nlast words\n\n")
    assert last_line(path) == "last words"
