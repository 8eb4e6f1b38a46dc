"""Settles, at start, under which incarnation this IDC goes on: asks the peers, decides
(``services.im.incarnation``), commits the register, and only then opens the own log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import grpc

from imcore.convert import origin_of, origin_pb
from imcore.errors import Code, ImError, Refused, Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import Clock
from imcore.sometimes import INCARNATION, sometimes
from imcore.words import Origin
from services.control.caspaxos import Proposer
from services.im.incarnation import (
    Decision,
    PeerFacts,
    Register,
    StoreFacts,
    decide,
    may_seal,
)
from services.node.bootstrap import awaited, ranges_here, ranges_there
from services.ports import Log, LogStore
from services.retention.start import cut_off

log = logging.getLogger("im.identity")

_ASK_S = 1.5
_RETRY_S = 0.3
_ANSWERS_AGE_S = 3.5  # others rely on a seal being committed soon (services.retention.decide)


class Settled(NamedTuple):
    own: Log  # opened
    register: Register  # committed
    alarms: tuple[str, ...]
    cut_off: bool  # records that come next here are nowhere any more: start from a snapshot
    awaited: dict[tuple[Origin, int], int]  # how far the others hold logs, where that is more


def register_key(idc: str) -> str:
    return f"idc/{idc}"


async def settle(
    idc: str,
    partitions: int,
    store: LogStore,
    proposer: Proposer,
    channels: Mapping[str, grpc.aio.Channel],
    retired: Callable[[], frozenset[str]],
    clock: Clock,
) -> Settled:
    """Waits for a majority as long as it takes, and for who has what survives, or to be told that
    he is ``retired``."""
    offered: dict[Register, Decision] = {}
    while True:
        try:
            return await _settle_once(
                idc, partitions, store, proposer, channels, retired(), clock, offered
            )
        except ImError as error:
            log.warning("%s cannot settle its incarnation yet: %s", idc, error)
            await asyncio.sleep(_RETRY_S)


async def _settle_once(
    idc: str,
    partitions: int,
    store: LogStore,
    proposer: Proposer,
    channels: Mapping[str, grpc.aio.Channel],
    retired: frozenset[str],
    clock: Clock,
    offered: dict[Register, Decision],
) -> Settled:
    """``offered``: what this start has proposed so far. A commit of which no answer came may stand
    all the same: without it the own one looks like that of a later boot, on another disk."""
    value, _ = await proposer.read(register_key(idc))
    asked_at = clock.now()
    committed = Register.from_json(value) if value else None
    known = store.own()
    incarnation = known.origin.incarnation if known is not None else 1
    if committed is not None:
        incarnation = committed.incarnation
    own = store.held().get(Origin(idc, incarnation))
    answers = await asyncio.gather(
        *(
            _ask(name, channel, Origin(idc, incarnation), own, partitions, name in retired)
            for name, channel in channels.items()
        )
    )
    peers = [facts for facts, _ in answers]
    there = [ranges_there(reply) for _, reply in answers if reply is not None]
    missing = cut_off(ranges_here(store), there)
    stands = offered.get(committed) if committed is not None else None
    anew = committed is not None and stands is None and committed.log_id == store.log_id.hex()
    if missing and anew:
        origin, partition = missing[0]
        log.warning("the records of %s partition %d that come next are cut away", origin, partition)
        await store.renew()
    facts = StoreFacts(
        log_id=store.log_id.hex(),
        boot_count=store.boot_count,
        confirmed_boot_count=store.confirmed_boot_count,
        incarnation=incarnation if own is not None else 0,
        ends=_ends(own, partitions),
        clean=store.clean,
        fsynced=store.fsynced,
    )
    if stands is not None and stands.register.log_id == facts.log_id:
        decision = stands
    else:
        decision = decide(committed, facts, peers)
        if not decision.kept and not may_seal(peers):
            raise Unavailable(
                "no IDC that has what survives answers, and the seal must not lie below it: start "
                "those that are silent, or retire what is lost for good (`imctl retire`)"
            )
        offered[decision.register] = decision
        await _commit(idc, proposer, committed, decision, clock, asked_at)
    await store.confirm_boot()
    log.info("%s %s", idc, decision.sentence)
    if committed is not None and not decision.kept:
        sometimes(INCARNATION)
    opened = await store.open_own(Origin(idc, decision.register.incarnation))
    return Settled(opened, decision.register, decision.alarms, bool(missing), awaited(store, there))


async def _commit(
    idc: str,
    proposer: Proposer,
    committed: Register | None,
    decision: Decision,
    clock: Clock,
    asked_at: float,
) -> None:
    other: list[bytes] = []

    def change(current: bytes | None) -> bytes:
        if clock.now() - asked_at > _ANSWERS_AGE_S:
            raise Refused(Code.UNAVAILABLE, "the answers of the other IDCs are too old to seal by")
        now = Register.from_json(current) if current else None
        if current and now != committed and now != decision.register:
            other.append(current)
        if now != committed and now != decision.register:
            raise Refused(Code.UNAVAILABLE, "the register changed meanwhile")
        return decision.register.to_json()

    try:
        await proposer.change(register_key(idc), change)
    except ImError:
        if other:
            # An offer of an earlier start that reached a minority of the registries: a read says
            # what a majority holds, a change what the highest ballot has. It is settled first.
            await proposer.change(register_key(idc), lambda current: current or other[0])
        raise


def _ends(own: Log | None, partitions: int) -> tuple[int, ...]:
    if own is None:
        return (0,) * partitions
    return tuple(own.end(partition).lsn for partition in range(partitions))


async def _ask(
    name: str,
    channel: grpc.aio.Channel,
    origin: Origin,
    own: Log | None,
    partitions: int,
    retired: bool,
) -> tuple[PeerFacts, peer.EndsReply | None]:
    stub = rpc.LogsStub(channel)
    try:
        reply = await stub.Ends(peer.EndsRequest(), timeout=_ASK_S)
        ends, announced = _of(name, reply, origin, partitions)
        agree = own is None or await _chains_agree(stub, origin, own, ends)
    except (grpc.RpcError, TimeoutError):
        return PeerFacts(name, answered=False, retired=retired), None
    return PeerFacts(name, True, ends, announced, agree, retired, reply.starting), reply


def _of(
    name: str, reply: peer.EndsReply, origin: Origin, partitions: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Raises Unavailable for a peer of a region with more partitions: a seal that leaves them out
    would lie below what survives."""
    ends, announced = [0] * partitions, [0] * partitions
    for row in reply.origins:
        if origin_of(row.origin) == origin:
            for found, told in ((ends, row.held), (announced, row.announced)):
                for end in told:
                    if end.partition >= partitions:
                        raise Unavailable(
                            f"{name} tells of partition {end.partition} of {origin}, and the "
                            f"region file says {partitions} partition(s) (spec.partitions): "
                            "give both IDCs the same file"
                        )
                    found[end.partition] = end.lsn
    return tuple(ends), tuple(announced)


async def _chains_agree(
    stub: rpc.LogsAsyncStub, origin: Origin, own: Log, ends: tuple[int, ...]
) -> bool:
    """Compares the chain hash at the end of the peer's copy; it covers everything below. All
    partitions at once: a peer is a WAN link away."""

    async def agrees(partition: int, lsn: int) -> bool:
        request = peer.EndsRequest(origin=origin_pb(origin), at_partition=partition, at_lsn=lsn)
        theirs = (await stub.Ends(request, timeout=_ASK_S)).chain_at
        mine = await own.read(partition, lsn, 1)
        return not theirs or not mine or mine[0].chain == theirs

    held = (
        (partition, lsn)
        for partition, lsn in enumerate(ends)
        if 0 < lsn <= own.end(partition).lsn and lsn >= own.first_lsn(partition)
    )
    return all(await asyncio.gather(*(agrees(partition, lsn) for partition, lsn in held)))
