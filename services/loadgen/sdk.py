"""The load's port to a chat client, made of the SDK's public API."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from imcore.media import MediaRef
from services.loadgen.ports import Acked, Listener, Standing, Stood
from services.loadgen.standing import standing
from services.sdk import (
    Changed,
    Client,
    ConnectionChanged,
    CursorMoved,
    Event,
    IpconfClient,
    Message,
    Moved,
    Options,
    Summary,
)

HISTORY_PAGE = 500


class SdkSession:
    """One application on one device, by one SDK client."""

    def __init__(self, client: Client, listener: Listener) -> None:
        self._client = client
        self._listener = listener
        self._listed: Sequence[Summary] | None = None  # what it was told last
        client.on(self._told)

    def _told(self, event: Event) -> None:
        listener = self._listener
        if isinstance(event, Message):
            conversation, key, uid, _, content, index, late, *_ = event
            listener.shown(conversation, key, uid, content, index, late)
        elif isinstance(event, Moved):
            listener.moved(*event)
        elif isinstance(event, Changed):
            listener.changed(*event[:5])
        elif isinstance(event, ConnectionChanged):
            listener.connection(event.idc, event.gateway)
        elif isinstance(event, CursorMoved) and event.key is not None:
            listener.cursor(event.conversation, event.key, event.uid)

    @property
    def idc(self) -> str:
        return self._client.state.idc

    async def open(self) -> None:
        await self._client.__aenter__()

    async def close(self) -> None:
        await self._client.close()

    def direct(self, uid: str) -> str:
        return self._client.direct(uid)

    async def create_group(self, uids: Sequence[str], name: str) -> str:
        return await self._client.create_group(uids, name)

    async def members(self, conversation: str) -> Sequence[str]:
        return await self._client.members(conversation)

    async def send(
        self,
        conversation: str,
        content: bytes,
        *,
        reply: str = "",
        mentions: Sequence[str] = (),
        media: Sequence[MediaRef] = (),
        sticker: str = "",
    ) -> Acked:
        sent = await self._client.send(
            conversation, content, reply=reply, mentions=mentions, media=media, sticker=sticker
        )
        return Acked("degraded" if sent.degraded else "stored", sent.place)

    async def read_up_to(self, conversation: str, key: str) -> None:
        await self._client.cursor(conversation, key)

    async def unread(self) -> dict[str, int]:
        found = self._listed = await self._client.conversation_list()
        return {row.conversation: row.unread for row in found if not row.more_unread}

    async def history(self, conversation: str) -> list[Stood]:
        while await self._client.sync_history(conversation, HISTORY_PAGE):
            pass
        await self._client.settled()
        client = self._client
        shown = [message.key for message in client.view(conversation)]
        return [Stood(*client.changes(conversation, key)[1:5]) for key in shown]

    async def standing(self, words: Sequence[tuple[str, str]]) -> list[Standing]:
        return await standing(self._client, words, self._listed)


class SdkClients:
    """Makes sessions of one region, which share what can be shared. ``token``: of (uid, device).
    ``outboxes``: a folder for their files; None keeps outboxes in memory."""

    def __init__(
        self,
        ipconf: Sequence[str],
        ca_file: Path,
        token: Callable[[str, str], str],
        rng: random.Random,
        outboxes: Path | None = None,
        options: Options | None = None,
    ) -> None:
        self._ipconf = IpconfClient(ipconf, ca_file, rng)
        self._token = token
        self._rng = rng
        self._outboxes = outboxes
        self._options = options or Options(client="loadgen/1")

    def __call__(
        self, uid: str, device: str, address: str, listener: Listener, remember: bool
    ) -> SdkSession:
        outbox = None
        if remember and self._outboxes is not None:
            outbox = self._outboxes / f"{uid}.{device}.db"
        client = Client(
            token=self._token(uid, device),
            ipconf=self._ipconf,
            outbox=outbox,
            options=self._options,
            rng=random.Random(self._rng.getrandbits(64)),
            forwarded_for=address,
        )
        return SdkSession(client, listener)

    async def close(self) -> None:
        await self._ipconf.close()
