"""The shell around ``core.sealed``: whose keys are asked for and when, and in which order messages
are encrypted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from imcore.errors import Code
from imcore.media import MediaRef
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from imcore.words import ClientKey, direct_members
from services.sdk.core.sealed import IDENTITY_CHANGED, Crypt
from services.sdk.errors import NotConnected, RequestRefused, SdkError, SendFailed

log = logging.getLogger("im.sdk")

FRESH_S = 60.0  # so long the devices of a conversation are believed to be those that were named
AGAIN_S = 10.0  # so long the last ones are, where nobody says who there is
NO_KEYS = "no_keys"  # of a direct conversation: nobody could read the message
PLAIN_FILE = "plain_file"  # in an encrypted conversation
SEALED_FILE = "sealed_file"  # in one that is not


class _Known(NamedTuple):
    """What the service said of a conversation; ``devices`` None: that it is not encrypted."""

    at: float
    devices: list[pb.DeviceKeys] | None


class Sealing:
    """``ask``: a request of the client, which raises RequestRefused and NotConnected; ``stored()``
    returns once all rows that have changed are stored; ``connected()``: whether asking makes
    sense; ``stopped()``: why it never will again; ``order_once`` gives a request its
    place among those of this device."""

    def __init__(
        self,
        crypt: Crypt,
        clock: Clock,
        ask: Callable[[pb.Request], Awaitable[pb.Response]],
        stored: Callable[[], Awaitable[None]],
        connected: Callable[[], bool],
        stopped: Callable[[], SdkError | None],
        order_once: Callable[[pb.PublishKeys], None],
    ) -> None:
        self.crypt = crypt
        self._clock = clock
        self._ask = ask
        self._stored = stored
        self._connected = connected
        self._stopped = stopped
        self._order_once = order_once
        self._known: dict[str, _Known] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._published: pb.DeviceKeys | None = None
        self._publishing = asyncio.Lock()

    # ----------------------------------------------------------------------------- own keys

    @property
    def published(self) -> bool:
        return self._published is not None

    async def publish(self) -> bool:
        """The keys of this device, as they are now. False: they are not published yet."""
        async with self._publishing:
            keys = self.crypt.own_keys(self._clock.wall_ms())
            if keys == self._published:
                return True
            request = pb.PublishKeys(keys=keys)
            self._order_once(request)
            try:
                await self._stored()  # or a server might have keys that this device has forgotten
                await self._ask(pb.Request(publish_keys=request))
                self._published = keys
            except SdkError as error:
                log.warning("the keys of this device are not published yet: %s", error)
                return False
            return True

    async def withdraw(self, uid: str, device: str) -> None:
        request = pb.PublishKeys(keys=pb.DeviceKeys(uid=uid, device=device))
        self._order_once(request)
        await self._ask(pb.Request(publish_keys=request))
        self._known.clear()

    # ------------------------------------------------------------------------- conversations

    def switched_on(self, conversation: str) -> None:
        if not self.crypt.encrypts(conversation):
            self.crypt.switched_on(conversation)
            self.forget(conversation)

    def came_encrypted(self, conversation: str, readable: bool) -> None:
        """Either of two may switch encryption on. In a group the service is asked: one member must
        not make the others encrypt for those who cannot read it."""
        if self.crypt.encrypts(conversation):
            return
        if readable and direct_members(conversation):
            self.switched_on(conversation)
        else:
            self.forget(conversation)

    async def encrypts(self, conversation: str) -> bool:
        """Asks the service where nothing is known. Raises RequestRefused, NotConnected."""
        if not self.crypt.encrypts(conversation) and conversation not in self._known:
            self._known[conversation] = await self._asked(conversation, False)
        return self.crypt.encrypts(conversation)

    def forget(self, conversation: str = "") -> None:
        """What the service said of it (none: of all of them) may not be so any more."""
        if conversation:
            self._known.pop(conversation, None)
        else:
            self._known.clear()

    @contextlib.asynccontextmanager
    async def turn(self, conversation: str) -> AsyncIterator[list[pb.DeviceKeys] | None]:
        """For one message at a time, in the order in which they were given: whom to encrypt it
        for; None: it goes as it is. Raises SendFailed."""
        lock = self._turns.setdefault(conversation, asyncio.Lock())
        async with lock:
            devices = await self._devices(conversation)
            if devices is None:
                yield None
                return
            yield self._recipients(conversation, devices)

    def seal(
        self,
        conversation: str,
        content: bytes,
        refs: bytes,
        recipients: Sequence[pb.DeviceKeys],
    ) -> bytes:
        """Raises SendFailed."""
        said = pb.Said(conversation=conversation, content=content, refs=refs)
        return self.crypt.seal(conversation, said, recipients, self._clock.wall_ms())

    async def seal_edit(self, key: ClientKey, change: pb.Change, device: str) -> None:
        """Once, so that it is the same edit whenever it is asked for again. Raises SendFailed."""
        async with self.turn(key.conversation) as recipients:
            if recipients is None:
                return
            said = pb.Said(conversation=key.conversation, content=change.edit)
            said.edits.CopyFrom(change.message.key)
            said.order.hlc, said.order.device = change.composed.hlc, device
            said.order.number = change.number
            change.edit = self.crypt.seal(key.conversation, said, recipients, self._clock.wall_ms())
            change.encrypted = True
        await self._stored()

    def _recipients(
        self, conversation: str, devices: Sequence[pb.DeviceKeys]
    ) -> list[pb.DeviceKeys]:
        found = self.crypt.recipients(conversation, devices)
        members = direct_members(conversation)
        for uid in members or ():
            named = [each for each in devices if each.uid == uid]
            if uid != self.crypt.uid and not any(each.uid == uid for each in found):
                code = IDENTITY_CHANGED if named else NO_KEYS
                raise SendFailed(code, f"{uid!r} has no device whose keys are known and trusted")
        return found

    async def _devices(self, conversation: str) -> list[pb.DeviceKeys] | None:
        while True:
            encrypts = self.crypt.encrypts(conversation)
            known = self._known.get(conversation)
            if known is not None and known.devices is None and not encrypts:
                return None  # until it is told otherwise
            if known is not None and known.devices is not None:
                if self._clock.now() - known.at < FRESH_S or not self._connected():
                    return known.devices
            elif encrypts and not self._connected():
                last = self.crypt.last_devices(conversation)
                if last is not None:
                    return last  # of before this client was started
            try:
                self._known[conversation] = await self._asked(conversation, encrypts)
            except RequestRefused as error:
                raise SendFailed(error.code, str(error)) from error
            except NotConnected as error:  # for as long as the client lives, as any send does
                if self._stopped() is not None:
                    raise SendFailed(Code.UNAVAILABLE, str(error)) from error
                # An IDC that does not have again what it had does not say who there is.
                last = self.crypt.last_devices(conversation) if encrypts else None
                if last is not None:
                    asked_anew = self._clock.now() - FRESH_S + AGAIN_S
                    self._known[conversation] = _Known(asked_anew, last)
                    return last

    async def _asked(self, conversation: str, encrypts: bool) -> _Known:
        begun, found = self._clock.now(), list[pb.DeviceKeys]()
        request = pb.DeviceKeysOf(conversation=conversation, wanted=encrypts)
        while True:
            answer = (await self._ask(pb.Request(device_keys=request))).device_keys_ok
            if answer.encrypted:
                self.crypt.switched_on(conversation)
            found.extend(answer.devices)
            if not answer.next:
                break
            request.after = answer.next
        return _Known(begun, found if encrypts or answer.encrypted else None)


def check_files(media: Sequence[MediaRef], encrypted: bool) -> None:
    """Raises SendFailed: what an encrypted message names is encrypted, and nothing else is, since
    the servers would be told its key."""
    if encrypted and not all(ref.secret for ref in media):
        message = "a file is not encrypted: upload it for this conversation"
        raise SendFailed(PLAIN_FILE, message)
    if not encrypted and any(ref.secret for ref in media):
        raise SendFailed(SEALED_FILE, "a server would be told the key of an encrypted file")
