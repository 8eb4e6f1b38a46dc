"""Files in a bucket of a real S3 server that is killed, paused, filled, or that lets nobody in."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import random
import re
import secrets
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from imcore import pki
from imcore.errors import BadInput, DiskFull, ImError, NotTrusted, Refused, Unavailable
from imcore.media import CHUNK_BYTES_MAX
from imcore.region.model import Media, Messages
from imcore.runtime import SystemClock
from imctl import startup
from imctl.engines.binaries import Program
from imctl.target.local import COPY, LINKPROXY, Local
from imctl.target.places import free_port
from imctl.testing.lab import lab_region
from imctl.testing.s3 import BUCKET, CREDENTIALS, REGION, S3Process, running
from services.engines.disk import RealDisk
from services.engines.s3 import blobs as engine
from services.engines.s3.blobs import S3Blobs
from services.engines.s3.client import DEADLINE_S as CLIENT_DEADLINE_S
from services.engines.s3.client import Answer, Large, S3Client, S3Settings, _watched
from services.engines.s3.layout import Span, chunk_key, note_key
from services.engines.s3.signing import Query
from services.media.server import MediaApi
from services.media.stickers import Stickers
from services.media.store import MediaStore
from services.node.config import NodeConfig, load
from services.node.engines import open_blobs
from services.node.testing_ipconf import IDCS, IpconfSite
from services.ports import Blobs

DATA = random.Random(8).randbytes(3 << 20)
SHA = hashlib.sha256(DATA).hexdigest()
DEADLINE_S, ATTEMPT_S = 2.0, 1.0  # of who asks a server that stands still
SLACK_S = 5.0  # a busy machine


Open = Callable[..., S3Blobs]


@pytest.fixture
def settings(s3_process: S3Process) -> S3Settings:
    return s3_process.settings(f"faults/{secrets.token_hex(4)}/")


@pytest.fixture
async def opened(settings: S3Settings) -> AsyncIterator[Open]:
    """``opened()``: again on the same, a later life. ``hasty``: with short deadlines."""
    lives: list[S3Blobs] = []

    def again(hasty: bool = False) -> S3Blobs:
        chosen = replace(settings, deadline_s=DEADLINE_S, attempt_s=ATTEMPT_S)
        lives.append(S3Blobs(S3Client(chosen if hasty else settings, SystemClock())))
        return lives[-1]

    yield again
    for life in lives:
        await life.close()


@pytest.fixture
async def client(settings: S3Settings) -> AsyncIterator[S3Client]:
    """For what the engine never does itself."""
    found = S3Client(settings, SystemClock())
    yield found
    await found.close()


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came so far")


async def keys(client: S3Client, prefix: str = "") -> list[str]:
    return [each.key async for page in client.pages(prefix) for each in page.objects]


# ---------------------------------------------------------------------------- away, and back


async def test_a_killed_server_comes_back_with_every_chunk_that_was_answered(
    s3_process: S3Process, opened: Open
) -> None:
    blobs = opened()
    await blobs.begin("u", b"note")
    sizes = [100_000, 7, CHUNK_BYTES_MAX, 300_000]
    at = 0
    for number, size in enumerate(sizes):
        await blobs.put("u", at, DATA[at : at + size])
        at += size
        if number == 1:
            await asyncio.to_thread(s3_process.kill)
            started, hasty = time.monotonic(), opened(hasty=True)
            for call in (blobs.put("u", at, b"x"), hasty.begin("v", b""), hasty.files()):
                with pytest.raises(Unavailable, match=r"fra's S3 at 127.0.0.1:\d+ "):
                    await call
            assert time.monotonic() - started < 2 * DEADLINE_S + CLIENT_DEADLINE_S + 3 * SLACK_S
            await asyncio.to_thread(s3_process.start)
            assert await blobs.uploaded("u") == at
    assert await opened().uploads() == {"u": (b"note", at)}
    await blobs.put("u", at, DATA[at : at + CHUNK_BYTES_MAX])
    at += CHUNK_BYTES_MAX
    await blobs.put("u", at, DATA[at:])
    assert await blobs.complete("u", SHA)
    assert await opened().read(SHA, 0, len(DATA)) == DATA


async def test_an_upload_under_kills_loses_nothing_that_was_answered(
    s3_process: S3Process, opened: Open
) -> None:
    """Killed again and again while chunks are sent, and in the middle of becoming a file."""
    rng = random.Random(1)
    blobs = opened()
    await blobs.begin("u", b"")
    answered, done = 0, False

    async def upload() -> None:
        nonlocal answered, done
        while not done:
            try:
                at = await blobs.uploaded("u")
                assert at >= answered  # what was answered is there
                if at == len(DATA):
                    done = await blobs.complete("u", SHA)
                    assert done
                    return
                size = rng.randrange(1, 200_000)
                await blobs.put("u", at, DATA[at : at + size])
                answered = min(len(DATA), at + size)
            except Unavailable:
                await asyncio.sleep(0.02)

    task = asyncio.create_task(upload())
    for _ in range(6):
        await asyncio.sleep(rng.uniform(0.05, 0.2))
        await asyncio.to_thread(s3_process.kill)
        await asyncio.sleep(0.05)
        await asyncio.to_thread(s3_process.start)
    await asyncio.wait_for(task, 60)
    assert await opened().read(SHA, 0, len(DATA)) == DATA
    assert await opened().uploads() == {}


async def test_a_paused_server_costs_a_deadline_and_nothing_else(
    s3_process: S3Process, opened: Open
) -> None:
    blobs = opened()
    await blobs.begin("u", b"")
    await blobs.put("u", 0, DATA[:1000])
    hasty = opened(hasty=True)
    assert await hasty.uploaded("u") == 1000
    s3_process.pause()
    try:
        for call in (hasty.put("u", 1000, DATA[1000:]), hasty.files(), hasty.note(SHA, "a")):
            started = time.monotonic()
            with pytest.raises(Unavailable, match="does not answer in time") as raised:
                await call
            assert time.monotonic() - started < DEADLINE_S + SLACK_S
            assert raised.value.retry_after_ms > 0
    finally:
        s3_process.resume()
    # The chunk may have arrived all the same: it goes on where it says.
    later = opened()
    at = await later.uploaded("u")
    assert at in (1000, len(DATA))
    if at == 1000:
        await later.put("u", at, DATA[at:])
    assert await later.complete("u", SHA)


async def test_a_client_that_is_closed_leaves_no_connection_to_a_paused_server(
    s3_process: S3Process, settings: S3Settings
) -> None:
    """Not those of requests that were given up either, for whose end TLS waits 30 s."""

    server = urlsplit(settings.endpoint)

    def to_it(each: object) -> bool:
        try:
            return isinstance(each, socket.socket) and each.getpeername() == (
                server.hostname,
                server.port,
            )
        except OSError:  # closed, or a listener
            return False

    client = S3Client(settings, SystemClock())
    await client.put("a", b"1")
    s3_process.pause()
    try:
        given_up = [asyncio.create_task(client.get("a")) for _ in range(3)]
        await asyncio.sleep(0.2)
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
        await client.close()
        assert [each for each in gc.get_objects() if to_it(each)] == []
    finally:
        s3_process.resume()


async def test_a_server_paused_while_a_file_is_made_of_its_chunks(
    s3_process: S3Process, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, hasty = opened(), opened(hasty=True)
    await blobs.begin("u", b"")
    for at in range(0, len(DATA), 1 << 19):
        await blobs.put("u", at, DATA[at : at + (1 << 19)])
    for pause_s in (0.01, 0.03, 0.06):
        with monkeypatch.context() as patched:
            # Before it begins: a body reads them whenever a piece is taken.
            patched.setattr("services.engines.s3.client.STALL_S", 1.0)
            patched.setattr("services.engines.s3.client.FINISH_S", 1.0)
            completing = asyncio.create_task(hasty.complete("u", SHA))
            await asyncio.sleep(pause_s)
            s3_process.pause()
            try:
                started = time.monotonic()
                with suppress(Unavailable):
                    assert await completing
                assert time.monotonic() - started < 4 * DEADLINE_S + SLACK_S
            finally:
                s3_process.resume()
        if await opened().files():
            break
        assert await opened().uploaded("u") == len(DATA)
    else:
        assert await blobs.complete("u", SHA)
    assert await opened().read(SHA, 0, len(DATA)) == DATA


@pytest.mark.parametrize("raises", [Unavailable("gone"), RuntimeError("a bug")], ids=repr)
async def test_of_what_a_body_raises_errors_of_this_project_come_out_as_they_are(
    settings: S3Settings, raises: Exception
) -> None:
    deadline_s = 20.0 if isinstance(raises, Unavailable) else 0.5  # until then it is tried again
    client = S3Client(replace(settings, deadline_s=deadline_s), SystemClock())

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise raises

    with pytest.raises(Unavailable) as raised:
        await client.put_large("large", Large(pieces, 1000, SHA))
    assert isinstance(raises, Unavailable) == (raised.value is raises)
    await client.close()


async def test_a_limit_that_is_over_is_not_what_the_body_raised() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"x"

    raised: list[BaseException] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01) as limit:
            await asyncio.sleep(1)
    assert [piece async for piece in _watched(Large(pieces, 1, SHA), limit, raised)] == [b"x"]
    assert raised == []


async def test_who_asks_and_is_gone_leaves_it_as_it_is(opened: Open) -> None:
    blobs = opened()
    await blobs.begin("u", b"")
    await blobs.put("u", 0, DATA)
    for wait_s in (0.0, 0.001, 0.005, 0.02):
        task = asyncio.create_task(blobs.complete("u", SHA))
        await asyncio.sleep(wait_s)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    blobs = opened()
    if "u" in await blobs.uploads():
        assert await blobs.complete("u", SHA)
    assert await blobs.files() == {SHA: len(DATA)}
    assert await blobs.read(SHA, 5, 1000) == DATA[5:1005]


# ------------------------------------------------------------- what comes late, again, or twice


async def test_two_processes_go_on_with_one_upload(opened: Open) -> None:
    one, two = opened(), opened()
    await one.begin("u", b"")
    await one.put("u", 0, DATA[:1000])
    assert await two.uploads() == {"u": (b"", 1000)}
    await two.put("u", 1000, DATA[1000:5000])
    await one.put("u", 1000, DATA[1000:3000])  # it knows nothing of that one
    await two.put("u", 5000, DATA[5000:9000])
    assert await opened().uploaded("u") == 9000
    await two.put("u", 9000, DATA[9000:])
    assert await one.complete("u", SHA)
    assert await two.read(SHA, 0, len(DATA)) == DATA


async def test_a_chunk_that_arrives_late_or_again_takes_nothing_away(
    opened: Open, client: S3Client
) -> None:
    blobs = opened()
    await blobs.begin("u", b"")
    (note,) = await keys(client, "uploads/u/")
    life = note.split("/")[2]
    await blobs.put("u", 0, DATA[:500])
    await blobs.put("u", 500, DATA[500:1500])
    await client.put(chunk_key("u", life, Span(0, 1000)), DATA[:1000])  # of 0 to 1000: given up
    await client.put(chunk_key("u", life, Span(0, 500)), DATA[:500])
    assert await opened().uploaded("u") == 1500
    await blobs.put("u", 1500, DATA[1500:])
    assert await opened().complete("u", SHA)


async def test_what_is_left_of_an_earlier_life_is_none_of_this_one(
    opened: Open, client: S3Client
) -> None:
    blobs = opened()
    await blobs.begin("u", b"")
    await blobs.put("u", 0, b"other")
    life = (await keys(client, "uploads/u/"))[0].split("/")[2]
    await blobs.abandon("u")
    await blobs.begin("u", b"second")
    await client.put(chunk_key("u", life, Span(0, 5)), b"other")  # late
    await blobs.put("u", 0, DATA[:1000])
    await client.put(note_key("u", "ffff"), b"late")  # another beginning of it, without bytes
    assert await opened().uploaded("u") == 1000
    assert await opened().uploads() == {"u": (b"second", 1000)}
    assert not [key for key in await keys(client, "uploads/u/") if life in key]  # removed
    await blobs.put("u", 1000, DATA[1000:])
    assert await blobs.complete("u", SHA)
    assert await keys(client, "uploads/") == []


async def test_a_process_that_died_between_file_and_removal_is_tidied_up(
    opened: Open, client: S3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = opened()

    async def dies(upload: str) -> None:
        raise Unavailable("killed here")

    await blobs.begin("u", b"")
    await blobs.put("u", 0, DATA)
    monkeypatch.setattr(blobs, "abandon", dies)
    assert await blobs.complete("u", SHA)
    assert await opened().uploads() == {"u": (b"", len(DATA))}
    assert await opened().complete("u", SHA)  # again, by who did not hear of it
    assert await keys(client) == [f"files/{SHA}"]


async def test_a_list_that_lacks_what_was_answered_throws_nothing_away(
    opened: Open, client: S3Client
) -> None:
    """As one of a store that promises too much. The chunk is hidden by being taken away."""
    blobs = opened()
    await blobs.begin("u", b"note")
    await blobs.put("u", 0, DATA[:1000])
    await blobs.put("u", 1000, DATA[1000:])
    (last,) = [key for key in await keys(client, "uploads/u/") if "00003e8-" in key]
    await client.delete(last)
    with pytest.raises(Unavailable, match="does not list"):
        await blobs.complete("u", SHA)
    assert await blobs.uploaded("u") == 1000  # the list's word from here on
    assert await opened().uploads() == {"u": (b"note", 1000)}
    await blobs.put("u", 1000, DATA[1000:])
    assert await blobs.complete("u", SHA)


async def test_many_tiny_chunks_are_refused_at_last(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHUNKS_FREE", 4)
    monkeypatch.setattr(engine, "CHUNK_BYTES_MIN", 1000)
    blobs = opened()
    await blobs.begin("u", b"")
    for at in range(4):
        await blobs.put("u", at, b"x")
    with pytest.raises(Refused, match="at least 1000 bytes"):
        await blobs.put("u", 4, b"x")
    assert await opened().uploaded("u") == 4
    with pytest.raises(Refused):
        await opened().put("u", 4, b"x")
    later = opened()
    for at in range(4, 4004, 1000):  # who does as he is told goes on
        await later.put("u", at, DATA[:1000])
    with pytest.raises(Refused):
        await later.put("u", 4004, b"x")
    await later.put("u", 4004, b"x", last=True)  # and comes to an end


async def test_lists_of_more_than_a_page(opened: Open, client: S3Client) -> None:
    names = [f"{number:064x}" for number in range(0, 1 << 252, (1 << 252) // 1100)]
    await engine._each(lambda name: client.put(f"files/{name}", b"1"), names)
    assert await opened().files() == dict.fromkeys(names, 1)


async def test_every_list_is_one_below_the_prefix(
    opened: Open, settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials may be restricted to it. That server has no users to try it with."""
    asked: list[tuple[str | None, dict[str, str]]] = []
    ask = S3Client._ask

    async def noting(
        self: S3Client, method: str, key: str | None, query: Query = (), *more: Any, **named: Any
    ) -> Answer:
        asked.append((key, dict(query)))
        return await ask(self, method, key, query, *more, **named)

    monkeypatch.setattr(S3Client, "_ask", noting)
    blobs = opened()
    await blobs.look()
    await blobs.uploads()
    await blobs.files()
    await blobs.noted()
    lists = [query.get("prefix", "") for key, query in asked if key is None]
    assert len(lists) > 5
    assert all(prefix.startswith(settings.prefix) for prefix in lists), lists


