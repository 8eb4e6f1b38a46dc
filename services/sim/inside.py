"""What must hold inside of the IDCs and no client can see, or only after a second fault.

A client is told its message is stored; that it really is shows when the IDC loses its power and
comes back with less. An op that is mirrored on in a circle is folded once, whatever it costs. These
are looked at from inside, on what the simulation alone knows: which machines are off, which disks
were damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from imcore import history as h
from imcore.hlc import CLAMP_MS
from imcore.proto import oplog_pb2 as oplog
from services.im import keys
from services.node.node import Node
from services.ports import Kv
from services.sim.world import World

# A lease ends after 2 s, what is known of it after as much more (services.node.leases,
# services.policy.poll).
DEAD_S = 6.0
_MEASURED_MS = 60  # so exactly an IDC knows how far off its clock is
_PAGE = 500


class DeadRoutes:
    """``look`` now and then: nobody takes a route by a gateway that is no more (rule 16)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[str, tuple[str, float]] = {}  # gateways: their IDC, and when they were
        self._state: dict[str, tuple[object, float]] = {}  # of each IDC, and since when

    def look(self) -> list[str]:
        now, alive = self._world.loop.time(), set()
        for name, machine in self._world.machines.items():
            if self._state.get(name, (0, 0.0))[0] is not machine.registry:
                # A registry that starts again gives its leases their whole time once more; that of
                # a core which stood by, long after its process.
                self._state[name] = machine.registry, now
            linked = [each.name for each in machine.node.gateways] if machine.node else []
            # Those of a core that has no majority yet to begin with are there, and not linked.
            for gateway in (*linked, *(each.gateway for each in machine.beside if each.gateway)):
                self._seen[gateway] = name, now
                alive.add(gateway)
        return [
            f"dead_route: at {now:.1f} s {other} takes routes by {gateway}, which was last there "
            f"{now - at:.1f} s ago"
            for gateway, (name, at) in self._seen.items()
            if gateway not in alive and now - max(at, self._state[name][1]) >= DEAD_S
            for other in self._watching(name)
            if self._usable(other, name, gateway)
        ]

    def _watching(self, dead: str) -> list[str]:
        return [n for n, each in self._world.machines.items() if n != dead and each.serving]

    def _usable(self, at: str, idc: str, gateway: str) -> bool:
        node, owner = self._world.machines[at].node, self._world.machines[at].owner
        if node is None or owner is None or owner.paused:
            return False
        return node.traffic.usable(idc, gateway)


def came_after_kick(node: Node, uid: str, device: str) -> bool:
    """Whether a device that was kicked connected since, by HLC. Clocks that are some 100 ms off
    make that another order than what who sees both IDCs would say, as long as the kick is made
    where nobody has heard of the connection yet."""
    route = node.live._routes.routes(uid).get(device)
    kick = node.live._kicked._kicks.get((uid, device))
    return route is not None and kick is not None and route.since > kick[0]


def lost_logs(world: World) -> list[str]:
    """What was acked as stored is on the disk: so an IDC whose disk was not damaged goes on under
    its incarnation, however often it lost its power (rules 1 and 6)."""
    return [
        f"not_durable: {name} is at its incarnation {machine.node.origin.incarnation}, and its "
        f"disk was damaged {machine.damages} times: it had lost what it had acked"
        for name, machine in world.machines.items()
        if machine.node is not None and machine.node.origin.incarnation > machine.damages + 1
    ]


def unfollowed(world: World, epoch: int) -> list[str]:
    """A policy that was committed is followed, once all is quiet."""
    return [
        f"not_followed: {name} serves the policy of epoch {machine.node.traffic.epoch()}, and "
        f"epoch {epoch} is committed"
        for name, machine in world.machines.items()
        if machine.node is not None and machine.node.traffic.epoch() < epoch
    ]


def wrong_about_clocks(world: World) -> list[str]:
    """An IDC whose clock is further from the middle one than HLCs may be says so, and nobody else
    does, once all is quiet (rule 10)."""
    middle = median(each.clock.skew_ms for each in world.voters)
    found = []
    for name, machine in world.machines.items():
        off_ms = round(abs(machine.clock.skew_ms - middle))
        if machine.node is None or abs(off_ms - CLAMP_MS) < _MEASURED_MS:
            continue
        if machine.node.hlc.skewed() != (off_ms > CLAMP_MS):
            said = "says so" if machine.node.hlc.skewed() else "does not say so"
            found.append(f"clock_unsaid: the clock of {name} is {off_ms} ms off, and it {said}")
    return found


async def mirrored_on(
    kv: Kv, partition: int, history: Sequence[h.Event], examples: int = 3
) -> list[str]:
    """An IDC accepts messages of those devices alone that were connected to it: a copy from
    anywhere else was taken out of another IDC's log (rule 3). Not to be asked where ops above a
    seal were published again (rule 7)."""
    devices = {
        event.n: (event.uid, event.device) for event in history if isinstance(event, h.Device)
    }
    been: dict[tuple[str, str], set[str]] = {}
    for event in history:
        if isinstance(event, h.Connection):
            been.setdefault(devices[event.n], set()).add(event.idc)
    found: list[str] = []
    start = keys.table(partition, b"k")
    end = keys.prefix_end(start)
    while len(found) < examples:
        rows = await kv.scan(start, end, _PAGE)
        for key, value in rows:
            conversation, uid, device, *_ = key[3:].decode(errors="replace").split("\0")
            found += [
                f"mirrored_on: {copy.origin.idc} has accepted a message of {uid}.{device} in "
                f"{conversation}, which was never connected to it"
                for copy in oplog.ClassRow.FromString(value).copies
                if copy.origin.idc not in been.get((uid, device), ())
            ]
        if len(rows) < _PAGE:
            break
        start = rows[-1][0] + b"\0"
    return found[:examples]
