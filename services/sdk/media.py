"""Uploads and downloads of files over HTTPS, which go on after cuts, in whatever IDC answers
(docs/media.md)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

import aiohttp

from imcore.errors import Code
from imcore.media import TYPE, Declared, MediaName, MediaRef, ref_of
from imcore.runtime import Clock
from services.sdk.core import sealed_file
from services.sdk.core.sealed_file import BadChunk, FileSeal
from services.sdk.errors import AuthError, NotConnected, RequestRefused
from services.sdk.ipconf import Answer, IpconfClient, Lookup, NoAnswer

CHUNK_BYTES = 256 * 1024  # what a cut costs at most
REQUEST_S = 30.0  # for one chunk, or for the next bytes of a download
CONNECT_S = 3.0
BUSY_TRIES = 20  # of a request that is answered with "overloaded", each when it says
TRIES = 2  # at one IDC, after each of which something came or went; then the next IDC
AGAIN_S = 0.5  # when no IDC could do it
PATIENCE_S = 5.0  # an IDC that asks for more, such as a full one, is left for the next one
PART = ".part"
SEALED_TYPE = "application/octet-stream"  # all that a service learns of an encrypted file

T = TypeVar("T")
Progress = Callable[[int, int], None]  # bytes that are there, of how many


class Source(Protocol):
    """Bytes that can be read from any place."""

    size: int

    def read(self, offset: int, size: int) -> bytes: ...


class BytesSource:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class FileSource:
    """An open file, which its owner closes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)


