"""What the core of an IDC hears of its ipconfs that are processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import grpc

from imcore.proto import ipconf_pb2 as pb
from imcore.proto import ipconf_pb2_grpc as rpc
from imcore.runtime import Clock
from imcore.tls import caller_name
from services.ipconf.reports import Reports
from services.metrics.verbs import Verbs

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

HEARD_S = 2.0  # who has said nothing for longer is not counted: each says something twice a second


class Heard(NamedTuple):
    """What an ipconf has said last, and when."""

    at: float
    pid: int
    life: str
    ready: bool
    policy_epoch: int
    stale: bool


class Ipconfs(rpc.IpconfServicer):
    """``reports``: the controller's. ``verbs``: where answers of ipconf are counted; None: nobody
    reads it. ``clock_offset_ms``: of the IDCs' median clock from this machine's."""

    def __init__(
        self,
        idc: str,
        reports: Reports,
        clock: Clock,
        clock_offset_ms: Callable[[], int],
        verbs: Verbs | None,
    ) -> None:
        self._idc = idc
        self._reports = reports
        self._clock = clock
        self._clock_offset_ms = clock_offset_ms
        self._verbs = verbs
        self._heard: dict[int, Heard] = {}

    async def Tell(self, request: pb.IpconfSaid, context: Context) -> pb.IpconfHeard:
        if (name := caller_name(context)) != self._idc:
            why = f"an ipconf of {name} is none of {self._idc}"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        return self.hear(request)

    def hear(self, said: pb.IpconfSaid) -> pb.IpconfHeard:
        now = self._clock.now()
        self._heard[said.instance] = Heard(
            now, said.pid, said.life, said.ready, said.policy_epoch, said.stale
        )
        for row in said.accused:
            self._reports.heard_elsewhere(row.idc, row.uids, now)
        if self._verbs is not None:
            for count in said.verbs:
                self._verbs.add(count.verb, count.buckets, count.seconds, count.failures)
        return pb.IpconfHeard(clock_offset_ms=self._clock_offset_ms())

    def status(self) -> list[Mapping[str, Any]]:
        """Those that serve, by their number."""
        now = self._clock.now()
        return [
            {
                "instance": number,
                "pid": heard.pid,
                "life": heard.life,
                "policy_epoch": heard.policy_epoch,
                "stale": heard.stale,
            }
            for number, heard in sorted(self._heard.items())
            if heard.ready and now - heard.at <= HEARD_S
        ]
