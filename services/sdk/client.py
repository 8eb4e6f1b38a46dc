"""The public client: what an application of the messaging service uses."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from imcore.convert import fill_positions, key_of, key_pb, place_of, place_pb
from imcore.errors import Code
from imcore.limits import (
    CONTENT_BYTES_MAX,
    GROUP_CHANGES_MAX,
    MEDIA_MAX,
    MENTIONS_MAX,
    WATCHED_MAX,
)
from imcore.media import MediaRef, is_sticker, media_pb
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock, SystemClock
from imcore.words import (
    ClientKey,
    Origin,
    Place,
    direct_conversation,
    direct_members,
    is_group,
    valid_id,
)
from services.sdk.core.events import (
    Changed,
    ConnectionChanged,
    CursorMoved,
    Event,
    GroupChanged,
    IdentitySeen,
    Message,
    Missed,
    Presence,
    Typing,
)
from services.sdk.core.friends import Friends, changed_friend, friends_of
from services.sdk.core.group import ROLES, Group, group_of
from services.sdk.core.liveness import Due, Liveness
from services.sdk.core.longest import Longest, Networks
from services.sdk.core.outbox import Entry, Outbox
from services.sdk.core.passage import QUIET_MAX_S
from services.sdk.core.reconnect import Lost
from services.sdk.core.sealed import Crypt, KnownDevice, Opened
from services.sdk.core.sealed_file import new_secret
from services.sdk.core.seen import Seen
from services.sdk.core.summary import Summary, ordered
from services.sdk.core.typed import TypingSeen, TypingTold
from services.sdk.core.view import View, key_text, parse_key
from services.sdk.core.waits import again_s
from services.sdk.errors import (
    AuthError,
    NotConnected,
    RequestRefused,
    SdkError,
    SendFailed,
    StoreFailed,
)
from services.sdk.ipconf import Answer, Gateway, IpconfClient, Lookup
from services.sdk.link import Link
from services.sdk.media import BytesSource, FileSource, Progress, Source, Transfers
from services.sdk.options import Options
from services.sdk.polling import PollingDialer
from services.sdk.puller import Puller
from services.sdk.sealing import Sealing, check_files
from services.sdk.sender import MAY_LAG, Sender
from services.sdk.session import Session, SessionLost
from services.sdk.side import SideLinks
from services.sdk.store import MemoryStore, SqliteStore, Store
from services.sdk.traces import Trace, Traces
from services.sdk.transport import Dialer, TlsDialer
from services.tracing.context import traceparent

if TYPE_CHECKING:
    from services.sdk.quic import QuicDialer

log = logging.getLogger("im.sdk")

HEARTBEAT_ACK_BYTES = 64 * 1024  # a quarter of a message; the rest goes with the next heartbeat
NETWORKS = ("wifi", "cellular", "wired", "unknown")  # kinds that an ipconf knows
_PUBLISH_S = 2.0  # so long a start waits for the keys of the device to be published
_PUBLISH_AGAIN_S = 30.0
_WATCH_AGAIN_S = 300.0  # half of what a service keeps a watch for
_RETRIED = {Code.UNAVAILABLE, Code.OVERLOADED, Code.DEADLINE, Code.NOT_REPLICATED}


class State(NamedTuple):
    """Where the client is; empty names: not connected. ``outbox``: messages not replicated.
    ``polling``: by HTTP requests, since long connections do not last. ``quic``: by QUIC."""

    idc: str
    gateway: str
    policy_epoch: int
    outbox: int
    polling: bool
    quic: bool = False


class OwnDevice(NamedTuple):
    """A device of the own user. ``online``: it has a session, ``idc``: where; ``since_ms`` (on the
    wall clock): connected, or gone, since."""

    device: str
    kind: str
    online: bool
    idc: str
    since_ms: int


class Readers(NamedTuple):
    """Uids of the others who have read a message, and of those who have not, in order."""

    read: tuple[str, ...]
    unread: tuple[str, ...]


class ReadCounts(NamedTuple):
    read: int
    unread: int


class Found(NamedTuple):
    """A message that says what was searched for. ``content`` is what it says now; it need not be
    in any view. ``composed_ms`` is the sender's clock, for people."""

    conversation: str
    key: str
    uid: str
    content: bytes
    composed_ms: int


class Sent:
    """A message that is durable in the IDC that took it (``stored``).

    ``place``: where it stands as its IDC knew it; ``degraded``: it was to be replicated before
    the ack and could not be, and the service's policy allows that; ``traceparent``: of W3C Trace
    Context, when the message is followed, else empty."""

    __slots__ = ("_entry", "_sender", "degraded", "key", "place", "traceparent")

    def __init__(
        self,
        key: str,
        place: Place,
        degraded: bool,
        sender: Sender,
        entry: Entry,
        traceparent: str,
    ) -> None:
        self.key = key
        self.place = place
        self.degraded = degraded
        self.traceparent = traceparent
        self._sender = sender
        self._entry = entry

    async def replicated(self) -> None:
        """Until another IDC holds it durably too. Cancelled when the client is closed. Raises
        SendFailed, with ``pending``, when the IDC it was acked by is gone and the one that serves
        now goes on refusing it: it stays in the outbox and is offered with every connect."""
        await self._sender.until_replicated(self._entry)


