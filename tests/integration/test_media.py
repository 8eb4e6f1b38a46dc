"""Files over real HTTPS: uploads that are cut anywhere, ranges, who may what, limits."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from imcore.errors import Unavailable
from imcore.media import CHUNK_BYTES_MAX, Declared, MediaName, ref_json
from imcore.region.model import Media, Messages, WhenUnreplicated
from imcore.runtime import SystemClock
from imcore.tls import client_ssl_context
from services.engines.blob_files import FileBlobs
from services.engines.disk import RealDisk
from services.media import stickers
from services.media.server import REQUESTS_BURST, REQUESTS_PER_S, MediaApi
from services.media.stickers import FRESH_S, STICKERS_MAX, Stickers
from services.media.store import Begun, Kept, MediaStore
from services.media.testing import Near
from services.media.words import Looked, Picture
from services.node.testing_ipconf import IDCS, IpconfSite

DATA = bytes(range(256)) * 100
SHA = hashlib.sha256(DATA).hexdigest()
PNG = Declared(SHA, len(DATA), "image/png")


async def look(read: Callable[[], Awaitable[bytes]]) -> Looked | None:
    """All pictures look alike."""
    return Looked(Picture(4, 3, 5), b"small") if (await read()).startswith(DATA[:10]) else None


class MovedClock(SystemClock):
    """``moved_ms``: how far on the wall clock is."""

    moved_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.moved_ms


class Site(IpconfSite):
    """One IDC's files behind its HTTPS server."""

    def __init__(self, folder: Path, pki_dir: Path, settings: Media) -> None:
        super().__init__(folder, pki_dir)
        self.settings = settings
        self.disk = RealDisk()
        self.wall = MovedClock()
        self.threads = ThreadPoolExecutor(2)

    async def start(self) -> None:
        blobs = FileBlobs(str(self.folder / "media"), self.disk, self.threads)
        self.store = MediaStore(
            "fra", blobs, self.settings, Messages(), self.keys, self.wall, {}, look
        )
        await self.store.load()
        self.register: bytes | None = None
        self.stickers = Stickers(self.read, self.replace, self.store.keep, self.wall)
        self.api = MediaApi(self.store, self.stickers, self.keys, self.wall, frozenset(IDCS))
        self.routes = self.api.routes()
        await super().start()
        self.http = self.client()

    async def read(self) -> bytes | None:
        if self.register == b"lost":
            raise Unavailable("no majority")
        return self.register

    async def replace(self, document: bytes) -> None:
        self.register = document

    async def stop(self) -> None:
        await self.http.close()
        await super().stop()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def ask(
        self, method: str, path: str, uid: str = "alice", token: str | None = None, **more: Any
    ) -> tuple[int, Any, bytes]:
        headers = {"Authorization": f"Bearer {self.token(uid) if token is None else token}"}
        headers |= more.pop("headers", {})
        async with self.http.request(method, self.url + path, headers=headers, **more) as response:
            return response.status, response.headers, await response.read()

    async def begin(self, declared: Declared = PNG, uid: str = "alice") -> tuple[int, Any]:
        status, _, body = await self.ask("POST", "/v1/media", uid, json=declared._asdict())
        return status, json.loads(body)

    async def put(
        self, upload: str, offset: int, data: bytes, uid: str = "alice"
    ) -> tuple[int, str]:
        status, headers, _ = await self.ask(
            "PUT", f"/v1/uploads/{upload}?offset={offset}", uid, data=io.BytesIO(data)
        )
        return status, headers.get("Upload-Offset", "")

    async def complete(self, upload: str, uid: str = "alice") -> tuple[int, Any]:
        status, _, body = await self.ask("POST", f"/v1/uploads/{upload}", uid)
        return status, json.loads(body)

    async def uploaded(self, data: bytes = DATA, uid: str = "alice") -> str:
        """The path of the file."""
        declared = Declared(hashlib.sha256(data).hexdigest(), len(data), "image/png")
        upload = (await self.begin(declared, uid))[1]["upload"]
        for at in range(0, len(data), CHUNK_BYTES_MAX):
            await self.put(upload, at, data[at : at + CHUNK_BYTES_MAX], uid)
        status, body = await self.complete(upload, uid)
        assert status == 200
        return path_of(body["ref"])


def path_of(ref: dict[str, Any]) -> str:
    return f"/v1/media/{ref['idc']}/{ref['sha256']}/{ref['key']}"


