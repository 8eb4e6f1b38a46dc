"""Who is linked to this process, and who is there: fronts, and route instances with theirs. Pure,
but for the pipes that it writes to."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol, TypeAlias

from imcore.proto import front_pb2 as front
from services.ports import Session
from services.split.audiences import Audiences
from services.split.pipe import Pipe


class Here(NamedTuple):
    """A session of a front."""

    session: str
    uid: str
    device: str
    shard: str
    gateway: str
    connected: bool
    connection_epoch: int


class Lane:
    """What waits to be written to one front of a route instance: it goes with all that is for it,
    and for its other fronts, in order."""

    overflowed = False

    def __init__(self, number: int, pipe: Pipe[front.Down]) -> None:
        self._number = number
        self._pipe = pipe
        self.closed = False

    def put(self, item: front.Down) -> None:
        if not self.closed:
            item.front = self._number
            self._pipe.put(item)

    def close(self) -> None:
        """The link of the front is to end."""
        self.put(front.Down(left=True))
        self.closed = True


class Downward(Protocol):
    """A pipe, or a lane of one."""

    closed: bool
    overflowed: bool

    def put(self, item: front.Down) -> None: ...
    def close(self) -> None: ...


class FrontLink:
    """One front, for as long as its stream stands. Its length: connections of its gateway.
    ``route``: the route instance that it came by, where it has this number."""

    def __init__(
        self,
        hello: front.Hello,
        pipe: Downward,
        route: RouteLink | None = None,
        number: int = 0,
    ) -> None:
        self.name = hello.gateway
        self.port = hello.port
        self.restarts = hello.restarts
        self.number = number
        self.pipe = pipe
        self.load = front.Load()  # as it last said
        # Sessions that it has said are over: how many are so for good, and the others in order.
        self.gone = 0
        self.ending: deque[Session] = deque()
        self.by_device: dict[tuple[str, str], Here] = {}
        self.by_id: dict[str, Here] = {}
        self.devices: Counter[str] = Counter()  # by user
        self.shards: Counter[str] = Counter()  # of those that are connected
        self.audiences = Audiences(
            self.devices, lambda told: self.pipe.put(front.Down(audience=told)), hello.grows
        )
        self.way: Way = self if route is None else route  # what is for its users is put there

    def __len__(self) -> int:
        return self.load.connections

    def has(self, uid: str) -> bool:
        return uid in self.devices

    def change(self, row: Here, over: bool) -> None:
        key, was_here = (row.uid, row.device), row.uid in self.devices
        former = self.by_device.pop(key, None)
        if former is not None:
            self.by_id.pop(former.session, None)
            self._count(former, -1)
            self.devices[row.uid] -= 1
            if not self.devices[row.uid]:
                del self.devices[row.uid]
        if not over:
            self.by_device[key] = self.by_id[row.session] = row
            self.devices[row.uid] += 1
            self._count(row, 1)
        here = row.uid in self.devices
        if was_here is not here:
            self.way.turned(row.uid, here)

    def turned(self, uid: str, here: bool) -> None:
        self.audiences.changed(uid)

    def _count(self, row: Here, by: int) -> None:
        if row.connected:
            self.shards[row.shard] += by
            if not self.shards[row.shard]:
                del self.shards[row.shard]


class RouteLink:
    """One route instance, likewise, with the fronts that came by it."""

    def __init__(self, name: str, pipe: Pipe[front.Down]) -> None:
        self.name = name
        self.pipe = pipe
        self.fronts: dict[int, FrontLink] = {}
        self._users: Counter[str] = Counter()  # at how many of its fronts each is
        self.audiences = Audiences(
            self._users, lambda told: self.pipe.put(front.Down(audience=told)), grows=True
        )

    def has(self, uid: str) -> bool:
        return uid in self._users

    def turned(self, uid: str, here: bool) -> None:
        """A user has his first session at one of its fronts, or none any more."""
        was_here = uid in self._users
        self._users[uid] += 1 if here else -1
        if not self._users[uid]:
            del self._users[uid]
        if was_here is not (uid in self._users):
            self.audiences.changed(uid)


Way: TypeAlias = FrontLink | RouteLink


async def up_batches(pipe: Pipe[front.Up]) -> AsyncIterator[front.UpBatch]:
    """What waits there, as the stream to the core has it."""
    async for items in pipe.batches():
        yield front.UpBatch(items=items)


def here_of(link: FrontLink, change: front.SessionChange) -> Here:
    caller = change.caller
    return Here(
        caller.id, caller.uid, caller.device, change.shard, link.name, change.connected,
        caller.connection_epoch,
    )  # fmt: skip
