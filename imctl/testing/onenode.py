"""One whole IDC in this process, with its real engines, servers and certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export import SpanExporter

from imcore import auditfile, pki
from imcore.region.load import load_region
from imctl.target.local import pki_names
from imctl.target.runfile import RunFile
from imctl.testing.lab import lab_region
from services.node.config import load
from services.node.node import Node
from services.node.roles import Roles

START_S = 60.0


def one_idc(spec: dict[str, Any]) -> None:
    """For ``lab_region``: a region whose only registry is the majority."""
    spec["idcs"] = spec["idcs"][:1]
    spec["links"] = []
    name = spec["idcs"][0]["name"]
    spec["geo"]["shards"] = [{"name": "all", "weights": {name: 1}}]
    spec["geo"]["default"] = "all"


@asynccontextmanager
async def running(
    folder: Path,
    faults: bool,
    callers: Sequence[str] = (),
    edit: Callable[[dict[str, Any]], None] = lambda spec: None,
    exporters: Sequence[SpanExporter] = (),
    standby: bool = False,
) -> AsyncIterator[Node]:
    """Serves when the block begins. ``callers``: names that get a certificate too. ``edit`` changes
    the region's ``spec``; ``exporters``: where spans go too; ``standby``: it is a core in whose
    place another one may come. ``imctl`` finds the deployment in the folder, as if it had started
    it."""

    def changed(spec: dict[str, Any]) -> None:
        one_idc(spec)
        edit(spec)

    path = lab_region(folder, changed)
    region = load_region(path)
    names = pki_names(region) | {name: [] for name in callers}
    pki.init(folder / "pki", names, datetime.now(UTC))
    RunFile(str(path), faults, "127.0.0.1:1", {}).write(folder)
    idc = region.spec.idcs[0].name
    audit = folder / idc / auditfile.FILE
    data = folder / idc / "data"
    roles = Roles.CORE if standby else Roles.ALL
    config = load(
        path, idc, data, folder / "pki", None, faults, audit=audit, roles=roles, standby=standby
    )
    node = Node(config, exporters=exporters)
    task = asyncio.create_task(node.run())
    try:
        async with asyncio.timeout(START_S):
            while not node.serving:
                if task.done():
                    task.result()
                await asyncio.sleep(0.02)
        yield node
    finally:
        node.stop()
        await task