# --------------------------------------------------------------------------- refusals, errors


async def test_a_full_server_refuses_and_goes_on_when_there_is_room(
    s3_program: Program,
    pki_dir: Path,
    tmp_path: Path,
    mount_tmpfs: Callable[[Path, str], None],
) -> None:
    mount_tmpfs(tmp_path / "s3", "4m")
    with running(s3_program, tmp_path, pki_dir) as process:
        blobs = S3Blobs(S3Client(process.settings("p/"), SystemClock()))
        await blobs.begin("u", b"")
        await blobs.put("u", 0, DATA[:1000])
        filler = process.data / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        with pytest.raises(DiskFull, match="has no room") as raised:
            await blobs.put("u", 1000, DATA[1000:1_000_000])
        assert raised.value.retry_after_ms >= 1000
        assert await blobs.uploaded("u") == 1000
        filler.unlink()
        await blobs.put("u", 1000, DATA[1000:500_000])
        sha256 = hashlib.sha256(DATA[:500_000]).hexdigest()
        assert await blobs.complete("u", sha256)
        await blobs.close()


@pytest.fixture
def config(
    tmp_path: Path, pki_dir: Path, s3_process: S3Process
) -> Iterator[Callable[..., NodeConfig]]:
    """``config(bucket="other")``: of fra, whose region file names that server."""
    credentials = tmp_path / "credentials"

    def made(secret: str = CREDENTIALS.secret_key, **other: str) -> NodeConfig:
        credentials.write_text(
            f"[default]\naws_access_key_id = {CREDENTIALS.access_key}\n"
            f"aws_secret_access_key = {secret}\n"
        )

        def edit(spec: dict[str, Any]) -> None:
            spec["media"] = {}
            s3 = {
                "endpoint": f"https://{s3_process.address}",
                "bucket": BUCKET,
                "region": REGION,
                "credentials_file": str(credentials),
                "ca_file": str(pki_dir / "ca.pem"),
                "prefix": f"node/{secrets.token_hex(4)}",
            }
            spec["idcs"][0]["engines"] = {"blobs": {"s3": s3 | other}}

        return load(lab_region(tmp_path, edit), "fra", tmp_path, pki_dir, None, False)

    yield made


