"""What messages of the load refer to: some answer the one that their device was shown last, and
name its sender, some have a sticker or a file. Wherever one is shown it refers to that."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

from imcore.media import MediaRef
from services.loadgen.ports import Listener
from services.sdk import Client, Event, Message
from services.sdk.core.view import parse_key
from services.sim.world import SimSession, World

REPLIES = 0.15  # of the messages
STICKERS = 0.05
RECENT = 32


class Referring:
    """``connect`` is that of the world. ``wrong``: what referred to something else. ``shown``: the
    files of messages that were shown lately."""

    def __init__(self, world: World) -> None:
        self.wrong: list[str] = []
        self.shown: deque[MediaRef] = deque(maxlen=RECENT)
        self._world = world
        self._files: dict[tuple[str, str], MediaRef] = {}  # uid and conversation: still to be sent
        self._sent: dict[MediaRef, str] = {}  # and by whom

    def connect(
        self, uid: str, device: str, address: str, listener: Listener, remember: bool
    ) -> SimSession:
        session = self._world.connect(uid, device, address, listener, remember)
        rng = random.Random(f"refs {self._world.seed} {session.owner.name}")
        session.refers = lambda conversation: self._refs(rng, session.client, conversation)
        session.client.on(self._shown)
        return session

    def attach(self, uid: str, conversation: str, ref: MediaRef) -> None:
        """To this user's next message in this conversation."""
        self._files[uid, conversation] = ref
        self._sent[ref] = uid

    def _shown(self, event: Event) -> None:
        if not isinstance(event, Message):
            return
        self.shown.extend(event.media)
        if not (
            event.sticker in ("", _sticker(event.uid))
            and bool(event.reply) == bool(event.mentions)
            and (not event.reply or parse_key(event.reply).conversation == event.conversation)
            and all(self._sent.get(ref) == event.uid for ref in event.media)
        ):
            self.wrong.append(f"refs: {event.key} came to be {event}")

    def _refs(self, rng: random.Random, client: Client, conversation: str) -> Mapping[str, Any]:
        """Of the next message."""
        if (file := self._files.pop((client.uid, conversation), None)) is not None:
            return {"media": (file,)}
        what = rng.random()
        if what < REPLIES and (shown := client.view(conversation)):
            return {"reply": shown[-1].key, "mentions": (shown[-1].uid,)}
        return {"sticker": _sticker(client.uid)} if what > 1 - STICKERS else {}


def _sticker(uid: str) -> str:
    """That this user's messages are sent with at times."""
    return f"of-{uid}"
