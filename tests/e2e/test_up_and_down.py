"""A whole deployment by the command line: up, look, break, mend, down; Ctrl-C while it starts."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imctl.target import process, runfile
from imctl.testing.cli import IMCTL, begin, imctl, ok
from imctl.testing.lab import lab_region

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]


def until(holds: Callable[[], object]) -> None:
    """Each look is a command."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def region(tmp_path: Path) -> Path:
    return lab_region(tmp_path)


def test_up_look_break_mend_down(region: Path, data: Path) -> None:
    assert "fra, iad, sin serving after" in ok(data, "up", region, "--data", data, "--faults")
    run = runfile.read(data)
    assert run is not None
    assert set(run.processes) == {"linkproxy", "fra", "iad", "sin"}

    document = json.loads(ok(data, "status", "-o", "json"))
    assert {name: idc["origin"] for name, idc in document["idcs"].items()} == {
        "fra": "fra.1",
        "iad": "iad.1",
        "sin": "sin.1",
    }
    again = imctl(data, "up", region, "--data", data)
    assert (again.returncode, "still run" in again.stderr) == (1, True)

    sent = json.loads(ok(data, "send", "ann", "bob", "hi", "--trace", "--replicated", "-o", "json"))

    def traced() -> bool:
        """A hop is written down when it has ended, which may be behind its answer."""
        said = ok(data, "logs", "--trace", sent["traceparent"], "-o", "json")
        hops = [json.loads(line) for line in said.splitlines()]
        origin = {hop["name"] for hop in hops if hop["unit"] == sent["idc"]}
        copied = [hop["unit"] for hop in hops if hop["name"] == "mirror.copy"]
        return {"gateway.request", "im.append", "im.apply"} <= origin and any(
            unit != sent["idc"] for unit in copied
        )

    until(traced)

    assert "drops everything" in ok(data, "partition", "fra", "sin", "--one-way")
    modes = {
        (link["from"], link["to"]): link["mode"]
        for link in json.loads(ok(data, "status", "-o", "json"))["links"]
    }
    assert modes["fra", "sin"] == "drop"
    assert modes["sin", "fra"] == "pass"
    ok(data, "heal")
    assert "shifted by -5000 ms" in ok(data, "fault", "clock", "iad", "-5000")
    ok(data, "fault", "clock", "iad", "0")

    ok(data, "kill", "sin")
    status = imctl(data, "status", "-o", "json")
    assert status.returncode == 1
    assert "error" in json.loads(status.stdout)["idcs"]["sin"]
    assert "sin is serving" in ok(data, "start", "sin")
    assert json.loads(ok(data, "status", "-o", "json"))["idcs"]["sin"]["origin"] == "sin.1"

    assert ok(data, "logs", "sin", "-n", "1")
    assert "stopped 4 processes" in ok(data, "down")
    assert all(process.state(identity) == "gone" for identity in run.processes.values())


