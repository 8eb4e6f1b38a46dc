"""Clients of a deployment whose applications' every callback is recorded, and the judgement.

async with Cast(lab, folder) as cast:
    ann, bob = await cast.enter("fra", "iad")
    await ann.send(ann.to(bob), "hello")
    await cast.judge()
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from imcore.checker import Report, check_file
from imcore.errors import ImError
from imcore.history import VERSION, Header, HistoryWriter, tag_of
from imctl import admin
from imctl.commands.load import home_countries
from imctl.identity import ipconf_urls, token_for
from imctl.statusview import policies_said
from imctl.testing.broken import PromiseBroken
from imctl.testing.lab import Lab, until
from services.loadgen.logins import Look, covering, look
from services.loadgen.population import Addresses, public_country
from services.loadgen.ports import Session, Standing, Stood
from services.loadgen.recorder import Ear, Recorder
from services.loadgen.sdk import SdkClients
from services.loadgen.together import together
from services.sdk import Options

SETTLE_S = 60.0
CONVERGE_S = 60.0
LOGINS_S = 60.0
HOME_S = 60.0
WATCH_S = 1.0


class Actor:
    """One device of one user."""

    def __init__(self, cast: Cast, uid: str, device: str, session: Session, ear: Ear) -> None:
        self.uid = uid
        self.device = device
        self.session = session
        self.ear = ear
        self._cast = cast

    @property
    def idc(self) -> str:
        return self.session.idc

    def to(self, other: Actor | str) -> str:
        """The conversation with another user."""
        return self.session.direct(other if isinstance(other, str) else other.uid)

    async def send(self, conversation: str, body: str = "x") -> str | None:
        """The tag once acked; None when the application was told that it failed."""
        recorder = self._cast.recorder
        tag, content = recorder.compose(self.ear, conversation, body)
        idc = self.idc
        try:
            acked = await self.session.send(conversation, content)
        except ImError as error:
            recorder.send_failed(self.ear, tag, str(error))
            self._cast.refusals.append(str(error))
            return None
        recorder.ack(self.ear, conversation, tag, acked)
        self._cast.acked[tag] = conversation
        # Where it was, when it was so all the time.
        self._cast.acked_at[tag] = self.idc if idc == self.idc else ""
        return tag

    async def burst(self, conversation: str, count: int, body: str = "x") -> list[str]:
        """``count`` messages at once; the tags of those that were acked."""
        sent = await asyncio.gather(*(self.send(conversation, body) for _ in range(count)))
        return [tag for tag in sent if tag]

    async def read(self) -> None:
        """Up to what it was shown last. Raises ImError."""
        if self.ear.recent:
            conversation, key, _ = self.ear.recent[-1]
            ask = self._cast.recorder.read(self.ear, conversation, key)
            await self.session.read_up_to(conversation, key)
            self._cast.recorder.read_done(ask)


class Couple(NamedTuple):
    """``here`` and ``there`` talk in ``conversation``."""

    here: Actor
    there: Actor
    conversation: str


class Cast:
    """``acked``: tag -> conversation of every acked message; ``acked_at``: tag -> the IDC its
    sender was connected to from composing to the ack. ``first``: the number of the first user of
    each IDC; a deployment that another cast has used needs others."""

    def __init__(
        self, lab: Lab, folder: Path, seed: int = 1, outbox_files: bool = True, first: int = 1
    ) -> None:
        self.lab = lab
        self.path = folder / "history.jsonl"
        self._outboxes = folder if outbox_files else None
        self._rng = random.Random(seed)
        name = lab.target.region.metadata.name
        self._writer = HistoryWriter(
            self.path, Header(VERSION, "2025-01-01T00:00:00Z", name, "e2e")
        )
        self.recorder = Recorder(self._writer.write, lab.clock.now, self._writer.flush)
        self._clients: SdkClients | None = None
        addresses = Addresses(self._rng, public_country)
        countries = home_countries(lab.target.region)
        self.addresses = {idc: addresses.take(countries[idc])[0] for idc in lab.idcs}
        self.actors: list[Actor] = []
        self.acked: dict[str, str] = {}
        self.acked_at: dict[str, str] = {}
        self.refusals: list[str] = []
        self._members: dict[str, tuple[str, ...]] = {}
        self._first = first
        self._numbers: dict[str, int] = {}  # the next one's

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watching.cancel()
        await asyncio.gather(
            self._watching, *(a.session.close() for a in self.actors), return_exceptions=True
        )
        if self._clients is not None:
            await self._clients.close()
        self._writer.close()

    @property
    def connect(self) -> SdkClients:
        if self._clients is None:
            target = self.lab.target
            self._clients = SdkClients(
                ipconf_urls(target),
                target.pki / "ca.pem",
                lambda uid, device: token_for(target, uid, device, self.lab.clock),
                self._rng,
                self._outboxes,
                Options(client="lab/1", start_timeout_ms=60_000),
            )
        return self._clients

    # ---------------------------------------------------------------------------------- actors

    async def enter(self, *homes: str) -> list[Actor]:
        """One user for each of these IDCs, connected there."""
        entered = [self._actor(home) for home in homes]
        await together(actor.session.open() for actor in entered)
        # An ipconf that has just started may not know every gateway yet: the IDC that took the
        # client then hands it over.
        await until(
            lambda: _at_home(entered, homes), HOME_S, "not every client came to its home IDC"
        )
        return entered

    def _actor(self, home: str) -> Actor:
        number = self._numbers.get(home, self._first)
        self._numbers[home] = number + 1
        uid, device = f"{home}-{number:03d}", "phone"
        ear = self.recorder.device(uid, device)
        session = self.connect(uid, device, self.addresses[home], ear, True)
        actor = Actor(self, uid, device, session, ear)
        self.actors.append(actor)
        return actor

    def pair(self, left: Actor, right: Actor) -> str:
        """Their conversation, of which both are to have every message from now on."""
        conversation = left.to(right)
        self.members(conversation, left.uid, right.uid)
        return conversation

    def members(self, conversation: str, *uids: str) -> None:
        """All of these are to have every message from now on."""
        if conversation not in self._members:
            self._members[conversation] = uids
            self.recorder.members(conversation, uids)

    async def couples(self, count: int, home: str, *others: str) -> list[Couple]:
        """``count`` users at home in one IDC, each with a conversation with one in the others, all
        of which have sent something."""
        here = await self.enter(*[home] * count)
        there = await self.enter(*(others[n % len(others)] for n in range(count)))
        found = [Couple(a, b, self.pair(a, b)) for a, b in zip(here, there, strict=True)]
        await asyncio.gather(*(actor.burst(c, 3) for a, b, c in found for actor in (a, b)))
        await self.settled()
        await together(actor.read() for actor in self.actors)
        return found

    @contextlib.asynccontextmanager
    async def talking(self, couples: Sequence[Couple]) -> AsyncIterator[None]:
        """All of them in turn, each of whom waits for the ack of the one before."""

        async def talk() -> None:
            while True:
                for couple in couples:
                    await couple.here.send(couple.conversation)
                    await couple.there.send(couple.conversation)
                await asyncio.sleep(0.05)

        load = asyncio.create_task(talk())
        try:
            yield
        finally:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)

    async def kill(self, idc: str) -> None:
        """And note in the history when."""
        self.recorder.fault(idc, "kill")
        await self.lab.kill(idc)
        self.recorder.fault(idc, "killed")

    async def _watch(self) -> None:
        """Note what each IDC says of its policy."""
        while True:
            found = await admin.statuses(self.lab.target, self.lab.idcs, WATCH_S)
            answers = {idc: one for idc, one in found.items() if not isinstance(one, ImError)}
            for idc, (epoch, content) in policies_said(answers).items():
                self.recorder.policy(idc, epoch, content)
            await asyncio.sleep(WATCH_S)

    # -------------------------------------------------------------------------------- judgement

    async def settled(self, seconds: float = SETTLE_S) -> None:
        """Until every device was shown as much as was acked. Raises Unavailable."""
        by_uid: dict[str, list[Actor]] = {}
        for actor in self.actors:
            by_uid.setdefault(actor.uid, []).append(actor)

        async def lacking() -> list[str]:
            return [
                f"{actor.uid} has {have} of {acked} in {conversation}"
                for conversation, uids in self._members.items()
                for uid in uids
                for actor in by_uid.get(uid, ())
                if (have := actor.ear.seen.get(conversation, 0))
                < (acked := self.recorder.acked_in.get(conversation, 0))
            ]

        left: list[str] = []

        async def complete() -> bool:
            left[:] = await lacking()
            return not left

        try:
            await until(complete, seconds, "not every device was shown everything")
        except ImError as error:
            raise type(error)(f"{error}: {'; '.join(left[:5])}") from error

    def looks(self) -> list[Look]:
        return covering({c: u for c, u in self._members.items() if self.recorder.acked_in.get(c)})

    async def logins(self, idcs: Iterable[str], within_s: float = LOGINS_S) -> None:
        """Fresh logins look at every conversation in each of these IDCs. Raises ImError."""
        where = {idc: self.addresses[idc] for idc in idcs}
        failures = await look(self.connect, self.recorder, self.looks(), where, "final", within_s)
        if failures:
            raise ImError("; ".join(f"{f.uid} at {f.idc}: {f.reason}" for f in failures[:3]))

    async def found_at(self, idcs: Iterable[str]) -> dict[str, set[str]]:
        """By IDC, the tags of all that fresh logins find there now; not part of the history."""
        seen = _Views()
        where = {idc: self.addresses[idc] for idc in idcs}
        failures = await look(self.connect, seen, self.looks(), where, "rpo")
        if failures:
            raise ImError("; ".join(f"{f.uid} at {f.idc}: {f.reason}" for f in failures[:3]))
        return seen.found

    async def judge(self, idcs: Sequence[str] | None = None, patience: float = 1.0) -> Report:
        """Wait for quiet, log in afresh everywhere, and judge the history. Quiet is when every
        device was shown everything *and* the replicas are equal: a device may have fetched from
        another IDC what its own does not hold yet. ``patience``: so many times as long as usual
        each part of it may take; for long histories."""
        where = list(idcs or self.lab.idcs)
        await self.settled(SETTLE_S * patience)
        with contextlib.suppress(ImError):  # some may be disconnected by now
            await together(actor.read() for actor in self.actors)
        for idc, rows in (await self.lab.converged(CONVERGE_S * patience, where)).items():
            self.recorder.replica(idc, hashlib.sha256(repr(rows).encode()).hexdigest()[:12])
        if self._watching.done():
            self._watching.result()  # it never ends but by an error
        self.recorder.quiet(where)
        await self.logins(where, within_s=LOGINS_S * patience)
        self._writer.flush()
        report = check_file(self.path)
        if not report.clean:
            raise PromiseBroken(report.sentence(), report.examples)
        return report


async def _at_home(actors: Sequence[Actor], homes: Sequence[str]) -> bool:
    return all(actor.idc == home for actor, home in zip(actors, homes, strict=True))


class _Views(Recorder):
    """Keeps what fresh logins found and writes nothing."""

    def __init__(self) -> None:
        super().__init__(lambda event: None, lambda: 0.0)
        self.found: dict[str, set[str]] = {}

    def login(
        self,
        n: int,
        uid: str,
        idc: str,
        purpose: str,
        views: dict[str, list[Stood]],
        unread: Mapping[str, int],
        standing: Iterable[Standing] = (),
    ) -> None:
        tags = self.found.setdefault(idc, set())
        for messages in views.values():
            tags.update(tag_of(message.content) for message in messages)
