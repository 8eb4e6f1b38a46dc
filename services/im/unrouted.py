"""Routes that the log did not take, the last of each device, for when it takes them again. Pure."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from imcore.limits import AWAY_MS_MAX
from imcore.proto import oplog_pb2 as oplog

log = logging.getLogger("im.im")

KEPT_MAX = 100_000  # devices: a little more than one process has sessions
AT_ONCE = 1_000


class Unrouted:
    def __init__(self) -> None:
        self._ops: OrderedDict[tuple[str, str], oplog.Op] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ops)

    def failed(self, op: oplog.Op) -> None:
        key = (op.route.uid, op.route.device)
        known = self._ops.get(key)
        if known is not None and known.route.connection_epoch > op.route.connection_epoch:
            return
        self._ops[key] = op
        if len(self._ops) > KEPT_MAX:
            (uid, device), _ = self._ops.popitem(last=False)
            log.warning("the route of %s by %s is lost: too many wait for the log", uid, device)

    def overtaken(self, route: oplog.RouteOp) -> None:
        """This one is being written now."""
        known = self._ops.get((route.uid, route.device))
        if known is not None and known.route.connection_epoch <= route.connection_epoch:
            del self._ops[route.uid, route.device]

    def of(self, uid: str) -> list[oplog.Op]:
        return [op for (owner, _), op in self._ops.items() if owner == uid]

    def take(self, ready: Callable[[str], bool]) -> list[oplog.Op]:
        """The oldest ones of users of whom ``ready`` holds, out of here."""
        found: list[oplog.Op] = []
        for key, op in self._ops.items():
            if ready(key[0]):
                found.append(op)
                if len(found) == AT_ONCE:
                    break
        for op in found:
            del self._ops[op.route.uid, op.route.device]
        return found


def said_later(op: oplog.Op, hlc: int) -> oplog.RouteOp:
    """The route as it is to be logged at this HLC: whoever reads it must be able to tell when the
    device came, or for how long it had been away by then."""
    route = oplog.RouteOp()
    route.CopyFrom(op.route)
    if route.gone:
        route.away_ms = min(route.away_ms + (hlc >> 16) - (op.hlc >> 16), AWAY_MS_MAX)
    else:
        route.since_hlc = op.route.since_hlc or op.hlc
    return route