def running_in(data: Path) -> list[str]:
    """Command lines of processes of this deployment, written down or not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(data) in line:
                found.append(line)
    return found


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_it_starts_leaves_nothing(
    region: Path, data: Path, signum: signal.Signals
) -> None:
    # A script's background job has SIGINT ignored; SIGTERM must end it all the same.
    started = ["env", "--ignore-signal=INT"] if signum is signal.SIGTERM else []
    starting = subprocess.Popen(
        [*started, IMCTL, "up", region, "--data", data],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 60
    run = None
    while run is None or len(run.processes) < 3:
        assert time.monotonic() < deadline
        assert starting.poll() is None
        time.sleep(0.02)
        run = runfile.read(data) if data.exists() else None
    starting.send_signal(signum)
    output = starting.communicate(timeout=60)[0].decode()
    assert starting.returncode == 130, output
    assert "interrupted: everything was stopped" in output
    assert "Traceback" not in output
    assert running_in(data) == []
    assert not (data / "run.json").exists()


def test_of_two_starts_at_once_one_is_refused_and_the_other_serves(
    region: Path, data: Path
) -> None:
    """Each made a CA and took the other's processes for its own: both failed, and the folder's
    certificates were useless from then on."""
    both = [begin(data, "up", region, "--data", data) for _ in range(2)]
    ends = [(*one.communicate(timeout=120), one.returncode) for one in both]
    assert sorted(status for *_, status in ends) == [0, 1], ends
    refused = next(error for _, error, status in ends if status == 1)
    assert refused.startswith("error: another imctl is starting the deployment in "), refused
    rows = json.loads(ok(data, "status", "-o", "json"))["processes"].values()
    assert {row["state"] for row in rows} == {"running"}


def test_chat_and_moves_of_traffic(region: Path, data: Path) -> None:
    ok(data, "up", region, "--data", data)

    def placed() -> bool:
        """An ipconf that has just started may not know every gateway yet."""
        found = json.loads(ok(data, "ipconf", "lookup", "8.8.8.8", "-o", "json"))
        return (found["shard"], found["idcs"][0]) == ("americas", "iad")

    until(placed)

    sent = json.loads(ok(data, "send", "ann", "bob", "hello", "--replicated", "-o", "json"))
    assert (sent["conversation"], sent["durability"]) == ("d:ann:bob", "replicated")
    with subprocess.Popen(
        [IMCTL, "tail", "bob", "-o", "json", "--data", data], stdout=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout is not None
        events = (json.loads(line) for line in tail.stdout)
        message = next(event for event in events if event["event"] == "Message")
        assert (message["uid"], message["content"]) == ("ann", "hello")
        assert message["key"] == sent["key"]
        tail.send_signal(signal.SIGINT)
        assert tail.wait(60) == 130
    [row] = json.loads(ok(data, "conversations", "bob", "-o", "json"))
    assert (row["conversation"], row["unread"], row["last"]["content"]) == ("d:ann:bob", 1, "hello")
    [row] = json.loads(ok(data, "search", "bob", "HELLO", "-o", "json"))
    assert (row["key"], row["content"]) == (sent["key"], "hello")
    assert "ann: hello" in ok(data, "conversations", "bob")

    refused = imctl(data, "drain", "fra", "--expect-epoch", 99, "--yes")
    assert refused.returncode == 3
    assert "the policy is at epoch 1, not 99" in refused.stderr
    assert "would commit: epoch 2: drain of fra" in ok(data, "drain", "fra", "--dry-run")
    drained = imctl(data, "drain", "fra", "--yes", "-o", "json")
    assert drained.returncode == 0, drained.stderr
    decision = json.loads(drained.stdout)
    assert (decision["decision"], decision["operation"]) == ("committed", "drain-fra-2")
    states = json.loads(ok(data, "status", "-o", "json"))["policy"]["idcs"]
    assert states["fra"]["state"] == "drained"
    ok(data, "failback", "fra", "--yes")

    operations = json.loads(ok(data, "op", "list", "-o", "json"))
    assert [(each["kind"], each["state"]) for each in operations] == [
        ("drain", "done"),
        ("failback", "done"),
    ]
    assert "epoch 2: drain of fra by operator" in ok(data, "op", "show", "drain-fra-2")
    assert imctl(data, "op", "show", "drain-mars-1").returncode == 1
    audit = [json.loads(line) for line in (data / "audit.jsonl").read_text().splitlines()]
    assert [each["decision"] for each in audit] == ["refused", "committed", "committed"]

    without_faults = imctl(data, "partition", "fra", "iad")
    assert without_faults.returncode == 3
    assert "started without --faults" in without_faults.stderr


def test_two_idcs_and_their_witness(tmp_path: Path, data: Path) -> None:
    region = lab_region(tmp_path, source=ROOT / "regions" / "two-idc.yaml")
    ok(data, "up", region, "--data", data)
    document = json.loads(ok(data, "status", "-o", "json"))
    assert set(document["idcs"]) == {"fra", "dub"}
    assert document["witness"]["idc"] == "witness"
    assert any(line.startswith("witness") for line in ok(data, "status").splitlines())
