"""Blobs as files of one folder.

    uploads/NAME.note          what was noted when it began
    uploads/NAME.part          its bytes so far; every chunk is fsynced
    files/AB/SHA256/data.SIZE  a whole file: its name says the size, so a listing tells all sizes
    files/AB/SHA256/note.NAME

An upload becomes a file by one rename, after its bytes were read back and hashed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from imcore.errors import BadInput, DiskFull, OutcomeUnknown, Unavailable
from services.engines.disk import Disk
from services.ports import UploadFound

T = TypeVar("T")

_READ_BYTES = 1 << 20
RETRY_MS, FULL_RETRY_MS = 1_000, 60_000
_TOLD = "the disk of this IDC's files gives an error"


class FileBlobs:
    """``executor``: threads for the blocking calls; its owner shuts it down."""

    def __init__(self, folder: str, disk: Disk, executor: Executor) -> None:
        self._uploads = f"{folder}/uploads"
        self._files = f"{folder}/files"
        self._disk = disk
        self._executor = executor

    async def _run(self, work: Callable[[], T]) -> T:
        """What a disk does not give is Unavailable: an unreadable sector of one file, or no file
        descriptor that is left, is no reason for an IDC to end. Clients are told no paths."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except FileNotFoundError:
            raise
        except DiskFull as error:
            raise DiskFull(str(error), FULL_RETRY_MS, "the disk of this IDC is full") from error
        except (OutcomeUnknown, BadInput) as error:
            raise Unavailable(str(error), RETRY_MS, _TOLD) from error
        except OSError as error:
            text = f"cannot read {error.filename or self._files}: {error.strerror}"
            raise Unavailable(text, RETRY_MS, _TOLD) from error

    async def look(self) -> None:
        pass

    async def close(self) -> None:
        pass

    # ---------------------------------------------------------------------------- uploads

    def _part(self, upload: str) -> str:
        return f"{self._uploads}/{upload}.part"

    def _begun(self, upload: str) -> str:
        return f"{self._uploads}/{upload}.note"

    async def uploads(self) -> dict[str, UploadFound]:
        """And removes what belongs to none: what was half written when the disk was full, or is
        left of one whose note was lost with power."""

        def work() -> dict[str, UploadFound]:
            names = self._disk.list(self._uploads)
            begun = [name.removesuffix(".note") for name in names if name.endswith(".note")]
            whole = {f"{upload}.{kind}" for upload in begun for kind in ("note", "part")}
            for name in names:
                if name not in whole and name.endswith((".part", ".new")):
                    self._disk.remove(f"{self._uploads}/{name}")
            return {
                upload: UploadFound(self._disk.read(self._begun(upload)), self._size(upload))
                for upload in begun
            }

        return await self._run(work)

    async def begin(self, upload: str, note: bytes) -> None:
        def work() -> None:
            self._disk.make_folder(self._uploads)
            self._disk.write_whole(self._begun(upload), note)

        await self._run(work)

    def _size(self, upload: str) -> int:
        file = self._disk.open(self._part(upload))
        try:
            return file.size
        finally:
            file.close()

    async def uploaded(self, upload: str) -> int:
        return await self._run(lambda: self._size(upload))

    async def put(self, upload: str, offset: int, data: bytes, last: bool = False) -> None:
        def work() -> None:
            file = self._disk.open(self._part(upload))
            try:
                if file.size != offset:
                    raise ValueError(f"the upload has {file.size} bytes, not {offset}")
                try:
                    file.append(data)
                    file.sync()
                    if offset == 0:  # its name is new
                        self._disk.sync_folder(self._uploads)
                except BaseException:
                    file.truncate(offset)  # what may not survive a power loss was never there
                    raise
            finally:
                file.close()

        await self._run(work)

    async def complete(self, upload: str, sha256: str) -> bool:
        def work() -> bool:
            part = self._part(upload)
            self._size(upload)  # an empty one has no part yet
            digest, size = hashlib.sha256(), 0
            while data := self._disk.read(part, size, _READ_BYTES):
                digest.update(data)
                size += len(data)
            same = digest.hexdigest() == sha256
            if same:
                folder = self._folder(sha256)
                # In place of one that is there, too: these bytes were just read, and are right.
                self._disk.make_folder(folder)
                self._disk.rename(part, f"{folder}/data.{size}")
                self._disk.sync_folder(folder)
            self._forget(upload)
            return same

        return await self._run(work)

    async def abandon(self, upload: str) -> None:
        await self._run(lambda: self._forget(upload))

    def _forget(self, upload: str) -> None:
        self._disk.remove(self._part(upload))
        self._disk.remove(self._begun(upload))
        self._disk.sync_folder(self._uploads)

    # ------------------------------------------------------------------------------ files

    def _folder(self, sha256: str) -> str:
        return f"{self._files}/{sha256[:2]}/{sha256}"

    def _stored(self, sha256: str) -> int | None:
        for name in self._disk.list(self._folder(sha256)):
            if name.startswith("data."):
                return int(name.removeprefix("data."))
        return None

    async def files(self) -> dict[str, int]:
        def work() -> dict[str, int]:
            found: dict[str, int] = {}
            for shelf in self._disk.list(self._files):
                for sha256 in self._disk.list(f"{self._files}/{shelf}"):
                    size = self._stored(sha256)
                    if size is not None:
                        found[sha256] = size
            return found

        return await self._run(work)

    async def read(self, sha256: str, offset: int, size: int) -> bytes:
        def work() -> bytes:
            stored = self._stored(sha256)
            if stored is None:
                raise FileNotFoundError(sha256)
            return self._disk.read(f"{self._folder(sha256)}/data.{stored}", offset, size)

        return await self._run(work)

    async def delete(self, sha256: str) -> None:
        def work() -> None:
            folder = self._folder(sha256)
            names = self._disk.list(folder)
            for name in names:  # "data" comes first: notes without a file are nothing
                self._disk.remove(f"{folder}/{name}")
            if names:
                self._disk.sync_folder(folder)
            self._disk.remove_folder(folder)  # else a start would look into each that ever was

        await self._run(work)

    # ------------------------------------------------------------------------------ notes

    def _note(self, sha256: str, name: str) -> str:
        return f"{self._folder(sha256)}/note.{name}"

    async def write_note(self, sha256: str, name: str, data: bytes) -> None:
        def work() -> None:
            self._disk.make_folder(self._folder(sha256))
            self._disk.write_whole(self._note(sha256, name), data)

        await self._run(work)

    async def note(self, sha256: str, name: str) -> bytes | None:
        def work() -> bytes | None:
            try:
                return self._disk.read(self._note(sha256, name))
            except FileNotFoundError:
                return None

        return await self._run(work)

    def _notes(self, sha256: str) -> list[str]:
        names = self._disk.list(self._folder(sha256))
        found = [name.removeprefix("note.") for name in names if name.startswith("note.")]
        return [name for name in found if not name.endswith(".new")]  # half written

    async def notes(self, sha256: str) -> list[str]:
        return await self._run(lambda: self._notes(sha256))

    async def noted(self) -> dict[str, set[str]]:
        def work() -> dict[str, set[str]]:
            return {
                sha256: names
                for shelf in self._disk.list(self._files)
                for sha256 in self._disk.list(f"{self._files}/{shelf}")
                if (names := set(self._notes(sha256)))
            }

        return await self._run(work)

    async def remove_note(self, sha256: str, name: str) -> None:
        def work() -> None:
            if name in self._notes(sha256):
                self._disk.remove(self._note(sha256, name))
                self._disk.sync_folder(self._folder(sha256))

        await self._run(work)
