"""A second process of an IDC beside the first, which looks dead and is not: what a supervisor does
that lost sight of it. The first still holds its files, so the second must not come to open them
(rule 5: on segment files a lock held for life is the fence)."""

from __future__ import annotations

import asyncio

from services.node.node import Node
from services.sim.loop import Owner
from services.sim.world import SimOutside, World

TRY_S = 0.5


async def second_process(world: World, idc: str) -> None:
    """Start one, and end it again; a failure of the world when it was let in."""
    machine = world.machines[idc]
    owner = Owner(f"{idc}.{machine.boots} again")
    world.net.sites[owner] = idc
    node: list[Node] = []

    async def serve() -> None:
        config = world.config(idc, machine.folder, world.core_roles)
        node.append(Node(config, SimOutside(world, machine, machine.boots)))
        await node[0].run()

    task = world.spawn(owner, serve())
    await asyncio.wait([task], timeout=TRY_S)
    if task.done() and not task.cancelled():
        task.exception()
    world.loop.crash(owner)
    world.net.crash(owner)
    if node and hasattr(node[0], "store"):
        world.failures.append(
            f"not_fenced: a second process of {idc} has opened its log while the first held it"
        )
