"""Acks that say `replicated`: what another IDC's copy is known by, and who waits for it (rule 13).

Two questions that must not be mixed up. Whether a message may leave its sender's outbox: one other
IDC that holds it is enough. Whether an ack for which `replicated` was asked may be given: only once
as many hold it as the policy says, also when the answer is that the message was known already.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from imcore.convert import origin_of
from imcore.errors import Code, Refused
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.region.model import WhenUnreplicated
from imcore.words import ClientKey, Origin
from services.im import keys
from services.im.partition import Partition
from services.im.sequencer import Accepted
from services.ports import Reply

if TYPE_CHECKING:
    from services.im.server import ImServer

log = logging.getLogger("im.im")

_LOOK_S = 0.02


def leaves_outbox(partition: Partition, accepted: Accepted) -> bool:
    return accepted.elsewhere or 0 < accepted.lsn <= partition.replication.level(1)


def when_replicated(
    server: ImServer,
    partition: Partition,
    key: ClientKey,
    accepted: Accepted,
    response: pb.Response,
    reply: Reply,
) -> None:
    """Give the answer once enough IDCs hold the message; what happens when they do not in time is
    the policy's word."""

    def answer(held: bool) -> None:
        ack = response.send_ack
        ack.replicated = ack.replicated or held or leaves_outbox(partition, accepted)
        if held:
            reply(response)
        elif server.policy.when_unreplicated is WhenUnreplicated.REFUSE:
            message = "too few other IDCs hold the message yet; send it again"
            refusal = server.error(Refused(Code.NOT_REPLICATED, message))
            refusal.error.retry_after_ms = 500
            reply(refusal)
        else:
            server.counters.degraded += 1
            ack.degraded = True
            log.warning("an ack was degraded: too few IDCs held lsn %d in time", accepted.lsn)
            reply(response)

    needed = min(server.policy.replicas, server.others)
    deadline = server.clock.now() + server.policy.replicated_timeout_ms / 1000
    if accepted.elsewhere and needed <= 1:
        answer(True)
    elif accepted.lsn:
        partition.replication.wait(accepted.lsn, deadline, answer)
    else:

        async def look() -> None:
            answer(await _copies_held(server, partition, key, needed, deadline))

        server.spawn(look())


async def _copies_held(
    server: ImServer, partition: Partition, key: ClientKey, needed: int, deadline: float
) -> bool:
    """A message that several origins may have accepted is held by each of these, and by whoever
    holds one of their logs as far as it can be folded here now, which is beyond the message."""
    stored = await server.kv.get(keys.client_key(partition.number, key))
    origins = [origin_of(copy.origin) for copy in oplog.ClassRow.FromString(stored or b"").copies]
    reach = partition.applier.reach()  # not less: the row may be of a batch not come back yet
    ends = {origin: reach.get(origin, 0) for origin in origins}
    while len(_holders(server, partition, ends)) < needed:
        if server.clock.now() >= deadline:
            return False
        await asyncio.sleep(_LOOK_S)
    return True


def _holders(server: ImServer, partition: Partition, ends: dict[Origin, int]) -> set[str]:
    """Of the other IDCs."""
    found = {origin.idc for origin in ends}
    for origin, end in ends.items():
        if origin == server.origin:
            found.update(idc for idc, lsn in partition.replication.held.items() if lsn >= end)
    for (idc, origin), held in server.copies.items():
        if origin in ends and held.get(partition.number, 0) >= ends[origin]:
            found.add(idc)
    return found - {server.origin.idc}
