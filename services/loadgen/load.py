"""The load: sessions, groups, an open loop of sends, probes, and the wait until all is quiet.

Open loop: every message is sent when its schedule says, in a task of its own, however slow the
answers are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from imcore.errors import ImError, Unavailable
from imcore.runtime import Clock
from services.loadgen.logins import Look, covering
from services.loadgen.population import Client, Population
from services.loadgen.ports import Connect, Session
from services.loadgen.recorder import Ear, Recorder
from services.loadgen.schedule import Arrival, Rates, Text, arrivals
from services.loadgen.stats import Sample, Sampler
from services.loadgen.together import together

CONNECTING = 16  # at a time
GROUP_KNOWN_POLL_S = 0.1
GROUP_KNOWN_POLLS = 150
SAMPLE_S = 1.0
BURST = 32
SETTLE_POLL_S = 0.1
READ_S = 0.5


@dataclass(slots=True)
class Member:
    """One device: who it is, its session, and what notes what it is told."""

    client: Client
    session: Session
    ear: Ear


class Load:
    """``open``, then ``run`` in a task until ``stop``; ``settle``; ``close``."""

    def __init__(
        self,
        population: Population,
        connect: Connect,
        recorder: Recorder,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.population = population
        self.recorder = recorder
        self._connect = connect
        self._clock = clock
        self._rng = rng
        self._text = Text(rng)
        self.devices: list[Member] = []
        self._by_uid: dict[str, list[Member]] = {}
        self._by_n: dict[int, Member] = {}
        self._pairs: list[tuple[str, tuple[str, ...]]] = []  # conversation, uids
        self._groups: list[tuple[str, tuple[str, ...]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._behind_s = 0.0
        self._broken: BaseException | None = None
        self.started = clock.now()
        self.sampler = Sampler(recorder, self.started)

    # --------------------------------------------------------------------------- start

    async def start_again(self, member: Member, client: Client) -> None:
        """The application of a device, which has ended, starts again and knows only what its store
        has kept; or it is another device's from now on (``client``). Tried until it is connected,
        or the load is closed."""
        while True:
            self.recorder.closed(member.ear.n)
            member.client = client
            member.ear = self.recorder.device(client.uid, client.device)
            self._by_n[member.ear.n] = member
            member.session = self._connect(
                client.uid, client.device, client.address, member.ear, True
            )
            try:
                return await member.session.open()
            except ImError:
                await member.session.close()

    async def open(self, progress: Callable[[int], None] = lambda connected: None) -> None:
        """Connect every device, then make the conversations. Raises ImError."""
        gate = asyncio.Semaphore(CONNECTING)
        connected = 0

        async def one(client: Client) -> None:
            nonlocal connected
            ear = self.recorder.device(client.uid, client.device)
            session = self._connect(client.uid, client.device, client.address, ear, True)
            member = Member(client, session, ear)
            self.devices.append(member)
            async with gate:
                await session.open()
            connected += 1
            progress(connected)

        await together(one(client) for client in self.population.clients)
        self.devices.sort(key=lambda member: member.ear.n)
        for member in self.devices:
            self._by_n[member.ear.n] = member
            self._by_uid.setdefault(member.client.uid, []).append(member)
        for left, right in self.population.pairs:
            conversation = self._by_uid[left][0].session.direct(right)
            self.recorder.members(conversation, (left, right))
            self._pairs.append((conversation, (left, right)))
        for wanted in self.population.groups:
            creator = self._by_uid[wanted.members[0]][0].session
            conversation = await creator.create_group(wanted.members, wanted.name)
            self._groups.append((conversation, wanted.members))
        for conversation, uids in self._groups:
            await self._known_everywhere(conversation, uids)
            self.recorder.members(conversation, uids)

    async def _known_everywhere(self, conversation: str, uids: Sequence[str]) -> None:
        """Until one member in each IDC is told that all are members."""
        by_idc = {member.session.idc: member for uid in uids for member in self._by_uid[uid]}
        for idc, member in by_idc.items():
            for _ in range(GROUP_KNOWN_POLLS):
                if await self._knows(member, conversation, uids):
                    break
                await asyncio.sleep(GROUP_KNOWN_POLL_S)
            else:
                raise Unavailable(f"{idc} does not learn of group {conversation}")

    async def _knows(self, member: Member, conversation: str, uids: Sequence[str]) -> bool:
        try:
            return set(await member.session.members(conversation)) == set(uids)
        except ImError:  # the group has not reached this IDC yet
            return False

    # --------------------------------------------------------------------------- load

    def stop(self) -> None:
        """No more messages from now on; those under way go on."""
        self._stopped.set()

    async def run(
        self, rates: Rates, on_sample: Callable[[Sample], None] = lambda sample: None
    ) -> None:
        """Send by schedule until ``stop``; a sample every second. Raises what a send raised that is
        no ImError: a programming error. Meanwhile one device after the other reads."""
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(self._done)
        try:
            await self._send_all(rates, on_sample)
        finally:
            reading.cancel()
            await asyncio.wait([reading])

    async def _read(self) -> None:
        """Each device in turn says that its user has read up to what it was shown last, which need
        not be the last message, and every third time up to an earlier one: a cursor must not go
        back to it."""
        for turn, member in enumerate(itertools.cycle(self.devices)):
            await asyncio.sleep(READ_S)
            if member.ear.recent:
                conversation, key, _ = member.ear.recent[0 if turn % 3 == 2 else -1]
                ask = self.recorder.read(member.ear, conversation, key)
                with contextlib.suppress(ImError):  # not connected; it is another's turn
                    await member.session.read_up_to(conversation, key)
                    self.recorder.read_done(ask)

    async def _send_all(self, rates: Rates, on_sample: Callable[[Sample], None]) -> None:
        sizes = [len(uids) for _, uids in self._groups]
        schedule = arrivals(rates, len(self._pairs), sizes, self._rng)
        start = self._clock.now()
        next_sample = start + SAMPLE_S
        arrival = next(schedule)
        burst = 0
        while not self._stopped.is_set():
            now = self._clock.now()
            if now >= next_sample:
                on_sample(self.sample())
                next_sample += SAMPLE_S
            due = start + arrival.at
            if due <= now:
                self._behind_s = now - due
                self._spawn(self._send_arrival(arrival))
                arrival = next(schedule)
                burst += 1
                if burst % BURST == 0:  # behind: let the sends get their turn all the same
                    await asyncio.sleep(0)
            else:
                await self._stop_within(min(due, next_sample) - now)
        if self._broken:
            raise self._broken

    async def _stop_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    def sample(self) -> Sample:
        return self.sampler.take(self._clock.now(), len(self._tasks), self._behind_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._broken = self._broken or error
            self._stopped.set()

    async def _send_arrival(self, arrival: Arrival) -> None:
        conversations = self._groups if arrival.group else self._pairs
        conversation, uids = conversations[arrival.target]
        answerer = self.recorder.last_shown.get(conversation)
        if arrival.answer and answerer is not None:
            member = self._by_n[answerer]
        else:
            member = self._rng.choice(self._by_uid[self._rng.choice(uids)])
        await self._send(member, conversation, self._text.take(arrival.size))

    async def _send(self, member: Member, conversation: str, body: str) -> bool:
        ear, session = member.ear, member.session  # it may be started again meanwhile
        tag, content = self.recorder.compose(ear, conversation, body)
        try:
            acked = await session.send(conversation, content)
        except ImError as error:
            self.recorder.send_failed(ear, tag, str(error))
            return False
        self.recorder.ack(ear, conversation, tag, acked)
        return True

    def say(self, member: Member, conversation: str, body: str) -> None:
        """One message beside the schedule; its answer is not waited for."""
        self._spawn(self._said(member, conversation, body))

    async def _said(self, member: Member, conversation: str, body: str) -> None:
        await self._send(member, conversation, body)

    @property
    def groups(self) -> list[str]:
        """Their conversations."""
        return [conversation for conversation, _ in self._groups]

    def devices_of(self, uid: str) -> list[Member]:
        return self._by_uid[uid]

    # --------------------------------------------------------------------------- probes

    def connected_to(self, idc: str) -> list[Member]:
        return [member for member in self.devices if self.recorder.where.get(member.ear.n) == idc]

    async def probe(self, members: Iterable[Member], every_s: float = 0.5) -> None:
        """Each of these sends until it has had one acked: a send that fails is made again."""

        async def one(member: Member) -> None:
            conversation = self._conversation_of(member.client.uid)
            while True:
                if await self._send(member, conversation, "probe"):
                    return
                await asyncio.sleep(every_s)

        await together(one(member) for member in members)

    def _conversation_of(self, uid: str) -> str:
        return next(name for name, uids in [*self._pairs, *self._groups] if uid in uids)

    # --------------------------------------------------------------------------- end

    async def settle(self, timeout_s: float) -> bool:
        """Until every send is answered and every device has as much as was acked, at most so long.
        False: it never came to that (the checker will say what is missing)."""
        deadline = self._clock.now() + timeout_s
        while self._tasks or not self._complete():
            if self._clock.now() >= deadline:
                return False
            await asyncio.sleep(SETTLE_POLL_S)
        return True

    def _complete(self) -> bool:
        acked = self.recorder.acked_in
        return all(
            member.ear.seen.get(conversation, 0) >= acked.get(conversation, 0)
            for conversation, uids in [*self._pairs, *self._groups]
            for uid in uids
            for member in self._by_uid[uid]
        )

    def looks(self, only: Callable[[str, tuple[str, ...]], bool] | None = None) -> list[Look]:
        """Who has to log in so that every conversation with acked messages is looked at."""
        members = {
            name: uids
            for name, uids in [*self._pairs, *self._groups]
            if self.recorder.acked_in.get(name) and (only is None or only(name, uids))
        }
        return covering(members)

    async def close(self) -> None:
        """Stop, give up what is under way, disconnect."""
        self.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(
            *(member.session.close() for member in self.devices), return_exceptions=True
        )
