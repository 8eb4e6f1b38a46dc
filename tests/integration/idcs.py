"""Two IDCs with real im roles, and what they tell each other."""

from __future__ import annotations

from services.im.testing import Idc, OpenIdc
from services.node.convergence import partition_hash


async def pair(open_idc: OpenIdc) -> tuple[Idc, Idc]:
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    return fra, await open_idc("iad.1", others=("fra",), followers=("fra",))


async def meet(fra: Idc, iad: Idc) -> None:
    """What each has done while neither knew of the other; they hold the same then."""
    await fra.mirror_to(iad)
    await iad.mirror_to(fra)
    assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)
