"""Requests to one bucket: signed, repeated while it makes sense, and never without a deadline.

A request that ends without an answer may have been carried out, and may even be carried out later.
All of them can be repeated (``layout`` says why), so that is no other error than one that surely
did nothing: Unavailable.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakSet

import aiohttp
from yarl import URL

from imcore.errors import BadInput, ImError, NotTrusted, Unavailable
from imcore.runtime import Clock
from services.engines.s3.answers import (
    NO_BUCKET,
    RETRY_MS,
    Fault,
    Page,
    Who,
    error_of,
    fault_of,
    page_of,
    passing,
)
from services.engines.s3.signing import (
    EMPTY_SHA256,
    Credentials,
    Query,
    encoded_path,
    encoded_query,
    signed,
)

ATTEMPT_S = 3.0  # for a whole answer
DEADLINE_S = 6.0  # of a call, repetitions and the wait for a connection included
CONNECT_S = 2.0
STALL_S = 10.0  # of a long body, of which no next piece is taken
FINISH_S = 30.0  # for the answer once all of a long body is sent
PAUSE_S, PAUSE_MAX_S = 0.1, 1.0  # before the first repetition; doubled
CONNECTIONS = 64
ANSWER_BYTES_MAX = 32 << 20  # a list of a thousand keys is not a hundredth of it
_INLINE_BYTES = 32 << 10  # hashed at once; more of them in a thread


@dataclass(frozen=True, slots=True)
class S3Settings:
    """``endpoint``: https://HOST:PORT. ``prefix``: of all keys, with a "/" at its end. ``ca_file``:
    of its certificate's CA; None: those that this machine trusts."""

    idc: str
    endpoint: str
    bucket: str
    region: str
    prefix: str
    credentials: Credentials
    ca_file: str | None = None
    attempt_s: float = ATTEMPT_S
    deadline_s: float = DEADLINE_S


class NoBucket(Unavailable):
    """It is not there (any more)."""


class Answer(NamedTuple):
    """``fault``: None when it was carried out."""

    fault: Fault | None
    body: bytes
    size: int  # the Content-Length that it names


class EndsBody(Exception):
    """What a body raises to be sent no further, beside ImError."""


class Large(NamedTuple):
    """A body that is read while it is sent. ``pieces`` is asked again for each attempt."""

    pieces: Callable[[], AsyncGenerator[bytes, None]]
    size: int
    sha256: str


