"""Blobs as objects of a bucket (``layout`` has the keys; docs/media.md what that means).

A chunk is an object of its own: S3 makes one durable with its answer, and what multipart uploads
are made of must have 5 MiB, which a chunk never has. When an upload is complete its chunks are
read, hashed, and sent on while they are read as one object, under the hash that was announced: the
server compares it too, and the object is there whole or not at all. The last piece is sent once all
of them have the right hash.

Nothing is kept in this process but what saves questions: which bytes of an upload are there, for as
long as every answer came.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from imcore.errors import Code, ImError, Refused, Unavailable
from services.engines.s3 import layout
from services.engines.s3.client import EndsBody, Large, S3Client
from services.engines.s3.layout import HEX, Piece, Span, chunk_key, file_key, note_key, of_upload
from services.ports import UploadFound

log = logging.getLogger("im.media")
T = TypeVar("T")

AT_ONCE = 16  # requests of one call
# Of the notes that a start reads: half a millisecond of the loop each, beside all else it does.
COMPLETING = 4  # uploads that become files at once: two pieces of each are in memory
COMPLETING_WAIT_S = 20.0  # for the turn of one more
# No more small chunks an upload than so many, and one for each so many bytes of it: each is an
# object, and each byte might come alone. Larger ones, and its last, are always taken.
CHUNKS_FREE, CHUNK_BYTES_MIN = 1_000, 64 << 10
_INLINE_BYTES = 32 << 10  # hashed at once; more of them in a thread


class _Life(NamedTuple):
    """Of an upload. ``token`` empty: it was never begun. ``end``: so many bytes are there."""

    token: str
    chunks: int
    end: int


class _OtherHash(EndsBody):
    """The bytes have another one than was announced."""


class S3Blobs:
    """``client`` is closed with it."""

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._lives: dict[str, _Life] = {}  # of uploads whose last answer came
        self._completing = asyncio.Semaphore(COMPLETING)

    async def close(self) -> None:
        await self._client.close()

    async def look(self) -> None:
        """Raises BadInput (no such bucket), NotTrusted, Unavailable."""
        await self._client.look()

    # ---------------------------------------------------------------------------- uploads

    async def uploads(self) -> dict[str, UploadFound]:
        """And removes what belongs to none: the chunks of one that was ended, by whoever died
        before he had removed all of it."""
        found: dict[str, dict[str, list[Span]]] = {}
        noted: set[tuple[str, str]] = set()
        async for page in self._client.pages(layout.UPLOADS):
            for each in page.objects:
                of = of_upload(each.key)
                if of is None:
                    continue
                spans = found.setdefault(of.upload, {}).setdefault(of.life, [])
                if of.span is None:
                    noted.add((of.upload, of.life))
                else:
                    spans.append(of.span)
        self._lives.clear()
        orphans = [
            chunk_key(upload, life, span)
            for upload, lives in found.items()
            for life, spans in lives.items()
            if (upload, life) not in noted
            for span in spans
        ]
        if orphans:
            log.info("%d chunks of uploads that were ended are removed", len(orphans))
        await _each(self._client.delete, orphans)
        chosen = {
            upload: _chosen({life: lives[life] for life in lives if (upload, life) in noted})
            for upload, lives in found.items()
        }
        keys = {
            upload: note_key(upload, life.token) for upload, life in chosen.items() if life.token
        }
        notes = await _each(self._client.get, keys.values())
        answers: dict[str, UploadFound] = {}
        for upload, note in zip(keys, notes, strict=True):
            if note is not None:  # else it was ended just now
                self._lives[upload] = chosen[upload]
                answers[upload] = UploadFound(note, chosen[upload].end)
        return answers

    async def _listed(self, upload: str) -> list[layout.Of]:
        found: list[layout.Of] = []
        async for page in self._client.pages(layout.upload_prefix(upload)):
            found += [of for each in page.objects if (of := of_upload(each.key)) is not None]
        return found

    async def _spans(self, upload: str) -> dict[str, list[Span]]:
        """By life, of those that were begun. The bucket itself is asked."""
        lives: dict[str, list[Span]] = {}
        noted: set[str] = set()
        for of in await self._listed(upload):
            spans = lives.setdefault(of.life, [])
            if of.span is None:
                noted.add(of.life)
            else:
                spans.append(of.span)
        return {life: lives[life] for life in noted}

    async def _life(self, upload: str) -> _Life:
        known = self._lives.get(upload)
        if known is None:
            known = self._lives[upload] = _chosen(await self._spans(upload))
        return known

    async def begin(self, upload: str, note: bytes) -> None:
        await self.abandon(upload)
        token = secrets.token_hex(8)
        await self._client.put(note_key(upload, token), note)
        self._lives[upload] = _Life(token, 0, 0)

    async def uploaded(self, upload: str) -> int:
        return (await self._life(upload)).end

    async def put(self, upload: str, offset: int, data: bytes, last: bool = False) -> None:
        life = await self._life(upload)
        if offset != life.end:
            raise ValueError(f"the upload has {life.end} bytes, not {offset}")
        if not data:
            return
        if not life.token:
            raise Unavailable("what was noted of this upload is gone from the bucket")
        small = len(data) < CHUNK_BYTES_MIN and not last
        if small and life.chunks >= CHUNKS_FREE + offset // CHUNK_BYTES_MIN:
            text = f"so many chunks of an upload have at least {CHUNK_BYTES_MIN} bytes each"
            raise Refused(Code.BAD_REQUEST, text)
        span = Span(offset, offset + len(data))
        del self._lives[upload]  # it counts again once this is answered
        await self._client.put(chunk_key(upload, life.token, span), data)
        self._lives[upload] = _Life(life.token, life.chunks + 1, span.end)

    async def complete(self, upload: str, sha256: str) -> bool:
        lives = await self._spans(upload)
        life, known = _chosen(lives), self._lives.pop(upload, None)
        if known is not None and known.end > life.end:
            # To judge what is listed would throw away what was answered. From here on it is asked.
            raise Unavailable("the store does not list all chunks of this upload", 1_000)
        wanted = layout.pieces(lives.get(life.token, []))
        try:
            async with asyncio.timeout(COMPLETING_WAIT_S):
                await self._completing.acquire()
        except TimeoutError:
            raise Unavailable("too many uploads are being completed", 1_000) from None
        try:
            same = await self._become_file(upload, life.token, wanted, sha256)
        finally:
            self._completing.release()
        with suppress(ImError):  # it is judged; what stays of it is known to be over at next start
            await self.abandon(upload)
        return same

    async def _become_file(self, upload: str, life: str, wanted: list[Piece], sha256: str) -> bool:
        def pieces() -> AsyncGenerator[bytes, None]:
            return self._pieces(upload, life, wanted, sha256)

        large = Large(pieces, sum(piece.size for piece in wanted), sha256)
        try:
            # Bytes that are here already are asked for all the same: to name a hash is not enough.
            if large.size and await self._client.size(file_key(sha256)) is None:
                await self._client.put_large(file_key(sha256), large)
            else:
                async for _ in pieces():
                    pass
                if not large.size:
                    await self._client.put(file_key(sha256), b"")
        except _OtherHash:
            return False
        return True

    async def _pieces(
        self, upload: str, life: str, wanted: list[Piece], sha256: str
    ) -> AsyncGenerator[bytes, None]:
        """The last one only when all have this hash. One is fetched while another is in use.
        Raises _OtherHash, Unavailable."""

        async def fetch(piece: Piece) -> bytes:
            key = chunk_key(upload, life, piece.span)
            data = await self._client.get(key, piece.skipped, piece.size)
            if data is None or len(data) != piece.size:
                raise Unavailable("a chunk of this upload is gone from the bucket", 1_000)
            return data

        digest = hashlib.sha256()
        ahead: asyncio.Task[bytes] | None = None
        try:
            for number, piece in enumerate(wanted):
                data = await (ahead if ahead is not None else fetch(piece))
                last = number + 1 == len(wanted)
                ahead = None if last else asyncio.create_task(fetch(wanted[number + 1]))
                if len(data) <= _INLINE_BYTES:
                    digest.update(data)
                else:
                    await asyncio.to_thread(digest.update, data)
                if last and digest.hexdigest() != sha256:
                    raise _OtherHash
                yield data
        finally:
            if ahead is not None:
                ahead.cancel()
                with suppress(asyncio.CancelledError, ImError):
                    await ahead
        if not wanted and digest.hexdigest() != sha256:
            raise _OtherHash

    async def abandon(self, upload: str) -> None:
        """Its notes first: without one it is no upload."""
        self._lives.pop(upload, None)
        there = await self._listed(upload)
        notes = [note_key(upload, of.life) for of in there if of.span is None]
        chunks = [chunk_key(upload, of.life, of.span) for of in there if of.span is not None]
        await _each(self._client.delete, notes)
        await _each(self._client.delete, chunks)

    # ------------------------------------------------------------------------------ files

    async def files(self) -> dict[str, int]:
        """In parts at once: a list goes on where its last page ended, and there are many."""

        async def part(prefix: str) -> list[tuple[str, int]]:
            return [
                (sha256, each.size)
                async for page in self._client.pages(prefix)
                for each in page.objects
                if (sha256 := layout.file_of(each.key)) is not None
            ]

        parts = await _each(part, [layout.FILES + digit for digit in HEX])
        return {sha256: size for each in parts for sha256, size in each}

    async def read(self, sha256: str, offset: int, size: int) -> bytes:
        if size <= 0:
            if await self._client.size(file_key(sha256)) is None:
                raise FileNotFoundError(sha256)
            return b""
        data = await self._client.get(file_key(sha256), offset, size)
        if data is None:
            raise FileNotFoundError(sha256)
        return data

    async def delete(self, sha256: str) -> None:
        await self._client.delete(file_key(sha256))  # first: notes without a file are nothing
        names = await self.notes(sha256)
        await _each(self._client.delete, [self._note(sha256, name) for name in names])

    # ------------------------------------------------------------------------------ notes

    @staticmethod
    def _note(sha256: str, name: str) -> str:
        return layout.notes_prefix(sha256) + name

    async def write_note(self, sha256: str, name: str, data: bytes) -> None:
        await self._client.put(self._note(sha256, name), data)

    async def note(self, sha256: str, name: str) -> bytes | None:
        return await self._client.get(self._note(sha256, name))

    async def notes(self, sha256: str) -> list[str]:
        names = [
            found[1]
            async for page in self._client.pages(layout.notes_prefix(sha256))
            for each in page.objects
            if (found := layout.note_of(each.key)) is not None
        ]
        return sorted(names)

    async def noted(self) -> dict[str, set[str]]:
        async def part(prefix: str) -> list[tuple[str, str]]:
            return [
                found
                async for page in self._client.pages(prefix)
                for each in page.objects
                if (found := layout.note_of(each.key)) is not None
            ]

        answers: dict[str, set[str]] = {}
        for rows in await _each(part, [layout.NOTES + digit for digit in HEX]):
            for sha256, name in rows:
                answers.setdefault(sha256, set()).add(name)
        return answers

    async def remove_note(self, sha256: str, name: str) -> None:
        await self._client.delete(self._note(sha256, name))


def _chosen(lives: dict[str, list[Span]]) -> _Life:
    """The one with the most bytes: a beginning that arrived late has none."""
    best = max(lives, key=lambda life: (layout.reach(lives[life]), life), default="")
    spans = lives.get(best, [])
    return _Life(best, len(spans), layout.reach(spans))


K = TypeVar("K")


async def _each(work: Callable[[K], Awaitable[T]], of: Iterable[K]) -> list[T]:
    """A few at once. Raises what the first one raises, when no other is under way any more."""
    rows = list(enumerate(of))
    answers: dict[int, T] = {}
    pending = iter(rows)

    async def worker() -> None:
        for number, each in pending:
            answers[number] = await work(each)

    tasks = [asyncio.create_task(worker()) for _ in range(min(AT_ONCE, len(rows)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [answers[number] for number, _ in rows]
