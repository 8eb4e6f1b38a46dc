"""What several files of integration tests stand on."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.im.testing import Idc, OpenIdc


@pytest.fixture
def ca_file(pki_dir: Path) -> Path:
    return pki_dir / "ca.pem"


@pytest.fixture
async def open_idc(tmp_path: Path) -> AsyncIterator[OpenIdc]:
    """``await open_idc("fra.1", ...)``; again after ``stop``: a restart on the same disk."""
    running: list[Idc] = []

    async def start(origin: str = "fra.1", **settings: Any) -> Idc:
        folder, disk = tmp_path / origin.split(".")[0], RealDisk()
        partitions = int(settings.get("partitions", 1))
        logs = await SegmentLogStore.open(str(folder / "log"), partitions, disk, random.Random(1))
        kv = await LmdbKv.open(str(folder / "kv"), disk)
        idc = Idc(origin, kv, logs, **settings)
        await idc.start()
        running.append(idc)
        return idc

    yield start
    for idc in running:
        await idc.stop()
