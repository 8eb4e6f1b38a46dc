"""The HTTP API of files (docs/media.md), as routes of a server that answers the errors raised."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus

from aiohttp import web

from imcore.attest import RegionKeys
from imcore.bearer import claims_of
from imcore.bucket import Buckets
from imcore.errors import Code, ImError, Overloaded, Refused, retry_after_ms
from imcore.media import CHUNK_BYTES_MAX, MediaName, declared_of, is_key, is_sha256, ref_json
from imcore.runtime import Clock
from imcore.tokens import Claims
from services.https import answer_error, whole
from services.media.stickers import DOCUMENT_BYTES_MAX, Stickers, catalogue_of
from services.media.store import Begun, Kept, MediaStore, WrongOffset
from services.media.words import span_of

log = logging.getLogger("im.media")

BURST_S = 10.0
CHUNK_S = 30.0  # whoever takes longer for a chunk, either way, is cut off
STEP_BYTES = 256 * 1024
SLOT_AGAIN_MS = 500
# Of the transfers that are free one user has this part at most, and one always: the fewer are left,
# the more it takes to have them all, and slow readers leave some.
SHARE_OF_FREE = 8
REQUESTS_PER_S, REQUESTS_BURST = 100, 400  # of one user
SIMILAR_BITS = 10  # unless another number is asked for
SIMILAR_PER_S, SIMILAR_BURST = 1, 5  # of one user: each looks at all pictures of the IDC
# The name is of these bytes for ever; only who has the key may keep them.
CACHE = "private, max-age=31536000, immutable"
_DISTANCES = frozenset(map(str, range(33)))

_FILE = "/v1/media/{idc}/{sha256}/{key}"
_UPLOAD = "/v1/uploads/{upload}"


class MediaApi:
    """``idcs``: names of the region."""

    def __init__(
        self,
        store: MediaStore,
        stickers: Stickers,
        keys: RegionKeys,
        clock: Clock,
        idcs: frozenset[str],
    ) -> None:
        self.stickers = stickers
        self._store = store
        self._keys = keys
        self._clock = clock
        self._idcs = idcs
        per_s = store.settings.user_bytes_per_s
        self._rates = Buckets(per_s, BURST_S * per_s)
        self._asked = Buckets(REQUESTS_PER_S, REQUESTS_BURST)
        self._looks = Buckets(SIMILAR_PER_S, SIMILAR_BURST)
        self._busy: Counter[str] = Counter()  # requests under way, by user

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/media", self._begin, name="media_begin"),
            web.put(_UPLOAD, self._put, name="media_upload"),
            web.head(_UPLOAD, self._offset),
            web.post(_UPLOAD, self._complete),
            web.get(_FILE, self._download, name="media_file"),
            web.delete(_FILE, self._delete),
            web.get("/v1/stickers", self._catalogue, name="media_stickers"),
            web.put("/v1/stickers", self._replace),
            web.get(f"{_FILE}/thumbnail", self._thumbnail, name="media_thumbnail"),
            web.get(f"{_FILE}/similar", self._similar, name="media_similar"),
        ]

    def _claims(self, request: web.Request) -> Claims:
        header = request.headers.get("Authorization", "")
        return claims_of(header, self._keys, self._clock.wall_ms())

    @contextlib.contextmanager
    def _slot(self, uid: str) -> Iterator[None]:
        """A request costs memory for as long as it lasts, and one for what is not here asks every
        other IDC. Raises Overloaded."""
        settings = self._store.settings
        if wait_s := self._asked.take(uid, self._clock.now()):
            raise Overloaded("too many requests of this user", retry_after_ms(wait_s))
        free = settings.transfers - self._busy.total()
        most = min(settings.user_uploads, max(1, free // SHARE_OF_FREE))
        if free <= 0 or self._busy[uid] >= most:
            raise Overloaded("too many transfers are under way", SLOT_AGAIN_MS)
        self._busy[uid] += 1
        try:
            yield
        finally:
            self._busy[uid] -= 1
            if not self._busy[uid]:
                del self._busy[uid]

    # ---------------------------------------------------------------------------- uploads

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        claims = self._claims(request)
        try:
            document = json.loads(await whole(request))
        except (ValueError, RecursionError) as error:
            raise Refused(Code.BAD_REQUEST, "expected a JSON document") from error
        with self._slot(claims.uid):
            found = await self._store.begin(claims.uid, declared_of(document))
        if isinstance(found, Begun):
            return web.json_response(found._asdict(), status=HTTPStatus.ACCEPTED)
        return _kept(found)

    async def _offset(self, request: web.Request) -> web.StreamResponse:
        claims = self._claims(request)
        with self._slot(claims.uid):
            at = await self._store.offset(claims.uid, _upload(request))
        return web.Response(headers={"Upload-Offset": str(at)})

    async def _put(self, request: web.Request) -> web.StreamResponse:
        claims = self._claims(request)
        upload = _upload(request)
        offset = request.query.get("offset", "")
        size = request.content_length
        if not offset.isascii() or not offset.isdigit() or len(offset) > 15 or size is None:
            raise Refused(Code.BAD_REQUEST, "expected ?offset=BYTES and a Content-Length")
        if size > CHUNK_BYTES_MAX:
            raise Refused(Code.TOO_LARGE, f"a chunk has at most {CHUNK_BYTES_MAX} bytes")
        with self._slot(claims.uid):
            await self._store.offset(claims.uid, upload)  # nothing is read for what is not there
            if wait_s := self._rates.take(claims.uid, self._clock.now(), size):
                raise Overloaded("too many bytes in a short time", retry_after_ms(wait_s))
            data = await self._body(request, size)
            try:
                at = await self._store.put(claims.uid, upload, int(offset), data)
            except WrongOffset as error:
                return _wrong(error)
        return web.Response(status=HTTPStatus.NO_CONTENT, headers={"Upload-Offset": str(at)})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        claims = self._claims(request)
        with self._slot(claims.uid):
            try:
                return _kept(await self._store.complete(claims.uid, _upload(request)))
            except WrongOffset as error:
                return _wrong(error)

    # -------------------------------------------------------------------------- downloads

    def _name(self, request: web.Request) -> MediaName:
        name = MediaName(*(request.match_info[part] for part in MediaName._fields))
        if name.idc not in self._idcs or not is_sha256(name.sha256) or not is_key(name.key):
            raise Refused(Code.NOT_FOUND, "there is no such file")
        return name

    async def _download(self, request: web.Request) -> web.StreamResponse:
        claims, name = self._claims(request), self._name(request)
        with self._slot(claims.uid):
            record = await self._store.find(name)
            etag = f'"{name.sha256}"'
            headers = {
                "ETag": etag,
                "Accept-Ranges": "bytes",
                "Cache-Control": CACHE,
                # The type is the uploader's word: no browser shows it as a page of this address.
                "Content-Type": record.type,
                "Content-Disposition": "attachment",
                "Content-Security-Policy": "sandbox; default-src 'none'",
                "X-Content-Type-Options": "nosniff",
            }
            if etag in [
                each.strip() for each in request.headers.get("If-None-Match", "").split(",")
            ]:
                return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
            wanted = request.headers.get("Range", "")
            if request.headers.get("If-Range", etag) != etag:
                wanted = ""
            span = span_of(wanted, record.size)
            if span is None:
                headers["Content-Range"] = f"bytes */{record.size}"
                return web.Response(
                    status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=headers
                )
            response = web.StreamResponse(headers=headers)
            response.content_length = span.end - span.start
            if span.partial:
                response.set_status(HTTPStatus.PARTIAL_CONTENT)
                last = span.end - 1
                response.headers["Content-Range"] = f"bytes {span.start}-{last}/{record.size}"
            await response.prepare(request)
            if request.method != "HEAD":
                await self._send(request, response, claims.uid, name, span.start, span.end)
            return response

    async def _send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        uid: str,
        name: MediaName,
        start: int,
        end: int,
    ) -> None:
        try:
            async for data in self._paced(uid, name, start, end):
                async with asyncio.timeout(CHUNK_S):
                    await response.write(data)
                self._store.counters.bytes_out += len(data)
        except (ImError, TimeoutError) as error:
            # The answer has begun: that it is not whole is seen by its length only.
            log.info("a download is cut off: %s", error or "too slow")
            if request.transport is not None:
                request.transport.abort()

    async def _paced(self, uid: str, name: MediaName, start: int, end: int) -> AsyncIterator[bytes]:
        """No faster than this user may."""
        async for data in self._store.read(name, start, end, STEP_BYTES):
            wait_s = self._rates.take(uid, self._clock.now(), len(data))
            while wait_s:
                await asyncio.sleep(wait_s)
                wait_s = self._rates.take(uid, self._clock.now(), len(data))
            yield data

    async def _catalogue(self, request: web.Request) -> web.StreamResponse:
        self._claims(request)
        catalogue = await self.stickers.catalogue()
        return web.json_response({code: ref_json(ref) for code, ref in catalogue.items()})

    async def _replace(self, request: web.Request) -> web.StreamResponse:
        """By an admin's token: all of it."""
        claims = self._claims(request)
        if not claims.admin:
            raise Refused(Code.FORBIDDEN, "the catalogue is changed with an admin's token")
        size = request.content_length
        if size is None or size > DOCUMENT_BYTES_MAX:
            raise Refused(Code.TOO_LARGE, f"expected at most {DOCUMENT_BYTES_MAX} bytes")
        try:
            document = json.loads(await self._body(request, size))
        except (ValueError, RecursionError) as error:
            raise Refused(Code.BAD_REQUEST, "expected a JSON document") from error
        with self._slot(claims.uid):
            await self.stickers.replace(catalogue_of(document))
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _body(self, request: web.Request, size: int) -> bytes:
        try:
            async with asyncio.timeout(CHUNK_S):
                return await request.content.readexactly(size)
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            raise Refused(Code.BAD_REQUEST, "the request is not whole") from error

    async def _thumbnail(self, request: web.Request) -> web.StreamResponse:
        claims, name = self._claims(request), self._name(request)
        with self._slot(claims.uid):
            data = await self._store.thumbnail(name)
            self._store.counters.bytes_out += len(data)
        headers = {"Cache-Control": CACHE, "X-Content-Type-Options": "nosniff"}
        return web.Response(body=data, content_type="image/jpeg", headers=headers)

    async def _similar(self, request: web.Request) -> web.StreamResponse:
        claims, name = self._claims(request), self._name(request)
        most = request.query.get("distance", str(SIMILAR_BITS))
        if most not in _DISTANCES:
            raise Refused(Code.BAD_REQUEST, "distance: expected 0 to 32, of 64 bits")
        if wait_s := self._looks.take(claims.uid, self._clock.now()):
            raise Overloaded("too many such questions", retry_after_ms(wait_s))
        with self._slot(claims.uid):
            rows = await self._store.similar(claims.uid, claims.admin, name, int(most))
        found = [
            {"distance": differs, "uid": uid, "ref": ref_json(ref)} for differs, uid, ref in rows
        ]
        return web.json_response({"similar": found})

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        claims = self._claims(request)
        with self._slot(claims.uid):
            await self._store.delete(claims.uid, claims.admin, self._name(request))
        return web.Response(status=HTTPStatus.NO_CONTENT)


def _upload(request: web.Request) -> str:
    upload = request.match_info["upload"]
    if not is_key(upload):
        raise Refused(Code.NOT_FOUND, "no such upload is under way: begin it (again)")
    return upload


def _kept(kept: Kept) -> web.Response:
    return web.json_response({"ref": ref_json(kept.ref), "degraded": kept.degraded})


def _wrong(error: WrongOffset) -> web.Response:
    answer = answer_error(error.code, str(error), status=HTTPStatus.PRECONDITION_FAILED)
    answer.headers["Upload-Offset"] = str(error.at)
    return answer
