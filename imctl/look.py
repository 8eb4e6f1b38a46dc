"""Looking at a whole deployment, again and again: what each unit says, and how old that is."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any

from imcore.errors import ImError
from imcore.runtime import Clock
from imctl import admin, objectsview
from imctl.errors import Failed
from imctl.statusview import document_of
from imctl.target.local import LINKPROXY, Local

TIMEOUT_S = 1.5
OBJECTS_S = 5.0


class Looker:
    """Remembers what an IDC said last: that stands there, with its age, once it has fallen
    silent."""

    def __init__(self, target: Local, clock: Clock, objects: bool = False) -> None:
        """``objects``: of Kubernetes too, by which something was asked for of late."""
        self._target = target
        self._clock = clock
        self._objects = objects and target.on_pods
        self._listed: tuple[float, dict[str, Any]] | None = None
        self._last: dict[str, tuple[float, dict[str, Any]]] = {}

    async def look(self) -> dict[str, Any]:
        """The status document (docs/status.md). Raises Failed."""
        names = self._target.names()
        answers = await asyncio.gather(*(self._ask(name) for name in names))
        found = dict(zip(names, answers, strict=True))
        links = found.pop(LINKPROXY, None)
        now = self._clock.now()
        ages = {name: now - at for name, (at, _) in self._last.items() if name in found}
        units = self._target.units()
        document = document_of(self._target.region, units, found, links, ages)
        document["rolling"] = await asyncio.to_thread(self._rolling)
        if self._objects and (listed := await self._of_late()):
            document["objects"] = listed
        for name, idc in document["idcs"].items():
            if "error" in idc and name in self._last:
                idc["last"] = self._last[name][1]
        return document

    async def _of_late(self) -> dict[str, Any]:
        """Seldom: many lists of an API server for little that changes."""
        now = self._clock.now()
        if self._listed is None or now - self._listed[0] >= OBJECTS_S:
            # A client of Kubernetes takes its time to load: only for those who have one.
            from imctl.target import listing
            from imctl.target.kubernetes import Kubernetes

            assert isinstance(self._target, Kubernetes)
            found = await listing.listed(listing.places_of(self._target))
            wall = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)
            name = self._target.region.metadata.name
            self._listed = now, objectsview.document_of(found, name, wall)
        return self._listed[1]

    def _rolling(self) -> dict[str, str]:
        """Gateways in pods of their own that are on their way, by their IDC. An API server that
        does not answer says nothing of them."""
        found = {}
        for idc in self._target.region.spec.idcs:
            if not self._target.on_pods or not self._target.fronts_of(idc.name):
                continue
            with contextlib.suppress(Failed):
                if rolling := self._target.rolling(idc.name):
                    found[idc.name] = rolling.why
        return found

    async def _ask(self, name: str) -> dict[str, Any] | ImError:
        try:
            answer = await admin.status(self._target, name, TIMEOUT_S)
        except ImError as error:
            return error
        self._last[name] = (self._clock.now(), answer)
        return answer
