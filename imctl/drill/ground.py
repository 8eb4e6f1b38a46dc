"""A deployment on this machine as the ground of a drill."""

from __future__ import annotations

import gc
import random

from imcore.runtime import Clock
from imctl.clients import sdk_clients
from imctl.commands.load import home_countries
from imctl.drill.breakage import Breakage
from imctl.drill.observer import Asking, asking
from imctl.drill.session import Ground
from imctl.target.local import Local
from imctl.traffic import Control, Steering
from services.loadgen.population import public_country


class LocalGround(Ground):
    def __init__(self, target: Local, clock: Clock) -> None:
        self.region = target.region
        self.homes = home_countries(target.region)
        self.lookup = public_country
        self._target = target
        self._clock = clock
        self._clients = sdk_clients(target, clock, random.Random())
        self.connect = self._clients

    def control(self, rng: random.Random) -> Control:
        return Control(self._target, self._clock, rng)

    def breakage(self, control: Steering, lasts_s: float) -> Breakage:
        return Breakage.of(self._target, control, self._clock, lasts_s)

    def ipconfs(self) -> Asking:
        return asking(self._target, self._clock)

    def all_connected(self) -> None:
        """What lives for as long as the drill is not looked at again: no pause because of it."""
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        await self._clients.close()
