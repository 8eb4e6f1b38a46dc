"""The region's stickers: a catalogue of codes, each naming a file, that all IDCs agree on.

It is small and seldom changed, so it is one register, replaced as a whole; each IDC fetches the
files ahead, so that a sticker can be shown although the IDC of its upload is lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from imcore.errors import Code, ImError, Refused
from imcore.media import MediaName, MediaRef, is_sticker, ref_json, ref_of
from imcore.runtime import Clock

log = logging.getLogger("im.media")

STICKERS_MAX = 200
DOCUMENT_BYTES_MAX = 128 * 1024
FRESH_S = 5.0  # so long an answer is given again
LOOK_S = 30.0

Catalogue = dict[str, MediaRef]


def catalogue_of(document: Any) -> Catalogue:
    """Raises Refused."""
    try:
        found = {code: ref_of(row) for code, row in document.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(Code.BAD_REQUEST, 'expected {"CODE": ref, ...}') from error
    if len(found) > STICKERS_MAX or not all(map(is_sticker, found)):
        raise Refused(
            Code.BAD_REQUEST, f"expected at most {STICKERS_MAX} codes of a-z, 0-9, '_', '.', '-'"
        )
    return found


class Stickers:
    """``read`` and ``replace``: the register. ``fetch``: makes sure that a file is here and
    stays; raises Refused, Unavailable."""

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes | None]],
        replace: Callable[[bytes], Awaitable[None]],
        fetch: Callable[[MediaName], Awaitable[object]],
        clock: Clock,
    ) -> None:
        self._read = read
        self._replace = replace
        self._fetch = fetch
        self._clock = clock
        self._known: Catalogue | None = None
        self._known_at = 0.0
        self._here: set[MediaName] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                for code, ref in (await self.catalogue()).items():
                    if ref.named not in self._here:
                        await self._ahead(code, ref.named)
            except ImError as error:
                log.info("which stickers there are is not known yet: %s", error)
            await asyncio.sleep(LOOK_S)

    def deleted(self, name: MediaName) -> None:
        """Its file is not here any more: it is fetched again as long as the catalogue names it."""
        self._here.discard(name)

    async def _ahead(self, code: str, name: MediaName) -> None:
        """One that nobody has any more keeps no other one away."""
        try:
            await self._fetch(name)
            self._here.add(name)
        except ImError as error:
            log.info("the sticker %s is not here yet: %s", code, error)

    async def catalogue(self) -> Catalogue:
        """As of a moment ago, or the last one known while no majority answers. Raises ImError when
        none is known."""
        now = self._clock.now()
        if self._known is None or now - self._known_at > FRESH_S:
            try:
                value = await self._read()
            except ImError:
                if self._known is None:
                    raise
            else:
                self._known = catalogue_of(json.loads(value)) if value else {}
            self._known_at = now
        return self._known

    async def replace(self, catalogue: Mapping[str, MediaRef]) -> None:
        """In every IDC. Raises Refused for a file that is not there, ImError."""
        for ref in catalogue.values():
            await self._fetch(ref.named)
        rows = {code: ref_json(ref) for code, ref in catalogue.items()}
        await self._replace(json.dumps(rows, separators=(",", ":")).encode())
        self._known, self._known_at = dict(catalogue), self._clock.now()