async def opening(config: NodeConfig) -> tuple[Blobs, list[str]]:
    """As the node does; what is there."""
    async with AsyncExitStack() as stack:
        blobs = await open_blobs(config, RealDisk(), SystemClock(), ThreadPoolExecutor, stack)
        return blobs, list(await blobs.files())


async def test_a_node_opens_the_bucket_that_its_region_file_names(
    config: Callable[..., NodeConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    blobs, files = await opening(config())
    assert isinstance(blobs, S3Blobs) and files == []
    assert "the files of fra are in https://127.0.0.1" in caplog.text
    assert CREDENTIALS.secret_key not in caplog.text


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        ({"secret": "wrong"}, NotTrusted, "refuses: 403 SignatureDoesNotMatch"),
        ({"region": "us-west-9"}, NotTrusted, "refuses: 400 AuthorizationHeaderMalformed"),
        ({"bucket": "other-files"}, BadInput, "has no bucket other-files: make it, or name"),
        ({"ca_file": "/none/ca.pem"}, BadInput, "/none/ca.pem: expected a readable PEM of a CA"),
        ({"credentials_file": "/none/c"}, BadInput, "/none/c: expected a readable file, got No"),
    ],
)
async def test_what_is_wrong_in_the_region_file_is_one_sentence_at_the_start(
    config: Callable[..., NodeConfig], other: dict[str, str], error: type[ImError], says: str
) -> None:
    with pytest.raises(error, match=re.escape(says)) as raised:
        await opening(config(**other))
    assert "\n" not in str(raised.value)


