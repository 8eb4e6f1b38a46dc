"""How long a batch may take on a TiKV that leaves something out of it whenever it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from imcore.errors import OutcomeUnknown, Unavailable
from services.engines.disk import RealDisk
from services.engines.tikv import kv as module
from services.engines.tikv.client import Pair, TikvClient
from services.engines.tikv.identity import Life
from services.engines.tikv.kv import TikvKv
from services.engines.tikv.layout import Layout
from services.ports import Batch

DEADLINE_S = 0.3
STEP_S = 0.02  # what a read or a write takes
KEY = b"\0\1left out"


class Torn:
    """The client of a store that has everything but ``KEY``, when that is ``torn``."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.torn = False
        self.calls = 0

    def deadline(self, least_s: float = 0.0) -> float:
        return asyncio.get_running_loop().time() + max(least_s, DEADLINE_S)

    async def read(self, work: Callable[[Any], Awaitable[Any]], until: float | None = None) -> Any:
        self.calls += 1
        try:
            async with asyncio.timeout_at(self.deadline() if until is None else until):
                await asyncio.sleep(STEP_S)
                return await work(self)
        except TimeoutError as error:
            raise Unavailable("no answer in time") from error

    write = read

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        return {key: self.rows[key] for key in keys if key in self.rows}

    async def put(self, pairs: Iterable[Pair]) -> None:
        kept = {key: value for key, value in pairs if not (self.torn and key.endswith(KEY[2:]))}
        self.rows |= kept

    async def delete(self, keys: Iterable[bytes]) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def torn() -> Torn:
    return Torn()


@pytest.fixture
async def kv(torn: Torn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TikvKv:
    monkeypatch.setattr(module, "_OPEN_S", DEADLINE_S)
    layout, life = Layout("p"), Life(b"l" * 16, 1)
    torn.rows[layout.identity] = life.packed()
    client = cast(TikvClient, torn)
    return TikvKv(client, layout, life, False, tmp_path, RealDisk(), frozenset())


async def test_to_write_to_read_back_and_to_write_again_have_one_deadline(
    torn: Torn, kv: TikvKv
) -> None:
    epoch, _ = await kv.open_partition(1)
    await kv.commit(Batch(1, epoch, b"whole", {KEY: b"1"}))
    torn.torn = True
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(20 * DEADLINE_S):
        with pytest.raises(OutcomeUnknown):
            await kv.commit(Batch(1, epoch, b"torn", {KEY: b"2"}))
        assert DEADLINE_S / 2 < loop.time() - began < 3 * DEADLINE_S
        with pytest.raises(OutcomeUnknown):  # nor does an opening go on for ever
            await kv.open_partition(1)
    assert torn.calls < 4 * DEADLINE_S / STEP_S
    torn.torn = False
    assert (await kv.open_partition(1))[1] == b"torn"
    assert await kv.get(KEY) == b"2"
    await kv.close()
