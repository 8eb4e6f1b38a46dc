"""Keeps the Lease at the API server, or waits for it: the shell of ``lease``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from typing import Any, Protocol

from imcore.errors import ImError
from imcore.runtime import Clock
from imctl.reconcile.cluster import Conflict
from imctl.reconcile.lease import (
    CALL_S,
    EVERY_S,
    LEASE_S,
    RETRY_S,
    Leadership,
    NotLeading,
    Object,
)

log = logging.getLogger("im.operator")
LEASE = "coordination.k8s.io/v1"


class Leases(Protocol):
    """Of ``Cluster``. Raises ImError."""

    async def get(
        self, api: str, kind: str, namespace: str, name: str, limit_s: float = ...
    ) -> Any: ...

    async def write(self, body: Object, limit_s: float) -> Object: ...


class Election:
    """``after``: another one, which has to be won first. What is meant to be alone in the cluster
    holds two leases: that of its own kind, as replicas of one deployment have it, and one that all
    of them have in common. None holds the second and waits for the first."""

    def __init__(
        self, leadership: Leadership, cluster: Leases, clock: Clock, after: Election | None = None
    ) -> None:
        self.leadership = leadership
        self._after = after
        self._barred: float | None = None  # since when another's lease alone keeps it from leading
        self._told = ""  # of which holder
        self.leads = asyncio.Event()
        self.renewed_ms = 0  # the time of day of the last renewal that was taken; 0: none was
        self._heard: float | None = None  # when the API server last answered for the lease
        self._cluster, self._clock = cluster, clock
        self._last: Object | None = None  # what was written here last, while it is ours

    async def run(self) -> None:
        """Raises NotLeading once it had the lease and has lost it."""
        one = self.leadership
        while True:
            next_one = self._clock.now() + EVERY_S  # a slow answer delays no renewal
            try:
                if await self._once() and not self.leads.is_set():
                    log.info("%s holds the lease", one.own)
                    self.leads.set()
            except NotLeading:
                raise
            except ImError as error:
                log.warning("the lease: %s", error)
                if isinstance(error, Conflict):
                    # Somebody took it, or the answer to what was written last got lost.
                    self._last = None
                    self._heard = self._clock.now()
                next_one = self._clock.now() + RETRY_S
            now = self._clock.now()
            soon = min(next_one - now, one.free_in(now))
            if self.leads.is_set():
                self._demand(now)
                soon = min(soon, one.left(now))
            await self._pause(max(0.0, soon))

    async def _once(self) -> bool:
        one, lease = self.leadership, self._last
        if lease is None:
            path = (LEASE, "Lease", one.namespace, one.name)
            lease = await self._cluster.get(*path, self._limit_s())
            one.seen(lease, self._clock.now())
            self._heard = self._clock.now()
        now = self._clock.now()
        if self._after is not None and not self._after.leading():
            return False
        if not one.may_take(now):
            self._tell_of_other(now)
            return False
        self._barred = None
        body, limit_s = one.body(lease, _precise(self._clock)), self._limit_s()
        self._last = await self._cluster.write(body, limit_s)
        one.written(self._last, now)
        self._heard, self.renewed_ms = self._clock.now(), self._clock.wall_ms()
        return True

    async def _pause(self, soon: float) -> None:
        """Shorter when the lease that comes first is won."""
        if self._after is None or self._after.leads.is_set():
            await asyncio.sleep(soon)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(soon):
                await self._after.leads.wait()

    def _tell_of_other(self, now: float) -> None:
        """Once for each: not of a predecessor, whose lease just has not ended yet."""
        one = self.leadership
        if self._after is None:
            return
        self._barred = now if self._barred is None else self._barred
        if now - self._barred >= LEASE_S and self._told != one.holder:
            self._told = one.holder
            log.error(
                "another operator works in all namespaces, too: %s holds the Lease %s/%s. This one "
                "does nothing meanwhile; uninstall one of the two, or give them namespaces",
                one.holder, one.namespace, one.name,
            )  # fmt: skip

    def leading(self) -> bool:
        return self.leads.is_set() and self.leadership.left(self._clock.now()) > 0

    def not_ready(self) -> str:
        """Why it could not lead now, or go on to lead; empty: it could."""
        if self._heard is None:
            return "the API server has not answered for its lease yet"
        silent_s = self._clock.now() - self._heard
        if silent_s < LEASE_S:
            return ""
        return f"the API server has not answered for its lease for {silent_s:.0f} s"

    def _limit_s(self) -> float:
        """Of a call. Raises NotLeading."""
        if not self.leads.is_set():
            return CALL_S
        now = self._clock.now()
        self._demand(now)
        return min(CALL_S, self.leadership.left(now))

    def _demand(self, now: float) -> None:
        """Raises NotLeading."""
        if self.leadership.left(now) <= 0:
            raise NotLeading(f"the lease is lost to {self.leadership.holder or 'time'}")

    async def give_back(self) -> None:
        """So that the next need not wait. Nothing of ours writes any more."""
        one = self.leadership
        with contextlib.suppress(ImError):
            lease = await self._cluster.get(LEASE, "Lease", one.namespace, one.name, CALL_S)
            if lease is not None and lease["spec"].get("holderIdentity") == one.own:
                body = one.body(lease, _precise(self._clock))
                body["spec"]["holderIdentity"] = ""
                await self._cluster.write(body, CALL_S)


def _precise(clock: Clock) -> str:
    time = datetime.fromtimestamp(clock.wall_ms() / 1000, UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
