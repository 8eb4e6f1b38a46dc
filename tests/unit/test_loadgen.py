"""The load generator and its recorder against a chat of two IDCs held in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence

import pytest

from imcore import history as h
from imcore.checker import Kind, Report, check_events
from imcore.checker.availability import Availability
from imcore.errors import Unavailable
from imcore.runtime import SystemClock
from imcore.words import Origin, Place, direct_conversation
from services.loadgen.load import Load
from services.loadgen.logins import Look, covering, look
from services.loadgen.population import Client, Group, Population
from services.loadgen.ports import Acked, Listener, Standing, Stood
from services.loadgen.recorder import Recorder
from services.loadgen.schedule import Rates

ADDRESSES = {"fra": "1.0.0.1", "iad": "2.0.0.1"}


class World:
    """One list per conversation, shown to everybody at once; an IDC that is down answers nobody
    until its sessions are moved."""

    def __init__(self) -> None:
        self.messages: dict[str, list[tuple[str, str, bytes]]] = {}  # key, uid, content
        self.members: dict[str, list[str]] = {}
        self.read: dict[tuple[str, str], int] = {}  # how many of a conversation a user has read
        self.sessions: list[MemorySession] = []
        self.up = {idc: asyncio.Event() for idc in ADDRESSES}
        for event in self.up.values():
            event.set()
        self.failing = False
        self.forget: set[str] = set()  # keys that fresh logins do not find

    def connect(
        self, uid: str, device: str, address: str, listener: Listener, remember: bool
    ) -> MemorySession:
        idc = next(idc for idc, where in ADDRESSES.items() if where == address)
        return MemorySession(self, uid, idc, listener)

    def add(self, conversation: str, uid: str, content: bytes) -> None:
        log = self.messages.setdefault(conversation, [])
        key = f"{conversation}/{len(log)}"
        log.append((key, uid, content))
        for session in self.sessions:
            if session.uid in self.of(conversation):
                session.listener.shown(conversation, key, uid, content, len(log) - 1, False)

    def of(self, conversation: str) -> list[str]:
        return self.members.get(conversation) or conversation.split(":")[1:]

    def move(self, source: str, target: str) -> None:
        for session in self.sessions:
            if session.idc == source:
                session.listener.connection("", "")
                session.idc = target
                session.listener.connection(target, f"{target}-gw-1")


class MemorySession:
    def __init__(self, world: World, uid: str, home: str, listener: Listener) -> None:
        self.world, self.uid, self.listener = world, uid, listener
        self.home, self.idc = home, ""
        self.order = asyncio.Lock()

    async def open(self) -> None:
        if not self.world.up[self.home].is_set():
            raise Unavailable(f"{self.home} is down")
        self.idc = self.home
        self.world.sessions.append(self)
        self.listener.connection(self.idc, f"{self.idc}-gw-1")

    async def close(self) -> None:
        if self in self.world.sessions:
            self.world.sessions.remove(self)

    def direct(self, uid: str) -> str:
        return direct_conversation(self.uid, uid)

    async def create_group(self, uids: Sequence[str], name: str) -> str:
        conversation = f"g:{len(self.world.members)}"
        self.world.members[conversation] = list(uids)
        return conversation

    async def members(self, conversation: str) -> Sequence[str]:
        return self.world.members[conversation]

    async def send(self, conversation: str, content: bytes) -> Acked:
        if self.world.failing:
            raise Unavailable("the outbox is full")
        async with self.order:  # first come, first sent
            await self.world.up[self.idc].wait()
            self.world.add(conversation, self.uid, content)
            seq = len(self.world.messages[conversation])
        return Acked("stored", Place(seq, Origin("fra", 1), seq))

    async def read_up_to(self, conversation: str, key: str) -> None:
        number = int(key.rpartition("/")[2]) + 1
        if number > self.world.read.get((self.uid, conversation), 0):
            self.world.read[self.uid, conversation] = number
            self.listener.cursor(conversation, key, self.uid)

    async def unread(self) -> dict[str, int]:
        return {
            name: sum(
                uid != self.uid and key not in self.world.forget
                for key, uid, _ in log[self.world.read.get((self.uid, name), 0) :]
            )
            for name, log in self.world.messages.items()
        }

    async def history(self, conversation: str) -> list[Stood]:
        log = self.world.messages.get(conversation, [])
        return [Stood(key, content) for key, _, content in log if key not in self.world.forget]

    async def standing(self, words: Sequence[tuple[str, str]]) -> list[Standing]:
        return []


def population() -> Population:
    clients = tuple(
        Client(f"u{n}", device, ADDRESSES[idc], "DE", idc)
        for n, idc in enumerate(["fra", "iad"] * 3)
        for device in (["phone", "laptop"] if n == 0 else ["phone"])
    )
    uids = tuple(f"u{n}" for n in range(6))
    return Population(clients, (("u0", "u1"), ("u2", "u3"), ("u4", "u5")), (Group("all", uids),))


class Run:
    def __init__(self) -> None:
        self.events: list[h.Event] = []
        self.world = World()
        clock = SystemClock()
        self.recorder = Recorder(self.events.append, clock.now)
        self.load = Load(population(), self.world.connect, self.recorder, clock, random.Random(1))

    async def sent(self, count: int) -> None:
        while self.recorder.counts.composed < count:  # noqa: ASYNC110 (no event for a counter)
            await asyncio.sleep(0.005)

    async def finish(self) -> Report:
        self.load.stop()
        assert await self.load.settle(2)
        self.recorder.quiet(list(ADDRESSES))
        looks = self.load.looks()
        assert not await look(self.world.connect, self.recorder, looks, ADDRESSES, "final")
        await self.load.close()
        return check_events(self.events)


@pytest.fixture
async def run() -> Run:
    run = Run()
    await run.load.open()
    return run


async def test_a_run_is_recorded_and_clean(run: Run) -> None:
    running = asyncio.create_task(run.load.run(Rates(800, 100)))
    await run.sent(300)
    report = await run.finish()
    await running
    assert report.clean, report.as_json()
    counts = report.counts
    assert counts.devices == 7 and counts.conversations == 4
    assert counts.composed == counts.acked == run.recorder.counts.acked >= 300
    assert counts.views == 2 * 3 + 1 + 7 + 4 * 2
    answers = [e for e in run.events if isinstance(e, h.Compose) and e.seen]
    assert answers


async def test_devices_read_and_the_cursors_are_judged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.loadgen.load.READ_S", 0.001)
    running = asyncio.create_task(run.load.run(Rates(800, 100)))
    await run.sent(300)
    report = await run.finish()
    await running
    assert report.clean, report.as_json()
    assert report.counts.cursors > 10
    first = next(event for event in run.events if isinstance(event, h.Cursor))
    last = max(run.events.index(event) for event in run.events if isinstance(event, h.Cursor))
    told = [e for e in run.events if isinstance(e, h.Shown) and (e.n, e.c) == (first.n, first.c)]
    top, bottom = (first._replace(tag=one.tag) for one in (told[-1], told[0]))
    run.events[last:last] = [top, bottom]
    assert set(check_events(run.events).violations) == {Kind.CURSOR_BACK}


async def test_a_look_that_lacks_what_its_idc_had_shown_before_is_found(run: Run) -> None:
    """Before anything is quiet; the end is judged by what is missing."""
    await run.load.probe(run.load.devices)
    conversation = direct_conversation("u0", "u1")
    sender = next(member for member in run.load.devices if member.ear.uid == "u0")
    receiver = next(member for member in run.load.devices if member.ear.uid == "u1")
    receiver.session.idc = "fra"  # type: ignore[misc]
    receiver.ear.connection("fra", "fra-gw-1")
    tag, content = run.recorder.compose(sender.ear, conversation, "x")
    sender.ear.shown(conversation, "key", "u0", content, sender.ear.seen[conversation], False)
    run.recorder.ack(sender.ear, conversation, tag, Acked("stored", Place(1, Origin("iad", 1), 1)))
    receiver.ear.shown(conversation, "key", "u0", content, receiver.ear.seen[conversation], False)
    looks = [Look("u0", (conversation,))]
    await look(run.world.connect, run.recorder, looks, {"fra": ADDRESSES["fra"]}, "rpo")
    await run.load.close()
    report = check_events(run.events)
    assert report.violations[Kind.OWN_UNSEEN] >= 1
    assert any(tag in sentence for sentence in report.examples[Kind.OWN_UNSEEN])


async def test_what_is_said_of_a_policy_is_noted_when_it_changes(run: Run) -> None:
    for said in ((1, "a"), (1, "a"), (2, "b"), (2, "b"), (1, "a")):
        run.recorder.policy("fra", *said)
    await run.load.close()
    noted = [event.epoch for event in run.events if isinstance(event, h.Policy)]
    assert noted == [1, 2, 1]
    assert check_events(run.events).violations == {Kind.EPOCH_BACK: 1}


async def test_what_a_fresh_login_lacks_is_found(run: Run) -> None:
    running = asyncio.create_task(run.load.run(Rates(800, 0)))
    await run.sent(50)
    run.world.forget = {run.world.messages[direct_conversation("u0", "u1")][0][0]}
    report = await run.finish()
    await running
    assert report.violations == {Kind.MISSING: 2}


async def test_sends_go_on_while_an_idc_is_away_and_the_recovery_is_measured(run: Run) -> None:
    running = asyncio.create_task(run.load.run(Rates(800, 50)))
    await run.sent(50)
    affected = run.load.connected_to("fra")
    assert len(affected) == 4
    run.recorder.fault("fra", "kill")
    run.world.up["fra"].clear()
    run.recorder.fault("fra", "killed")
    probes = asyncio.create_task(run.load.probe(affected))
    await run.sent(run.recorder.counts.composed + 100)
    assert run.load.sample().waiting > 20  # open loop: nobody waited for the answers
    run.world.move("fra", "iad")
    run.world.up["fra"].set()
    await probes
    assert run.load.connected_to("fra") == []
    report = await run.finish()
    await running
    assert report.clean, report.as_json()
    availability = Availability()
    for event in run.events:
        availability.feed(event)
    (outage,) = availability.outages
    assert outage.affected == {member.ear.n for member in affected}
    assert outage.recovered.keys() == outage.affected
    assert (outage.rto_us() or 0) > 50_000


async def test_a_failed_send_is_noted_and_a_probe_made_again(run: Run) -> None:
    run.world.failing = True
    probe = asyncio.create_task(run.load.probe(run.load.devices[:1], every_s=0.001))
    await run.sent(3)
    run.world.failing = False
    await probe
    failed = [event for event in run.events if isinstance(event, h.SendFailed)]
    assert len(failed) >= 2 and failed[0].reason == "the outbox is full"
    assert (await run.finish()).clean


async def test_a_device_that_was_not_shown_everything_does_not_settle(run: Run) -> None:
    lost = run.world.sessions.pop(0)
    running = asyncio.create_task(run.load.run(Rates(800, 0)))
    await run.sent(100)
    run.load.stop()
    await running
    assert not await run.load.settle(0.2)
    run.world.sessions.append(lost)
    await run.load.close()


async def test_a_login_at_a_dead_idc_is_reported_and_lacks_its_lines(run: Run) -> None:
    run.world.up["iad"].clear()
    before = len(run.events)
    looks = [Look("u0", (direct_conversation("u0", "u1"),))]
    failures = await look(run.world.connect, run.recorder, looks, ADDRESSES, "rpo")
    assert failures == [("u0", "iad", "iad is down")]
    logins = [event for event in run.events[before:] if isinstance(event, h.Login)]
    assert [(login.uid, login.idc) for login in logins] == [("u0", "fra")]
    await run.load.close()


async def test_samples_count_what_happened(run: Run) -> None:
    run.load.sample()
    await run.load.probe(run.load.devices)
    sample = run.load.sample()
    assert sample.acked == sample.offered > 0
    assert sample.deliveries > sample.acked
    assert sample.connections == {"fra": 4, "iad": 3}
    assert sample.ack_p99_ms >= sample.ack_p50_ms > 0
    await run.load.close()


def test_a_cover_looks_at_everything_with_few_users() -> None:
    pairs = {f"d{n}": (f"u{n}", f"u{n + 50}") for n in range(50)}
    groups: dict[str, Iterable[str]] = {"g": [f"u{n}" for n in range(100)], "h": ["x", "u7"]}
    looks = covering({**pairs, **{name: tuple(uids) for name, uids in groups.items()}})
    assert len(looks) <= 51
    assert sorted(name for one in looks for name in one.conversations) == sorted([*pairs, *groups])
    for one in looks:
        for name in one.conversations:
            assert one.uid in (pairs.get(name) or tuple(groups[name]))
