"""The im role of one IDC without gateways and peers, for tests.

Everything in it is real but its surroundings: the engines are handed in (no service imports an
adapter), pushes are written down, and other IDCs are what the test says that they hold.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from imcore.attest import RegionKeys
from imcore.hlc import Hlc
from imcore.proto import client_pb2 as pb
from imcore.region.model import Limits, Messages
from imcore.runtime import Clock, SystemClock
from imcore.words import Origin, Vector, parse_origin
from services.im.partition import Partition
from services.im.server import ImServer
from services.ports import Audience, Kv, LogStore, Session

KEYS = RegionKeys({1: b"k" * 32}, 1)
_READ_BYTES = 1 << 20


class FixedWall(SystemClock):
    """A wall clock that stands: IDCs that have done as much then give out the same HLCs."""

    def wall_ms(self) -> int:
        return 1_700_000_000_000


class Pushes:
    """The state role, as a record of what it was told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, tuple[str, ...], pb.Entry]] = []
        self.cursors: list[tuple[str, pb.CursorMoved]] = []
        self.told: list[tuple[tuple[str, ...], pb.Event]] = []
        self.stored: list[tuple[str, int]] = []  # session, lsn
        self.groups: list[tuple[str, int, bool]] = []  # of huge ones: entries of a push, merged
        self.behind: list[dict[str, Vector]] = []  # by group
        self.present: int | None = None  # members of a huge group who have a session; None: all
        self.crowd = 0  # deliveries to huge groups that wait

    def push_entries(
        self,
        conversation: str,
        uids: Sequence[str],
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
    ) -> None:
        self.entries += [(conversation, tuple(uids), entry) for entry in entries]

    def reached(self, audience: Audience) -> int:
        return len(audience.uids) if self.present is None else self.present

    def waiting(self) -> int:
        return self.crowd

    def push_group(
        self,
        audience: Audience,
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
        merged: bool,
    ) -> None:
        self.push_entries(audience.conversation, audience.uids, entries, heads, stable)
        self.groups.append((audience.conversation, len(entries), merged))

    def tell_behind(self, behind: Sequence[tuple[Audience, Vector, int]], within_ms: int) -> None:
        self.behind.append({audience.conversation: heads for audience, heads, _ in behind})

    def signal(self, uids: Sequence[str], conversation: str, heads: Vector) -> None:
        pass

    def cursor_moved(self, uid: str, event: pb.CursorMoved) -> None:
        self.cursors.append((uid, event))

    def tell(self, uids: Sequence[str], event: pb.Event) -> None:
        self.told.append((tuple(uids), event))

    def tell_devices(self, devices: Sequence[tuple[str, str]], event: pb.Event) -> None:
        raise AssertionError("im tells users, and knows of no device")

    def accepted(self, session: Session, origin: Origin, partition: int, lsn: int) -> None:
        self.stored.append((session.id, lsn))

    def replicated(self, origin: Origin, partition: int, lsn: int) -> None:
        pass


# For a fold here and another IDC: a busy machine may stand still for seconds. Who is to be told
# that no other IDC holds it asks for less (``Idc.hurry``).
PATIENT_MS = 8_000
HURRIED_MS = 50

# Tests fill conversations faster than any client may.
UNLIMITED = Limits(
    conversation_in_flight=1_000_000,
    conversation_deliveries_per_s=1_000_000_000,
    group_in_flight=1_000_000,
    group_messages_per_s=1_000_000,
)


