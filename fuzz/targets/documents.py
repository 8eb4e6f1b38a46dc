"""Documents that another process or another version wrote: the policy, an operation's record, the
links file, the checkpoint of sessions, the log store's description. Each is read as a value that is
written out and read again alike, or refused with the one documented error.

The first byte says which document the rest is."""

from __future__ import annotations

import json
import logging
import random

from fuzz.lab import Loop, folder
from fuzz.memory_disk import MemoryDisk
from fuzz.target import Target
from fuzz.targets.region import REGIONS
from imcore.errors import BadInput
from imcore.region.load import load_region
from imcore.words import Origin
from services.control.operations import Operation, Step, operation_from_json
from services.engines.log_store import SegmentLogStore
from services.node.config import parse_links
from services.policy.document import (
    IdcState,
    OperationRef,
    OperationState,
    Outcome,
    Policy,
    from_json,
    initial,
)
from services.state import checkpoint
from services.state.session import Record

_loop = Loop()
_FILE = folder("documents") / "sessions"
logging.getLogger("im.state").setLevel(logging.ERROR)  # a checkpoint that is refused is a warning


def _policy(data: bytes) -> None:
    try:
        policy = from_json(data)
    except ValueError:
        return
    assert from_json(policy.to_json()) == policy
    # As ipconf and the status use it.
    for idc in policy.idcs:
        assert isinstance(policy.state(idc), IdcState)
    assert policy.outcome("none") is None or policy.requests
    assert policy.operation is None or isinstance(policy.operation.paused, bool)
    for weights in policy.weights.values():
        assert all(weight >= 0 for weight in weights.values())


def _operation(data: bytes) -> None:
    try:
        operation = operation_from_json(data)
    except ValueError:
        return
    assert operation_from_json(operation.to_json()) == operation
    sorted(operation.steps, key=lambda step: step.epoch)


def _links(data: bytes) -> None:
    try:
        links = parse_links(data)
    except ValueError:
        return
    for peer, address in links.items():
        assert isinstance(peer, str)
        host, _, port = address.rpartition(":")
        assert host
        assert 0 <= int(port) < 1 << 16


def _sessions(data: bytes) -> None:
    _FILE.write_bytes(data)
    for record in checkpoint.load(_FILE, 0.0):
        checkpoint.line(record)


def _store(data: bytes) -> None:
    disk = MemoryDisk()
    disk.files["log/store.json"] = data
    _loop.run(_open(disk), watched=False)


async def _open(disk: MemoryDisk) -> None:
    """Twice: what it wrote down the first time must be readable."""
    for _ in range(2):
        try:
            store = await SegmentLogStore.open("log", 2, disk, random.Random(1))
        except BadInput:
            return
        await store.open_copy(Origin("iad", 1))
        await store.close()


READERS = (_policy, _operation, _links, _sessions, _store)


def check(data: bytes) -> None:
    READERS[(data[0] if data else 0) % len(READERS)](data[1:])


def seeds() -> list[bytes]:
    policy = initial(load_region(REGIONS / "three-idc.yaml"), 1_700_000_000_000)
    running = OperationRef("drain-fra-1", "drain", "fra", "iad", "ann", "r1", 1_700_000_000_000)
    full = Policy(
        7,
        policy.idcs,
        running,
        ("drain-fra-1",),
        (Outcome("r1", 7, "drain-fra-1", "it began"),),
        {"europe": {"fra": 1.0, "iad": 0.5}},
    )
    steps = (Step(1, 7, "it began", {"idcs": {}}),)
    operation = Operation(
        "drain-fra-1", "drain", "fra", "iad", "ann", "r1", OperationState.RUNNING, 1, 0, steps
    )
    session = checkpoint.line(Record("s1", "ann", "phone", 3, "", 0))
    store = {
        "format": 1,
        "log_id": "00" * 16,
        "partitions": 2,
        "boot": {"confirmed": 1, "pending": 2},
        "own": "fra.1",
        "damage": [["fra.1", 0, 3, 4]],
        "ends": {"fra.1": [5, 6]},
    }
    return [
        b"\0" + policy.to_json(), b"\0" + full.to_json(), b"\1" + operation.to_json(),
        b"\2" + b'{"iad": "127.0.0.1:9000"}', b'\3{"format": 1, "sessions": 1}\n' + session,
        b"\4" + json.dumps(store).encode(),
    ]  # fmt: skip


WORDS = [
    b"null", b"true", b"-1", b"1e400", b"NaN", b"[[[[[[[[", b"{}", b'""', b'"active"', b'"failed"',
    b'"epoch"', b'"idcs"', b'"operation"', b'"steps"', b'"weights"', b'"owed"', b'"fra.x"', b"\n",
]  # fmt: skip
TARGET = Target("documents", check, seeds, words=WORDS)
