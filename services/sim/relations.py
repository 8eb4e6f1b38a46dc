"""Friends, blocks, pins and mutes of a few users, while faults go on.

They are friends with each other and block each other: the load sends nothing in the direct
conversations of theirs, so no block stands in its way. These users log in afresh in the end
anyway, so that what stands of their words is looked at.
"""

from __future__ import annotations

import contextlib

from imcore.errors import ImError
from services.loadgen.load import Load, Member
from services.loadgen.recorder import Recorder
from services.sim.busy import Busy, lookers

USERS = 4
LOOK_FIRST = 0.7  # how often an application looks at its user's friends before it says something
# By what the other is to a user: what that one says then.
FITTING = {
    "": ("request", "request", "request", "block"),
    "asked": ("request", "remove"),
    "asking": ("accept", "accept", "request", "decline"),
    "friend": ("remove", "block"),
    "blocked": ("unblock",),
}


class Relations(Busy):
    per_s = 0.8

    def __init__(self, load: Load, recorder: Recorder, seed: int) -> None:
        super().__init__(load, recorder, seed, "relations")
        users = self._rng.sample(lookers(load.population), USERS)
        one, two, three, four = users
        # Who says something to whom. Of two who both do it is seldom known what is to stand.
        self._said_to = [(one, two), (two, one), (one, three), (two, four), (three, four)]
        self._partners = {uid: pair for pair in load.population.pairs for uid in pair}
        self._users = users

    def words(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """What to look at, by whom."""
        found: dict[str, tuple[tuple[str, str], ...]] = {}
        for uid in self._users:
            friends = {b for a, b in self._said_to if a == uid}
            friends |= {a for a, b in self._said_to if b == uid}
            words = [("friend", other) for other in sorted(friends)]
            device = self._load.devices_of(uid)[0]
            words += [
                (kind, each) for each in self._conversations(device) for kind in ("pin", "mute")
            ]
            found[uid] = tuple(words)
        return found

    def _conversations(self, member: Member) -> list[str]:
        uid = member.client.uid
        [other] = set(self._partners[uid]) - {uid}
        return [member.session.direct(other), self._load.groups[0]]

    async def friend(self) -> None:
        uid, other = self._rng.choice(self._said_to)
        member = self._device_of(uid)
        if member is None:
            return
        client, state = self._session(member).client, self._rng.choice(list(FITTING))
        if self._rng.random() < LOOK_FIRST:
            with contextlib.suppress(ImError):  # then it says something all the same
                told = await self._session(member).there(client.friends())
                named = zip(("friend", "asked", "asking", "blocked"), told, strict=True)
                state = next((state for state, uids in named if other in uids), "")
        word = self._rng.choice(FITTING[state])
        request = {
            "request": client.request_friend,
            "accept": client.accept_friend,
            "decline": client.decline_friend,
            "remove": client.remove_friend,
        }
        work = request[word](other) if word in request else client.block(other, word == "block")
        await self._say(member, "friend", other, word, work)

    async def setting(self) -> None:
        member = self._device_of(self._rng.choice(self._users))
        if member is None:
            return
        client, kind = self._session(member).client, self._rng.choice(("pin", "mute"))
        conversation = self._rng.choice(self._conversations(member))
        on = self._rng.random() < 0.5
        change = client.pin if kind == "pin" else client.mute
        await self._say(member, kind, conversation, "on" if on else "off", change(conversation, on))


Relations.kinds = {
    "friend": (1.0, Relations.friend),
    "pin or mute": (1.0, Relations.setting),
}