async def test_a_server_that_another_ca_vouches_for_is_not_trusted(
    config: Callable[..., NodeConfig], tmp_path: Path
) -> None:
    pki.init(tmp_path / "other", {"x": pki.LOCAL_HOSTS}, datetime.now(UTC))
    with pytest.raises(NotTrusted, match="a certificate that is not trusted"):
        await opening(config(ca_file=str(tmp_path / "other" / "ca.pem")))


async def test_a_server_that_is_away_keeps_no_node_from_starting(
    config: Callable[..., NodeConfig], caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        away = config(endpoint=f"https://127.0.0.1:{free_port()}")
        started = time.monotonic()
        await open_blobs(away, RealDisk(), SystemClock(), ThreadPoolExecutor, stack)
        assert time.monotonic() - started < 3 + SLACK_S
    assert "fra starts without its files: " in caplog.text


async def test_one_beside_each_idc_is_opened_by_what_the_copy_of_the_region_file_says(
    tmp_path: Path, s3_program: Program
) -> None:
    def with_files(spec: dict[str, Any]) -> None:
        spec["media"] = {}

    region = lab_region(tmp_path, with_files)
    target = Local.prepare(region, tmp_path / "data", True, SystemClock(), ("s3",))
    try:
        target.start([LINKPROXY])
        await startup.start_engines(target, lambda name, serving: None)
        for life in (1, 2):
            config = load(target.data / COPY, "fra", target.data, target.pki, None, False)
            async with AsyncExitStack() as stack:
                blobs = await open_blobs(
                    config, RealDisk(), SystemClock(), ThreadPoolExecutor, stack
                )
                if life == 1:
                    await blobs.begin("u", b"")
                    await blobs.put("u", 0, DATA)
                    assert await blobs.complete("u", SHA)
                assert await blobs.files() == {SHA: len(DATA)}
            target.kill("fra-s3")
            target.start(["fra-s3"])
            await startup.wait_serving(target, ["fra-s3"], lambda name, serving: None)
        target.kill("fra-s3")
        target.wipe("fra-s3")
        target.start(["fra-s3"])
        await startup.wait_serving(target, ["fra-s3"], lambda name, serving: None)
        assert (await opening(config))[1] == []  # there is a bucket again, and nothing in it
    finally:
        await asyncio.to_thread(target.stop)


# ---------------------------------------------------------------------------- what clients see


class Site(IpconfSite):
    """The files of one IDC behind its HTTPS server, in a bucket."""

    def __init__(self, folder: Path, pki_dir: Path, blobs: S3Blobs) -> None:
        super().__init__(folder, pki_dir)
        self._blobs = blobs

    async def start(self) -> None:
        clock = SystemClock()
        self.store = MediaStore("fra", self._blobs, Media(), Messages(), self.keys, clock, {})

        async def nothing() -> bytes | None:
            return None

        async def refused(document: bytes) -> None:
            raise AssertionError(document)

        stickers = Stickers(nothing, refused, self.store.keep, clock)
        self.routes = MediaApi(self.store, stickers, self.keys, clock, frozenset(IDCS)).routes()
        await super().start()
        self.http = self.client()
        self.running = asyncio.create_task(self.store.run())

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.http.close()
        await super().stop()

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any], bytes]:
        headers = {"Authorization": f"Bearer {self.token('alice')}"}
        async with self.http.request(method, self.url + path, headers=headers, **more) as response:
            body = await response.read()
            document = json.loads(body) if response.content_type == "application/json" else {}
            return response.status, document, body


