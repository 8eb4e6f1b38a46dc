"""Takes rotated region keys into use while everything runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from imcore.attest import RegionKeys
from imcore.errors import BadInput
from imcore.pki import load_region_keys

log = logging.getLogger("im.identity")

EACH_S = 1.0


class FollowedKeys:
    """``keys``, which others hold, becomes what the file says. ``alarm``: why it does not."""

    def __init__(self, pki: Path, keys: RegionKeys) -> None:
        self._pki = pki
        self._keys = keys
        self.alarm: str | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EACH_S)
            self.look()

    def look(self) -> None:
        try:
            found = load_region_keys(self._pki)
        except BadInput as error:
            if self.alarm is None:
                log.warning("the region keys stay as they were: %s", error)
            self.alarm = f"the region keys stay as they were: {error}"
            return
        if (found.current, found.ids) != (self._keys.current, self._keys.ids):
            log.info("region keys: %s sign, %s verify", found.current, found.ids)
        self._keys.become(found)
        self.alarm = None

    def status(self) -> dict[str, object]:
        return {"current": self._keys.current, "ids": self._keys.ids}