class SealedSource:
    """The ciphertext of another one."""

    def __init__(self, source: Source, secret: bytes) -> None:
        self._source = source
        self._seal = FileSeal(secret, source.size)
        self.size = sealed_file.sealed_size(source.size)

    def read(self, offset: int, size: int) -> bytes:
        """Raises SdkError: it has changed since it was read before."""
        chunk, plain = sealed_file.CHUNK_BYTES, sealed_file.PLAIN_BYTES
        end, first = min(offset + size, self.size), offset // chunk
        found = b"".join(
            self._seal.seal(number, self._source.read(number * plain, plain))
            for number in range(first, -(-end // chunk))
        )
        return found[offset - first * chunk : end - first * chunk]


class _Elsewhere(Exception):
    """This IDC cannot do it now."""

    def __init__(self, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class _NotWritten(Exception):
    """Here, and no IDC can help it. ``why``: what this machine's disk said."""

    def __init__(self, why: OSError) -> None:
        super().__init__(str(why))
        self.why = why


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    document: Any


class Transfers:
    """``lookup``: with the present token; ``answer``: of ipconf, None: none is known."""

    def __init__(
        self,
        ipconf: IpconfClient,
        lookup: Callable[[], Lookup],
        answer: Callable[[], Answer | None],
        clock: Clock,
    ) -> None:
        self._ipconf = ipconf
        self._lookup = lookup
        self._answer = answer
        self._clock = clock

    # ------------------------------------------------------------------------------ where

    async def _anywhere(self, work: Callable[[str], Awaitable[T]], timeout_ms: int) -> T:
        """``work`` with the URL of one IDC after the other, best first, until one has done it.
        Raises NotConnected when none has in time, RequestRefused, AuthError."""
        until = self._clock.now() + timeout_ms / 1000
        problem, known = "no IDC is known", self._answer()
        while True:
            waits_s: list[float] = []
            for url in await self._urls(known):
                try:
                    return await work(url)
                except _Elsewhere as error:
                    problem = f"{url}: {error}"
                    waits_s.append(error.retry_after_ms / 1000)
            wait_s = max(AGAIN_S, min(waits_s, default=0.0))  # for the first that may be asked
            if self._clock.now() + wait_s >= until:
                raise NotConnected(f"not done in time; the last problem was: {problem}")
            await asyncio.sleep(wait_s)
            known = None  # who is best may have changed

    async def _asked_anywhere(self, work: Callable[[str], Awaitable[T]], timeout_ms: int) -> T:
        """``_anywhere`` for one short answer: an IDC that is silent has half of the time."""

        async def at(url: str) -> T:
            try:
                async with asyncio.timeout(timeout_ms / 2000):
                    return await work(url)
            except TimeoutError:
                raise _Elsewhere("it does not answer in time") from None

        return await self._anywhere(at, timeout_ms)

    async def _urls(self, known: Answer | None) -> tuple[str, ...]:
        if known is None:
            try:
                known = await self._ipconf.lookup(self._lookup())
            except NoAnswer:
                known = self._answer()
        if known is None:
            return ()
        if not known.media:
            raise RequestRefused(Code.NOT_FOUND, "this service takes no files")
        return known.media

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._lookup().token}"}

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, url: str, headers: Mapping[str, str], **body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=REQUEST_S)
        try:
            async with self._ipconf.request(
                method, url, headers=self._headers() | dict(headers), timeout=timeout, **body
            ) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Elsewhere(str(error) or type(error).__name__) from error

    async def _ask(self, method: str, url: str, good: frozenset[int], **body: Any) -> _Reply:
        """Whoever is overloaded is waited for. Raises _Elsewhere, RequestRefused, AuthError."""
        for left in reversed(range(BUSY_TRIES)):
            async with self._asked(method, url, {}, **body) as response:
                document = await _document(response)
                if response.status in good:
                    return _Reply(response.status, response.headers, document)
                problem = _refusal(response.status, document)
            if response.status != 429 or not left or not isinstance(problem, _Elsewhere):
                raise problem
            await asyncio.sleep(max(0.05, problem.retry_after_ms / 1000))
        raise AssertionError("the last try returns or raises")

    # ---------------------------------------------------------------------------- uploads

    async def upload(
        self,
        source: Source,
        type_: str,
        label: str,
        progress: Progress,
        timeout_ms: int,
        secret: bytes = b"",
    ) -> MediaRef:
        """``secret``: a new one, to encrypt it with."""
        if secret:
            if TYPE.fullmatch(type_) is None:
                raise RequestRefused(Code.BAD_REQUEST, f"not the type of a file: {type_!r}")
            sealed = SealedSource(source, secret)
            ref = await self.upload(sealed, SEALED_TYPE, label, progress, timeout_ms)
            return ref._replace(size=source.size, type=type_, secret=secret)
        declared = Declared(await asyncio.to_thread(_sha256, source), source.size, type_)

        async def at(url: str) -> MediaRef:
            return await self._upload_at(url, source, declared, label, progress)

        return await self._anywhere(at, timeout_ms)

    async def _upload_at(
        self, url: str, source: Source, declared: Declared, label: str, progress: Progress
    ) -> MediaRef:
        tries, reached, reached_before = TRIES, -1, -1

        def noted(done: int, size: int) -> None:
            nonlocal reached
            reached = done
            progress(done, size)

        while True:
            try:
                reply = await self._ask(
                    "POST", f"{url}/v1/media", frozenset({200, 202}), json=declared._asdict()
                )
                if reply.status == 200:
                    noted(declared.size, declared.size)
                    return ref_of(reply.document["ref"], label)
                upload = f"{url}/v1/uploads/{reply.document['upload']}"
                return await self._send(upload, source, int(reply.document["offset"]), label, noted)
            except _Elsewhere as error:
                # What came through is not given up lightly: another IDC begins anew.
                tries = TRIES if reached > reached_before else tries - 1
                reached_before = reached
                wait_s = max(AGAIN_S, error.retry_after_ms / 1000)
                if tries <= 0 or wait_s > PATIENCE_S:
                    raise
                await asyncio.sleep(wait_s)
            except (ValueError, KeyError, TypeError) as error:
                raise _Elsewhere("the answer is not that of a media service") from error

    async def _send(
        self, upload: str, source: Source, offset: int, label: str, progress: Progress
    ) -> MediaRef:
        while True:
            progress(offset, source.size)
            if offset < source.size:
                data = await asyncio.to_thread(source.read, offset, CHUNK_BYTES)
                request = ("PUT", f"{upload}?offset={offset}", {"data": data})
            else:
                request = ("POST", upload, {})
            method, url, body = request
            reply = await self._ask(method, url, frozenset({200, 204, 404, 412}), **body)
            if reply.status == 200:
                return ref_of(reply.document["ref"], label)
            if reply.status == 404:  # another device has ended it, or it took too long
                raise _Elsewhere("this upload is not under way any more")
            offset = int(reply.headers["Upload-Offset"])  # another device may send it too

    # -------------------------------------------------------------------------- downloads

    async def download(
        self, ref: MediaRef, path: Path, resume: bool, progress: Progress, timeout_ms: int
    ) -> None:
        part = path.with_name(f"{path.name}.{ref.named.sha256[:16]}{PART}")
        size = sealed_file.sealed_size(ref.size) if ref.secret else ref.size
        if not resume:
            part.unlink(missing_ok=True)
        with part.open("a+b") as file:

            async def at(url: str) -> None:
                await self._download_at(url, ref.named, size, file, progress)

            await self._anywhere(at, timeout_ms)
            same = await asyncio.to_thread(_sha256, FileSource(file)) == ref.named.sha256
            if not same and not await self._afresh(ref.named, size, file, progress):
                part.unlink()
                raise RequestRefused(Code.INTERNAL, "the file has another hash than the message")
            if ref.secret:
                await asyncio.to_thread(_unseal, file, ref, part, path)
                return
            os.fsync(file.fileno())
        part.replace(path)

    async def _afresh(
        self, named: MediaName, size: int, file: BinaryIO, progress: Progress
    ) -> bool:
        """From its start, of each IDC once: the disk of one gives other bytes, and what came in an
        earlier call may be of that one. Whether one has given the right ones."""
        for url in await self._urls(self._answer()):
            file.truncate(0)
            file.seek(0)
            with contextlib.suppress(_Elsewhere, RequestRefused):
                await self._download_at(url, named, size, file, progress)
                if await asyncio.to_thread(_sha256, FileSource(file)) == named.sha256:
                    return True
        return False

    async def stickers(self, timeout_ms: int) -> dict[str, MediaRef]:
        async def at(url: str) -> dict[str, MediaRef]:
            reply = await self._ask("GET", f"{url}/v1/stickers", frozenset({200}))
            try:
                return {code: ref_of(row) for code, row in reply.document.items()}
            except (AttributeError, ValueError, KeyError, TypeError) as error:
                raise _Elsewhere("the answer is not that of a media service") from error

        return await self._asked_anywhere(at, timeout_ms)

    async def thumbnail(self, ref: MediaRef, timeout_ms: int) -> bytes:
        named = ref.named
        if ref.secret:
            raise RequestRefused(Code.NOT_FOUND, "the service cannot look at an encrypted picture")

        async def at(url: str) -> bytes:
            where = f"{url}/v1/media/{named.idc}/{named.sha256}/{named.key}/thumbnail"
            async with self._asked("GET", where, {}) as response:
                if response.status != 200:
                    raise _refusal(response.status, await _document(response))
                return await response.read()

        return await self._asked_anywhere(at, timeout_ms)

    async def _download_at(
        self, url: str, named: MediaName, size: int, file: BinaryIO, progress: Progress
    ) -> None:
        tries = TRIES
        where = f"{url}/v1/media/{named.idc}/{named.sha256}/{named.key}"
        while (at := file.tell()) < size:
            try:
                async with self._asked("GET", where, {"Range": f"bytes={at}-"}) as response:
                    if response.status != 206:
                        raise _refusal(response.status, await _document(response))
                    async for data in response.content.iter_chunked(CHUNK_BYTES):
                        # More than the message says is not written: the hash would not be its.
                        _write(file, data[: size - file.tell()])
                        progress(file.tell(), size)
                file.flush()
            except _NotWritten as error:
                raise error.why from None
            except _Elsewhere:
                file.flush()
                tries = TRIES if file.tell() > at else tries - 1
                if tries <= 0:
                    raise
                await asyncio.sleep(AGAIN_S)


def _write(file: BinaryIO, data: bytes) -> None:
    """Raises _NotWritten, which nobody takes for a connection that broke."""
    try:
        file.write(data)
    except OSError as error:
        raise _NotWritten(error) from error


def _sha256(source: Source) -> str:
    digest, at = hashlib.sha256(), 0
    while data := source.read(at, CHUNK_BYTES):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def _unseal(file: BinaryIO, ref: MediaRef, part: Path, path: Path) -> None:
    """What the ciphertext holds, at its place, and the ciphertext away. Raises RequestRefused."""
    seal, source = FileSeal(ref.secret, ref.size), FileSource(file)
    chunk, opened = sealed_file.CHUNK_BYTES, part.with_suffix(f".plain{PART}")
    try:
        with opened.open("wb") as plain:
            for number in range(seal.chunks):
                plain.write(seal.open(number, source.read(number * chunk, chunk)))
            plain.flush()
            os.fsync(plain.fileno())
        opened.replace(path)
    except BadChunk as error:  # its sender's doing: the hash in the message is this one
        part.unlink()
        raise RequestRefused(Code.INTERNAL, f"the file cannot be decrypted: {error}") from error
    finally:
        opened.unlink(missing_ok=True)  # whatever went wrong: no plain part lies about
    part.unlink()


async def _document(response: aiohttp.ClientResponse) -> Any:
    """None for an answer without a document, or with a broken one: something between may answer."""
    with contextlib.suppress(ValueError):
        if response.content_type == "application/json":
            return await response.json()
    return None


def _refusal(status: int, document: Any) -> Exception:
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        error = {}
    message = str(error.get("message", f"status {status}"))
    if status == 401:
        return AuthError(message)
    if status in (400, 403, 404, 413) and error:
        return RequestRefused(str(error.get("code", "")), message)
    wait_ms = error.get("retry_after_ms")
    return _Elsewhere(message, wait_ms if isinstance(wait_ms, int) else 0)