class Idc:
    """``others``: the names of the other IDCs. Those in ``followers`` hold the own log as soon as
    it grows; a test may leave them out, and let them ``hold`` by hand."""

    def __init__(
        self,
        origin: str,
        kv: Kv,
        logs: LogStore,
        policy: Messages | None = None,
        partitions: int = 1,
        others: Sequence[str] = ("iad", "sin"),
        followers: Sequence[str] = (),
        clock: Clock | None = None,
    ) -> None:
        self.origin = parse_origin(origin)
        self.kv, self.logs = kv, logs
        self.policy = policy or Messages(replicated_timeout_ms=PATIENT_MS)
        self.followers = set(followers)
        self.pushes = Pushes()
        self.copies: dict[tuple[str, Origin], dict[int, int]] = {}
        self.suspended: dict[Origin, bool] = {}
        self.seals: dict[Origin, int] = {}
        self.out: set[str] = set()  # of the others: failed or retired by the policy
        self._count, self._others = partitions, others
        self._clock = clock or SystemClock()
        self._sessions = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self.im: ImServer

    async def start(self) -> None:
        own = await self.logs.open_own(self.origin)
        hlc = Hlc()
        partitions = [
            Partition(
                number, self.origin, own, self.kv, self.logs, hlc, self._clock,
                self.policy.replicas, len(self._others),
                self._told,
                self.policy.push_group_members_max,
            )
            for number in range(self._count)
        ]  # fmt: skip
        self.im = ImServer(
            self.origin, partitions, self.kv, KEYS, hlc, self._clock, self.policy,
            self.logs.log_id, self.pushes, lambda origin, op: None, lambda *_: None,
            self._voters, lambda: self.suspended,
            lambda origin, partition: self.seals.get(origin), self.copies, len(self._others),
            UNLIMITED,
        )  # fmt: skip
        for partition in partitions:
            await partition.open(b"sequence")
            self._tasks.append(asyncio.create_task(partition.applier.run()))
        self._tasks.append(asyncio.create_task(self._expire()))
        own.subscribe(self._grown)
        self._grown()

    def _voters(self) -> frozenset[Origin]:
        serving = (Origin(name, 1) for name in self._others if name not in self.out)
        return frozenset((self.origin, *serving))

    def _told(self, number: int, origin: Origin, effects: Any) -> None:
        self.im.told(number, origin, effects)

    async def stop(self) -> None:
        """Engines included."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.kv.close()
        await self.logs.close()

    async def _expire(self) -> None:
        """The part of ``ImServer.tick`` that logs nothing."""
        while True:
            for partition in self.im.partitions:
                partition.replication.expire(self._clock.now())
            await asyncio.sleep(0.01)

    async def folded(self) -> None:
        """Until what the own log holds by now is folded: an ack does not wait for that."""
        for partition in self.im.partitions:
            await partition.applier.drain()

    # ------------------------------------------------------------------------ other IDCs

    def hurry(self, hurries: bool = True) -> None:
        """From now on it waits for another IDC for a moment only, or as long as needed again."""
        waits_ms = HURRIED_MS if hurries else PATIENT_MS
        self.policy = self.policy.model_copy(update={"replicated_timeout_ms": waits_ms})
        self.im.policy = self.policy

    def end(self, partition: int = 0) -> int:
        own = self.logs.own()
        assert own is not None
        return own.end(partition).lsn

    def hold(self, idc: str) -> None:
        """That IDC holds the own log as far as it goes now."""
        for number in range(self._count):
            self.im.peer_holds(idc, number, self.end(number))

    def _grown(self) -> None:
        for idc in self.followers:
            self.hold(idc)

    async def mirror_to(self, other: Idc, upto: int | None = None) -> None:
        """The other has the own log durably, and has folded it."""
        own = self.logs.own()
        assert own is not None
        copy = await other.logs.open_copy(self.origin)
        for number, partition in enumerate(other.im.partitions):
            lsn = copy.end(number).lsn + 1
            records = await own.read(number, lsn, _READ_BYTES)
            await copy.append_copy([r for r in records if upto is None or r.lsn <= upto])
            self.im.peer_holds(other.origin.idc, number, copy.end(number).lsn)
            await partition.applier.drain()

    # --------------------------------------------------------------------------- clients

    def session(self, uid: str, device: str = "phone") -> Session:
        number = next(self._sessions)
        return Session(f"s{number}", uid, device, number, "gw", number)

    async def ask(self, session: Session, request: pb.Request) -> pb.Response:
        answer: asyncio.Future[pb.Response] = asyncio.get_running_loop().create_future()
        self.im.submit(session, request, answer.set_result)
        return await asyncio.wait_for(answer, 10)

    async def send(
        self,
        session: Session,
        conversation: str,
        cid: int,
        content: bytes = b"hello",
        **fields: Any,
    ) -> pb.Response:
        named = {"outbox": "o1", "floor": 1, **fields}
        send = pb.Send(conversation=conversation, cid=cid, content=content, **named)
        return await self.ask(session, pb.Request(send=send))

    async def create(self, session: Session, group: str, *members: str) -> pb.Response:
        create = pb.GroupCreate(conversation=group, members=members, name="a group")
        return await self.ask(session, pb.Request(group_create=create))

    async def change(
        self, session: Session, group: str, join: Sequence[str] = (), leave: Sequence[str] = ()
    ) -> pb.Response:
        change = pb.GroupChange(conversation=group, join=join, leave=leave)
        return await self.ask(session, pb.Request(group_change=change))

    async def pull(
        self, session: Session, conversation: str, have: Vector | None = None, limit: int = 0
    ) -> pb.Response:
        pull = pb.Pull(conversation=conversation, limit=limit)
        for (idc, incarnation), seq in (have or {}).items():
            pull.have.add(origin=pb.Origin(idc=idc, incarnation=incarnation), seq=seq)
        return await self.ask(session, pb.Request(pull=pull))

    async def contents(self, session: Session, conversation: str) -> list[bytes]:
        """Of all message entries, aliases too; whatever has been acked by now is among them."""
        await self.folded()
        pulled = (await self.pull(session, conversation)).pull_ok
        assert not pulled.more
        return [e.message.content for e in pulled.entries if e.HasField("message")]


OpenIdc = Callable[..., Awaitable[Idc]]
