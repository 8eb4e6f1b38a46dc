"""A simulated region that serves, and its devices, for tests of what happens between IDCs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from imcore.region.model import Region
from services.loadgen.recorder import Deaf
from services.sdk import Client, Event, Message
from services.sim.region import Layout
from services.sim.world import SimSession, World

START_S = 30.0
T = TypeVar("T")


class Device:
    """One client, and the events that its application was told."""

    def __init__(self, world: World, session: SimSession) -> None:
        self._world = world
        self._session = session
        self._over = False
        self.events: list[Event] = []
        session.client.on(self.events.append)

    @property
    def client(self) -> Client:
        return self._session.client

    @property
    def idc(self) -> str:
        return self._session.idc

    async def do(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """As the device's own doing."""

        async def done() -> T:
            return await work(self._session.client)

        found: T = await self._session.there(done())
        return found

    def of(self, kind: type[T]) -> list[T]:
        """Its events of that kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def vanish(self) -> None:
        """Without a goodbye, and nobody is told: as in a lift."""
        self._over = True
        self._world.loop.crash(self._session.owner)
        self._world.net.crash(self._session.owner, silently=True)

    def crash(self) -> None:
        """As by kill -9; another device of its name goes on with its outbox file."""
        self._over = True
        self._session.crash()

    async def close(self) -> None:
        if not self._over:
            self._over = True
            await self._session.close()


class Stage:
    def __init__(self, world: World) -> None:
        self.world = world
        self._devices: list[Device] = []

    async def device(
        self, uid: str, name: str, idc: str, kind: str = "", encryption_key: bytes | None = None
    ) -> Device:
        """A device that is at home in that IDC, connected. With a key it has an outbox file."""
        idcs = self.world.layout.idcs
        address = f"{idcs.index(idc) + len(idcs)}.0.0.{len(self._devices) + 1}"
        session = self.world.connect(
            uid, name, address, Deaf(), encryption_key is not None, kind, encryption_key
        )
        device = Device(self.world, session)
        self._devices.append(device)
        await session.open()
        assert device.idc == idc
        return device

    async def until(self, holds: Callable[[], bool], seconds: float = 10.0) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110  # what simulated processes do raises no events
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        for device in self._devices:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await device.close()


class Talk:
    """What one device says to another's user, each time until the other one has it."""

    def __init__(self, stage: Stage, who: Device, to: Device) -> None:
        self._stage, self._who, self._to = stage, who, to
        self._said: list[bytes] = []

    async def says(self, text: bytes) -> None:
        """Raises TimeoutError: it does not come, or not alone and in order."""
        self._said.append(text)
        chat = self._who.client.direct(self._to.client.uid)
        await self._who.do(lambda client: client.send(chat, text))
        await self._stage.until(lambda: [m.content for m in self._to.of(Message)] == self._said, 20)


@contextlib.asynccontextmanager
async def _serving(world: World) -> AsyncIterator[Stage]:
    stage = Stage(world)
    for machine in world.voters:
        machine.start()
    await stage.until(lambda: all(m.serving for m in world.machines.values()), START_S)
    try:
        yield stage
    finally:
        await stage.close()


def play(
    scratch: Path,
    script: Callable[[Stage], Coroutine[Any, Any, None]],
    edit: Callable[[Region], Region] = lambda region: region,
    seed: int = 1,
    layout: Layout = Layout(),  # noqa: B008  # a tuple
) -> None:
    """The script, in simulated time; ``edit`` changes the region before it starts."""
    world = World(seed, scratch, layout)
    world.region = edit(world.region)

    async def played() -> None:
        async with _serving(world) as stage:
            await script(stage)

    try:
        world.loop.run_until_complete(played())
        assert not world.failures
    finally:
        world.close()
