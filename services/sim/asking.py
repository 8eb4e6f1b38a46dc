"""What clients ask for and what passes, while faults go on: search, who has read what, who is
online, own devices, typing, applications in the background, other networks, and kicks of devices
that are there for that alone.

Nothing of it is to last but a kick: a device that was kicked is out. Answers are held against what
they may be at any time.
"""

from __future__ import annotations

import asyncio
import contextlib

from imcore.errors import ImError
from services.loadgen.load import Load
from services.loadgen.recorder import Deaf, Recorder
from services.sim.busy import Busy
from services.sim.inside import came_after_kick
from services.sim.world import SimSession, World

WORDS = ("burst", "edited", "those")  # that some messages say
FOUND_MAX = 20  # then the application has seen enough
WATCHED = 5
OUT_S = 40.0  # so long after its answer a kick may take to come to another IDC, through faults
LOOK_S = 0.5


class Spare(Deaf):
    """The application of a device that is to be kicked; how often its connection has changed."""

    def __init__(self) -> None:
        self.connections = 0

    def connection(self, idc: str, gateway: str) -> None:
        self.connections += 1


class Asking(Busy):
    """``wrong``: what no answer may be."""

    per_s = 1.2

    def __init__(self, load: Load, recorder: Recorder, world: World) -> None:
        super().__init__(load, recorder, world.seed, "asking")
        self.wrong: list[str] = []
        self._world = world
        self._behind: dict[SimSession, None] = {}  # in the background
        self._spares = 0

    async def search(self) -> None:
        member, word = self._anybody(), self._rng.choice(WORDS)
        if member is None:
            return
        client = self._session(member).client
        found: list[bytes] = []

        async def searched() -> None:
            async for each in client.search(word):
                found.append(each.content)
                if len(found) == FOUND_MAX:
                    return

        with contextlib.suppress(ImError):
            await self._session(member).there(searched())
        if lacking := [each for each in found if word.encode() not in each]:
            self.wrong.append(f"search: {word!r} was found in {lacking[0]!r}")

    async def readers(self) -> None:
        """Of a message that somebody was shown lately."""
        member = self._anybody()
        if member is None or not member.ear.recent:
            return
        conversation, key, sender = self._rng.choice(list(member.ear.recent))
        client = self._session(member).client
        with contextlib.suppress(ImError):
            told = await self._session(member).there(client.readers(conversation, key))
            if sender in (*told.read, *told.unread) or set(told.read) & set(told.unread):
                self.wrong.append(f"readers: of {key} by {sender} there are {told}")

    async def read_counts(self) -> None:
        member = self._anybody()
        if member is None or not member.ear.recent:
            return
        conversation, key, _ = self._rng.choice(list(member.ear.recent))
        client = self._session(member).client
        with contextlib.suppress(ImError):
            told = await self._session(member).there(client.read_counts(conversation, key))
            others = len({each.client.uid for each in self._load.devices}) - 1
            if told.read + told.unread > others:
                self.wrong.append(f"read_counts: of {key} there are {told} of {others}")

    async def watch(self) -> None:
        member = self._anybody()
        if member is None:
            return
        uids = sorted({each.client.uid for each in self._load.devices})
        watched = self._rng.sample(uids, WATCHED)
        client = self._session(member).client
        with contextlib.suppress(ImError):
            told = await self._session(member).there(client.watch(watched))
            if {each.uid for each in told} != set(watched):
                self.wrong.append(f"watch: of {watched} it is told {told}")

    async def typing(self) -> None:
        member = self._anybody()
        if member is None or not member.ear.recent:
            return
        conversation, client = member.ear.recent[-1][0], self._session(member).client

        async def typed() -> None:
            client.typing(conversation)

        with contextlib.suppress(ImError):
            await self._session(member).there(typed())

    async def devices(self) -> None:
        member = self._anybody()
        if member is None:
            return
        client = self._session(member).client
        with contextlib.suppress(ImError):
            told = await self._session(member).there(client.devices())
            if len({each.device for each in told}) < len(told):
                self.wrong.append(f"devices: {member.client.uid} is told {told}")

    async def background(self) -> None:
        """Its heartbeats come ever more seldom, until it is in the foreground again."""
        member = self._anybody()
        if member is None:
            return
        session = self._session(member)
        on = session not in self._behind
        with contextlib.suppress(ImError):
            await session.there(_put(session, on))
            if on:
                self._behind[session] = None
            else:
                del self._behind[session]

    async def network(self) -> None:
        """The device is on another one: its connection may be gone, or stand as before."""
        member = self._anybody()
        if member is None:
            return
        kind, name = self._rng.choice(("wifi", "cellular")), self._rng.choice(("a", "b"))
        client = self._session(member).client

        async def changed() -> None:
            client.network(kind, name)

        with contextlib.suppress(ImError):
            await self._session(member).there(changed())

    async def end(self, within_s: float) -> bool:
        """Who is in the background hears nothing of a dead connection for minutes: nobody is, when
        all are to be there again."""
        for session in self._behind:
            with contextlib.suppress(ImError):
                await session.there(_put(session, on=False))
        return await super().end(within_s)

    async def kick(self) -> None:
        """A device that nobody else uses, by another one of its user."""
        member = self._anybody()
        if member is None:
            return
        self._spares += 1
        name, told, client = f"spare-{self._spares}", Spare(), self._session(member).client
        spare = self._world.connect(member.client.uid, name, member.client.address, told, False)
        try:
            with contextlib.suppress(ImError):
                await spare.open()
                connections = told.connections
                await self._session(member).there(client.kick(name))
                if not await self._out(spare, told, connections) and not self._later(spare):
                    self.wrong.append(f"kick: {spare.owner.name} is still in, its kick answered")
        finally:
            with contextlib.suppress(ImError):
                await spare.close()

    async def _out(self, spare: SimSession, told: Spare, connections: int) -> bool:
        """Whether its connection came to an end; a kick does not meet one that comes after it."""
        until = asyncio.get_running_loop().time() + OUT_S
        while told.connections == connections:
            if asyncio.get_running_loop().time() >= until:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    def _later(self, spare: SimSession) -> bool:
        node = self._world.machines[spare.idc].node if spare.idc else None
        client = spare.client
        return node is not None and came_after_kick(node, client.uid, client.device)


async def _put(session: SimSession, on: bool) -> None:
    session.client.background(on)


Asking.kinds = {
    "search": (0.3, Asking.search),
    "readers": (0.6, Asking.readers),
    "read counts": (0.6, Asking.read_counts),
    "watch": (0.6, Asking.watch),
    "typing": (1.5, Asking.typing),
    "devices": (0.4, Asking.devices),
    "background": (0.8, Asking.background),
    "network": (0.6, Asking.network),
    "kick": (0.25, Asking.kick),
}
