"""How far an archive may reach, and the messages themselves, from the IDCs of a deployment."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from imcore.convert import origin_of
from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as pb
from imctl import admin
from imctl.reach import Reach


class Bound(NamedTuple):
    """``hlc``: at or below it every IDC that is not retired has applied all that there is and will
    be, so no failover can take any of it back. ``idcs``: those IDCs, by what they said."""

    hlc: int
    idcs: dict[str, pb.ClosedReply]


async def bound(target: Reach) -> Bound:
    """Raises Unavailable while an IDC does not answer that is not retired."""
    names = [idc.name for idc in target.region.spec.idcs]
    answers = await asyncio.gather(
        *(admin.closed(target, name) for name in names), return_exceptions=True
    )
    found: dict[str, pb.ClosedReply] = {}
    failed: dict[str, BaseException] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, BaseException):
            failed[name] = answer
        else:
            found[name] = answer
    retired = {name for reply in found.values() for name in reply.retired}
    for name, error in failed.items():
        if not isinstance(error, Unavailable):
            raise error
        if name not in retired:
            raise Unavailable(
                f"{error}, and only what every IDC has applied is archived; start it, or retire it"
            ) from error
    serving = {name: reply for name, reply in found.items() if name not in retired}
    return Bound(min((reply.hlc for reply in serving.values()), default=0), serving)


def applied(reply: pb.ClosedReply) -> dict[str, list[int]]:
    """The lsns by origin and partition; 0 where nothing is."""
    found: dict[str, list[int]] = {}
    for ends in reply.ends:
        by_partition = {end.partition: end.lsn for end in ends.applied}
        lsns = [by_partition.get(number, 0) for number in range(max(by_partition) + 1)]
        found[str(origin_of(ends.origin))] = lsns
    return found
