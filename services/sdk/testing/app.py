"""An application for tests: it keeps what its callback told it, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from services.sdk.client import Client
from services.sdk.core.events import ConnectionChanged, CursorMoved, Event, Message, Moved
from services.sdk.ipconf import IpconfClient
from services.sdk.options import Options
from services.sdk.store import Store
from services.sdk.testing.scripted import Region, token_of

POLL_S = 0.005


async def eventually(holds: Callable[[], bool], timeout_s: float = 4.0) -> None:
    """Raises TimeoutError. It polls: what a scripted region holds raises no events. The time is
    counted in looks: while this process stands still, so does what it waits for."""
    for _ in range(round(timeout_s / POLL_S)):
        if holds():
            return
        await asyncio.sleep(POLL_S)
    if not holds():
        raise TimeoutError


class App:
    """One client of a scripted region; ``list`` is rebuilt from the events alone, for one
    conversation; leaving it asserts that nothing was shown twice."""

    def __init__(
        self,
        region: Region,
        ca_file: Path | None,
        uid: str = "ann",
        outbox: Path | Store | None = None,
        options: Options | None = None,
        ipconf: IpconfClient | None = None,
    ) -> None:
        self.client = Client(
            token_of(uid),
            ipconf or [region.url],
            ca_file,
            outbox=outbox,
            options=options or Options(start_timeout_ms=5_000),
            rng=random.Random(1),
        )
        self.list: list[bytes] = []
        self.keys: list[str] = []
        self.twice: list[str] = []
        self.moved = 0
        self.connections: list[str] = []  # IDCs; empty: the connection was lost
        self.cursors: list[CursorMoved] = []
        self.client.on(self._on)

    def _on(self, event: Event) -> None:
        if isinstance(event, Message):
            if event.key in self.keys:
                self.twice.append(event.key)
            self.keys.insert(event.index, event.key)
            self.list.insert(event.index, event.content)
        elif isinstance(event, Moved):
            self.moved += 1
            self.keys.insert(event.to_index, self.keys.pop(event.from_index))
            self.list.insert(event.to_index, self.list.pop(event.from_index))
        elif isinstance(event, ConnectionChanged):
            self.connections.append(event.idc)
        elif isinstance(event, CursorMoved):
            self.cursors.append(event)

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.client.close()
        assert self.twice == [], "shown twice"
