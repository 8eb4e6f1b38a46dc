"""Keeps the committed registers of all IDCs in view, and acts on seals that they carry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from imcore.errors import Damaged, ImError
from services.im.incarnation import Register
from services.node.identity import register_key

if TYPE_CHECKING:
    from services.node.node import Node

log = logging.getLogger("im.identity")

_EACH_S = 1.0
_RETRY_S = 0.3
_BEFORE_SERVING_S = 20.0


async def read_registers(node: Node) -> bool:
    """Learns every committed register; False when some could not be read."""
    everything = True
    for idc in node.config.region.spec.idcs:
        try:
            value, _ = await node.proposer.read(register_key(idc.name))
        except ImError as error:
            log.debug("register of %s: %s", idc.name, error)
            everything = False
            continue
        if value:
            register = Register.from_json(value)
            node.replication.registers[idc.name] = register
            node.seals.learn(idc.name, register)
    return everything


async def follow_registers(node: Node) -> None:
    """Until cancelled. A register changes only when an IDC starts, so reading is enough."""
    while True:
        await read_registers(node)
        if node.serving:
            await _act(node)
        await asyncio.sleep(_EACH_S)


async def act_before_serving(node: Node) -> None:
    """What clients ask about must not stand on records that are about to be folded out. Not waited
    for without end: until it is done, the messages concerned are answered with `unavailable`. Never
    cancelled, since a log may be half cut then; ``follow_registers`` takes over."""
    acted = asyncio.Event()
    node.spawn("seals", _until_acted(node, acted))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(acted.wait(), _BEFORE_SERVING_S)


async def _until_acted(node: Node, acted: asyncio.Event) -> None:
    while not node.serving:
        if await _act(node):
            break
        await asyncio.sleep(_RETRY_S)
    acted.set()


async def _act(node: Node) -> bool:
    """False when trying again soon may help."""
    try:
        partitions = {partition.number: partition for partition in node.partitions}
        await node.seals.act(node.store, partitions)
        node.seals.problem = None
    except ImError as error:
        node.seals.problem = f"acting on a seal has to wait: {error}"
        log.warning(node.seals.problem)
        if not isinstance(error, Damaged):
            return False
        try:
            await node.bootstrap.demand(str(error))
        except ImError as why:  # a full disk, say; it serves what it can, and the alarm stands
            log.warning("a start from a snapshot has to wait: %s", why)
    return True
