"""Changes of traffic that `imctl` asks for, over a real registry and mutual TLS."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from imcore import pki
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import SystemClock
from imcore.tls import SERVER_OPTIONS, grpc_server_credentials
from imctl.target.local import Local, pki_names
from imctl.target.runfile import RunFile
from imctl.testing.lab import lab_region
from imctl.traffic import Control
from services.control.caspaxos import Proposer
from services.control.rules import Change, Kind
from services.engines.disk import RealDisk
from services.engines.registry_grpc import RegistryServicer
from services.engines.registry_store import RegistryStore


def one_idc(spec: dict[str, Any]) -> None:
    """A region whose only registry is the majority."""
    spec["idcs"] = spec["idcs"][:1]
    spec["links"] = []
    spec["geo"]["shards"] = [{"name": "all", "weights": {"fra": 1}}]
    spec["geo"]["default"] = "all"


async def test_every_decision_asked_for_leaves_an_event_whoever_asks(tmp_path: Path) -> None:
    """The demo and the drills asked without the command's own preparation: theirs left none."""
    RunFile(str(lab_region(tmp_path, one_idc)), False, "127.0.0.1:1", {}).write(tmp_path)
    target = Local.open(tmp_path)
    pki.init(target.pki, pki_names(target.region), datetime.now(UTC))
    clock = SystemClock()
    store = await RegistryStore.open(
        str(tmp_path / "registry"), RealDisk(), clock, random.Random(1)
    )
    server = grpc.aio.server(options=SERVER_OPTIONS)
    rpc.add_RegistryServicer_to_server(RegistryServicer(store), server)
    assert server.add_secure_port(target.address("fra"), grpc_server_credentials(target.pki, "fra"))
    await server.start()
    own = Proposer({"fra": store}, "fra", clock, random.Random(2))
    try:
        await own.ensure_member()
        async with Control(target, clock, random.Random(3)) as control:
            done = await control.submit(
                Change(Kind.CORDON, "fra", "r1", "drill", overrides=("active-idcs-min",))
            )
            assert done.policy is not None, done.sentence
            refused = await control.submit(Change(Kind.CORDON, "fra", "r2", "drill"))
            assert refused.policy is None
    finally:
        await own.close()
        await server.stop(0)
        await store.close()
    rows = [json.loads(line) for line in target.audit_file().read_text().splitlines()]
    assert [(row["request_id"], row["decision"]) for row in rows] == [
        ("r1", "committed"),
        ("r2", "refused"),
    ]
