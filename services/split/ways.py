"""To whom a front links: to a route instance of its IDC, if there is one, else to the core itself.

Which one is settled by the names of the gateway and of the route instances (rendezvous hashing),
so gateways spread over them without asking each other. One that a link could not be made to, or
that did not say why a link ended, is left out for a while; one that only lost the core is waited
for, as its other gateways do, and they are not all at the core's door when that one is back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from typing import Protocol

import grpc

from imcore.errors import ImError, Unavailable
from imcore.proto import front_pb2_grpc as rpc
from imcore.runtime import Clock
from services.policy.placement import share
from services.ports import Registry
from services.split.route import NO_CORE

log = logging.getLogger("im.split")

PREFIX = b"route/"  # in the registry of the IDC, with the lease of each
SHUN_S = 3.0  # longer than the lease of one that is gone
WAIT_S = 1.0  # since it last said that it has no link to the core
WAIT_MAX_S = 10.0  # since it first said so: it alone may be cut off from a core that is there
ASK_S = 1.0
LOOK_S, LOOK_MAX_S = 0.25, 2.0
STEADY_S = 5.0  # for so long one is there, before a front with sessions leaves the core for it
SPREAD_S = 10.0


class Way(Protocol):
    """What ``CoreLink`` links by."""

    async def next(self) -> rpc.FrontAsyncStub:
        """For one link."""
        ...

    def ended(self, why: str) -> None:
        """The link by the last one."""
        ...


class Straight:
    """To the core, always."""

    def __init__(self, core: rpc.FrontAsyncStub) -> None:
        self._core = core

    async def next(self) -> rpc.FrontAsyncStub:
        return self._core

    def ended(self, why: str) -> None:
        pass


class ByRoute:
    """``gateway``: the name of the front. ``dial``: a channel to an address."""

    def __init__(
        self,
        gateway: str,
        core: rpc.FrontAsyncStub,
        registry: Registry,
        dial: Callable[[str], grpc.aio.Channel],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._gateway = gateway
        self._core = core
        self._registry = registry
        self._dial = dial
        self._clock = clock
        self._rng = rng
        self._at: tuple[str, rpc.FrontAsyncStub, grpc.aio.Channel] | None = None  # None: the core
        self._waits_until = 0.0  # for the core, as the route instance does
        self._waits_since = 0.0
        self._shunned: dict[str, float] = {}  # until when

    @property
    def route(self) -> str:
        """The name of the route instance by which it is linked; empty: by none."""
        return self._at[0] if self._at is not None else ""

    async def close(self) -> None:
        if self._at is not None:
            await self._at[2].close(0.5)
            self._at = None

    async def next(self) -> rpc.FrontAsyncStub:
        if self._at is not None and self._clock.now() < self._waits_until:
            return self._at[1]
        try:
            chosen = choose(self._gateway, await self._live())
        except ImError:  # an etcd may be away, and the core serves all the same
            chosen = None
        if chosen is None:
            await self.close()
            return self._core
        name, address = chosen
        if self.route != name:
            await self.close()
            channel = self._dial(address)
            self._at = name, rpc.FrontStub(channel), channel
        assert self._at is not None
        return self._at[1]

    def ended(self, why: str) -> None:
        now = self._clock.now()
        if self._at is None:
            return
        if why == NO_CORE and now >= self._waits_until:
            self._waits_since = now
        if why == NO_CORE and now - self._waits_since < WAIT_MAX_S:
            self._waits_until = now + WAIT_S
        elif why == NO_CORE:
            self._waits_until = now
            self._shunned[self._at[0]] = now + SHUN_S
        elif now >= self._waits_until:  # a call that is refused may end in other words, too
            self._shunned[self._at[0]] = now + SHUN_S

    async def better(self, idle: Callable[[], bool]) -> None:
        """Returns when the link to the core had better be one to a route instance: they came
        later, or were all gone for a while. ``idle``: whether that costs nobody anything."""
        look_s, since = LOOK_S, self._clock.now()
        while True:
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, LOOK_MAX_S)
            try:
                there = self._at is None and bool(await self._live())
            except ImError:
                there = False
            if there and idle():
                return
            if not there:
                since = self._clock.now()
            elif self._clock.now() - since > STEADY_S:
                await asyncio.sleep(self._rng.uniform(0, SPREAD_S))  # not all gateways at once
                return

    async def _live(self) -> dict[str, str]:
        """Addresses by name, without those that are left out. Raises Unavailable."""
        try:
            async with asyncio.timeout(ASK_S):
                rows = await self._registry.range(PREFIX)
        except TimeoutError:
            raise Unavailable("the registry of the core does not answer") from None
        now = self._clock.now()
        self._shunned = {name: until for name, until in self._shunned.items() if until > now}
        found = (parsed(row.value) for row in rows)
        return {
            name: address
            for each in found
            if each is not None
            for name, address in [each]
            if name not in self._shunned
        }


def choose(gateway: str, live: Mapping[str, str]) -> tuple[str, str] | None:
    """Name and address; None: there is none. Pure."""
    name = max(live, key=lambda each: share(gateway, each, b"route"), default=None)
    return (name, live[name]) if name is not None else None


def described(name: str, address: str) -> dict[str, str]:
    """What a route instance says of itself in the registry."""
    return {"route": name, "address": address}


def parsed(value: bytes) -> tuple[str, str] | None:
    try:
        document = json.loads(value)
        return str(document["route"]), str(document["address"])
    except (ValueError, KeyError, TypeError):
        log.warning("the registry holds an unreadable route instance: %r", value[:200])
        return None
