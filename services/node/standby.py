"""Cores of one IDC that stand by for the one that serves, and take its place when it is gone.

Whoever serves holds the IDC's data folder by a file lock, for life (services.core_lock): a paused
process keeps it, so nobody takes over before it is dead (rule 5). Where the registry is an etcd it
holds a lease there too, so that with engines which are reached over a network cores may run on
several hosts. A lease only tells that its holder seems to be gone: what a holder does that was
merely paused, and wakes, is fenced off by the epochs of the log and the KV.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from imcore.errors import ImError
from services.ports import Registry

log = logging.getLogger("im.node")

CORES_MAX = 9  # of one IDC
CORE = b"core"  # in the registry: who serves
LEASE_MS = 2_000
REFRESH_S = 0.5
ASK_S = 0.2  # whether the lease is


def audit_writer(idc: str, instance: int) -> str:
    """Of a core's audit chain. Each folder has a chain of its own, and each chain an anchor."""
    return idc if instance == 1 else f"{idc}.{instance}"


class CoreLease:
    """``name`` tells its own lease from those of others. ``former``: the name of a core that is
    gone for sure, so that nobody need wait for the end of its lease."""

    def __init__(self, registry: Registry, name: str, former: str = "") -> None:
        self._registry = registry
        self._name = name.encode()
        self._former = former.encode()
        self._lease = 0

    async def take(self) -> None:
        """Waits until no other core has it, and for as long as the registry does not answer: it
        alone can tell whether another core serves."""
        said = ""
        while True:
            try:
                if await self._taken():
                    return
                why = "another core of this IDC serves"
            except ImError as error:
                why = f"the registry does not tell whether another core serves: {error}"
            if why != said:
                log.info("%s: this one stands by", why)
            said = why
            await asyncio.sleep(ASK_S)

    async def _taken(self) -> bool:
        holds = await self._registry.get(CORE)
        if holds is None or holds.value == self._former:
            lease, revision = await self._registry.grant_lease(LEASE_MS), 0
            if holds is not None:
                revision = holds.mod_revision
            _, holds = await self._registry.compare_and_swap(CORE, revision, self._name, lease)
        # Ours perhaps by an earlier attempt, whose outcome was not known.
        if holds is None or holds.value != self._name:
            return False
        self._lease = holds.lease
        return True

    async def keep(self, lost: Callable[[], None]) -> None:
        """Until cancelled, or until another core has the lease: then ``lost`` is called. One that
        has ended and that nobody has is taken again: this process was late, and nothing more. A
        registry that does not answer says nothing, and nobody else can take it there either."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                if await self._registry.keep_alive(self._lease):
                    continue
                if not await self._taken():
                    log.error("the lease of this core has ended, and another core has it")
                    lost()
                    return
                log.warning(
                    "the lease of this core had ended: it was late, and nobody else was there"
                )
            except ImError as error:
                log.warning("the lease of this core is not refreshed: %s", error)

    async def give_up(self) -> None:
        """At the end, once nothing is written any more: the next one need not wait."""
        try:
            await self._registry.revoke_lease(self._lease)
        except ImError as error:
            log.warning("the lease of this core ends by itself: %s", error)
