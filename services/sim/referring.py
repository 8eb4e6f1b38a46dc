"""What messages of the load refer to: some answer the one that their device was shown last, and
name its sender, some have a sticker. Wherever one is shown it refers to that."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from services.loadgen.ports import Listener
from services.sdk import Client, Event, Message
from services.sdk.core.view import parse_key
from services.sim.world import SimSession, World

REPLIES = 0.15  # of the messages
STICKERS = 0.05


class Referring:
    """``connect`` is that of the world. ``wrong``: what referred to something else."""

    def __init__(self, world: World) -> None:
        self.wrong: list[str] = []
        self._world = world

    def connect(
        self, uid: str, device: str, address: str, listener: Listener, remember: bool
    ) -> SimSession:
        session = self._world.connect(uid, device, address, listener, remember)
        rng = random.Random(f"refs {self._world.seed} {session.owner.name}")
        session.refers = lambda conversation: _refs(rng, session.client, conversation)
        session.client.on(self._shown)
        return session

    def _shown(self, event: Event) -> None:
        if isinstance(event, Message) and not (
            event.sticker in ("", _sticker(event.uid))
            and bool(event.reply) == bool(event.mentions)
            and (not event.reply or parse_key(event.reply).conversation == event.conversation)
        ):
            self.wrong.append(f"refs: {event.key} came to be {event}")


def _refs(
    rng: random.Random, client: Client, conversation: str
) -> Mapping[str, str | Sequence[str]]:
    """Of the next message."""
    what = rng.random()
    if what < REPLIES and (shown := client.view(conversation)):
        return {"reply": shown[-1].key, "mentions": (shown[-1].uid,)}
    return {"sticker": _sticker(client.uid)} if what > 1 - STICKERS else {}


def _sticker(uid: str) -> str:
    """That this user's messages are sent with at times."""
    return f"of-{uid}"