@pytest.fixture
async def site(
    tmp_path: Path, pki_dir: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Site]:
    found = Site(tmp_path, pki_dir, getattr(request, "param", Media()))
    await found.start()
    yield found
    await found.stop()
    found.threads.shutdown()


def limits(**given: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("site", [Media(**given)], indirect=True)


async def test_an_upload_that_is_cut_anywhere_goes_on_where_it_was(site: Site) -> None:
    """After each chunk the service is started again; one chunk is cut off in its middle."""
    status, begun = await site.begin()
    assert (status, begun["offset"]) == (202, 0)
    upload, step = begun["upload"], 9_000
    for at in range(0, len(DATA), step):
        with pytest.raises(aiohttp.ClientError):

            async def half() -> AsyncIterator[bytes]:
                yield DATA[at : at + 100]  # noqa: B023 - it is used up before the next turn
                raise aiohttp.ClientError("the connection is gone")

            await site.ask(
                "PUT", f"/v1/uploads/{upload}?offset={at}", data=half(),
                headers={"Content-Length": str(step)},
            )  # fmt: skip
        await site.restart()
        status, headers, _ = await site.ask("HEAD", f"/v1/uploads/{upload}")
        assert (status, headers["Upload-Offset"]) == (200, str(at))
        assert (await site.begin())[1] == {"upload": upload, "offset": at}
        end = min(at + step, len(DATA))
        assert await site.put(upload, at, DATA[at:end]) == (204, str(end))
    status, kept = await site.complete(upload)
    assert status == 200
    assert kept["degraded"] is False
    await site.restart()
    status, headers, body = await site.ask("GET", path_of(kept["ref"]), "bob")
    assert (status, body, headers["ETag"]) == (200, DATA, f'"{SHA}"')
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"] == "attachment"


async def test_another_offset_or_hash_or_size_is_not_taken(site: Site) -> None:
    upload = (await site.begin())[1]["upload"]
    assert await site.put(upload, 5, b"x") == (412, "0")
    assert await site.put(upload, 0, DATA[:10]) == (204, "10")
    assert await site.put(upload, 0, DATA[:10]) == (412, "10")
    assert (await site.complete(upload))[0] == 412
    assert (await site.put(upload, 10, DATA))[0] == 400  # more than announced
    assert await site.put(upload, 10, b"x" * (len(DATA) - 10)) == (204, str(len(DATA)))
    status, body = await site.complete(upload)
    assert (status, body["error"]["code"]) == (400, "bad_request")
    assert (site.store.files, site.store.uploads, site.store.stored) == (0, 0, 0)
    assert (await site.begin())[1]["offset"] == 0


async def test_two_devices_that_send_the_same_go_on_with_one_upload(site: Site) -> None:
    first, second = await asyncio.gather(site.begin(), site.begin())
    assert first == second
    upload = first[1]["upload"]
    answers = await asyncio.gather(*(site.put(upload, 0, DATA[:1000]) for _ in range(4)))
    assert sorted(answers) == [(204, "1000"), *[(412, "1000")] * 3]
    assert await site.put(upload, 1000, DATA[1000:]) == (204, str(len(DATA)))
    answers_ = await asyncio.gather(site.complete(upload), site.complete(upload))
    assert sorted(status for status, _ in answers_) == [200, 404]
    assert (await site.begin())[0] == 200  # as the second one is told when it begins again


async def test_what_a_user_has_uploaded_is_known_and_nobody_else_is_told(site: Site) -> None:
    """Bytes are stored once, and another user's upload of them is an upload as ever."""
    path = await site.uploaded()
    status, body = await site.begin()
    assert (status, path_of(body["ref"])) == (200, path)
    assert (await site.begin(uid="bob"))[0] == 202
    other = await site.uploaded(uid="bob")
    assert other != path
    assert (site.store.files, site.store.stored) == (1, len(DATA))
    # The hash alone leads to nothing, nor does the key with another hash.
    sha, key = path.split("/")[-2:]
    for guess in (f"/v1/media/fra/{sha}/{'0' * 32}", f"/v1/media/fra/{'0' * 64}/{key}",
                  f"/v1/media/fra/../{key}", f"/v1/media/nowhere/{sha}/{key}"):  # fmt: skip
        assert (await site.ask("GET", guess))[0] == 404


async def test_nobody_without_a_token_and_nobody_elses_upload(site: Site) -> None:
    path = await site.uploaded()
    upload = (await site.begin(PNG._replace(type="image/gif")))[1]["upload"]
    for method, where in (
        ("POST", "/v1/media"), ("PUT", f"/v1/uploads/{upload}?offset=0"),
        ("HEAD", f"/v1/uploads/{upload}"), ("POST", f"/v1/uploads/{upload}"),
        ("GET", path), ("DELETE", path),
    ):  # fmt: skip
        assert (await site.ask(method, where, token="x.y"))[0] == 401
    assert (await site.put(upload, 0, b"x", "bob"))[0] == 404
    assert (await site.complete(upload, "bob"))[0] == 404
    assert (await site.ask("HEAD", f"/v1/uploads/{upload}", "bob"))[0] == 404


@pytest.mark.parametrize(
    ("header", "status", "expected", "content_range"),
    [
        ("bytes=0-0", 206, DATA[:1], "bytes 0-0/25600"),
        ("bytes=10-19", 206, DATA[10:20], "bytes 10-19/25600"),
        ("bytes=25599-", 206, DATA[-1:], "bytes 25599-25599/25600"),
        ("bytes=-5", 206, DATA[-5:], "bytes 25595-25599/25600"),
        ("bytes=0-99999", 206, DATA, "bytes 0-25599/25600"),
        ("bytes=-99999", 206, DATA, "bytes 0-25599/25600"),
        ("bytes=25600-", 416, b"", "bytes */25600"),
        ("bytes=-0", 416, b"", "bytes */25600"),
        ("bytes=5-4", 200, DATA, ""),
        ("bytes=0-1,4-5", 200, DATA, ""),
        ("lines=1-2", 200, DATA, ""),
        ("bytes=-", 200, DATA, ""),
    ],
)
async def test_ranges(
    site: Site, header: str, status: int, expected: bytes, content_range: str
) -> None:
    path = await site.uploaded()
    found, headers, body = await site.ask("GET", path, headers={"Range": header})
    assert (found, body) == (status, expected)
    assert headers.get("Content-Range", "") == content_range


async def test_etags(site: Site) -> None:
    path = await site.uploaded()
    status, _, body = await site.ask("GET", path, headers={"If-None-Match": f'"x", "{SHA}"'})
    assert (status, body) == (304, b"")
    part = {"Range": "bytes=0-1"}
    assert (await site.ask("GET", path, headers=part | {"If-Range": f'"{SHA}"'}))[2] == DATA[:2]
    assert (await site.ask("GET", path, headers=part | {"If-Range": '"other"'}))[2] == DATA
    status, headers, body = await site.ask("HEAD", path)
    assert (status, headers["Content-Length"], body) == (200, str(len(DATA)), b"")


async def test_only_its_uploader_or_an_admin_deletes_and_others_keep_theirs(site: Site) -> None:
    mine, others = await site.uploaded(), await site.uploaded(uid="bob")
    assert (await site.ask("DELETE", mine, "bob"))[0] == 403
    assert (await site.ask("DELETE", mine))[0] == 204
    assert (await site.ask("GET", mine))[0] == 404
    assert (await site.ask("GET", others))[2] == DATA
    assert (await site.ask("DELETE", others, token=site.token("root", admin=True)))[0] == 204
    assert (site.store.files, site.store.stored) == (0, 0)
    assert (await site.begin())[0] == 202


async def test_pictures_are_asked_for_thumbnails_and_near_duplicates(site: Site) -> None:
    path, other = await site.uploaded(), await site.uploaded(DATA[:100])
    bobs, none = await site.uploaded(DATA[:99], "bob"), await site.uploaded(b"nothing to see")
    status, headers, body = await site.ask("GET", f"{path}/thumbnail", "bob")
    assert (status, headers["Content-Type"], body) == (200, "image/jpeg", b"small")
    assert (await site.ask("GET", f"{none}/thumbnail"))[0] == 404
    assert (await site.ask("GET", f"{none}/similar"))[0] == 404

    async def similar(query: str = "", **who: Any) -> tuple[int, set[str]]:
        status, _, body = await site.ask("GET", f"{path}/similar{query}", **who)
        return status, {path_of(row["ref"]) for row in json.loads(body).get("similar", ())}

    assert await similar() == (200, {path, other})
    assert await similar("?distance=0", token=site.token("root", admin=True)) == (
        200, {path, other, bobs},
    )  # fmt: skip
    assert await similar(uid="carol") == (200, set())
    assert (await similar("?distance=33"))[0] == 400
    assert 429 in [(await similar())[0] for _ in range(20)]
    await site.restart()
    assert await similar() == (200, {path, other})
    assert (await site.begin())[1]["ref"]["width"] == 4


async def test_an_admin_sets_the_catalogue_of_stickers_and_all_read_it(site: Site) -> None:
    root = site.token("root", admin=True)
    await site.uploaded()
    ref = (await site.begin())[1]["ref"]
    assert (await site.ask("GET", "/v1/stickers"))[2] == b"{}"
    assert (await site.ask("PUT", "/v1/stickers", json={"smile": ref}))[0] == 403
    assert (await site.ask("GET", "/v1/stickers", token="x.y"))[0] == 401
    wrongs: list[Any] = [[], {"Smile!": ref}, {"smile": {}}, {"smile": ref | {"key": "x"}}]
    for wrong in (*wrongs, {f"s{n}": ref for n in range(STICKERS_MAX + 1)}):
        assert (await site.ask("PUT", "/v1/stickers", token=root, json=wrong))[0] in (400, 413)
    nothing = ref | {"key": "0" * 32}
    assert (await site.ask("PUT", "/v1/stickers", token=root, json={"a": nothing}))[0] == 404
    assert site.register is None
    assert (await site.ask("PUT", "/v1/stickers", token=root, json={"smile": ref}))[0] == 204
    assert json.loads((await site.ask("GET", "/v1/stickers"))[2]) == {"smile": ref}
    # The last one known is told while no majority answers.
    site.register = b"lost"
    site.stickers._known_at -= 2 * FRESH_S
    assert json.loads((await site.ask("GET", "/v1/stickers"))[2]) == {"smile": ref}


@pytest.mark.parametrize(
    "document",
    [
        {}, [], None, {"sha256": SHA, "size": -1, "type": "image/png"},
        {"sha256": SHA.upper(), "size": 1, "type": "image/png"},
        {"sha256": SHA, "size": True, "type": "image/png"},
        {"sha256": SHA, "size": 1, "type": "image/png\r\nX: y"},
        {"sha256": SHA, "size": 1, "type": "image/png", "uid": "bob"},
    ],
)  # fmt: skip
async def test_what_is_no_announcement_is_refused(site: Site, document: Any) -> None:
    assert (await site.ask("POST", "/v1/media", json=document))[0] == 400


@limits(bytes_max=50_000, store_bytes_max=60_000, user_uploads=2)
async def test_sizes_and_numbers_are_limited(site: Site) -> None:
    assert (await site.begin(PNG._replace(size=50_001)))[0] == 413
    await site.uploaded()
    assert (await site.begin(Declared("0" * 64, 10_000, "a/b")))[0] == 202
    assert (await site.begin(Declared("1" * 64, 10_000, "a/b")))[0] == 202
    status, body = await site.begin(Declared("2" * 64, 1, "a/b"))
    assert (status, body["error"]["code"]) == (429, "overloaded")
    status, body = await site.begin(Declared("2" * 64, 40_000, "a/b"), "bob")
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert body["error"]["retry_after_ms"] >= 60_000
    assert (await site.begin(Declared("2" * 64, 1_000, "a/b"), "bob"))[0] == 202
    upload = (await site.begin(Declared("0" * 64, 10_000, "a/b")))[1]["upload"]
    assert (await site.put(upload, 0, b"x" * (CHUNK_BYTES_MAX + 1)))[0] == 413


@limits(bytes_max=50_000, store_bytes_max=60_000)
async def test_who_announces_files_and_sends_nothing_takes_no_room(site: Site) -> None:
    for number in range(24):
        declared = Declared(f"{number:064}", 50_000, "a/b")
        assert (await site.begin(declared, f"mallory{number % 3}"))[0] == 202
    assert (site.store.stored, site.store.uploads) == (0, 24)
    await site.uploaded(uid="bob")
    # Those who announced more than there is are told when they send it.
    upload = (await site.begin(Declared("0" * 64, 50_000, "a/b"), "mallory0"))[1]["upload"]
    assert (await site.put(upload, 0, bytes(34_000), "mallory0"))[0] == 204
    path = f"/v1/uploads/{upload}?offset=34000"
    status, _, body = await site.ask("PUT", path, "mallory0", data=bytes(1_000))
    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
    assert site.store.stored == len(DATA) + 34_000
    await site.restart()
    assert site.store.stored == len(DATA) + 34_000


@limits(user_bytes_max=30_000)
async def test_one_user_fills_his_share_and_no_more(site: Site) -> None:
    path = await site.uploaded()
    status, body = await site.begin(Declared("0" * 64, 4_401, "a/b"))
    assert (status, body["error"]["code"]) == (413, "quota")
    assert "25600 of 30000 bytes" in body["error"]["message"]
    # An upload takes as much as it is announced with, of this share alone.
    upload = (await site.begin(Declared("0" * 64, 4_000, "a/b")))[1]["upload"]
    for _ in range(2):
        assert (await site.begin(Declared("1" * 64, 401, "a/b")))[0] == 413
        await site.restart()  # what a later life finds is the same
    assert (await site.put(upload, 0, bytes(4_000)))[0] == 204
    assert (await site.complete(upload))[0] == 400  # other bytes: they are gone
    assert (await site.begin(Declared("1" * 64, 4_400, "a/b")))[0] == 202
    await site.uploaded(uid="bob")  # the same bytes: each has them in his share
    assert (await site.begin(Declared("2" * 64, 1, "a/b")))[0] == 413
    assert (await site.ask("DELETE", path))[0] == 204
    assert (await site.begin(Declared("2" * 64, 25_600, "a/b")))[0] == 202
    assert (await site.begin(Declared("3" * 64, 4_401, "a/b"), "bob"))[0] == 413


@limits(user_bytes_max=60_000)
async def test_a_file_counts_once_for_each_user_until_the_last_name_of_it_is_gone(
    site: Site,
) -> None:
    path = await site.uploaded()
    upload = (await site.begin(PNG._replace(type="a/b")))[1]["upload"]
    await site.put(upload, 0, DATA)
    other = path_of((await site.complete(upload))[1]["ref"])
    assert other != path

    async def room(size: int) -> bool:
        status, body = await site.begin(Declared("0" * 64, size, "a/b"))
        if status == 202:  # and is thrown away again
            await site.put(body["upload"], 0, bytes(size))
            assert (await site.complete(body["upload"]))[0] == 400
        return status == 202

    assert await room(60_000 - 25_600) and not await room(60_001 - 25_600)
    assert (await site.ask("DELETE", path))[0] == 204
    assert not await room(60_001 - 25_600)
    await site.restart()
    assert not await room(60_001 - 25_600)
    assert (await site.ask("DELETE", other, token=site.token("root", admin=True)))[0] == 204
    assert await room(60_000)


@limits(transfers=64, user_bytes_per_s=20_000)
async def test_those_who_read_slowly_do_not_take_all_transfers(site: Site) -> None:
    data = bytes(900_000)
    path = await site.uploaded(data)

    told: asyncio.Queue[int] = asyncio.Queue()
    tls = client_ssl_context(site.pki_dir / "ca.pem")
    connector = aiohttp.TCPConnector(ssl=tls, limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:

        async def slow(uid: str) -> None:
            headers = {"Authorization": f"Bearer {site.token(uid)}"}
            async with http.get(site.url + path, headers=headers) as response:
                told.put_nowait(response.status)
                await response.read()

        tasks = [asyncio.ensure_future(slow(f"mallory{n % 8}")) for n in range(64)]
        statuses = Counter([await told.get() for _ in tasks])
        assert statuses[200] >= 8 and statuses[429] >= 24, statuses
        for number in range(10):
            some = {"Range": "bytes=0-9"}
            status, _, body = await site.ask("GET", path, f"u{number}", headers=some)
            assert (status, body) == (206, data[:10])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@limits(user_bytes_per_s=1_000)
async def test_one_user_sends_so_many_bytes_a_second(site: Site) -> None:
    upload = (await site.begin())[1]["upload"]
    assert (await site.put(upload, 0, DATA[:15_000]))[0] == 204
    status, _, body = await site.ask(
        "PUT", f"/v1/uploads/{upload}?offset=15000", data=DATA[15_000:]
    )
    assert status == 429
    assert json.loads(body)["error"]["retry_after_ms"] > 1_000
    other = (await site.begin(uid="bob"))[1]["upload"]
    assert (await site.put(other, 0, DATA[:100], "bob"))[0] == 204


async def test_one_user_asks_so_often_a_second_and_others_are_served(site: Site) -> None:
    unknown = f"/v1/media/iad/{SHA}/{'0' * 32}"
    assert (await site.ask("GET", unknown))[0] == 404
    site.api._asked.take("alice", site.wall.now(), REQUESTS_BURST + 60 * REQUESTS_PER_S)
    status, _, body = await site.ask("GET", unknown)
    assert status == 429
    assert json.loads(body)["error"]["retry_after_ms"] > 30_000
    assert (await site.ask("GET", unknown, "bob"))[0] == 404


async def test_uploads_that_take_too_long_are_swept_and_nothing_else(site: Site) -> None:
    path = await site.uploaded(b"done")
    upload = (await site.begin())[1]["upload"]
    await site.put(upload, 0, DATA[:10])
    site.wall.moved_ms = 86_300_000
    await site.store.sweep()
    assert site.store.uploads == 1
    site.wall.moved_ms = 86_402_000
    await site.store.sweep()
    assert (site.store.uploads, site.store.stored, site.store.counters.swept) == (0, 4, 1)
    site.wall.moved_ms = 0
    assert (await site.ask("GET", path))[2] == b"done"
    assert not list((site.folder / "media" / "uploads").iterdir())


async def test_a_full_disk_refuses_and_the_upload_goes_on_later(site: Site) -> None:
    upload = (await site.begin())[1]["upload"]
    await site.put(upload, 0, DATA[:10])
    site.disk.faults.full = True
    status, _, body = await site.ask("PUT", f"/v1/uploads/{upload}?offset=10", data=DATA[10:])
    assert status == 503
    assert json.loads(body)["error"] == {
        "code": "unavailable", "message": "the disk of this IDC is full", "retry_after_ms": 60_000,
    }  # fmt: skip
    assert (await site.begin(uid="bob"))[0] == 503
    assert site.store.uploads == 1
    site.disk.faults.full = False
    assert await site.put(upload, 10, DATA[10:]) == (204, str(len(DATA)))
    assert (await site.complete(upload))[0] == 200


@pytest.mark.parametrize("problem", [errno.EIO, errno.EROFS, errno.EMFILE])
async def test_where_files_lie_is_for_the_log_and_not_for_clients(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, problem: int
) -> None:
    upload = (await site.begin())[1]["upload"]

    def failing(*_: object) -> None:
        raise OSError(problem, os.strerror(problem))

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "im.https"):
        patch.setattr(os, "pwrite", failing)
        status, _, body = await site.ask("PUT", f"/v1/uploads/{upload}?offset=0", data=DATA[:10])
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (503, "unavailable")
    assert error["message"] == "the disk of this IDC's files gives an error"
    assert ".part" in caplog.text and os.strerror(problem) in caplog.text
    assert await site.put(upload, 0, DATA[:10]) == (204, "10")


# --------------------------------------------------------------------------------- across IDCs


class Idc:
    def __init__(self, folder: Path, pki: IpconfSite, name: str, messages: Messages) -> None:
        self.threads = ThreadPoolExecutor(2)
        self.near = Near(lambda: self.store)
        self.peers: dict[str, Near] = {}
        blobs = FileBlobs(str(folder / name), RealDisk(), self.threads)
        self.store = MediaStore(name, blobs, Media(), messages, pki.keys, SystemClock(), self.peers)

    async def upload(self, data: bytes = DATA, uid: str = "ann") -> Kept:
        declared = Declared(hashlib.sha256(data).hexdigest(), len(data), "image/png")
        begun = await self.store.begin(uid, declared)
        assert isinstance(begun, Begun)
        await self.store.put(uid, begun.upload, 0, data)
        return await self.store.complete(uid, begun.upload)

    async def content(self, name: MediaName) -> bytes:
        record = await self.store.find(name)
        return b"".join([each async for each in self.store.read(name, 0, record.size, 999)])


@pytest.fixture
async def idcs(
    tmp_path: Path, pki_dir: Path, request: pytest.FixtureRequest
) -> AsyncIterator[dict[str, Idc]]:
    messages = getattr(request, "param", Messages())
    keys = IpconfSite(tmp_path, pki_dir)
    found = {name: Idc(tmp_path, keys, name, messages) for name in IDCS}
    for idc in found.values():
        idc.peers |= {n: other.near for n, other in found.items() if other is not idc}
        await idc.store.load()
    yield found
    for idc in found.values():
        idc.threads.shutdown()


async def test_another_idc_fetches_once_and_keeps_it(idcs: dict[str, Idc]) -> None:
    name = (await idcs["fra"].upload()).ref.named
    iad = idcs["iad"]
    contents = await asyncio.gather(*(iad.content(name) for _ in range(5)))
    assert contents == [DATA] * 5
    assert idcs["fra"].near.reads == [0]
    idcs["fra"].near.up = False
    assert await iad.content(name) == DATA
    assert await idcs["sin"].content(name) == DATA  # from the copy
    assert iad.near.reads == [0]


async def test_every_idc_fetches_the_stickers_ahead(idcs: dict[str, Idc]) -> None:
    ref = (await idcs["fra"].upload()).ref
    register: list[bytes] = []

    async def read() -> bytes | None:
        return register[-1] if register else None

    async def replace(document: bytes) -> None:
        register.append(document)

    await Stickers(read, replace, idcs["fra"].store.keep, SystemClock()).replace({"smile": ref})
    iad = Stickers(read, replace, idcs["iad"].store.keep, SystemClock())
    running = asyncio.ensure_future(iad.run())
    async with asyncio.timeout(20):
        while not iad._here:  # noqa: ASYNC110 - a set of another object
            await asyncio.sleep(0.01)
    running.cancel()
    idcs["fra"].near.up = False
    named = (await iad.catalogue())["smile"].named
    assert await idcs["iad"].content(named) == DATA


async def test_a_sticker_whose_file_is_deleted_is_fetched_again(
    idcs: dict[str, Idc], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stickers, "LOOK_S", 0.01)
    ref = (await idcs["fra"].upload()).ref
    catalogue = json.dumps({"smile": ref_json(ref)}).encode()

    async def read() -> bytes | None:
        return catalogue

    async def replace(document: bytes) -> None: ...

    store = idcs["iad"].store
    kept = Stickers(read, replace, store.keep, SystemClock())
    store.on_deleted = kept.deleted
    running = asyncio.ensure_future(kept.run())
    async with asyncio.timeout(20):
        for deleted in (False, True):
            if deleted:
                await store.delete("", True, ref.named)
            while not await store.keeps(ref.named):  # noqa: ASYNC110 - another task fetches it
                await asyncio.sleep(0.01)
    running.cancel()


async def test_a_fetch_that_is_cut_goes_on_where_it_was(idcs: dict[str, Idc]) -> None:
    name = (await idcs["fra"].upload()).ref.named
    idcs["fra"].near.cut_after = 3
    with pytest.raises(Unavailable, match="try later"):
        await idcs["iad"].store.find(name)
    assert await idcs["iad"].content(name) == DATA
    assert idcs["fra"].near.reads == [0, 3_000]
    assert idcs["iad"].store.uploads == 0


async def test_what_nobody_fetched_comes_back_with_its_idc(idcs: dict[str, Idc]) -> None:
    name = (await idcs["fra"].upload()).ref.named
    idcs["fra"].near.up = False
    with pytest.raises(Unavailable, match="fra may have it, try later"):
        await idcs["iad"].store.find(name)
    idcs["fra"].near.up = True
    assert await idcs["iad"].content(name) == DATA


@pytest.mark.parametrize("idcs", [Messages(ack="replicated")], indirect=True)
async def test_where_messages_are_replicated_so_are_files(idcs: dict[str, Idc]) -> None:
    kept = await idcs["fra"].upload()
    assert not kept.degraded
    idcs["fra"].near.up = False
    assert await idcs["iad"].content(kept.ref.named) == DATA
    idcs["fra"].near.up, idcs["iad"].near.up, idcs["sin"].near.up = True, False, False
    assert (await idcs["fra"].upload(b"other")).degraded


@pytest.mark.parametrize(
    "idcs",
    [Messages(ack="replicated", when_unreplicated=WhenUnreplicated.REFUSE)],
    indirect=True,
)
async def test_a_file_that_nobody_else_takes_is_refused_if_asked_for(
    idcs: dict[str, Idc],
) -> None:
    idcs["iad"].near.up = idcs["sin"].near.up = False
    with pytest.raises(Unavailable, match="no other IDC"):
        await idcs["fra"].upload()
    with pytest.raises(Unavailable, match="no other IDC"):  # nor when it is asked for again
        await idcs["fra"].store.begin("ann", PNG)
    idcs["sin"].near.up = True
    assert isinstance(await idcs["fra"].store.begin("ann", PNG), Kept)
