"""Encrypted conversations, while faults go on: three users of their own with four devices, one
direct conversation and a group. In the end all devices read the same of each, all of it, and no
server has had a word of it on its disk.

The keys are the library's own randomness, so ciphertext is not the seed's, and of nothing that
hangs on it may a trace tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable

from imcore.errors import ImError
from services.loadgen.load import Load
from services.loadgen.recorder import Deaf, Ear, Recorder
from services.sdk import Message
from services.sim.busy import Busy
from services.sim.world import SimSession, World

KEY = b"k" * 32
CANARY = b"canary-51c9"  # begins whatever is said
OPEN_S, POLL_S = 30.0, 0.1
ENDED_S = (0.05, 0.5, 3.0)  # until an application that died starts again
EDITS = 0.15  # of what is said, instead of something new
GROUP = 0.4


class _Connected(Deaf):
    """The history is told only where the device is connected."""

    def __init__(self, ear: Ear) -> None:
        self.ear = ear

    def connection(self, idc: str, gateway: str) -> None:
        self.ear.connection(idc, gateway)


class Sealed(Busy):
    """``open`` before anything breaks: what is said to a device that nobody has heard of yet is
    not for it. ``wrong``: what the devices and the disks must not show."""

    per_s = 1.6

    def __init__(self, load: Load, recorder: Recorder, world: World) -> None:
        super().__init__(load, recorder, world.seed, "sealed")
        self.wrong: list[str] = []
        self._world = world
        self._sessions: dict[tuple[str, str], SimSession] = {}
        self._addresses: dict[tuple[str, str], str] = {}
        self._talks: dict[str, tuple[str, ...]] = {}  # uids of each conversation
        self._acked: dict[str, list[bytes]] = {}
        self._changing: set[str] = set()  # keys of messages that somebody changes
        self._said = itertools.count()

    async def open(self) -> None:
        """Raises ImError, TimeoutError."""
        idcs = len(self._world.layout.idcs)
        for n, name in enumerate((("pat", "phone"), ("quo", "phone"), ("ray", "phone"),
                                  ("pat", "tab"))):  # fmt: skip
            self._addresses[name] = f"{idcs + n % idcs}.9.9.{n + 1}"
            await self._connect(name)
        pat = self._sessions["pat", "phone"]
        direct = pat.direct("quo")
        await pat.there(pat.client.encrypt(direct))
        group = await pat.there(pat.client.create_group(["quo", "ray"], encrypted=True))
        self._talks = {direct: ("pat", "quo"), group: ("pat", "quo", "ray")}
        self._acked = {conversation: [] for conversation in self._talks}
        await self._until(self._published)
        for name in self._sessions:
            for conversation in self._of(name[0]):
                await self._write(name, conversation)
        await self._until(self.complete)

    async def _until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(OPEN_S):
            while not done():  # noqa: ASYNC110  # what simulated processes do raises no events
                await asyncio.sleep(POLL_S)

    def _published(self) -> bool:
        return all(each.client.keys_published for each in self._sessions.values())

    async def _connect(self, name: tuple[str, str]) -> None:
        listener = _Connected(self._recorder.device(*name))
        session = self._world.connect(
            *name, self._addresses[name], listener, True, encryption_key=KEY
        )
        self._sessions[name] = session
        await session.open()

    def _of(self, uid: str) -> list[str]:
        return [conversation for conversation, uids in self._talks.items() if uid in uids]

    # ------------------------------------------------------------------------------ doings

    async def say(self) -> None:
        name = self._rng.choice([each for each in self._sessions if self._runs(each)] or [None])
        if name is None:
            return
        talks = self._of(name[0])
        conversation = talks[-1] if self._rng.random() < GROUP else talks[0]
        if self._rng.random() < EDITS:
            await self._edit(name, conversation)
        else:
            await self._write(name, conversation)

    def _runs(self, name: tuple[str, str]) -> bool:
        return self._sessions[name].running

    def _words(self) -> bytes:
        return CANARY + b" %d" % next(self._said)

    async def _write(self, name: tuple[str, str], conversation: str) -> None:
        session, words = self._sessions[name], self._words()
        with contextlib.suppress(ImError):  # it stays in the outbox, or was refused
            await session.there(session.client.send(conversation, words))
            self._acked[conversation].append(words)

    async def _edit(self, name: tuple[str, str], conversation: str) -> None:
        """Of an own message; nobody asks for two changes of one at a time, so that what it said
        first is known by who asked."""
        client = self._sessions[name].client
        own = [each for each in client.view(conversation) if each.uid == name[0]][-5:]
        if not own or (message := self._rng.choice(own)).key in self._changing:
            return
        self._changing.add(message.key)
        with contextlib.suppress(ImError):
            change = client.edit(conversation, message.key, self._words())
            await self._sessions[name].there(change)

    async def restart(self) -> None:
        """An application dies between any two steps, and starts again from its file."""
        name = self._rng.choice([each for each in self._sessions if self._runs(each)] or [None])
        if name is None:
            return
        self._sessions[name].crash()
        await asyncio.sleep(self._rng.choice(ENDED_S))
        while True:
            try:
                return await self._connect(name)
            except ImError:
                await self._sessions[name].close()

    # -------------------------------------------------------------------------- the end

    def complete(self) -> bool:
        return not self._unlike()

    def _unlike(self) -> str:
        """What keeps the devices from showing the same, all of it; or empty."""
        for conversation, uids in self._talks.items():
            views = {
                name: session.client.view(conversation)
                for name, session in self._sessions.items()
                if name[0] in uids
            }
            first = [(each.key, each.content) for each in next(iter(views.values()))]
            for name, view in views.items():
                if unread := [each for each in view if each.undecryptable]:
                    return f"{name} cannot read {unread[0].key}: {unread[0].undecryptable}"
                if [(each.key, each.content) for each in view] != first:
                    return f"{name} shows {conversation} otherwise than {next(iter(views))}"
        return ""

    def judge(self) -> None:
        """Once ``complete``, or when it never comes to that."""
        if why := self._unlike():
            self.wrong.append(f"sealed: {why}")
        for conversation, acked in self._acked.items():
            name = next(each for each in self._sessions if each[0] in self._talks[conversation])
            self._judge(acked, self._sessions[name].client.view(conversation))
        for machine in self._world.machines.values():
            for path in sorted(machine.folder.rglob("*")):
                if path.is_file() and CANARY in path.read_bytes():
                    self.wrong.append(f"sealed: {path.name} of {machine.name} has it in plain text")
        if any(CANARY.decode() in line for line in self._world.trace.lines):
            self.wrong.append("sealed: it is logged in plain text")

    def _judge(self, acked: list[bytes], view: tuple[Message, ...]) -> None:
        said = [each.content for each in view if each.key not in self._changing]
        if len(set(said)) < len(said):
            self.wrong.append("sealed: something is shown twice")
        lost = set(acked) - set(said)
        if len(lost) > sum(each.key in self._changing for each in view):
            self.wrong.append(f"sealed: acked and not shown: {sorted(lost)[:3]}")

    async def close(self) -> None:
        for session in self._sessions.values():
            with contextlib.suppress(ImError):
                await session.close()


Sealed.kinds = {
    "say sealed": (1.0, Sealed.say),
    "restart sealed": (0.06, Sealed.restart),
}