@pytest.fixture
async def site(tmp_path: Path, pki_dir: Path, opened: Open) -> AsyncIterator[Site]:
    found = Site(tmp_path, pki_dir, opened())
    await found.start()
    await until(lambda: found.store._ready)
    yield found
    await found.stop()


async def test_clients_are_told_to_come_again_and_lose_nothing(
    s3_process: S3Process, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    declared = {"sha256": SHA, "size": len(DATA), "type": "video/mp4"}
    status, begun, _ = await site.ask("POST", "/v1/media", json=declared)
    assert status == 202
    chunk = CHUNK_BYTES_MAX
    path = f"/v1/uploads/{begun['upload']}"
    assert (await site.ask("PUT", f"{path}?offset=0", data=DATA[:chunk]))[0] == 204
    s3_process.pause()
    try:
        for call in (
            site.ask("PUT", f"{path}?offset={chunk}", data=DATA[chunk : 2 * chunk]),
            site.ask("POST", "/v1/media", json=declared | {"sha256": "0" * 64}),
        ):
            status, told, _ = await call
            assert status == 503 and told["error"]["code"] == "unavailable"
            assert told["error"]["retry_after_ms"] > 0
            assert told["error"]["message"] == "the file store of fra does not answer"
        assert "fra's S3 at 127.0.0.1" in caplog.text  # and why
    finally:
        s3_process.resume()
    for _ in range(100):
        status, begun, _ = await site.ask("POST", "/v1/media", json=declared)
        if status == 202:
            break
        await asyncio.sleep(0.1)
    at = begun["offset"]
    assert at in (chunk, 2 * chunk)
    for offset in range(at, len(DATA), chunk):
        data = DATA[offset : offset + chunk]
        assert (await site.ask("PUT", f"{path}?offset={offset}", data=data))[0] == 204
    status, kept, _ = await site.ask("POST", path)
    assert status == 200
    ref = kept["ref"]
    got = await site.ask("GET", f"/v1/media/{ref['idc']}/{ref['sha256']}/{ref['key']}")
    assert (got[0], got[2]) == (200, DATA)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            {"credentials": replace(CREDENTIALS, secret_key="wrong")},
            "of fra refuses",
        ),
        ({"bucket": "other-files"}, "of fra cannot do this now"),
        ({"endpoint": "https://127.0.0.1:1"}, "of fra does not answer"),
        ({"ca_file": None}, "of fra refuses"),
    ],
)
async def test_what_a_store_says_is_for_the_log_and_not_for_clients(
    site: Site, settings: S3Settings, caplog: pytest.LogCaptureFixture,
    other: dict[str, Any], told: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    broken = replace(settings, deadline_s=DEADLINE_S, attempt_s=ATTEMPT_S, **other)
    site.store._blobs = S3Blobs(S3Client(broken, SystemClock()))
    status, document, _ = await site.ask(
        "POST", "/v1/media", json={"sha256": SHA, "size": 9, "type": "video/mp4"}
    )
    assert (status, document["error"]["message"]) == (503, f"the file store {told}")
    assert "fra's S3 at 127.0.0.1" in caplog.text
    with pytest.raises(ImError, match=r"fra's S3 at 127.0.0.1"):
        await site.store._blobs.look()
    await site.store._blobs.close()


async def test_a_server_that_is_away_is_an_alarm_until_it_is_back(
    s3_process: S3Process, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not site.store.alarm
    await asyncio.to_thread(s3_process.kill)
    try:
        site.running.cancel()
        site.running = asyncio.create_task(site.store.run())  # its next look is now
        await until(lambda: "files cannot be looked at now: fra's S3 at" in site.store.alarm)
    finally:
        await asyncio.to_thread(s3_process.start)
    await until(lambda: not site.store.alarm)