class Client:
    """``async with`` connects and syncs. One outbox file belongs to one client at a time.

    ``token``: a signed client token, names uid and device. ``ipconf``: URLs, or an
    ``IpconfClient`` that many clients of a process share. ``ca_file``: the region's CA; None: the
    machine's usual ones. ``outbox``: a file, or None for
    memory (acked messages may then be lost with this process before they are replicated).
    ``dialer``: other than TLS; with it ``polling`` is what it degrades to, by default nothing, and
    there is no QUIC.
    ``encryption_key``: 32 bytes, with which the device's keys are encrypted in the outbox; without
    it encrypted messages cannot be read or sent (docs/encryption.md).
    """

    def __init__(
        self,
        token: str,
        ipconf: Sequence[str] | IpconfClient,
        ca_file: str | Path | None = None,
        outbox: str | Path | Store | None = None,
        options: Options | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        forwarded_for: str | None = None,
        dialer: Dialer | None = None,
        polling: Dialer | None = None,
        encryption_key: bytes | None = None,
    ) -> None:
        self.options = options or Options()
        self.uid, self.device = _who(token)
        self._token = token
        self._clock: Clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._shared_ipconf = isinstance(ipconf, IpconfClient)
        self._ipconf = (
            ipconf if isinstance(ipconf, IpconfClient) else IpconfClient(ipconf, ca_file, self._rng)
        )
        self._dialer = dialer or TlsDialer(self._ipconf.tls)
        self._polling = polling
        if dialer is None and polling is None:
            self._polling = PollingDialer(self._ipconf.tls)
        tls = self._ipconf.tls
        self._quic = None if dialer is not None else lambda: _quic_dialer(tls)
        self._transfers = Transfers(
            self._ipconf,
            lambda: self._lookup,
            lambda: self._link.answer if self._started else None,
            self._clock,
        )
        self._store = _store(outbox)
        self._traces = Traces(self.options.tracer, self.options.trace_one_in, random.Random())
        self._lookup = Lookup(token, self.options.network, "", forwarded_for or "")
        self._callbacks: list[Callable[[Event], None]] = []
        self._views: dict[str, View] = {}
        self._seen = Seen()
        self._change_number = 0  # above what this device has given before it was started again
        self._stopped: SdkError | None = None
        self._started = False
        self._ready = asyncio.Event()
        self._connection = asyncio.Event()
        self._resume_token = b""
        self._serving: Origin | None = None
        self._liveness: Liveness | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._background = False
        self._network = (self.options.network, "")  # its kind, and its name
        self._networks = Networks()
        self._connected_by = self._network  # the network of the present connection
        self._silence_s: float | None = None  # before the heartbeat that is not answered
        self._to_ack: dict[str, None] = {}
        self._calm: set[str] = set()  # those whose pushes are acked when a heartbeat is due anyway
        self._acking: dict[str, None] = {}
        self._typing_told = TypingTold()
        self._typing_seen = TypingSeen()
        self._typing_timer: asyncio.TimerHandle | None = None
        self._watched: tuple[str, ...] = ()
        self._watched_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._encryption_key = encryption_key
        self._sealing: Sealing | None = None

    # ---------------------------------------------------------------------- start and end

    async def __aenter__(self) -> Self:
        """Raises AuthError, NotConnected, OutboxLocked, SdkError."""
        options = self.options
        stored = self._store.open(self._new_id)
        if self._encryption_key is not None:
            try:
                self._sealing = self._new_sealing(self._encryption_key, stored.rows)
            except BaseException:
                await self._store.close()
                raise
        outbox = Outbox(
            stored.outbox,
            self._new_id,
            options.outbox_entries_max,
            options.outbox_bytes_max,
            options.window,
            self._row,
        )
        outbox.load(stored.lanes, stored.entries)
        self._sender = Sender(
            outbox,
            self._store,
            options.in_flight_max,
            self._view,
            self._on_stored,
            options.lag_wait_ms,
            self._rng,
        )
        self._side = SideLinks(
            lambda: self._link.dialer,
            self._seen,
            self._clock,
            options.side_idle_ms,
            self._answer,
            self._side_connect,
        )
        self._puller = Puller(
            options, self._views, self._view, self._side, self._on_news, self._rng
        )
        self._link = Link(
            self,
            self._ipconf,
            self._dialer,
            self._seen,
            self._clock,
            self._rng,
            self._lookup,
            self._on_event,
            self._polling,
            self._quic,
            self._network,
        )
        self._started = True
        self._spawn(self._link.run())
        try:
            async with asyncio.timeout(options.start_timeout_ms / 1000):
                await self._ready.wait()
        except TimeoutError as error:
            await self.close()
            why = f": {trouble}" if (trouble := self._link.trouble) else ""
            raise NotConnected(f"no IDC took this client in time{why}") from error
        except BaseException:
            await self.close()
            raise
        if self._stopped is not None:
            error_ = self._stopped
            await self.close()
            raise error_
        if self._sealing is not None:  # that others can write to it; it is useful without that too
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PUBLISH_S):
                    await self._sealing.publish()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Sends that wait fail with ``pending``: they stay in a persistent outbox."""
        if not self._started:
            return
        self._started = False
        if self._stopped is None:
            self._stopped = NotConnected("the client is closed")
        self._stop_timer()
        if self._typing_timer is not None:
            self._typing_timer.cancel()
        self._link.close()
        self._side.close()
        self._puller.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sender.disconnected()
        self._sender.fail_all(SendFailed(Code.UNAVAILABLE, "the client was closed", pending=True))
        self._sender.flush()
        try:
            await self._link.gone()
            await self._store.close()
        finally:
            if not self._shared_ipconf:
                await self._ipconf.close()

    def _new_sealing(self, key: bytes, rows: dict[str, bytes]) -> Sealing:
        """Raises SdkError."""

        def met(uid: str, device: str, fingerprint: str, changed: bool) -> None:
            self._emit(IdentitySeen(uid, device, fingerprint, changed))
            sealing.forget()

        def put_row(name: str) -> None:
            self._sender.put_row(name)

        crypt = Crypt(self.uid, self.device, key, rows, put_row, met, self._key_came)
        sealing = Sealing(
            crypt,
            self._clock,
            self._request,
            lambda: self._sender.written(),
            lambda: self._link.session is not None,
            lambda: self._stopped,
            self._ordered_once,
        )
        return sealing

    def _row(self, name: str) -> bytes:
        assert self._sealing is not None
        return self._sealing.crypt.row(name)

    def _key_came(self, conversation: str) -> None:
        views = [self._view(conversation)] if conversation else list(self._views.values())
        for view in views:
            asyncio.get_running_loop().call_soon(view.read_again)

    def _open(self, key: ClientKey, content: bytes, order: pb.Order | None) -> Opened:
        assert self._sealing is not None
        opened = self._sealing.crypt.open(key, content, order)
        self._sealing.came_encrypted(key.conversation, readable=not opened.why)
        return opened

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the client of %s failed", self.uid, exc_info=task.exception())
            self.stopped(SdkError(f"internal error: {task.exception()}"))

    def _new_id(self) -> str:
        return f"{self._rng.getrandbits(80):020x}"

    # ------------------------------------------------------------------------ application

    def on(self, callback: Callable[[Event], None]) -> None:
        """``callback`` gets every Event (Message, Changed and so on), from the loop."""
        self._callbacks.append(callback)

    def direct(self, uid: str) -> str:
        return direct_conversation(self.uid, uid)

    async def send(
        self,
        conversation: str,
        content: bytes,
        *,
        replicated: bool = False,
        timeout_ms: int | None = None,
        reply: str = "",
        mentions: Sequence[str] = (),
        media: Sequence[MediaRef] = (),
        sticker: str = "",
    ) -> Sent:
        """``reply``: the key of the message that it answers; ``mentions``: uids; ``media``: what
        ``upload`` returned for this conversation, or for another one that is encrypted if this one
        is: whoever gets the message may download it; ``sticker``: a code of ``stickers``. Returns
        once the message is stored (or, if asked for, replicated). Raises SendFailed (OutboxFull
        among them). Without a time-out it waits for as long as the client lives."""
        if self._stopped is not None:
            raise SendFailed(Code.UNAVAILABLE, str(self._stopped))
        refs = _refs(conversation, reply, mentions, media, sticker)
        _check(conversation, content, refs)
        durability = pb.DURABILITY_REPLICATED if replicated else pb.DURABILITY_STORED
        self._typing_told.sent(conversation)
        trace = self._traces.begin()
        entry: Entry | None = None
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
                entry, future = await self._compose(
                    conversation, content, durability, trace, refs, media
                )
                ack = await future
        except TimeoutError as error:
            if entry is None:
                raise SendFailed(Code.DEADLINE, "whom to encrypt it for is not known") from error
            raise SendFailed(
                Code.DEADLINE, "not acked in time; it stays in the outbox", pending=True
            ) from error
        except SendFailed as error:
            if trace is not None and entry is None:
                trace.end(str(error))
            if self._sealing is not None and error.code == Code.ENCRYPTED_ONLY:
                self._sealing.switched_on(conversation)
            raise
        placed = entry.placed if entry.placed is not None else ack.placed
        place = place_of(placed.place)
        parent = traceparent(trace.context) if trace is not None else ""
        key = key_text(key_of(placed.key))
        return Sent(key, place, ack.degraded, self._sender, entry, parent)

    async def upload(
        self,
        source: str | Path | bytes,
        type_: str = "application/octet-stream",
        label: str = "",
        progress: Progress = lambda done, size: None,
        conversation: str = "",
    ) -> MediaRef:
        """For ``send``, to this ``conversation``: for one that is encrypted the file is too, with a
        key of its own. Of a path, a file that does not change meanwhile. Goes on after cuts where
        it was, in another IDC anew unless that has a part of it; what this user has uploaded before
        is not sent again, but for what is encrypted. Raises RequestRefused, NotConnected,
        AuthError, OSError, and SdkError for an encrypted file that changes."""
        timeout_ms = self.options.transfer_timeout_ms
        secret = b""
        if conversation and self._sealing is not None:
            secret = new_secret() if await self._sealing.encrypts(conversation) else b""
        with contextlib.ExitStack() as stack:
            found: Source
            if isinstance(source, bytes):
                found = BytesSource(source)
            else:
                file = stack.enter_context(await asyncio.to_thread(open, source, "rb"))
                found = FileSource(file)
            return await self._transfers.upload(found, type_, label, progress, timeout_ms, secret)

    async def download(
        self,
        ref: MediaRef,
        path: str | Path,
        resume: bool = True,
        progress: Progress = lambda done, size: None,
    ) -> None:
        """To this path, once all of it is there and has the hash that the message names, and is
        decrypted where it was encrypted; until then beside it, in a file that ends in .part, where
        a later call goes on. ``progress`` tells bytes that are sent, of an encrypted file a few
        more than its ``size``. Not ``resume``:
        from the beginning. Raises RequestRefused, NotConnected (the IDC that has it may be lost
        for now), AuthError, OSError."""
        timeout_ms = self.options.transfer_timeout_ms
        await self._transfers.download(ref, Path(path), resume, progress, timeout_ms)

    async def stickers(self) -> dict[str, MediaRef]:
        """The region's, by code, for ``send``. Raises RequestRefused, NotConnected, AuthError."""
        return await self._transfers.stickers(self.options.request_timeout_ms)

    async def thumbnail(self, ref: MediaRef) -> bytes:
        """A small JPEG of a picture, as the service made it: no hash stands for it. Raises
        RequestRefused (``not_found`` where there is none), NotConnected, AuthError."""
        return await self._transfers.thumbnail(ref, self.options.transfer_timeout_ms)

    async def _compose(
        self,
        conversation: str,
        content: bytes,
        durability: int,
        trace: Trace | None,
        refs: bytes,
        media: Sequence[MediaRef],
    ) -> tuple[Entry, asyncio.Future[pb.SendAck]]:
        """``media``: what is in ``refs``. Raises SendFailed. Without encryption there is nothing to
        wait for."""
        composed_ms = self._clock.wall_ms()
        if self._sealing is None:
            check_files(media, False)
            return self._sender.send(conversation, content, composed_ms, durability, trace, refs)
        async with self._sealing.turn(conversation) as recipients:
            encrypted = recipients is not None
            check_files(media, encrypted)
            if recipients is not None:
                content, refs = self._sealing.seal(conversation, content, refs, recipients), b""
            # In the turn in which it was encrypted: what that has changed is written with it.
            return self._sender.send(
                conversation, content, composed_ms, durability, trace, refs, encrypted
            )

    def view(self, conversation: str) -> tuple[Message, ...]:
        """What is shown of a conversation, in order."""
        view = self._views.get(conversation)
        return view.messages() if view is not None else ()

    def conversations(self) -> tuple[str, ...]:
        """Those that something is known of, by name."""
        return tuple(sorted(self._views))

    def stable(self, conversation: str) -> int:
        """How many messages at the head of the view are below the stable watermark: only a
        message flagged ``late`` can still be inserted among them."""
        view = self._views.get(conversation)
        return view.stable_count() if view is not None else 0

    @property
    def state(self) -> State:
        session = self._link.session if self._started else None
        answer = self._link.answer if self._started else None
        epoch = answer.policy_epoch if answer is not None else 0
        size = len(self._sender.outbox) if self._started else 0
        if session is None:
            return State("", "", epoch, size, False)
        return State(
            session.origin.idc, session.gateway.name, epoch, size, session.polling, session.quic
        )

    async def settled(self) -> None:
        """Until everything that is known to be missing has been fetched."""
        await self._puller.settled()

    async def create_group(
        self, members: Sequence[str], name: str = "", encrypted: bool = False
    ) -> str:
        """Of these and this client's own user; returns its conversation id. Of more than
        GROUP_CHANGES_MAX the first ones make it and the others are invited, in so many requests.
        ``encrypted``: what is said in it, end to end and for good, for at most fifty members.
        Raises RequestRefused, NotConnected, as do all requests below."""
        conversation = f"g:{self._rng.getrandbits(128):032x}"
        others = sorted({*members} - {self.uid})
        first, later = others[: GROUP_CHANGES_MAX - 1], others[GROUP_CHANGES_MAX - 1 :]
        create = pb.GroupCreate(conversation=conversation, members=[self.uid, *first], name=name)
        create.encrypted = encrypted
        if encrypted:
            self._encryption()
        await self._request(pb.Request(group_create=create))
        if encrypted:
            self._encryption().switched_on(conversation)
        if later:
            await self.join(conversation, later)
        return conversation

    async def join(self, conversation: str, uids: Sequence[str] = ()) -> None:
        """Add users (none named: this one). Of more than GROUP_CHANGES_MAX, those of one request
        after the other: when one fails, the ones before it are members."""
        joining = list(uids) or [self.uid]
        for begin in range(0, len(joining), GROUP_CHANGES_MAX):
            chunk = joining[begin : begin + GROUP_CHANGES_MAX]
            change = pb.GroupChange(conversation=conversation, join=chunk)
            await self._change_group(change)

    async def leave(self, conversation: str) -> None:
        await self._change_group(pb.GroupChange(conversation=conversation, leave=[self.uid]))

    async def remove(self, conversation: str, uids: Sequence[str]) -> None:
        """Others, who then come in again only when a member adds them: admins remove members, the
        owner anybody."""
        await self._change_group(pb.GroupChange(conversation=conversation, leave=list(uids)))

    async def set_role(self, conversation: str, uid: str, role: str) -> None:
        """``member``, ``admin`` or ``owner``, by the owner, who is an admin once another owns the
        group. An admin may make himself a member."""
        change = pb.GroupChange(conversation=conversation)
        if role not in ROLES:
            raise RequestRefused(Code.BAD_REQUEST, f"a role is one of {', '.join(ROLES)}")
        change.roles.add(uid=uid, role=ROLES[role])
        await self._change_group(change)

    async def rename(self, conversation: str, name: str) -> None:
        """By the owner or an admin; not to nothing."""
        if not name:
            raise RequestRefused(Code.BAD_REQUEST, "a group is renamed to something")
        await self._change_group(pb.GroupChange(conversation=conversation, name=name))

    async def announce(self, conversation: str, text: str) -> None:
        """By the owner or an admin: whoever looks at the group sees it, in place of the one before.
        Empty: takes that back."""
        change = pb.GroupChange(conversation=conversation)
        change.announcement.text = text
        await self._change_group(change)

    async def _change_group(self, change: pb.GroupChange) -> None:
        await self._request(pb.Request(group_change=change))

    async def group(self, conversation: str) -> Group:
        """As the IDC that serves has it. Of a large one, page by page: who comes or goes meanwhile
        may be in it."""
        found: list[str] = []
        while True:
            info = pb.GroupInfo(conversation=conversation, after=found[-1] if found else "")
            page = (await self._request(pb.Request(group_info=info))).group_info_ok
            found += page.members
            if not page.more or not page.members:
                return group_of(page, found)

    async def members(self, conversation: str) -> tuple[str, ...]:
        """Sorted."""
        return (await self.group(conversation)).members

    async def cursor(self, conversation: str, key: str) -> None:
        """This user has read everything up to this shown message. Raises KeyError too."""
        shown = self._view(conversation).classes[parse_key(key)]
        cursor = pb.ReadCursor(conversation=conversation, place=place_pb(shown.place))
        await self._request(pb.Request(read_cursor=cursor))

    async def readers(self, conversation: str, key: str) -> Readers:
        """Who has read a message, as the IDC that serves has it, of the others who were there when
        it was sent and have not left since. Asks for page after page of a large group."""
        pages = await self._read_by(conversation, key, counts_only=False)
        return Readers(
            tuple(uid for page in pages for uid in page.read_by),
            tuple(uid for page in pages for uid in page.unread_by),
        )

    async def read_counts(self, conversation: str, key: str) -> ReadCounts:
        """How many these are."""
        pages = await self._read_by(conversation, key, counts_only=True)
        return ReadCounts(sum(page.read for page in pages), sum(page.unread for page in pages))

    async def _read_by(
        self, conversation: str, key: str, counts_only: bool
    ) -> Sequence[pb.ReadersOk]:
        try:
            named = parse_key(key)
        except ValueError:
            named = None
        if named is None or named.conversation != conversation:
            raise RequestRefused(Code.BAD_REQUEST, f"not the key of a message there: {key!r}")
        asked = pb.Readers(message=key_pb(named), counts_only=counts_only)
        pages: list[pb.ReadersOk] = []
        while not pages or asked.page:
            response = await self._request(pb.Request(readers=asked))
            pages.append(response.readers_ok)
            asked.page = response.readers_ok.next_page
        return pages

    async def search(self, words: str, conversation: str = "") -> AsyncIterator[Found]:
        """The messages that say all of these words, the newest first, of the conversations (or of
        this one) that this user is in, as the IDC that serves has them. It asks on for as long as
        it is iterated: whoever has enough breaks off. Raises RequestRefused, NotConnected."""
        asked = pb.Search(words=words, conversation=conversation)
        known: set[str] = set()  # what moves down while it is searched is found again
        while True:
            response = await self._request(pb.Request(search=asked))
            page = response.search_ok
            for row in page.found:
                key = key_text(key_of(row.key))
                if key not in known:
                    known.add(key)
                    yield Found(
                        row.key.conversation, key, row.key.uid, row.content, row.composed_ms
                    )
            if not page.HasField("next_page"):
                return
            asked.page.CopyFrom(page.next_page)

    async def devices(self) -> tuple[OwnDevice, ...]:
        """Of this user, in all IDCs; the last one connected first."""
        response = await self._request(pb.Request(devices=pb.Devices()))
        rows = response.devices_ok.devices
        return tuple(OwnDevice(r.device, r.kind, r.online, r.idc, r.since_ms) for r in rows)

    async def kick(self, device: str = "") -> None:
        """End the session of one of this user's devices, or (none named) of all others, in every
        IDC. It revokes no token: whoever has one may connect anew."""
        await self._request(pb.Request(kick=pb.Kick(device=device)))

    async def encrypt(self, conversation: str) -> None:
        """What is said in this direct conversation is encrypted end to end from now on, for both
        and for good. What was said before stays as it is."""
        sealing = self._encryption()
        setting = pb.SetConversation(conversation=conversation, encrypted=True)
        await self._set(setting)
        sealing.switched_on(conversation)

    def fingerprint(self) -> str:
        """Of this device's keys, for the others to compare. Raises RequestRefused: it runs without
        encryption."""
        return self._encryption().crypt.own_fingerprint()

    @property
    def keys_published(self) -> bool:
        """Whether others can encrypt for this device: an IDC, and another one, hold its keys."""
        return self._sealing is not None and self._sealing.published

    def known_devices(self, uid: str) -> tuple[KnownDevice, ...]:
        """The devices of a user of which keys were seen. Raises RequestRefused."""
        return self._encryption().crypt.known(uid)

    def trust(self, uid: str, device: str, fingerprint: str) -> None:
        """Its user has read this fingerprint out. Keys that have changed are believed from then
        on. Raises RequestRefused; KeyError: these are not the device's."""
        sealing = self._encryption()
        sealing.crypt.trust(uid, device, fingerprint)
        sealing.forget()

    async def forget_device(self, device: str) -> None:
        """Another device of this user is gone: nothing is encrypted for it any more."""
        await self._encryption().withdraw(self.uid, device)

    def _encryption(self) -> Sealing:
        if self._sealing is None:
            message = "this client was started without an encryption key"
            raise RequestRefused(Code.BAD_REQUEST, message)
        return self._sealing

    def typing(self, conversation: str) -> None:
        """This user types there now: call it at every key. Tells the others at most every three
        seconds, and nobody while there is no connection; what is lost is lost."""
        session = self._link.session if self._started else None
        if session is not None and self._typing_told.due(conversation, self._clock.now()):
            request = pb.Request(typing=pb.Typing(conversation=conversation))
            session.call(request, lambda response: None)

    def background(self, on: bool) -> None:
        """The application is in the background (or no longer): heartbeats come as seldom as the
        network and the service allow, which is found out and remembered for each network. Messages
        come as before."""
        self._background = on
        self._heartbeat_now()

    def network(self, kind: str, name: str = "") -> None:
        """The device is on another network now: wifi, cellular, wired or unknown; ``name`` tells it
        from others of the kind. Whether the connection still stands is found out at once."""
        if kind not in NETWORKS:
            raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {kind!r}")
        self._network = (kind, name)
        self._silence_s = None
        self._lookup = self._lookup._replace(network=kind)
        if self._started:
            self._link.network(kind, name)
        self._heartbeat_now()

    def _heartbeat_now(self) -> None:
        if self._liveness is not None:
            self._liveness.within(self._clock.now(), 0.0)
            self._look_later()

    async def watch(self, uids: Sequence[str]) -> tuple[Presence, ...]:
        """Who of these is online, now; and ``Presence`` events from now on, in place of those of
        the users named before. At most 200. Lasts as long as this client: what has changed while
        there was no connection is told when there is one again. Raises RequestRefused, NotConnected
        as other requests do."""
        watched = tuple(dict.fromkeys(uids))
        if len(watched) > WATCHED_MAX or not all(map(valid_id, watched)):
            message = f"a device watches at most {WATCHED_MAX} users, by uid"
            raise RequestRefused(Code.BAD_REQUEST, message)
        response = await self._request(pb.Request(watch=pb.Watch(uids=watched)))
        self._watched, self._watched_at = watched, self._clock.now()
        return _presences(response.watch_ok.users)

    async def _watch_again(self) -> None:
        """On a new connection, or before the service forgets."""
        try:
            for presence in await self.watch(self._watched):
                self._emit(presence)
        except SdkError as error:
            log.info("who is online is not told for now: %s", error)

    async def conversation_list(self) -> tuple[Summary, ...]:
        """All that this user is in, as the IDC that serves has it: what is pinned first, then the
        newest. Asks for page after page, so not something to do with every message."""
        asked = pb.Conversations()
        found: dict[str, pb.ConversationSummary] = {}
        while True:
            response = await self._request(pb.Request(conversations=asked))
            page = response.conversations_ok
            found.update((summary.conversation, summary) for summary in page.conversations)
            if not page.next_page:
                return ordered(found.values(), self._says)
            asked.page = page.next_page

    def _says(self, key: ClientKey) -> bytes:
        view = self._views.get(key.conversation)
        if view is None or key not in view.classes:
            return b""
        return view.changed(key).content

    async def pin(self, conversation: str, on: bool = True) -> None:
        """For all devices of this user; returns once another IDC holds it, as does mute."""
        await self._set(pb.SetConversation(conversation=conversation, pinned=on))

    async def mute(self, conversation: str, on: bool = True) -> None:
        """Only kept and listed: messages come as before, and the application does not ring."""
        await self._set(pb.SetConversation(conversation=conversation, muted=on))

    async def _set(self, setting: pb.SetConversation) -> None:
        self._ordered_once(setting)
        await self._request(pb.Request(set_conversation=setting))

    async def edit(self, conversation: str, key: str, content: bytes) -> None:
        """Of an own shown message. Raises KeyError too, as do the next two, and where the
        conversation is encrypted SendFailed as a send does."""
        _check(conversation, content)
        await self._change(conversation, key, pb.Change(edit=content))

    async def recall(self, conversation: str, key: str) -> None:
        await self._change(conversation, key, pb.Change(recall=pb.Recall()))

    async def react(self, conversation: str, key: str, code: str, on: bool = True) -> None:
        """This user's reaction to a shown message; ``on`` False takes it back."""
        await self._change(conversation, key, pb.Change(react=pb.Reaction(code=code, on=on)))

    async def _change(self, conversation: str, key: str, change: pb.Change) -> None:
        shown = self._view(conversation).classes[parse_key(key)]
        change.message.key.CopyFrom(key_pb(shown.key))
        if shown.attested is not None:
            change.message.CopyFrom(shown.attested)
        self._ordered_once(change)
        if self._sealing is not None and change.HasField("edit"):
            await self._sealing.seal_edit(shown.key, change, self.device)
        await self._request(pb.Request(change=change))
        if self._sealing is not None and change.encrypted:
            self._sealing.crypt.confirm(conversation, change.edit)

    async def friends(self) -> Friends:
        """As the IDC that serves has it. Asks for page after page."""
        asked = pb.Friends()
        found: dict[str, pb.Friend] = {}
        while True:
            response = await self._request(pb.Request(friends=asked))
            page = response.friends_ok
            found.update((friend.uid, friend) for friend in page.friends)
            if not page.next_page:
                return friends_of(found.values())
            asked.page = page.next_page

    async def request_friend(self, uid: str) -> None:
        """Both are friends when the other one accepts, or asks as well. Returns once another IDC
        holds it, as do all words on friends below."""
        await self._set_friend(uid, pb.SetFriend.REQUEST)

    async def accept_friend(self, uid: str) -> None:
        await self._set_friend(uid, pb.SetFriend.ACCEPT)

    async def decline_friend(self, uid: str) -> None:
        await self._set_friend(uid, pb.SetFriend.DECLINE)

    async def remove_friend(self, uid: str) -> None:
        """Or take an own request back."""
        await self._set_friend(uid, pb.SetFriend.REMOVE)

    async def block(self, uid: str, on: bool = True) -> None:
        """Ends a friendship too. The other may not write to this user directly."""
        await self._set_friend(uid, pb.SetFriend.BLOCK if on else pb.SetFriend.UNBLOCK)

    async def _set_friend(self, uid: str, word: pb.SetFriend.Word.ValueType) -> None:
        request = pb.SetFriend(uid=uid, word=word)
        self._ordered_once(request)
        await self._request(pb.Request(set_friend=request))

    def _ordered_once(
        self, change: pb.Change | pb.SetConversation | pb.SetFriend | pb.PublishKeys
    ) -> None:
        """Asked for again, it must not count as later than what others have said meanwhile."""
        change.composed.CopyFrom(self._seen.stamp)
        self._change_number = max(self._change_number + 1, self._clock.wall_ms())
        change.number = self._change_number

    def changes(self, conversation: str, key: str) -> Changed:
        """What edits, a recall and reactions have made of a shown message. Raises KeyError."""
        return self._view(conversation).changed(parse_key(key))

    async def sync_history(self, conversation: str, limit: int = 50) -> int:
        """Show up to ``limit`` messages before the first shown one; returns how many came."""
        session = await self._connected_session(self.options.request_timeout_ms / 1000)
        try:
            return await self._puller.history(session, conversation, limit)
        except SessionLost as error:
            raise NotConnected("the connection was lost") from error
        except TimeoutError as error:
            raise NotConnected("no answer in time") from error

    async def _request(self, request: pb.Request) -> pb.Response:
        """Again on a new connection when one is lost: all these requests may be repeated."""
        timeout_s = self.options.request_timeout_ms / 1000
        request.deadline_ms = self.options.request_timeout_ms
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    session = await self._connected_session(timeout_s)
                    try:
                        response = await session.ask(request, timeout_s)
                    except SessionLost:
                        continue
                    except ValueError as large:
                        raise RequestRefused(Code.TOO_LARGE, str(large)) from large
                    if not response.HasField("error"):
                        return response
                    error = response.error
                    again = error.code in MAY_LAG and self._sender.may_lag
                    if error.code not in _RETRIED and not again:
                        raise RequestRefused(error.code, error.message)
                    await asyncio.sleep(again_s(error, self._rng))
        except TimeoutError as error_:
            raise NotConnected(f"no answer within {timeout_s:g} s") from error_

    async def _connected_session(self, timeout_s: float) -> Session:
        """Raises NotConnected."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self._stopped is not None:
                        raise NotConnected(str(self._stopped))
                    session = self._link.session
                    if session is not None and not session.ended.done():
                        return session
                    self._connection.clear()
                    await self._connection.wait()
        except TimeoutError as error:
            raise NotConnected("not connected") from error

    # ----------------------------------------------------------------- views and callbacks

    def _view(self, conversation: str) -> View:
        view = self._views.get(conversation)
        if view is None:
            view = View(conversation, self._emit)
            if self._traces.follows:
                view.traced = self._received
            if self._sealing is not None:
                view.opener = self._open
            self._views[conversation] = view
        return view

    def _received(self, entry: pb.Entry) -> None:
        self._traces.received(entry, self._clock.wall_ms())

    def _emit(self, event: Event) -> None:
        if isinstance(event, Message) and self._typing_seen.wrote(event.conversation, event.uid):
            self._emit(Typing(event.conversation, event.uid, False))
        if isinstance(event, GroupChanged) and self._sealing is not None:
            self._sealing.forget(event.conversation)
        for callback in self._callbacks:
            try:
                callback(event)
            except Exception:
                log.exception("a callback of the application failed")

    def _on_stored(self, entry: Entry) -> None:
        if entry.placed is not None:
            view = self._view(entry.lane.conversation)
            view.own(entry.placed, entry.content, entry.composed_ms, entry.refs, entry.encrypted)
            if self._sealing is not None and entry.encrypted:
                self._sealing.crypt.confirm(entry.lane.conversation, entry.content)

    def _on_news(self, conversation: str) -> None:
        """Positions were reached: the session is told with the next heartbeat."""
        self._to_ack[conversation] = None
        if self._liveness is not None:
            self._liveness.news(self._clock.now(), conversation not in self._calm)
            if self._background:  # else it looks every second anyway
                self._look_later()

    # ------------------------------------------------------------------------- connection

    def _answer(self) -> Answer | None:
        return self._link.answer

    def _side_connect(self) -> pb.Connect:
        answer = self._link.answer
        return pb.Connect(
            token=self._token.encode(),
            mode=pb.CONNECT_MODE_PULL_ONLY,
            network=self._network[0],
            client=self.options.client,
            placement=answer.placement if answer is not None else b"",
        )

    async def connect_request(self, gateway: Gateway) -> pb.Connect:
        epoch = await self._store.raise_epoch(self._clock.wall_ms())
        answer = self._link.answer
        return pb.Connect(
            token=self._token.encode(),
            connection_epoch=epoch,
            resume_token=self._resume_token,
            network=self._network[0],
            outbox=self._sender.outbox.heads(),
            client=self.options.client,
            moved_from=self._sender.moved_from(),
            placement=answer.placement if answer is not None else b"",
            packings=[pb.PACKING_ZLIB],
        )

    async def before_move(self) -> None:
        await self._sender.drain(self.options.move_drain_ms / 1000)

    def move_failed(self) -> None:
        self._sender.resume()

    def connected(self, session: Session) -> None:
        self._resume_token = session.ok.resume_token
        elsewhere = self._serving is not None and session.origin != self._serving
        if elsewhere or (self._serving is None and len(self._sender.outbox)):
            self._sender.moved()  # or the IDC that served this outbox before is not known
        self._serving = session.origin
        if elsewhere:
            for view in self._views.values():
                view.served_by_another()
        self._to_ack.update(self._acking)
        self._acking.clear()
        parameters = self._link.reconnect.parameters
        self._connected_by, self._silence_s = self._network, None
        self._liveness = Liveness(
            parameters.with_heartbeat(session.ok.heartbeat_ms), self._rng, self._clock.now()
        )
        self._puller.connected(session)
        self._look_later()
        self._spawn(self._catch_up(session, elsewhere))
        self._connection.set()
        if self._watched:
            self._spawn(self._watch_again())
        if self._sealing is not None:
            self._sealing.forget()
            self._spawn(self._publish(self._sealing, session))
        self._emit(ConnectionChanged(session.origin.idc, session.gateway.name, "connected"))

    async def _publish(self, sealing: Sealing, session: Session) -> None:
        while not await sealing.publish():
            await asyncio.wait([session.ended], timeout=_PUBLISH_AGAIN_S)
            if session is not self._link.session:
                return  # the next connection tries it

    async def _catch_up(self, session: Session, elsewhere: bool) -> None:
        """On another IDC its heads come first, so that sends claim only what it lacks."""
        if not elsewhere:
            self._sender.connected(session)
        try:
            if elsewhere:
                sync = asyncio.ensure_future(self._puller.sync(session))
                try:
                    await asyncio.wait([sync], timeout=self.options.sync_before_offer_ms / 1000)
                    if session is self._link.session and not session.ended.done():
                        self._sender.connected(session)
                    await sync
                finally:
                    sync.cancel()
            else:
                await self._puller.sync(session)
            await self._puller.settled()
            self._ready.set()
        except SessionLost:
            return  # the next connection catches up

    def disconnected(self, lost: Lost) -> Lost:
        self._stop_timer()
        if self._silence_s is not None and lost.reason in ("dead", "lost"):
            self._longest().lost(self._silence_s)
            lost = lost._replace(reason="forgotten")  # by the path: no gateway's fault
        self._liveness = None
        self._sender.disconnected()
        self._puller.disconnected()
        self._emit(ConnectionChanged("", "", f"the connection ended: {lost.reason}"))
        return lost

    def unwritable(self, error: StoreFailed) -> None:
        self._emit(ConnectionChanged("", "", f"not connected: {error}"))

    def stopped(self, error: SdkError) -> None:
        if self._stopped is None:
            self._stopped = error
        code = Code.UNAUTHENTICATED if isinstance(error, AuthError) else Code.UNAVAILABLE
        self._sender.fail_all(SendFailed(code, str(error), pending=True))
        self._ready.set()
        self._connection.set()
        self._emit(ConnectionChanged("", "", str(error)))

    # ------------------------------------------------------------------------------ events

    def _on_event(self, session: Session, event: pb.Event) -> None:
        if session is not self._link.session:
            return
        kind = event.WhichOneof("body")
        if kind == "push":
            push = event.push
            self._take_it_calmly(push.conversation, push.merged)
            view = self._view(push.conversation)
            view.entries(push.entries, True)
            if push.stable:
                view.offer_stable(push.stable)
            self._on_news(push.conversation)
            if view.received.hole():
                self._puller.want(push.conversation)
        elif kind == "replicated":
            self._sender.replicated(event.replicated)
        elif kind == "signal":
            self._puller.signal(event.signal)
            # It may name what is here already: only an ack ends its being named again.
            self._on_news(event.signal.conversation)
        elif kind == "behind":
            for told in event.behind.conversations:
                self._take_it_calmly(told.conversation, True)
            self._puller.heads_within(event.behind.conversations, event.behind.within_ms)
        elif kind == "cursor_moved":
            moved = event.cursor_moved
            view, place = self._view(moved.conversation), place_of(moved.place)
            if view.read(moved.uid, place):
                key = view.at_or_below(place)
                text = key_text(key) if key is not None else None
                self._emit(CursorMoved(moved.conversation, moved.uid, text))
        elif kind == "move":
            self._link.move(session, event.move)
        elif kind == "typing":
            self._typed(event.typing)
        elif kind == "friend":
            self._emit(changed_friend(event.friend))
        elif kind == "missed":
            if self._watched:
                self._spawn(self._watch_again())
            self._emit(Missed("the service could not tell this device everything for a while"))
        elif kind == "presence":
            for presence in _presences(event.presence.users):
                self._emit(presence)

    def _take_it_calmly(self, conversation: str, calm: bool) -> None:
        if calm:
            self._calm.add(conversation)
        else:
            self._calm.discard(conversation)

    def _typed(self, typing: pb.Typing) -> None:
        expires = self._clock.now() + typing.lives_ms / 1000
        if self._typing_seen.heard(typing.conversation, typing.uid, expires):
            self._emit(Typing(typing.conversation, typing.uid, True))
        self._typing_later()

    def _typing_later(self) -> None:
        if self._typing_timer is None and (due := self._typing_seen.next_end()) is not None:
            delay_s = max(0.0, due - self._clock.now())
            self._typing_timer = asyncio.get_running_loop().call_later(delay_s, self._typing_over)

    def _typing_over(self) -> None:
        self._typing_timer = None
        for conversation, uid in self._typing_seen.ended(self._clock.now()):
            self._emit(Typing(conversation, uid, False))
        self._typing_later()

    # ---------------------------------------------------------------------------- liveness

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._stop_timer()
        if self._liveness is not None:
            delay_s = self._liveness.next_look(self._clock.now())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        liveness, session = self._liveness, self._link.session
        if liveness is None or session is None:
            return
        now = self._clock.now()
        due = liveness.due(now)
        if due is Due.DEAD:
            log.info("%s does not answer heartbeats", session.gateway.name)
            session.end(Lost("dead", session.lived_ms()))
            return
        if due is Due.HEARTBEAT:
            self._heartbeat(session, liveness, now)
            if self._background and self._sender.outbox.refresh():
                self._sender.pump()
            if self._watched and now - self._watched_at >= _WATCH_AGAIN_S:
                self._watched_at = now
                self._spawn(self._watch_again())
        elif due is Due.IDLE_PULL:
            liveness.pulled(now)
            if self._sender.outbox.refresh():
                self._sender.pump()
            if not self._puller.syncs(session):
                self._spawn(self._idle_pull(session))
        self._look_later()

    async def _idle_pull(self, session: Session) -> None:
        try:
            await self._puller.sync(session)
        except SessionLost:
            return

    def _longest(self) -> Longest:
        """Of the present network."""
        parameters = self._link.reconnect.parameters
        session = self._link.session
        told_ms = session.ok.heartbeat_ms if session is not None else 0
        least_s = parameters.with_heartbeat(told_ms).heartbeat_ms / 1000
        most_s = parameters.background_heartbeat_max_ms / 1000
        if self._link.by_quic:
            kind, name = self._network  # what the path does to UDP is another matter
            most_s = min(most_s, QUIET_MAX_S)
            return self._networks.of((f"{kind}/quic", name), least_s, most_s)
        return self._networks.of(self._network, least_s, most_s)

    def _heartbeat(self, session: Session, liveness: Liveness, now: float) -> None:
        # What was sent and not answered goes to the end: a heartbeat has room for so many acks,
        # and those that never went out must have their turn.
        self._to_ack.update(self._acking)
        self._acking.clear()
        request = pb.Request()
        request.heartbeat.SetInParent()
        room = HEARTBEAT_ACK_BYTES
        for conversation in list(self._to_ack):
            prefix = self._view(conversation).received.prefix
            ack = pb.ConversationHeads(conversation=conversation)
            fill_positions(ack.heads, prefix)
            room -= ack.ByteSize()
            if room < 0 and self._acking:
                break
            request.heartbeat.acks.append(ack)
            self._acking[conversation] = None
            del self._to_ack[conversation]
        quiet_s = self._longest().interval_s if self._background else None
        request.heartbeat.next_ms = round((quiet_s or 0.0) * 1000)
        liveness.quiet(quiet_s)
        # What the path does to a polled connection, or one made in another network, tells nothing.
        silent = self._background and not session.polling and self._connected_by == self._network
        asked_in = self._network
        silence_s = self._silence_s = now - session.traffic_at if silent else None
        liveness.sent(now, more=bool(self._to_ack))

        def answered(response: pb.Response | None) -> None:
            if response is None or session is not self._link.session:
                return
            sooner = liveness.answered()
            self._silence_s = None
            if asked_in == self._network:
                self._connected_by = asked_in  # it stands in this network too
                if not session.polling:
                    self._link.slowest.answered(self._clock.now() - now)
            if silence_s is not None and asked_in == self._network:
                self._longest().survived(silence_s)
            less = response.heartbeat_ok.next_ms < request.heartbeat.next_ms
            if less:
                self._longest().allow(response.heartbeat_ok.next_ms / 1000)
                liveness.within(self._clock.now(), self._longest().interval_s)
            # Acks: more than fitted. All of them not only when this one would have been overdue.
            if sooner or less or self._to_ack:
                self._look_later()
            if not response.HasField("error"):
                self._acking.clear()
                self._puller.heads(response.heartbeat_ok.behind)
                self._link.knows(response.heartbeat_ok.policy_epoch)
                self._puller.claim(session, self._clock.now())

        session.call(request, answered)


def _quic_dialer(tls: ssl.SSLContext) -> QuicDialer:
    """What it needs costs some megabytes, and is seldom wanted."""
    from services.sdk.quic import QuicDialer

    return QuicDialer(tls)


def _presences(rows: Iterable[pb.Presence]) -> tuple[Presence, ...]:
    return tuple(Presence(r.uid, tuple(r.online), r.last_seen_ms, r.unwatched) for r in rows)


def _refs(
    conversation: str,
    reply: str,
    mentions: Sequence[str],
    media: Sequence[MediaRef],
    sticker: str,
) -> bytes:
    """An encoded Refs, or nothing. Raises SendFailed."""
    if len(mentions) > MENTIONS_MAX or not all(map(valid_id, mentions)):
        message = f"a message mentions at most {MENTIONS_MAX} users, by uid"
        raise SendFailed(Code.BAD_REQUEST, message)
    if sticker and not is_sticker(sticker):
        raise SendFailed(Code.BAD_REQUEST, f"not the code of a sticker: {sticker!r}")
    if len(media) > MEDIA_MAX:
        raise SendFailed(Code.BAD_REQUEST, f"a message has at most {MEDIA_MAX} files")
    try:
        refs = pb.Refs(mentions=mentions, media=map(media_pb, media), sticker=sticker)
    except ValueError as error:
        raise SendFailed(Code.BAD_REQUEST, str(error)) from error
    if reply:
        try:
            refs.reply.CopyFrom(key_pb(parse_key(reply)))
        except ValueError as error:
            raise SendFailed(Code.BAD_REQUEST, f"not the key of a message: {reply!r}") from error
        if refs.reply.conversation != conversation:
            raise SendFailed(Code.BAD_REQUEST, "a message replies to one of the same conversation")
    return refs.SerializeToString(deterministic=True)


def _check(conversation: str, content: bytes, refs: bytes = b"") -> None:
    """Raises SendFailed for what no IDC could ever take: once in the outbox it would be offered
    after every connect, and might not even fit a message of the protocol."""
    if (size := len(content) + len(refs)) > CONTENT_BYTES_MAX:
        raise SendFailed(
            Code.TOO_LARGE, f"a message holds at most {CONTENT_BYTES_MAX} bytes, not {size}"
        )
    names = direct_members(conversation) or (conversation[2:],)
    if (len(names) != 2 and not is_group(conversation)) or not all(map(valid_id, names)):
        raise SendFailed(Code.BAD_REQUEST, "the conversation id is of no known form")


def _store(outbox: str | Path | Store | None) -> Store:
    if outbox is None or outbox == ":memory:":
        return MemoryStore()
    if isinstance(outbox, (str, Path)):
        return SqliteStore(outbox)
    return outbox


def _who(token: str) -> tuple[str, str]:
    """The uid and device that a token names; the service checks its signature. Raises AuthError;
    the message never repeats the token."""
    try:
        body = token.split(".")[0]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return str(claims["uid"]), str(claims["device"])
    except (ValueError, KeyError, TypeError) as error:
        raise AuthError("the token is not of the form CLAIMS.SIGNATURE") from error
