"""The demo's script against a deployment held in memory: its steps, its marks, its broken waits."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Callable, Sequence

import pytest
from rich.console import Console

from imcore import history as h
from imcore.checker import check_events
from imcore.checker.availability import Availability
from imcore.errors import Unavailable
from imcore.runtime import SystemClock
from imcore.words import Origin, Place, direct_conversation
from imctl.report.live import Lines, Screen, View
from imctl.scenario import Observed, Plan, Scenario
from services.loadgen.load import Load
from services.loadgen.population import Client, Group, Population
from services.loadgen.ports import Acked, Listener, Standing, Stood
from services.loadgen.recorder import Recorder
from services.loadgen.schedule import Rates

ADDRESSES = {"fra": "1.0.0.1", "iad": "2.0.0.1", "sin": "3.0.0.1"}
IDCS = list(ADDRESSES)


class World:
    """One log per conversation, shown to everybody at once. Killing an IDC stalls its sessions
    until the failover moves them."""

    def __init__(self, failover: bool = True, moves: bool = True) -> None:
        self.failover, self.moves = failover, moves
        self.read: dict[tuple[str, str], int] = {}  # how many of a conversation a user has read
        self.states = dict.fromkeys(IDCS, "active")
        self.logs: dict[str, list[tuple[str, bytes]]] = {}
        self.members: dict[str, list[str]] = {}
        self.sessions: list[MemorySession] = []
        self.done: list[str] = []
        self._later: set[asyncio.Task[None]] = set()

    def connect(
        self, uid: str, device: str, address: str, listener: Listener, remember: bool
    ) -> MemorySession:
        home = next(idc for idc, where in ADDRESSES.items() if where == address)
        return MemorySession(self, uid, home, listener, remember)

    def move(self, source: str, target: str, homes: str | None = None) -> None:
        for session in self.sessions:
            if session.idc == source and homes in (None, session.home):
                session.go(target)

    # the deployment

    async def kill(self, idc: str) -> None:
        self.done.append(f"kill {idc}")
        for session in self.sessions:
            if session.idc == idc:
                session.up.clear()
        if self.failover:
            task = asyncio.create_task(self._fail_over(idc))
            self._later.add(task)

    async def _fail_over(self, idc: str) -> None:
        await asyncio.sleep(0.05)
        self.states[idc] = "failed"
        self.move(idc, next(other for other in IDCS if other != idc))

    async def start(self, idc: str) -> None:
        self.done.append(f"start {idc}")
        self.states[idc] = "recovering"

    async def failback(self, idc: str) -> None:
        self.done.append(f"failback {idc}")
        self.states[idc] = "active"
        for other in IDCS:
            if other != idc:
                self.move(other, idc, homes=idc)

    async def switchover(self, source: str, target: str) -> None:
        self.done.append(f"switchover {source} {target}")
        self.states[source] = "drained"
        if self.moves:
            self.move(source, target)

    async def observe(self) -> Observed:
        return Observed(dict(self.states), {"fra->iad": 45.0}, {"fra": (len(self.done) + 1, "x")})


class MemorySession:
    def __init__(
        self, world: World, uid: str, home: str, listener: Listener, remember: bool
    ) -> None:
        self.world, self.uid, self.home, self.listener = world, uid, home, listener
        self.idc = ""
        self.remember = remember
        self.order = asyncio.Lock()
        self.up = asyncio.Event()

    def go(self, idc: str) -> None:
        self.idc = idc
        self.listener.connection(idc, f"{idc}-gw-1")
        self.up.set()

    async def open(self) -> None:
        if self.remember:
            self.world.sessions.append(self)
        self.go(self.home)

    async def close(self) -> None: ...

    def direct(self, uid: str) -> str:
        return direct_conversation(self.uid, uid)

    async def create_group(self, uids: Sequence[str], name: str) -> str:
        self.world.members["g:1"] = list(uids)
        return "g:1"

    async def members(self, conversation: str) -> Sequence[str]:
        return self.world.members[conversation]

    async def send(self, conversation: str, content: bytes) -> Acked:
        async with self.order:
            await self.up.wait()
            log = self.world.logs.setdefault(conversation, [])
            log.append((self.uid, content))
            place = Place(len(log), Origin("fra", 1), len(log))
            to = self.world.members.get(conversation) or conversation.split(":")[1:]
            for session in self.world.sessions:
                if session.uid in to:
                    key = f"{conversation}/{len(log)}"
                    session.listener.shown(
                        conversation, key, self.uid, content, len(log) - 1, False
                    )
        return Acked("stored", place)

    async def read_up_to(self, conversation: str, key: str) -> None:
        number = int(key.rpartition("/")[2])
        if number > self.world.read.get((self.uid, conversation), 0):
            self.world.read[self.uid, conversation] = number
            self.listener.cursor(conversation, key, self.uid)

    async def unread(self) -> dict[str, int]:
        return {
            name: sum(uid != self.uid for uid, _ in log[self.world.read.get((self.uid, name), 0) :])
            for name, log in self.world.logs.items()
        }

    async def history(self, conversation: str) -> list[Stood]:
        return [Stood("", content) for _, content in self.world.logs.get(conversation, [])]

    async def standing(self, words: Sequence[tuple[str, str]]) -> list[Standing]:
        return []


def population() -> Population:
    clients = tuple(
        Client(f"u{n}", "phone", ADDRESSES[IDCS[n % 3]], "XX", IDCS[n % 3]) for n in range(12)
    )
    uids = tuple(client.uid for client in clients)
    pairs = tuple(zip(uids[::2], uids[1::2], strict=True))
    return Population(clients, pairs, (Group("all", uids),))


PLAN = Plan(
    warm_up_s=0.05, before_s=0.1, during_s=0.05, after_s=0.1, failover_max_s=1.0,
    return_max_s=1.0, move_max_s=0.5, settle_max_s=1.0, rates=Rates(400, 40),
)  # fmt: skip

View_ = Callable[[Console, list[str]], View]


class Run:
    def __init__(self, world: World, make_view: View_ = Lines) -> None:
        self.events: list[h.Event] = []
        clock = SystemClock()
        self.out = io.StringIO()
        view = make_view(Console(file=self.out, width=100), IDCS)
        recorder = Recorder(self.events.append, clock.now)
        self.load = Load(population(), world.connect, recorder, clock, random.Random(1))
        self.scenario = Scenario(
            self.load, recorder, world, world.connect, view, clock, PLAN, ADDRESSES
        )

    async def play(self) -> None:
        await self.load.open()
        try:
            await self.scenario.run("iad")
        finally:
            await self.load.close()


async def test_the_whole_script() -> None:
    world = World()
    run = Run(world)
    await run.play()
    assert world.done == [
        "kill iad", "start iad", "failback iad", "switchover sin fra", "failback sin",
    ]  # fmt: skip
    report = check_events(run.events)
    assert report.clean, report.as_json()
    assert report.counts.policies >= 1
    availability = Availability()
    for event in run.events:
        availability.feed(event)
    (outage,) = availability.outages
    assert len(outage.affected) == 4 and 50_000 <= (outage.rto_us() or 0) < 1_000_000
    rpo = availability.rpo()
    assert rpo is not None and rpo.looked_at > 0 and rpo.lost == rpo.delayed == 0
    back, away = availability.moves
    assert (back.what, away.what, away.moved_us() is not None) == ("failback", "switchover", True)
    assert run.scenario.serving_before == run.scenario.serving_after == 4
    names = [span.name for span in run.scenario.spans]
    assert names == [
        "warm-up", "before", "during", "return", "after", "switchover", "quiet", "logins",
    ]  # fmt: skip
    assert all(span.end >= span.start for span in run.scenario.spans)
    assert run.scenario.notes == []
    assert "iad was declared failed" in run.out.getvalue()


async def test_a_failover_that_never_comes_is_said() -> None:
    run = Run(World(failover=False))
    with pytest.raises(Unavailable, match="iad was not declared failed within 1 s"):
        await run.play()
    assert [span.name for span in run.scenario.spans][-1] == "during"
    assert not check_events(run.events).finished


async def test_a_move_that_leaves_clients_behind_is_said() -> None:
    run = Run(World(moves=False))
    with pytest.raises(Unavailable, match=r"not every client left sin within 0\.5 s"):
        await run.play()


async def test_a_broken_load_ends_the_script() -> None:
    world = World()
    run = Run(world)
    await run.load.open()

    async def broken(conversation: str, content: bytes) -> Acked:
        raise RuntimeError("a bug")

    for session in world.sessions:
        session.send = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a bug"):
        await run.scenario.run("iad")
    await run.load.close()
    assert world.done == []


async def test_the_screen_shows_where_things_stand() -> None:
    run = Run(World(), Screen)
    await run.play()
    view = run.scenario._view
    assert isinstance(view, Screen)
    view.sample(run.load.sample())
    out = io.StringIO()
    Console(file=out, width=80).print(view.render())
    text = out.getvalue()
    for words in ("fresh logins at every IDC", "fra", "iad", "sin", "acked/s", "kill -9"):
        assert words in text
    assert max(len(line) for line in text.splitlines()) <= 80
