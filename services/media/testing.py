"""Another IDC's files without a network between, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from imcore.media import MediaName
from services.media.store import MediaStore, Silent
from services.media.words import Record


class Near:
    """As ``services.media.store.Peer``. Silent unless ``up``, and once ``cut_after`` chunks came
    from it."""

    def __init__(self, store: Callable[[], MediaStore]) -> None:
        self._store = store
        self.up = True
        self.cut_after: int | None = None
        self.reads: list[int] = []  # from where

    def _check(self) -> None:
        if not self.up:
            raise Silent("it is lost")

    async def find(self, name: MediaName) -> Record | None:
        self._check()
        return await self._store().held(name)

    async def keeps(self, name: MediaName) -> bool:
        self._check()
        return await self._store().keeps(name)

    async def read(self, name: MediaName, offset: int) -> AsyncIterator[bytes]:
        self._check()
        self.reads.append(offset)
        record = await self._store().held(name)
        assert record is not None
        async for data in self._store().read(name, offset, record.size, 1000):
            if self.cut_after is not None:
                if self.cut_after == 0:
                    self.cut_after = None
                    raise Silent("the link is cut")
                self.cut_after -= 1
            yield data

    async def keep(self, name: MediaName, timeout_s: float) -> None:
        self._check()
        await self._store().keep(name)
