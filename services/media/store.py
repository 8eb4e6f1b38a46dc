"""The files of one IDC: who may upload how much, what becomes of it, and what is fetched from
another IDC when somebody asks for it here.

A file is named by (IDC of its upload, SHA-256, key). The key is a MAC over uploader, hash and size,
so the same user who uploads the same bytes again gets the same name, and nobody else can tell what
it is: that somebody else has uploaded these bytes is never told. An upload has the key for its
name, so two devices of a user that send the same file go on with the same upload.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from imcore.attest import RegionKeys
from imcore.errors import Code, ImError, Overloaded, Refused, Unavailable
from imcore.media import Declared, MediaName, MediaRef
from imcore.region.model import Media, Messages, WhenUnreplicated
from imcore.runtime import Clock
from services.media.shares import Shares, by_note, owner_of, owners_in
from services.media.words import NO_PICTURE, Looked, Picture, Record, Upload, distance
from services.ports import Blobs

log = logging.getLogger("im.media")

PURPOSE = b"media"
KEY = "key."  # notes that are records
COPY = "copy"  # a note: it was fetched because somebody asked, and may go
# Notes, of what the uploader calls an image. What it looks like stands in the first one's name: a
# start finds that of all pictures in the list of notes, where to read each would take minutes.
PICTURE, THUMBNAIL = "picture.", "thumbnail"
PICTURE_BYTES_MAX = 20 << 20  # a larger file is not looked at
PICTURE_STEP_BYTES = 1 << 20
SIMILAR_MAX = 100
COMPARED_AT_ONCE = 4_000  # pictures: half a millisecond
NEAREST_MAX = 500  # of all users': so many notes at most are read to find whose they are
SWEEP_S = 30.0
IN_USE_S = 60.0  # so long after it was read last a copy does not go
EVICTIONS = 200  # looked at in one sweep, each of which asks other IDCs
FULL_RETRY_MS = 60_000
LATER_MS = 2_000
FETCH_WAIT_S = 10.0  # the fetch goes on after it, and who asks again joins it


class Silent(Unavailable):
    """Another IDC does not answer, or not with what it should."""


class Peer(Protocol):
    """The files of another IDC. Everything raises Silent."""

    async def find(self, name: MediaName) -> Record | None: ...

    async def keeps(self, name: MediaName) -> bool:
        """Whether it has the file, and not as a copy that may go."""
        ...

    def read(self, name: MediaName, offset: int) -> AsyncIterator[bytes]: ...

    async def keep(self, name: MediaName, timeout_s: float) -> None:
        """It holds a copy, which stays, when this returns."""
        ...


# Takes what reads the picture: it is not in memory while it waits for its turn.
Look = Callable[[Callable[[], Awaitable[bytes]]], Awaitable[Looked | None]]


class WrongOffset(Refused):
    """``at``: where the upload goes on."""

    def __init__(self, at: int) -> None:
        super().__init__(Code.BAD_REQUEST, f"the upload goes on at {at}")
        self.at = at


class Begun(NamedTuple):
    upload: str
    offset: int


class Kept(NamedTuple):
    """``degraded``: other IDCs were to have it before this answer, and do not."""

    ref: MediaRef
    degraded: bool


@dataclass(slots=True)
class MediaCounters:
    begun: int = 0
    completed: int = 0
    known: int = 0  # uploads answered at once, since the same user has uploaded the same bytes
    refused_hash: int = 0
    swept: int = 0
    served: int = 0  # of what is here
    fetched: int = 0  # from another IDC
    unavailable: int = 0  # nobody who has it answers
    evicted: int = 0  # copies that made room for others
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_fetched: int = 0


class Locks:
    """One lock a name, for as long as somebody wants it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def __call__(self, name: str) -> AsyncIterator[None]:
        lock, wanted = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, wanted + 1)
        try:
            async with lock:
                yield
        finally:
            lock, wanted = self._locks[name]
            if wanted == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, wanted - 1)