class S3Client:
    """Raises BadInput for a CA file that is none. Everything else raises Unavailable (NotTrusted
    and DiskFull among it)."""

    def __init__(self, settings: S3Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        url = URL(settings.endpoint)
        self._origin = str(url.origin())
        host = url.host_subcomponent or ""
        self._host = host if url.is_default_port() else f"{host}:{url.port}"
        self.who = f"{settings.idc}'s S3 at {self._host}"
        self._told = f"the file store of {settings.idc}"
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise BadInput(
                f"{settings.ca_file}: expected a readable PEM of a CA, got {error} "
                "(engines.blobs.s3)"
            ) from error
        self._tls = context
        self._session: aiohttp.ClientSession | None = None
        self._sockets: WeakSet[socket.socket] = WeakSet()  # of all connections that may be open

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                ssl=self._tls, limit=CONNECTIONS, socket_factory=self._socket
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,  # the bytes that were stored, whatever the header says
                skip_auto_headers=("Accept-Encoding", "Content-Type", "User-Agent"),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            )
        return self._session

    def _silent(self, text: str) -> Unavailable:
        """It does not answer, or not so that it could be understood."""
        return Unavailable(f"{self.who} {text}", RETRY_MS, f"{self._told} does not answer")

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        made = socket.socket(*address[:3])
        self._sockets.add(made)
        return made

    async def close(self) -> None:
        if self._session is None:
            return
        await self._session.close()
        # The session forgets a connection whose request was given up: TLS waits 30 s for the
        # server's farewell. A socket that is shut down ends that at once.
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for _ in range(1000):  # of 1 ms; the next turn of the loop is enough
            if all(each.fileno() == -1 for each in self._sockets):
                return
            await asyncio.sleep(0.001)

    # ------------------------------------------------------------------------------- calls

    async def get(self, key: str, offset: int = 0, size: int | None = None) -> bytes | None:
        """Less at its end. None: there is no such object."""
        wanted = {} if size is None else {"Range": f"bytes={offset}-{offset + size - 1}"}
        answer = await self._ask("GET", key, headers=wanted, allowed=(404, 416))
        if answer.fault is None:
            if size is not None and len(answer.body) > size:
                raise self._silent("gives more than it was asked for")
            return answer.body
        return b"" if answer.fault.status == 416 else None

    async def size(self, key: str) -> int | None:
        answer = await self._ask("HEAD", key, allowed=(404,))
        return None if answer.fault else answer.size

    async def put(self, key: str, data: bytes) -> None:
        """Durable when it returns, as far as that server promises it."""
        hashed = hashlib.sha256
        digest = (
            hashed(data) if len(data) <= _INLINE_BYTES else await asyncio.to_thread(hashed, data)
        )
        await self._ask("PUT", key, body=data, sha256=digest.hexdigest())

    async def put_large(self, key: str, large: Large) -> None:
        """Whole or not at all. What ``pieces`` raises ends it; ImError and EndsBody come from
        here as they are, anything else as Unavailable."""
        await self._ask("PUT", key, body=large, sha256=large.sha256)

    async def delete(self, key: str) -> None:
        await self._ask("DELETE", key, allowed=(404,))

    async def pages(self, prefix: str) -> AsyncIterator[Page]:
        """Keys without the prefix of all keys, in their order."""
        token = ""
        while True:
            query = [("list-type", "2"), ("prefix", self._settings.prefix + prefix)]
            if token:
                query.append(("continuation-token", token))
            answer = await self._ask("GET", None, query)
            try:
                page = page_of(answer.body)
            except ValueError as error:
                raise self._silent(f"gives {error}") from error
            cut = len(self._settings.prefix)
            yield Page([each._replace(key=each.key[cut:]) for each in page.objects], page.next)
            if not page.next:
                return
            token = page.next

    async def look(self) -> None:
        """Whether it answers, lets this IDC in and has the bucket. Raises BadInput for one that is
        not there. Below the prefix: more than that it need not be allowed to list."""
        query = [("list-type", "2"), ("max-keys", "1"), ("prefix", self._settings.prefix)]
        try:
            await self._ask("GET", None, query)
        except NoBucket as error:
            raise BadInput(
                f"{self.who} has no bucket {self._settings.bucket}: make it, or name another one "
                "(engines.blobs.s3.bucket)"
            ) from error

    # ---------------------------------------------------------------------------- requests

    async def _ask(
        self,
        method: str,
        key: str | None,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | Large = b"",
        sha256: str = EMPTY_SHA256,
        allowed: tuple[int, ...] = (),
    ) -> Answer:
        """``key``: None for the bucket itself. ``allowed``: refusals that are an answer."""
        settings = self._settings
        path = f"/{settings.bucket}" + ("" if key is None else f"/{settings.prefix}{key}")
        ends = self._clock.now() + settings.deadline_s
        pause_s = PAUSE_S
        while True:
            problem: Unavailable
            try:
                answer = await self._attempt(method, path, query, headers or {}, body, sha256, ends)
                if answer.fault is None:
                    return answer
                if answer.fault.status in allowed and answer.fault.code != NO_BUCKET:
                    return answer
                problem = error_of(answer.fault, Who(self.who, self._told))
                if answer.fault.code == NO_BUCKET:
                    problem = NoBucket(str(problem), RETRY_MS, problem.told)
                again = passing(answer.fault)
            except NotTrusted:
                raise
            except Unavailable as error:
                problem, again = error, True
            if not again or self._clock.now() + pause_s >= ends:
                raise problem
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _attempt(
        self,
        method: str,
        path: str,
        query: Query,
        headers: Mapping[str, str],
        body: bytes | Large,
        sha256: str,
        ends: float,
    ) -> Answer:
        settings = self._settings
        sent = signed(
            method, self._host, path, query, headers, sha256, settings.credentials,
            settings.region, self._clock.wall_ms(),
        )  # fmt: skip
        text = encoded_path(path) + (f"?{encoded_query(query)}" if query else "")
        url = URL(self._origin + text, encoded=True)  # the path as it is signed, dots and all
        limit_s = min(settings.attempt_s, max(0.1, ends - self._clock.now()))
        raised: list[BaseException] = []
        data: io.BytesIO | AsyncGenerator[bytes, None] | None = None
        try:
            async with asyncio.timeout(limit_s) as limit:
                if isinstance(body, Large):
                    data = _watched(body, limit, raised)
                    sent["Content-Length"] = str(body.size)
                elif body:
                    data = io.BytesIO(body)  # which is sent piece by piece
                async with self._open().request(
                    method, url, headers=sent, data=data, allow_redirects=False
                ) as response:
                    return await self._answer(response)
        except TimeoutError:
            self._raise(raised)
            raise self._silent("does not answer in time") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise NotTrusted(
                f"{self.who} shows a certificate that is not trusted: {error.certificate_error}",
                RETRY_MS,
                f"{self._told} refuses",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            self._raise(raised)
            text = str(error) or type(error).__name__
            raise self._silent(f"cannot be reached: {text}") from error
        finally:
            if isinstance(data, AsyncGenerator):
                with contextlib.suppress(RuntimeError):  # its reader is being cancelled just now
                    await data.aclose()

    @staticmethod
    def _raise(raised: list[BaseException]) -> None:
        """What the body raised on purpose, and the library knows as a broken connection only."""
        if raised and isinstance(raised[0], (ImError, EndsBody)):
            raise raised[0]

    async def _answer(self, response: aiohttp.ClientResponse) -> Answer:
        parts: list[bytes] = []
        read = 0
        if response.method != "HEAD":
            async for data in response.content.iter_any():
                parts.append(data)
                read += len(data)
                if read > ANSWER_BYTES_MAX:
                    raise self._silent("says too much")
        body = b"".join(parts)
        if response.status < 300:
            return Answer(None, body, int(response.headers.get("Content-Length") or 0))
        return Answer(fault_of(response.status, body), b"", 0)


async def _watched(
    large: Large, limit: asyncio.Timeout, raised: list[BaseException]
) -> AsyncGenerator[bytes, None]:
    """Its pieces, for each of which the limit begins anew."""

    def again(seconds: float) -> None:
        # A limit that has passed meanwhile cannot be moved: whoever waits is being told of it.
        with contextlib.suppress(RuntimeError):
            limit.reschedule(asyncio.get_running_loop().time() + seconds)

    try:
        again(STALL_S)
        async with contextlib.aclosing(large.pieces()) as pieces:
            async for piece in pieces:
                again(STALL_S)
                yield piece
                again(STALL_S)
    except Exception as error:
        raised.append(error)
        raise
    again(FINISH_S)
