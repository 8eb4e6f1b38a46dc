"""What finding the receivers of a message costs, by strategy: by looking, by hashing their uids, by
telling everybody; what it costs the core to hand a message to its fronts, and by route instances;
and to how many fronts a message goes by what ipconf orders gateways."""

from __future__ import annotations

import bisect
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.table import lines
from imcore.convert import positions_pb
from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.proto import oplog_pb2 as oplog
from imcore.proto import peer_pb2 as peer
from imcore.region.model import Limits
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.ipconf.directory import Gateway
from services.ipconf.rank import by_hash, by_load
from services.route.table import RouteTable
from services.split.fronts import Fronts
from services.split.links import FrontLink, Lane, RouteLink, Way, here_of
from services.split.pipe import Pipe
from services.split.route import Route
from services.split.where import Where

USERS, DEVICES = 20_000, 2
MEMBERS = (2, 50, 500)
FRONTS = (2, 16, 64)
IDCS = ("fra", "iad", "sin")
RUNS = 3
POINTS = 128  # of each front on the ring
TOLD_EVERY = 200  # connects between two looks of ipconf at the gateways' connections
VISITS = 60_000

Figures = dict[str, float]


def _us(work: Callable[[], object], times: int) -> float:
    work()
    cpu = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - cpu) / times * 1e6


def _receivers(members: int) -> list[str]:
    return [f"user-{n}" for n in random.Random(members).sample(range(USERS), members)]