class MediaStore:
    """Until it has looked at what is there (``run``), everything is Unavailable.
    ``peers``: the other IDCs, by name. ``look``: at a picture; None: nobody does."""

    def __init__(
        self,
        idc: str,
        blobs: Blobs,
        settings: Media,
        messages: Messages,
        keys: RegionKeys,
        clock: Clock,
        peers: Mapping[str, Peer],
        look: Look | None = None,
    ) -> None:
        self._look = look
        self._pictures: dict[str, Picture] = {}  # by hash
        self.idc = idc
        self.settings = settings
        self.counters = MediaCounters()
        self._blobs = blobs
        self._messages = messages
        self._keys = keys
        self._clock = clock
        self._peers = peers
        self._uploads: dict[str, Upload] = {}
        self._came: dict[str, int] = {}  # bytes of each
        self._shares = Shares()
        self._sizes: dict[str, int] = {}  # of all files, by hash
        self._copies: dict[str, float] = {}  # when each was used last, by hash
        # Files that may be half gone, or that no key may lead to; from when on each is looked at.
        self._untidy: dict[str, float] = {}
        self._stored = 0  # bytes, those of uploads under way as far as they have come
        self._ready = False
        self.alarm = ""  # why files cannot be had, as far as it was looked
        self._locks = Locks()
        self._fetches: dict[MediaName, asyncio.Task[Record]] = {}
        self.on_deleted: Callable[[MediaName], None] = lambda name: None  # from this IDC

    # ------------------------------------------------------------------------- life cycle

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    await self._blobs.look()
                    if not self._ready:
                        await self.load()
                    await self.sweep()
                    await self.evict()
                    self.alarm = ""
                except ImError as error:
                    if self.alarm != (alarm := f"files cannot be looked at now: {error}"):
                        log.warning("%s", alarm)
                    self.alarm = alarm
                await asyncio.sleep(1.0 if self.alarm else SWEEP_S)
        finally:
            for task in self._fetches.values():
                task.cancel()
            await asyncio.gather(*self._fetches.values(), return_exceptions=True)

    async def load(self) -> None:
        """What is there from earlier lives."""
        self._sizes = await self._blobs.files()
        for name, found in (await self._blobs.uploads()).items():
            try:
                upload = Upload.from_json(found.note)
            except ValueError:
                await self._blobs.abandon(name)
                continue
            if name not in self._uploads:  # by an earlier look, which broke off
                self._began(name, upload)
            self._goes_to(name, found.size)
        noted = await self._blobs.noted()
        for sha256, size in self._sizes.items():
            names = noted.get(sha256, set())
            self._shares.are(owners_in(names, KEY), sha256, size)
            for name in names:
                if name.startswith(PICTURE):
                    with contextlib.suppress(ValueError):  # who else may write into a bucket?
                        self._pictures[sha256] = Picture.from_name(name.removeprefix(PICTURE))
            if COPY in names:
                self._copies[sha256] = self._clock.now()
            # What nobody can find: who made it died before he wrote its record. Not at once: it
            # may be that he is ending just now, and about to write it.
            if not any(name.startswith(KEY) for name in names):
                self._untidy[sha256] = self._clock.now() + SWEEP_S
        self._stored += sum(self._sizes.values())
        self._ready = True

    async def sweep(self) -> None:
        """Throw away the uploads that took too long, and what nobody can find any more."""
        oldest = self._clock.wall_ms() - self.settings.upload_keep_s * 1000
        for name in [n for n, upload in self._uploads.items() if upload.began_ms < oldest]:
            async with self._locks(name):
                if name in self._uploads:
                    await self._blobs.abandon(name)
                    self._ended(name)
                    self.counters.swept += 1
        now = self._clock.now()
        for sha256 in [sha256 for sha256, due in self._untidy.items() if due <= now]:
            async with self._locks(sha256):
                if sha256 in self._untidy:
                    await self._tidy(sha256)

    async def evict(self) -> None:
        """Copies beyond the limit, the one first that was not used for longest. What no other IDC
        keeps stays, and what was read a moment ago."""
        over, silent = self.copied - self.settings.copies_bytes_max, set[str]()
        for sha256 in sorted(self._copies, key=self._copies.__getitem__)[:EVICTIONS]:
            if over <= 0 or len(silent) == len(self._peers):
                return
            async with self._locks("copy-" + sha256), self._locks(sha256):
                used, now = self._copies.get(sha256), self._clock.now()
                if used is None or now - used < IN_USE_S:
                    continue
                if await self._kept_elsewhere(sha256, silent):
                    over -= self._sizes[sha256]
                    await self._drop(sha256)
                    self.counters.evicted += 1
                else:
                    self._copies[sha256] = now  # others have their turn first

    async def _kept_elsewhere(self, sha256: str, silent: set[str]) -> bool:
        """Under every key that leads to it here. ``silent``: who has not answered; it is added to,
        and they are not asked again."""
        for note in await self._blobs.notes(sha256):
            if not note.startswith(KEY):
                continue
            name = MediaName(self.idc, sha256, note.removeprefix(KEY))
            for idc in [each for each in self._peers if each not in silent]:
                try:
                    if await self._peers[idc].keeps(name):
                        break
                except Silent:
                    silent.add(idc)
            else:
                return False
        return True

    @property
    def copied(self) -> int:
        """Bytes of copies that may go."""
        return sum(self._sizes[sha256] for sha256 in self._copies)

    @property
    def stored(self) -> int:
        return self._stored

    @property
    def files(self) -> int:
        return len(self._sizes)

    @property
    def uploads(self) -> int:
        return len(self._uploads)

    def _check_ready(self) -> None:
        if not self._ready:
            raise Unavailable("the files of this IDC are being looked at", retry_after_ms=500)

    # ---------------------------------------------------------------------------- uploads

    async def begin(self, uid: str, declared: Declared) -> Begun | Kept:
        """Kept when this user has uploaded it before. What is announced takes room of this user's
        share; that of all is taken by what has come. Raises Refused, Unavailable, DiskFull."""
        self._check_ready()
        if declared.size > self.settings.bytes_max:
            raise Refused(Code.TOO_LARGE, f"a file has at most {self.settings.bytes_max} bytes")
        text = f"{uid} {declared.sha256} {declared.size} {declared.type}"
        key = self._keys.sign(text.encode(), PURPOSE)[4:].hex()
        async with self._locks(key):
            name = MediaName(self.idc, declared.sha256, key)
            record = await self._held(name)
            if record is not None:
                async with self._locks(name.sha256):
                    if await self._held(name) is None:
                        raise Unavailable("the file is gone: begin it again", LATER_MS)
                    await self._belongs(uid, name)
                    await self._stays(name.sha256)
                self.counters.known += 1
                await self._look_at(name.sha256, record)  # unless it has been
                return await self._answer(name, record)
            if key in self._uploads:
                return Begun(key, await self._goes_on(key))
            mine = sum(upload.uid == uid for upload in self._uploads.values())
            if mine >= self.settings.user_uploads:
                raise Overloaded("too many uploads of this user are under way", LATER_MS)
            upload = Upload(
                uid, declared.sha256, declared.size, declared.type, self._clock.wall_ms()
            )
            self._check_share(uid, declared.size)
            await self._begin(key, upload)
            self.counters.begun += 1
            return Begun(key, 0)

    async def _begin(self, name: str, upload: Upload) -> None:
        self._check_room(upload.size)
        self._began(name, upload)
        try:
            await self._blobs.begin(name, upload.to_json())
        except BaseException:
            self._ended(name)
            raise

    def _began(self, name: str, upload: Upload) -> None:
        """His own share is taken by what he announces, so that what was begun can be ended."""
        self._uploads[name] = upload
        self._came[name] = 0
        if upload.uid:
            self._shares.came(owner_of(upload.uid), upload.size)

    def _check_room(self, size: int) -> None:
        if self._stored + size > self.settings.store_bytes_max:
            raise Unavailable("this IDC has no room for more files", FULL_RETRY_MS)

    def _check_share(self, uid: str, size: int) -> None:
        has, most = self._shares.of(owner_of(uid)), self.settings.user_bytes_max
        if has + size > most:
            raise Refused(
                Code.QUOTA,
                f"the files and uploads of this user have {has} of {most} bytes here, and {size} "
                "are too many more: delete what is not needed",
            )

    async def _put(self, name: str, at: int, data: bytes) -> None:
        """The room is taken first: others come while this waits."""
        end = at + len(data)
        self._goes_to(name, at)  # as the store says, whatever was thought of it
        self._check_room(len(data))
        self._goes_to(name, end)
        try:
            await self._blobs.put(name, at, data, last=end == self._uploads[name].size)
        except BaseException:
            self._goes_to(name, at)
            raise

    def _goes_to(self, name: str, end: int) -> None:
        """So much of this upload is here."""
        self._stored += end - self._came[name]
        self._came[name] = end

    async def _goes_on(self, name: str) -> int:
        """Where. What has no bytes may also be lost, with its note, without which nothing more is
        taken: it is begun again as it was."""
        at = await self._blobs.uploaded(name)
        if at == 0:
            await self._blobs.begin(name, self._uploads[name].to_json())
        return at

    def _ended(self, name: str) -> None:
        self._goes_to(name, 0)
        del self._came[name]
        upload = self._uploads.pop(name)
        if upload.uid:
            self._shares.came(owner_of(upload.uid), -upload.size)

    def _own(self, uid: str, name: str) -> Upload:
        self._check_ready()
        upload = self._uploads.get(name)
        if upload is None or upload.uid != uid:
            raise Refused(Code.NOT_FOUND, "no such upload is under way: begin it (again)")
        return upload

    async def offset(self, uid: str, name: str) -> int:
        """Where the upload goes on. Raises Refused."""
        async with self._locks(name):
            self._own(uid, name)
            return await self._blobs.uploaded(name)

    async def put(self, uid: str, name: str, offset: int, data: bytes) -> int:
        """The new end, once it is durable. Raises Refused (WrongOffset among it), DiskFull."""
        async with self._locks(name):
            upload = self._own(uid, name)
            at = await self._blobs.uploaded(name)
            if offset != at:
                raise WrongOffset(at)
            if at + len(data) > upload.size:
                raise Refused(Code.BAD_REQUEST, "these are more bytes than were announced")
            await self._put(name, at, data)
            self.counters.bytes_in += len(data)
            return at + len(data)

    async def complete(self, uid: str, name: str) -> Kept:
        """Raises Refused (WrongOffset among it; another hash), Unavailable, DiskFull."""
        async with self._locks(name):
            upload = self._own(uid, name)
            at = await self._blobs.uploaded(name)
            if at != upload.size:
                raise WrongOffset(at)
            record = Record(uid, upload.size, upload.type)
            named = MediaName(self.idc, upload.sha256, name)
            if not await self._become_file(name, upload, named, record):
                self.counters.refused_hash += 1
                raise Refused(
                    Code.BAD_REQUEST, "the bytes have another hash than announced: begin again"
                )
            self.counters.completed += 1
            await self._look_at(named.sha256, record)
            return await self._answer(named, record)

    async def _become_file(
        self, name: str, upload: Upload, named: MediaName, record: Record
    ) -> bool:
        """The record comes last, once these bytes are known to be the file's: it is what a key
        opens the file with, so one that came first would open it, now or when somebody else has
        uploaded it, to who only named its hash. Whoever dies in between leaves an upload that has
        to be done again, and of a new file one that no key leads to. COPY comes before the record:
        a copy without it would never go."""
        sha256 = upload.sha256
        async with self._locks(sha256):
            copy = not upload.uid and sha256 not in self._sizes
            self._untidy[sha256] = self._clock.now()  # it may become a file that nobody hears of
            same = await self._blobs.complete(name, sha256)
            self._ended(name)
            if not same:
                return False
            if sha256 not in self._sizes:
                self._sizes[sha256] = upload.size
                self._stored += upload.size
            if upload.uid:  # at once: his other uploads would take the room
                self._shares.add(owner_of(upload.uid), sha256, upload.size)
            if copy:
                await self._blobs.write_note(sha256, COPY, b"")
                self._copies[sha256] = self._clock.now()
            elif upload.uid:
                await self._stays(sha256)
                await self._belongs(upload.uid, named)
            await self._blobs.write_note(sha256, KEY + named.key, record.to_json())
            self._untidy.pop(sha256)
            return True

    async def _belongs(self, uid: str, name: MediaName) -> None:
        """The file counts among this user's. Raises Refused where it is too much for him: his
        upload in another IDC, which was fetched from there, and now is to stay here."""
        owner, note = owner_of(uid), by_note(owner_of(uid), name.key)
        if note in await self._blobs.notes(name.sha256):
            return
        size = self._sizes[name.sha256]
        if not self._shares.has(owner, name.sha256):
            self._check_share(uid, size)
        self._shares.add(owner, name.sha256, size)
        await self._blobs.write_note(name.sha256, note, b"")

    async def _stays(self, sha256: str) -> None:
        """It is no copy that may go (any more). The note may also be one of a fetch that never came
        to its end."""
        await self._blobs.remove_note(sha256, COPY)
        self._copies.pop(sha256, None)

    async def _answer(self, name: MediaName, record: Record) -> Kept:
        """Once so many other IDCs hold it, if they are to. Raises Unavailable."""
        messages = self._messages
        degraded = False
        if messages.ack == "replicated" and self._peers:
            copies = await self._copy(name, min(messages.replicas, len(self._peers)))
            if not copies and messages.when_unreplicated is WhenUnreplicated.REFUSE:
                raise Unavailable("no other IDC could take a copy in time", LATER_MS)
            degraded = not copies
        picture = self._pictures.get(name.sha256, NO_PICTURE)
        width, height = picture.width, picture.height
        return Kept(MediaRef(name, record.size, record.type, "", width, height), degraded)

    async def _copy(self, name: MediaName, wanted: int) -> bool:
        """To any so many of the others."""
        timeout_s = self.settings.replicated_timeout_ms / 1000
        tasks = [asyncio.ensure_future(p.keep(name, timeout_s)) for p in self._peers.values()]
        done = 0
        try:
            for finished in asyncio.as_completed(tasks):
                with contextlib.suppress(Silent):
                    await finished
                    done += 1
                if done >= wanted:
                    return True
            return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -------------------------------------------------------------------------- downloads

    async def _held(self, name: MediaName) -> Record | None:
        if name.sha256 not in self._sizes:
            return None
        return await self._record(name.sha256, KEY + name.key)

    async def _record(self, sha256: str, note: str) -> Record | None:
        """None, too, for one that is damaged: whoever has the file, or another IDC that does, has
        it written again."""
        data = await self._blobs.note(sha256, note)
        if data is None:
            return None
        try:
            return Record.from_json(data)
        except ValueError:
            log.warning("the record %s of the file %s is damaged: it opens nothing", note, sha256)
            return None

    async def held(self, name: MediaName) -> Record | None:
        """What is here already; None: it is not, or not under this key. Raises Unavailable."""
        self._check_ready()
        return await self._held(name)

    async def find(self, name: MediaName) -> Record:
        """It is here when this returns. Raises Refused(NOT_FOUND), Unavailable."""
        record = await self.held(name)
        if record is not None:
            self._used(name.sha256)
            self.counters.served += 1
            return record
        task = self._fetches.get(name)
        if task is None:
            task = self._fetches[name] = asyncio.ensure_future(self._fetch(name))
            task.add_done_callback(partial(self._fetch_ended, name))
        done, _ = await asyncio.wait([task], timeout=FETCH_WAIT_S)
        if not done:
            raise Unavailable("it is being fetched from another IDC", retry_after_ms=500)
        return task.result()

    def _used(self, sha256: str) -> None:
        if sha256 in self._copies:
            self._copies[sha256] = self._clock.now()

    async def keep(self, name: MediaName) -> Record:
        """As ``find``, and it stays here."""
        record = await self.find(name)
        async with self._locks(name.sha256):
            if await self._held(name) is None:
                raise Unavailable("the file is gone", LATER_MS)
            if name.sha256 in self._copies:
                await self._stays(name.sha256)
        return record

    async def keeps(self, name: MediaName) -> bool:
        """Raises Unavailable."""
        return await self.held(name) is not None and name.sha256 not in self._copies

    def fetches(self, name: MediaName) -> bool:
        return name in self._fetches

    def _fetch_ended(self, name: MediaName, task: asyncio.Task[Record]) -> None:
        del self._fetches[name]
        if not task.cancelled():
            task.exception()  # those who asked may be gone

    async def _fetch(self, name: MediaName) -> Record:
        async with self._locks("copy-" + name.sha256):
            if (record := await self._held(name)) is not None:
                return record
            silent: list[str] = []
            order = sorted(self._peers, key=lambda idc: (idc != name.idc, idc))
            for idc in order:
                try:
                    record = await self._peers[idc].find(name)
                    if record is None:
                        continue
                    if not await self._add_key(name, record):
                        await self._fetch_from(self._peers[idc], name, record)
                except Silent as error:
                    log.info("a file cannot be fetched from %s: %s", idc, error)
                    silent.append(idc)
                    continue
                self.counters.fetched += 1
                return record
        if silent:
            self.counters.unavailable += 1
            raise Unavailable(f"{', '.join(silent)} may have it, try later", LATER_MS)
        raise Refused(Code.NOT_FOUND, "there is no such file, or not under this key")

    async def _add_key(self, name: MediaName, record: Record) -> bool:
        """To a file that is here, by the word of an IDC; False: it is not here."""
        async with self._locks(name.sha256):
            if name.sha256 not in self._sizes:
                return False
            await self._blobs.write_note(name.sha256, KEY + name.key, record.to_json())
            return True

    async def _fetch_from(self, peer: Peer, name: MediaName, record: Record) -> None:
        """Goes on where an earlier fetch broke off."""
        copy = "copy-" + name.sha256
        if copy in self._uploads and self._uploads[copy].size != record.size:
            await self._blobs.abandon(copy)
            self._ended(copy)
        if copy not in self._uploads:
            now = self._clock.wall_ms()
            await self._begin(copy, Upload("", name.sha256, record.size, record.type, now))
            at = 0
        else:
            at = await self._goes_on(copy)
        async for data in peer.read(name, at):
            if at + len(data) > record.size:
                raise Silent("it is longer there than that IDC says")
            await self._put(copy, at, data)
            at += len(data)
            self.counters.bytes_fetched += len(data)
        if at != record.size:
            raise Silent("it broke off")
        if not await self._become_file(copy, self._uploads[copy], name, record):
            raise Silent("what came from there has another hash")
        await self._look_at(name.sha256, record)

    async def read(self, name: MediaName, start: int, end: int, step: int) -> AsyncIterator[bytes]:
        """Of what is here. Raises Unavailable when it was deleted meanwhile."""
        while start < end:
            self._used(name.sha256)
            try:
                data = await self._blobs.read(name.sha256, start, min(step, end - start))
            except FileNotFoundError:
                data = b""
            if not data:
                raise Unavailable("the file is gone")
            start += len(data)
            yield data

    # --------------------------------------------------------------------------- deletion

    async def delete(self, uid: str, admin: bool, name: MediaName) -> None:
        """From this IDC; the bytes too when no other key leads to them. By who uploaded it, or an
        admin. Raises Refused."""
        self._check_ready()
        async with self._locks(name.sha256):
            record = await self._held(name)
            if record is None:
                raise Refused(Code.NOT_FOUND, "there is no such file here")
            if not admin and record.uid != uid:
                raise Refused(Code.FORBIDDEN, "only who uploaded it deletes it")
            self._untidy[name.sha256] = self._clock.now()
            await self._blobs.remove_note(name.sha256, KEY + name.key)
            by = by_note(owner_of(record.uid), name.key)
            await self._blobs.remove_note(name.sha256, by)
            await self._tidy(name.sha256)
        self.on_deleted(name)

    async def _tidy(self, sha256: str) -> None:
        """It stays if a key leads to it, and is gone otherwise."""
        notes = set(await self._blobs.notes(sha256)) if sha256 in self._sizes else set()
        if any(note.startswith(KEY) for note in notes):
            self._shares.are(owners_in(notes, KEY), sha256, self._sizes[sha256])
            del self._untidy[sha256]
        else:
            await self._drop(sha256)

    async def _drop(self, sha256: str) -> None:
        """It is forgotten first: of a deletion that breaks off nobody knows what is left."""
        if sha256 in self._sizes:
            size = self._sizes.pop(sha256)
            self._stored -= size
            self._shares.are(set(), sha256, size)
        self._copies.pop(sha256, None)
        self._pictures.pop(sha256, None)
        self._untidy[sha256] = self._clock.now()
        await self._blobs.delete(sha256)
        del self._untidy[sha256]

    # --------------------------------------------------------------------------- pictures

    async def _look_at(self, sha256: str, record: Record) -> None:
        """Once, whatever comes of it. A file that cannot be shown is a file all the same; so is one
        that cannot be read now, and it is looked at when it is announced again."""
        wanted = record.type.startswith("image/") and record.size <= PICTURE_BYTES_MAX
        if self._look is None or not wanted or sha256 in self._pictures:
            return
        try:
            looked = await self._look(partial(self._whole, sha256, record.size))
            await self._seen(sha256, looked)
        except (ImError, FileNotFoundError) as error:
            log.warning("the picture %s cannot be looked at now: %r", sha256, error)

    async def _whole(self, sha256: str, size: int) -> bytes:
        """In steps: what is far away has a deadline for each."""
        parts = [
            await self._blobs.read(sha256, at, min(PICTURE_STEP_BYTES, size - at))
            for at in range(0, size, PICTURE_STEP_BYTES)
        ]
        return b"".join(parts)

    async def _seen(self, sha256: str, looked: Looked | None) -> None:
        picture = looked.picture if looked is not None else NO_PICTURE
        async with self._locks(sha256):
            if sha256 not in self._sizes:
                return  # deleted meanwhile
            if looked is not None:
                await self._blobs.write_note(sha256, THUMBNAIL, looked.thumbnail)
            await self._blobs.write_note(sha256, PICTURE + picture.to_name(), b"")
            self._pictures[sha256] = picture

    async def thumbnail(self, name: MediaName) -> bytes:
        """A JPEG. Raises Refused(NOT_FOUND), Unavailable."""
        await self.find(name)
        found = await self._blobs.note(name.sha256, THUMBNAIL)
        if found is None:
            raise Refused(Code.NOT_FOUND, "there is no thumbnail of this file")
        return found

    async def similar(
        self, uid: str, admin: bool, name: MediaName, most: int
    ) -> list[tuple[int, str, MediaRef]]:
        """Pictures in this IDC whose dhash differs in at most so many bits, with that number and
        who uploaded them, the nearest first: this user's uploads, or all for an admin."""
        await self.find(name)
        picture = self._pictures.get(name.sha256, NO_PICTURE)
        if not picture.width:
            raise Refused(Code.NOT_FOUND, "this file is no picture that can be compared")
        near: list[tuple[int, str]] = []
        names = list(self._pictures)
        for start in range(0, len(names), COMPARED_AT_ONCE):
            for sha256 in names[start : start + COMPARED_AT_ONCE]:
                other = self._pictures.get(sha256, NO_PICTURE)  # it may be gone meanwhile
                if other.width and (differs := distance(picture.dhash, other.dhash)) <= most:
                    near.append((differs, sha256))
            await asyncio.sleep(0)  # whatever else waits has its turn
        near, left = heapq.nsmallest(NEAREST_MAX, near), NEAREST_MAX
        found: list[tuple[int, str, MediaRef]] = []
        for differs, sha256 in near:
            for note in await self._blobs.notes(sha256):
                if not note.startswith(KEY):
                    continue
                if not left:
                    return found
                left -= 1
                record = await self._record(sha256, note)
                if record is None or not (admin or record.uid == uid):
                    continue
                shown = self._pictures.get(sha256, NO_PICTURE)
                named = MediaName(self.idc, sha256, note.removeprefix(KEY))
                ref = MediaRef(named, record.size, record.type, "", shown.width, shown.height)
                found.append((differs, record.uid, ref))
                if len(found) >= SIMILAR_MAX:
                    return found
        return found
