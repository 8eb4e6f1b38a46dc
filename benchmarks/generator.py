"""The parent's end of the load generator (`benchmarks.load`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from benchmarks.deployment import Failed, gateways
from imcore.checker import check_file
from imcore.region.model import Region

ORDER_S = 110.0


class Generator:
    def __init__(self, child: asyncio.subprocess.Process, history: Path) -> None:
        self._child = child
        self._history = history

    async def order(self, do: str, **fields: Any) -> dict[str, Any]:
        """Raises Failed."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        async with asyncio.timeout(ORDER_S):
            line = await self._child.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the generator ended"}
        if "error" in answer:
            raise Failed(f"load: {answer['error']}")
        return answer

    async def run(self, rate: float, seconds: float) -> dict[str, Any]:
        return await self.order("run", rate=rate, seconds=seconds)

    async def judged(self) -> str:
        """What the checker says of all that was sent. Raises Failed when a promise was broken."""
        await self.order("judge")
        report = check_file(self._history)
        if report.exit_code:
            kept = Path(tempfile.mkdtemp(prefix="bench-history-")) / "history.jsonl"
            shutil.copy(self._history, kept)
            raise Failed(f"history {kept}: {report.sentence()}")
        return report.sentence()


@contextlib.asynccontextmanager
async def generator(
    folder: Path, region: Region, pairs: list[tuple[str, str]], tls: bool
) -> AsyncIterator[Generator]:
    """Connected, one connection for each user."""
    history = folder / "history.jsonl"
    spec = {
        "gateways": gateways(region),
        "pairs": pairs,
        "pki": str(folder / "pki"),
        "tls": tls,
        "history": str(history),
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.load", json.dumps(spec),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 20,
    )  # fmt: skip
    try:
        found = Generator(child, history)
        await found.order("open")
        yield found
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            async with asyncio.timeout(3):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