class _Ring:
    """A uid's front without a look at who is where: one hash, one search."""

    def __init__(self, fronts: int) -> None:
        points = sorted((_point(f"{n}/{k}"), n) for n in range(fronts) for k in range(POINTS))
        self._at, self._fronts = [at for at, _ in points], [n for _, n in points]

    def of(self, uids: Sequence[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for uid in uids:
            at = bisect.bisect(self._at, _point(uid)) % len(self._at)
            found.setdefault(self._fronts[at], []).append(uid)
        return found


def _point(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _inside() -> tuple[list[Figures], list[Figures], list[Figures]]:
    """In the core of an IDC: a look at each front, one at each user, a hash of each uid."""
    scans, looks, hashes = ([Figures() for _ in range(RUNS)] for _ in range(3))
    for fronts in FRONTS:
        where, devices = Where[int](), [set[str]() for _ in range(fronts)]
        rng = random.Random(fronts)
        for n in range(USERS):
            for _ in range(DEVICES):
                front = rng.randrange(fronts)
                where.note(f"user-{n}", front, True)
                devices[front].add(f"user-{n}")
        ring = _Ring(fronts)
        for members in MEMBERS:
            uids, times = _receivers(members), max(20, 10_000 // members)
            name = f"us/message, {members} members, {fronts} fronts"

            def scan(uids: list[str] = uids, all_: list[set[str]] = devices) -> object:
                return [here for each in all_ if (here := [u for u in uids if u in each])]

            for run in range(RUNS):
                scans[run][name] = _us(scan, times)
                looks[run][name] = _us(partial(where.of, uids), times)
                hashes[run][name] = _us(partial(ring.of, uids), times)
    return scans, looks, hashes


def _linked(fronts: int, routes: int) -> tuple[Fronts, list[Way], Route | None]:
    """A core with so many fronts and all their users, the ways on which it writes, and the first
    route instance."""
    core = Fronts("fra", pb.Stamp, lambda: 1, lambda: 0, lambda: b"", SystemClock(), Limits())
    core.origin = Origin("fra", 1)
    way_of = [RouteLink(f"route{n}", Pipe()) for n in range(routes)]
    first = Route("fra", "route0", None) if routes else None  # type: ignore[arg-type]
    links, copies = list[FrontLink](), list[FrontLink | None]()
    for n in range(fronts):
        hello = front.Hello(gateway=f"gw{n}", port=n + 1, grows=True)
        route = way_of[n % routes] if routes else None
        pipe = Pipe[front.Down]() if route is None else Lane(n + 1, route.pipe)
        link = FrontLink(hello, pipe, route, n + 1)
        if route is not None:
            route.fronts[n + 1] = link
        core._add(link)
        links.append(link)
        copy = FrontLink(hello, Pipe(), number=n + 1) if first and n % routes == 0 else None
        if first is not None and copy is not None:
            first.fronts[n + 1] = copy
        copies.append(copy)
    rng = random.Random(fronts)
    for n in range(USERS * DEVICES):
        at, uid = rng.randrange(fronts), f"user-{n // DEVICES}"
        caller = front.Caller(id=f"s{n}", uid=uid, device=f"{n}", connection_epoch=1)
        change = front.SessionChange(caller=caller, shard="eu", connected=True)
        core._up(links[at], front.Up(session=change))
        if first is not None and (copy := copies[at]) is not None:
            copy.change(here_of(copy, change), over=False)
            first._where.note(uid, copy, copy.has(uid))
    core.routes += way_of
    for each in core._ways():  # what was put there so far
        _written(each.pipe)  # type: ignore[arg-type]
    return core, core._ways(), first


def _written(pipe: Pipe[front.Down]) -> bytes:
    """As gRPC writes what one turn has put there."""
    items = pipe._take()
    return front.DownBatch(items=items).SerializeToString() if items else b""


def _handed_over() -> tuple[list[Figures], list[Figures], list[Figures]]:
    """A message of 100 bytes to all fronts that have receivers, as far as the streams' bytes: by
    the core alone, by the core with two route instances, and by one of these."""
    entry = pb.Entry(seq=1)
    entry.message.content = b"x" * 100
    heads = {Origin("fra", 1): 1_000}
    alone, with_two, by_one = ([Figures() for _ in range(RUNS)] for _ in range(3))
    for fronts in FRONTS:
        core, ways, _ = _linked(fronts, 0)
        routed, by, route = _linked(fronts, 2)
        assert route is not None
        for members in MEMBERS:
            uids, name = _receivers(members), f"us/message, {members} members, {fronts} fronts"
            times = max(20, 4_000 // members)

            def put(
                to: Fronts = core, ways: list[Way] = ways, uids: list[str] = uids
            ) -> list[bytes]:
                to.push_entries("g:room", uids, [entry], heads, 0)
                return [_written(way.pipe) for way in ways]  # type: ignore[arg-type]

            batch = put(routed, by)[0]

            def relayed(batch: bytes = batch, route: Route = route) -> list[bytes]:
                for item in front.DownBatch.FromString(batch).items:
                    route._down(item, item.WhichOneof("body") or "")
                return [_written(link.pipe) for link in route.fronts.values()]  # type: ignore[arg-type]

            for run in range(RUNS):
                alone[run][name] = _us(put, times)
                with_two[run][name] = _us(partial(put, routed, by), times)
                by_one[run][name] = _us(relayed, times)
    return alone, with_two, by_one


def _between() -> tuple[list[Figures], list[Figures]]:
    """To the other IDCs: named users by their routes, or all of them. What the IDC that is told
    looks up there is among the cost of telling everybody."""
    table, gateways = RouteTable(), {idc: frozenset([f"{idc}-gw1"]) for idc in IDCS}
    for n in range(USERS):
        for device in range(DEVICES):
            idc = IDCS[n % len(IDCS)]
            op = oplog.RouteOp(
                uid=f"user-{n}", device=f"{device}", connection_epoch=1, gateway=f"{idc}-gw1"
            )
            table.apply(Origin(idc, 1), n, op)

    def usable(idc: str, gateway: str) -> bool:
        return gateway in gateways[idc]

    local = {f"user-{n}" for n in range(0, USERS, len(IDCS))}
    heads = positions_pb({Origin("fra", 1): 1_000})
    named, told = ([Figures() for _ in range(RUNS)] for _ in range(2))
    for members in MEMBERS:
        uids, times = _receivers(members), max(20, 10_000 // members)
        name, size = f"us/message, {members} members", f"bytes, {members} members"

        look = partial(table.idcs_of, uids, usable)

        def everywhere(uids: list[str] = uids) -> object:
            return [[uid for uid in uids if uid in local] for _ in IDCS[1:]]

        by_name = peer.SignalBatch()
        for idc, users in look().items():
            if idc != IDCS[0]:
                by_name.signals.add(uids=users, conversation="g:room", heads=heads)
        to_all = peer.SignalBatch()
        for _ in IDCS[1:]:
            to_all.signals.add(conversation="g:room", heads=heads)
        for run in range(RUNS):
            named[run][name], told[run][name] = _us(look, times), _us(everywhere, times)
            named[run][size], told[run][size] = by_name.ByteSize(), to_all.ByteSize()
    return named, told


def _fronts_a_message(
    ordered: Callable[[str, Sequence[Gateway]], list[Gateway]], fronts: int
) -> tuple[float, float]:
    """Users come and go, each with 1 to 4 devices one after the other: to how many fronts a direct
    message between two users goes, and the fullest front against the mean of all."""
    rng = random.Random(fronts)
    at: dict[tuple[int, int], int] = {}
    count: Counter[int] = Counter()
    users = 5_000
    devices = [1 + n % 4 for n in range(users)]
    shown: list[Gateway] = []
    for visit in range(VISITS):
        if visit % TOLD_EVERY == 0:
            shown = [
                Gateway("fra", f"gw{n}", "10.0.0.1", n, count[n], 3 * users // fronts)
                for n in range(fronts)
            ]
        user = rng.randrange(users)
        device = (user, rng.randrange(devices[user]))
        if device in at:
            count[at.pop(device)] -= 1
        else:
            at[device] = ordered(f"user-{user}", shown)[0].port
            count[at[device]] += 1
    places: dict[int, set[int]] = {}
    for (user, _), gateway in at.items():
        places.setdefault(user, set()).add(gateway)
    here = list(places.values())
    touched = [len(rng.choice(here) | rng.choice(here)) for _ in range(20_000)]
    return sum(touched) / len(touched), max(count.values()) / (sum(count.values()) / fronts)


async def run(quick: bool) -> None:
    scans, looks, hashes = _inside()
    print("  in an IDC, where the core knows who is at which front:")
    print("\n".join(lines({"each front": scans, "each user": looks})))
    print("\n".join(lines({"each user": looks, "hash of uid": hashes})))
    print("  what it takes to hand a message to the fronts:")
    straight, routed, relayed = _handed_over()
    print("\n".join(lines({"the core": straight, "the core, 2 routes": routed})))
    print("\n".join(lines({"the core": straight, "one route of 2": relayed})))
    named, told = _between()
    print(f"  signals from one IDC to {len(IDCS) - 1} others:")
    print("\n".join(lines({"routes": named, "everybody": told})))
    print("  clients of 16 fronts, by what ipconf orders them:")
    for name, ordered in (("load", by_load), ("hash", by_hash)):
        touched, fullest = _fronts_a_message(ordered, 16)
        print(f"    {name}: a direct message goes to {touched:.2f} fronts; fullest {fullest:.2f}")
